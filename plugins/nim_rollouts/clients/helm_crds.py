"""An add-on's end: its CRDs go after their operator, and the operator goes only when none of its custom resources is
left: it has to let go of their finalizers. No chart is fetched for it: the CRDs that were applied carry a label."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nim_rollouts.clients.cluster import Cluster, Object
from nim_rollouts.clients.helm import Helm
from nim_rollouts.clients.resources import Ref
from nim_rollouts.core.addons import ADDON_LABEL, Addon
from nim_rollouts.core.errors import LeftoversFound
from nim_rollouts.core.manifests import MANAGED_BY, MANAGER

CRD_API, CRD = "apiextensions.k8s.io/v1", "CustomResourceDefinition"
# Helm marks every object of a release with both.
_RELEASE, _RELEASE_NAMESPACE = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"
_LOOK_S = 0.5
_SHOWN = 10


def definitions(cluster: Cluster, addon: Addon) -> list[Object]:
    """The add-on's CRDs that the cluster has: those that it requires, and all that were applied with it, by name."""
    required = (cluster.get(CRD_API, CRD, None, name) for name in addon.requires.crds)
    found = [one for one in required if one is not None]
    found += cluster.list(CRD_API, CRD, label_selector=f"{ADDON_LABEL}={addon.label}")
    by_name = {one["metadata"]["name"]: one for one in found}
    return [by_name[name] for name in sorted(by_name)]


def resources(cluster: Cluster, found: list[Object]) -> list[Object]:
    """Every custom resource of these kinds."""
    there: list[Object] = []
    for definition in found:
        spec = definition["spec"]
        version = next((one["name"] for one in spec["versions"] if one.get("served")), None)
        if version is not None:  # else nobody can see what is stored under it
            there += cluster.list(f"{spec['group']}/{version}", spec["names"]["kind"])
    return there


def is_released(obj: Object, addon: Addon) -> bool:
    """True for an object that Helm made as a part of this release, and takes away with it."""
    marks = obj["metadata"].get("annotations") or {}
    return (marks.get(_RELEASE), marks.get(_RELEASE_NAMESPACE)) == (addon.name, addon.namespace)


def ours_to_remove(found: list[Object], addon: Addon, *, uninstalled: bool) -> list[Object]:
    """Of these CRDs those that go with the release: all, where it was there; else, after an earlier try or where it
    never was installed, only those that carry its mark. What somebody else has installed stays."""
    return [
        one
        for one in found
        if uninstalled
        or (one["metadata"].get("labels") or {}).get(ADDON_LABEL) == addon.label
        or is_released(one, addon)
    ]


def goes_with(obj: Object, addon: Addon) -> bool:
    """True for what the release brings along, and for what its programs have made and nobody has to let go of."""
    metadata = obj["metadata"]
    return is_released(obj, addon) or bool(metadata.get("ownerReferences") and not metadata.get("finalizers"))


def in_use(cluster: Cluster, addon: Addon, found: list[Object]) -> list[str]:
    """The custom resources that still need their operator, as `Kind/name in namespace`."""
    return [_text(one) for one in resources(cluster, found) if not goes_with(one, addon)]


def refuse_in_use(cluster: Cluster, addon: Addon, found: list[Object]) -> None:
    """Nothing, if no custom resource of these kinds needs its operator any more.

    :raises LeftoversFound: naming them
    """
    left = in_use(cluster, addon, found)
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise LeftoversFound(
            f"the operator of add-on {addon.name} is still needed by {', '.join(left[:_SHOWN])}{more}",
            hint="Delete them while it runs, for it has to let go of their finalizers (where it is gone already, "
            "install the add-on again), then clear this task",
        )


def remove(
    cluster: Cluster,
    helm: Helm,
    addon: Addon,
    *,
    wait_s: float = 120,
    gone: Callable[[list[Object]], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The one order in which an add-on ends: refused while custom resources are left; the release; the Secrets that we
    filled; its CRDs, once what went with the release has gone, for a CRD takes all that is left of its kind with it,
    whosever it is. What is gone already is no error.

    :param gone: waits until these objects are gone; None: looks every half second, at most `wait_s`
    :param check: raises when nothing may be deleted any more; asked before each of the two steps that cannot be undone
    :returns: `uninstalled` and the `crds` that were removed
    :raises LeftoversFound: custom resources are left; or an object has not gone within `wait_s`
    """
    gone = gone or (lambda objects: _wait_gone(cluster, objects, wait_s))
    found = definitions(cluster, addon)
    refuse_in_use(cluster, addon, found)
    check()
    uninstalled = helm.uninstall(addon, wait_s=wait_s)
    remove_secrets(cluster, addon)
    found = ours_to_remove(found, addon, uninstalled=uninstalled)
    gone([one for one in resources(cluster, found) if goes_with(one, addon) and _is_going(one)])
    refuse_in_use(cluster, addon, found)  # one that came meanwhile would lose its kind, and with it its finalizer
    check()
    for one in found:
        cluster.delete(one, uid=one["metadata"]["uid"])
    gone(found)
    return {"uninstalled": uninstalled, "crds": [one["metadata"]["name"] for one in found]}


def remove_secrets(cluster: Cluster, addon: Addon) -> None:
    """The Secrets that were filled for the add-on; one of that name that somebody else made stays."""
    for secret in addon.secrets:
        live = cluster.get("v1", "Secret", addon.namespace, secret.name)
        if live is not None and (live["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER:
            cluster.delete(live, uid=live["metadata"]["uid"])


def _text(obj: Object) -> str:
    metadata = obj["metadata"]
    return f"{obj['kind']}/{metadata['name']} in {metadata.get('namespace')}"


def _wait_gone(cluster: Cluster, objects: list[Object], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while left := [one for one in objects if _is_there(cluster, one)]:
        if time.monotonic() > deadline:
            raise LeftoversFound(
                f"{Ref.of(left[0])} has not gone within {wait_s:.0f} s",
                hint="What is left of it waits for a finalizer: see that its operator runs, clear this task",
            )
        time.sleep(_LOOK_S)


def _is_going(obj: Object) -> bool:
    """Somebody removes it: its deletion is ordered, or the garbage collector follows its owner. What else is left of a
    release, Helm was told to keep: nobody would ever come for it, and its CRD takes it along."""
    return bool(obj["metadata"].get("deletionTimestamp") or obj["metadata"].get("ownerReferences"))


def _is_there(cluster: Cluster, obj: Object) -> bool:
    ref = Ref.of(obj)
    live = cluster.get(ref.api_version, ref.kind, ref.namespace, ref.name)
    return live is not None and live["metadata"]["uid"] == obj["metadata"]["uid"]
