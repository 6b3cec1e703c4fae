"""Whether the images of GPU node pools are what the environment says that its GPU nodes run. Pure.

Who brings NVIDIA's device plugin hangs on it: Bottlerocket's images do, Amazon Linux's leave it to an add-on. Said
wrongly, each GPU is given out twice, or never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nim_rollouts.core.errors import SpecError
from nim_rollouts.core.instances import GPU, may_have_gpus
from nim_rollouts.core.requirements import FAMILY, TYPE, listed

_BRINGS_PLUGIN = {"bottlerocket": True, "al2023": False, "al2": False}


def differing(node_os: str, pools: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[SpecError]:
    """One error for each file whose GPU nodes start from images of another kind.

    :param pools: (file, its EC2NodeClass and NodePool)
    """
    found = []
    for file, documents in pools:
        classes = {one["metadata"]["name"]: one for one in documents if one.get("kind") == "EC2NodeClass"}
        for pool in (one for one in documents if one.get("kind") == "NodePool"):
            named = (_spec(pool).get("nodeClassRef") or {}).get("name")
            images = _images(classes.get(named) or {}) if _starts_gpus(pool) else []
            wrong = [one for one in images if _plugin(one) not in (None, _BRINGS_PLUGIN[node_os])]
            if wrong:
                found.append(_error(node_os, file, wrong[0]))
    return found


def _error(node_os: str, file: str, image: str) -> SpecError:
    follows = (
        "their image carries the device plugin already, and an add-on would install a second one"
        if _plugin(image)
        else "their image carries no device plugin, and no add-on would bring it"
    )
    return SpecError(
        f"node_os is {node_os}, but {file} starts GPU nodes from {image}: {follows}",
        hint="Correct node_os, or name node pools of these images in node_pools (docs/node-pools.md)",
        reason="node-os-differs",
    )


def _spec(pool: Mapping[str, Any]) -> Mapping[str, Any]:
    return ((pool.get("spec") or {}).get("template") or {}).get("spec") or {}


def _starts_gpus(pool: Mapping[str, Any]) -> bool:
    """By its taint, or by the families or types that it names: one that names none is for anything."""
    spec = _spec(pool)
    if any(one.get("key") == GPU for one in spec.get("taints") or ()):
        return True
    requirements = list(spec.get("requirements") or ())
    named = [one for key in (TYPE, FAMILY) for one in listed(key, requirements) or ()]
    return any(may_have_gpus(one) for one in named)


def _images(node_class: Mapping[str, Any]) -> list[str]:
    """What its nodes start from, as far as that says which kind of image it is: aliases, and the AMI family."""
    spec = node_class.get("spec") or {}
    aliases = [str(one["alias"]) for one in spec.get("amiSelectorTerms") or () if one.get("alias")]
    return aliases or ([str(spec["amiFamily"])] if spec.get("amiFamily") else [])


def _plugin(image: str) -> bool | None:
    """Whether an image brings the device plugin; None for one of which that is not known, such as your own."""
    return _BRINGS_PLUGIN.get(image.partition("@")[0].lower())
