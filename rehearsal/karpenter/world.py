"""The controller's view of the cluster: caches of all it reads, and writing so that the next look already sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from rehearsal.config import Rehearsal
from rehearsal.karpenter.catalogue import Catalogue
from rehearsal.karpenter.cloud import Cloud
from rehearsal.kube import Conflict, Kube, NotFound, Obj, key_of, now_rfc3339, path

COMPONENT = "karpenter"
TERMINATION = "karpenter.sh/termination"
DISRUPTED = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
KEEP_ANNOTATION = "karpenter.sh/do-not-disrupt"

_PATHS = {
    "Pod": "/api/v1/pods",
    "Node": "/api/v1/nodes",
    "DaemonSet": "/apis/apps/v1/daemonsets",
    "NodePool": "/apis/karpenter.sh/v1/nodepools",
    "NodeClaim": "/apis/karpenter.sh/v1/nodeclaims",
    "EC2NodeClass": "/apis/karpenter.k8s.aws/v1/ec2nodeclasses",
}


class World:
    """Everything that the controller's steps share."""

    def __init__(self, r: Rehearsal, kube: Kube, cloud: Cloud, catalogue: Catalogue):
        self.r, self.kube, self.cloud, self.catalogue = r, kube, cloud, catalogue
        self.caches = {kind: kube.cache(where) for kind, where in _PATHS.items()}
        self.woken = asyncio.Event()
        for cache in self.caches.values():
            cache.subscribe(lambda *_: self.woken.set())

    def all(self, kind: str) -> list[Obj]:
        return list(self.caches[kind].items.values())

    def get(self, kind: str, name: str) -> Obj | None:
        """A cluster-scoped object by its name."""
        return self.caches[kind].items.get(("", name))

    def node_of(self, claim: Obj) -> Obj | None:
        """The Node that runs on a claim's instance."""
        provider_id = (claim.get("status") or {}).get("providerID")
        nodes = (node for node in self.all("Node") if provider_id and node["spec"].get("providerID") == provider_id)
        return next(nodes, None)

    def claim_of(self, node: Obj) -> Obj | None:
        provider_id = node["spec"].get("providerID")
        claims = self.all("NodeClaim")
        same = (one for one in claims if provider_id and (one.get("status") or {}).get("providerID") == provider_id)
        return next(same, None)

    async def create(self, kind: str, obj: Obj) -> Obj:
        created = await self.kube.create(_PATHS[kind], obj)
        # Known at once, not first when the watch brings it: else the next round would make another one.
        return self.caches[kind].items.setdefault(key_of(created), created)

    async def patch(
        self, obj: Obj, patch: Mapping[str, Any], *, status: bool = False, pinned: bool = False
    ) -> Obj | None:
        """A merge patch; None when the object is gone.

        :param pinned: only if nobody has changed it meanwhile (for lists, which a merge patch replaces)
        """
        if pinned:
            version = obj["metadata"]["resourceVersion"]
            patch = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": version}}
        try:
            patched = await self.kube.patch(path(obj, "status" if status else None), patch)
        except NotFound:
            return None
        except Conflict:
            self.woken.set()
            return None
        known = self.caches[obj["kind"]].items
        if key_of(patched) in known:
            known[key_of(patched)] = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], **patched}
        return patched

    async def add_finalizer(self, obj: Obj, name: str) -> None:
        held = obj["metadata"].get("finalizers") or []
        if name not in held and not obj["metadata"].get("deletionTimestamp"):
            await self.patch(obj, {"metadata": {"finalizers": [*held, name]}}, pinned=True)

    async def remove_finalizer(self, obj: Obj, name: str) -> None:
        held = obj["metadata"].get("finalizers") or []
        if name in held:
            await self.patch(obj, {"metadata": {"finalizers": [one for one in held if one != name]}}, pinned=True)

    async def event(self, obj: Obj, reason: str, message: str, type_: str = "Normal") -> None:
        await self.kube.event(obj, type_=type_, reason=reason, message=message, component=COMPONENT)


def conditions(obj: Obj) -> dict[str, Obj]:
    return {one["type"]: one for one in (obj.get("status") or {}).get("conditions") or []}


def is_true(obj: Obj, type_: str) -> bool:
    return bool(conditions(obj).get(type_, {}).get("status") == "True")


def merged(obj: Obj, changes: Iterable[tuple[str, str, str, str]]) -> list[Obj] | None:
    """The object's conditions with (type, status, reason, message) put in; None when nothing changes by it. Times
    change with the status alone."""
    before = conditions(obj)
    after = dict(before)
    generation = obj["metadata"].get("generation", 1)
    for type_, status, reason, message in changes:
        old = before.get(type_, {})
        moved = old["lastTransitionTime"] if old.get("status") == status else now_rfc3339()
        after[type_] = {"type": type_, "status": status, "reason": reason, "message": message,
                        "lastTransitionTime": moved, "observedGeneration": generation}  # fmt: skip
    return list(after.values()) if after != before else None


def ready(parts: Iterable[tuple[str, str, str, str]]) -> tuple[str, str, str, str]:
    """The Ready condition that follows from the others."""
    wrong = [type_ for type_, status, _, _ in parts if status == "False"]
    unknown = [type_ for type_, status, _, _ in parts if status == "Unknown"]
    if wrong:
        return ("Ready", "False", "UnhealthyDependents", ", ".join(f"{type_}=False" for type_ in wrong))
    if unknown:
        return ("Ready", "Unknown", "ReconcilingDependents", ", ".join(f"{type_}=Unknown" for type_ in unknown))
    return ("Ready", "True", "Ready", "")


def good(type_: str) -> tuple[str, str, str, str]:
    return (type_, "True", type_, "")


def seconds(duration: str | None) -> float | None:
    """A duration such as `1h30m`; None for `Never` and for nothing."""
    if not duration or duration == "Never":
        return None
    amount, whole = "", 0.0
    for char in duration:
        if char.isdigit() or char == ".":
            amount += char
        else:
            whole += float(amount) * {"s": 1, "m": 60, "h": 3600}[char]
            amount = ""
    return whole
