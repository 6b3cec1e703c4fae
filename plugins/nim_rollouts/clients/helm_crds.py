"""The CRDs of an add-on: which are there, what still lives under them, and their end. They go after their operator,
and the operator goes only when none of its custom resources is left: it has to let go of their finalizers."""

from __future__ import annotations

import time
from typing import Any

from nim_rollouts.clients.cluster import Cluster, Object
from nim_rollouts.clients.helm import Helm
from nim_rollouts.clients.resources import Ref
from nim_rollouts.core.addons import Addon
from nim_rollouts.core.errors import LeftoversFound

CRD_API, CRD = "apiextensions.k8s.io/v1", "CustomResourceDefinition"
_LOOK_S = 0.5
_SHOWN = 10


def definitions(cluster: Cluster, helm: Helm, addon: Addon) -> list[Object]:
    """The add-on's CRDs that the cluster has: those that it requires, and all of its chart's crds/ folder.

    :raises HelmFailed, HelmUnavailable: the chart cannot be fetched
    """
    names = {*addon.requires.crds, *(one["metadata"]["name"] for one in helm.crds(addon))}
    found = (cluster.get(CRD_API, CRD, None, name) for name in sorted(names))
    return [one for one in found if one is not None]


def in_use(cluster: Cluster, found: list[Object]) -> list[str]:
    """The custom resources that are left, as `Kind namespace/name`."""
    left = []
    for definition in found:
        spec = definition["spec"]
        version = next((one["name"] for one in spec["versions"] if one.get("served")), None)
        if version is None:
            continue  # nobody can see what is stored under it
        kind = spec["names"]["kind"]
        for one in cluster.list(f"{spec['group']}/{version}", kind):
            namespace = one["metadata"].get("namespace")
            left.append(f"{kind} {f'{namespace}/' if namespace else ''}{one['metadata']['name']}")
    return left


def refuse_in_use(cluster: Cluster, addon: Addon, found: list[Object]) -> None:
    """Nothing, if no custom resource of these kinds is left.

    :raises LeftoversFound: naming them
    """
    left = in_use(cluster, found)
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise LeftoversFound(
            f"the add-on {addon.name} is not removed, custom resources are left: {', '.join(left[:_SHOWN])}{more}",
            hint="Delete them while the operator runs (it has to let go of its finalizers), then clear this task",
        )


def remove(cluster: Cluster, helm: Helm, addon: Addon, *, wait_s: float = 120) -> dict[str, Any]:
    """The add-on's end, in order: refused while custom resources are left; the release; its CRDs. Again: nothing.

    :returns: `uninstalled` and the `crds` that were removed
    :raises LeftoversFound: custom resources are left; or a CRD has not gone within `wait_s`
    """
    found = definitions(cluster, helm, addon)
    refuse_in_use(cluster, addon, found)
    uninstalled = helm.uninstall(addon, wait_s=wait_s)
    refuse_in_use(cluster, addon, found)  # one that came meanwhile would lose its kind, and with it its finalizer
    for one in found:
        cluster.delete(one, uid=one["metadata"]["uid"])
    _wait_gone(cluster, [one["metadata"]["name"] for one in found], wait_s)
    return {"uninstalled": uninstalled, "crds": [one["metadata"]["name"] for one in found]}


def _wait_gone(cluster: Cluster, names: list[str], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while left := [name for name in names if cluster.get(CRD_API, CRD, None, name) is not None]:
        if time.monotonic() > deadline:
            raise LeftoversFound(
                f"{Ref(CRD_API, CRD, left[0])} has not gone within {wait_s:.0f} s",
                hint="Its last custom resources wait for a finalizer: see that the operator runs, clear this task",
            )
        time.sleep(_LOOK_S)
