"""Which profiles of an image's model manifest a NIMCache asks for.

A manifest of schema 1 is a mapping profile id -> {model, release, tags}; one of schema 2 has a `schema_version` with
a 2 in it and a list of profiles with an id and tags. The two have different rules (k8s-nim-operator,
internal/nimparser).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rehearsal.operator.api import Obj, ReconcileError

ALL = "all"


@dataclass(frozen=True)
class Profile:
    id: str
    tags: Mapping[str, str]
    model: str = ""
    release: str = ""

    def status(self) -> Obj:
        """The profile's entry in a NIMCache's status."""
        return {"name": self.id, "model": self.model, "release": self.release, "config": dict(self.tags)}


@dataclass(frozen=True)
class Manifest:
    schema: int
    profiles: tuple[Profile, ...]

    def get(self, id_: str) -> Profile | None:
        return next((profile for profile in self.profiles if profile.id == id_), None)

    def dump(self) -> str:
        """The trimmed text that the operator keeps: without the files that a profile consists of."""
        if self.schema == 2:
            entries = [{"id": profile.id, "tags": dict(profile.tags)} for profile in self.profiles]
            return yaml.safe_dump({"schema_version": "2.0", "profiles": entries}, sort_keys=False)
        return yaml.safe_dump(
            {p.id: {"model": p.model, "release": p.release, "tags": dict(p.tags)} for p in self.profiles},
            sort_keys=False,
        )


def parse(text: str) -> Manifest:
    """The manifest in a selection pod's log. Raises ReconcileError when there is none."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReconcileError(f"failed to parse the model manifest: {error}") from error
    if not isinstance(data, dict) or not data:
        raise ReconcileError("failed to parse the model manifest: it is empty or not a mapping")
    if "2" in str(data.get("schema_version", "")):
        entries = data.get("profiles") or []
        return Manifest(2, tuple(Profile(str(e["id"]), _texts(e.get("tags"))) for e in entries))
    profiles = []
    for id_, entry in data.items():
        if isinstance(entry, dict):
            model, release = str(entry.get("model", "")), str(entry.get("release", ""))
            profiles.append(Profile(str(id_), _texts(entry.get("tags")), model, release))
    return Manifest(1, tuple(profiles))


def _texts(tags: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in (tags or {}).items()}


def select(manifest: Manifest, model: Obj, node_gpus: Iterable[str]) -> list[str]:
    """The ids of the profiles that fit `source.ngc.model`, in the manifest's order.

    `node_gpus`: the values of the label nvidia.com/gpu.product of the cluster's nodes, asked when the spec names no
    GPU.
    """
    explicit = list(model.get("profiles") or [])
    if explicit:
        return explicit
    node_gpus = set(node_gpus)
    fits = _fits_v2 if manifest.schema == 2 else _fits_v1
    return [profile.id for profile in manifest.profiles if fits(profile.tags, model, node_gpus)]


def _fits_v1(tags: Mapping[str, str], model: Obj, node_gpus: set[str]) -> bool:
    wanted = (("precision", "precision"), ("tensorParallelism", "tp"), ("qosProfile", "profile"))
    if any(model.get(field) and model[field] != tags.get(tag) for field, tag in wanted):
        return False
    lora = tags.get("feat_lora", "")
    if "lora" not in model:
        if lora == "true":
            return False
    elif lora != str(model["lora"]).lower():
        return False
    engine = str(model.get("engine") or "").removesuffix("_llm")
    if engine and engine not in (tags.get("llm_engine") or tags.get("backend") or ""):
        return False
    gpus = model.get("gpus") or []
    if engine.startswith("tensorrt") or gpus:
        if "tensorrt" not in (tags.get("llm_engine") or tags.get("backend") or ""):
            return False
        return _gpu_fits(tags, gpus, node_gpus)
    return True


def _fits_v2(tags: Mapping[str, str], model: Obj, node_gpus: set[str]) -> bool:
    lowered = {key: value.lower() for key, value in tags.items()}
    wanted = (("precision", "precision"), ("tensorParallelism", "tp"), ("qosProfile", "profile"))
    if any(model.get(field) and str(model[field]).lower() != lowered.get(tag) for field, tag in wanted):
        return False
    for field, tag in (("lora", "feat_lora"), ("buildable", "trtllm_buildable")):
        if field in model and lowered.get(tag, "false") != str(model[field]).lower():
            return False
    engine = str(model.get("engine") or "").lower().removesuffix("_llm")
    if engine and engine not in (lowered.get("llm_engine") or lowered.get("backend") or ""):
        return False
    if lowered.get("gpu") or lowered.get("gpu_device"):
        # An engine can still be built from a buildable profile on a GPU for which there is none.
        return lowered.get("trtllm_buildable") == "true" or _gpu_fits(tags, model.get("gpus") or [], node_gpus)
    return True


def _gpu_fits(tags: Mapping[str, str], gpus: list[Obj], node_gpus: set[str]) -> bool:
    product, device = tags.get("gpu", "").lower(), tags.get("gpu_device", "").lower()
    if not gpus:
        # No GPU in the spec and none on a node: nothing to filter by.
        return not node_gpus or any(product and product in gpu.lower() for gpu in node_gpus)
    for gpu in gpus:
        name = str(gpu.get("product") or "").lower()
        if name and product and (product in name or name in product):
            return True
        if any(id_ and str(id_).lower() in device for id_ in gpu.get("ids") or []):
            return True
    return False
