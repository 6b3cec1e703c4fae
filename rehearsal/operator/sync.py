"""Reads from the operator's caches and writes to the API server.

Reads may be stale, as the real operator's are: a decision can rest on an object that has changed meanwhile.
"""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

from rehearsal.kube import ApiError, Conflict, Kube, NotFound, path, path_of
from rehearsal.operator.api import APPLIED_HASH, FIELD_MANAGER, GROUP_VERSION, PARENT_HASH, Obj, ReconcileError

SETTLE_S = 0.05
_ALPHABET = b"bcdfghjklmnpqrstvwxz2456789"


def spec_hash(value: Any) -> str:
    """FNV-1a of the value, written in the alphabet of Kubernetes' generated names (up to 10 characters)."""
    result = 0x811C9DC5
    for byte in json.dumps(value, sort_keys=True, separators=(",", ":")).encode():
        result = ((result ^ byte) * 0x01000193) & 0xFFFFFFFF
    return "".join(chr(_ALPHABET[digit % len(_ALPHABET)]) for digit in str(result).encode())


class Client:
    """Cached reads, direct writes."""

    WATCHED = (
        (GROUP_VERSION, "NIMCache", None),
        (GROUP_VERSION, "NIMService", None),
        (GROUP_VERSION, "NIMPipeline", None),
        # Pods and Jobs are held only if they carry the operator's label: others it never sees.
        ("v1", "Pod", "app.kubernetes.io/managed-by=k8s-nim-operator"),
        ("batch/v1", "Job", "app.kubernetes.io/managed-by=k8s-nim-operator"),
        ("v1", "PersistentVolumeClaim", None),
        ("v1", "ConfigMap", None),
        ("v1", "Node", None),
        ("v1", "Service", None),
        ("v1", "ServiceAccount", None),
        ("rbac.authorization.k8s.io/v1", "Role", None),
        ("rbac.authorization.k8s.io/v1", "RoleBinding", None),
        ("apps/v1", "Deployment", None),
        ("autoscaling/v2", "HorizontalPodAutoscaler", None),
        ("networking.k8s.io/v1", "Ingress", None),
    )

    def __init__(self, kube: Kube):
        self.kube = kube
        self.caches = {
            kind: kube.cache(path_of(version, kind), label_selector=label) for version, kind, label in self.WATCHED
        }
        self._written: dict[tuple[str, str, str], int] = {}
        self._versions = {kind: version for version, kind, _ in self.WATCHED}

    def get(self, kind: str, namespace: str, name: str) -> Obj | None:
        """A copy of the cached object; watch events lack nothing, but a list's items get kind and version here."""
        found = self.caches[kind].items.get((namespace, name))
        if found is None:
            return None
        return {"apiVersion": self._versions[kind], "kind": kind, **copy.deepcopy(found)}

    def all(self, kind: str) -> list[Obj]:
        """The cached objects themselves: not to be changed."""
        return list(self.caches[kind].items.values())

    async def create(self, obj: Obj) -> Obj:
        meta = obj["metadata"]
        where = path_of(obj["apiVersion"], obj["kind"], meta.get("namespace"))
        try:
            return self._wrote(await self.kube.create(where, obj, fieldManager=FIELD_MANAGER))
        except NotFound as error:
            # A path that the API server does not know has no reason; a namespace that is not there has one.
            if not error.reason or "the server could not find the requested resource" in error.message:
                group, _, version = obj["apiVersion"].rpartition("/")
                raise ReconcileError(f'no matches for kind "{obj["kind"]}" in version "{group}/{version}"') from error
            raise

    async def create_missing(self, obj: Obj) -> None:
        """Create unless the cache or, the cache being late, the API server has one of this name."""
        meta = obj["metadata"]
        if self.get(obj["kind"], meta["namespace"], meta["name"]) is None:
            try:
                await self.create(obj)
            except Conflict:
                return

    async def update(self, obj: Obj) -> Obj:
        return self._wrote(await self.kube.replace(path(obj), obj, fieldManager=FIELD_MANAGER))

    async def update_status(self, obj: Obj) -> None:
        """Write this status over whatever status the object has now, also over a newer one than was read when the
        reconcile began: so a condition that was set meanwhile is lost. An object that has gone meanwhile is no
        error."""
        meta = obj["metadata"]
        live = self.get(obj["kind"], meta["namespace"], meta["name"])
        if live is None:
            return
        try:
            await self._put_status(live, obj["status"])
        except Conflict:
            fresh = await self._live(obj)
            if fresh is not None:
                await self._put_status(fresh, obj["status"])
        except NotFound:
            return

    async def _put_status(self, live: Obj, status: Obj) -> None:
        live["status"] = status
        self._wrote(await self.kube.replace(path(live, "status"), live, fieldManager=FIELD_MANAGER))

    def _wrote(self, obj: Obj) -> Obj:
        meta = obj["metadata"]
        if obj["kind"] in self.caches and not meta.get("deletionTimestamp"):
            self._written[obj["kind"], meta["namespace"], meta["name"]] = int(meta["resourceVersion"])
        return obj

    async def settle(self) -> None:
        """Between two reconciles: give the caches a moment to learn of the writes of the last one. Within a
        reconcile, and where this moment is not enough, an object that was just written is read as it was before, or
        is not found."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_S
        written, self._written = self._written, {}
        for (kind, namespace, name), version in written.items():
            while (left := deadline - loop.time()) > 0:
                cached = self.caches[kind].items.get((namespace, name))
                if cached is not None and int(cached["metadata"]["resourceVersion"]) >= version:
                    break
                await self.caches[kind].wait_change(left)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        try:
            await self.kube.delete(path_of(self._versions[kind], kind, namespace, name))
        except NotFound:
            return

    async def sync(self, obj: Obj, parent_hash: str) -> None:
        """Create a child, or replace it when it would be rendered differently from when it was last written."""
        meta = obj["metadata"]
        applied = spec_hash({key: value for key, value in obj.items() if key != "metadata"} | {"m": meta})
        meta.setdefault("annotations", {}).update({PARENT_HASH: parent_hash, APPLIED_HASH: applied})
        live = self.get(obj["kind"], meta["namespace"], meta["name"]) if obj["kind"] in self.caches else None
        if obj["kind"] not in self.caches:
            live = await self._live(obj)
        if live is None:
            await self.create(obj)
        elif (live["metadata"].get("annotations") or {}).get(APPLIED_HASH) != applied:
            meta["resourceVersion"] = live["metadata"]["resourceVersion"]
            await self.update(obj)

    async def _live(self, obj: Obj) -> Obj | None:
        try:
            return await self.kube.get(path(obj))
        except NotFound:
            return None


def message_of(error: Exception) -> str:
    """What the real operator would put into a condition."""
    return error.message if isinstance(error, ApiError) else str(error)
