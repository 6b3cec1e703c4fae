"""Makes a pod reachable through the API server: KWOK's Logs, PortForward and Exec objects of the pod's name.

They are owned by the pod, so the garbage collector removes them should the runner be away when the pod goes.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from rehearsal.config import Rehearsal
from rehearsal.kube import ApiError, Kube, NotFound, Obj, path_of

log = logging.getLogger(__name__)

API = "kwok.x-k8s.io/v1alpha1"
KINDS = ("Logs", "PortForward", "Exec")


def specs(
    r: Rehearsal, containers: list[tuple[str, Path, Path | None, Path]], address: str, ports: set[int]
) -> dict[str, Obj]:
    """The three specs. A container is (name, log file, previous log file, file with the pid of its init)."""
    logs: list[Obj] = []
    execs: list[Obj] = []
    for name, file, previous, pid in containers:
        entry: Obj = {"containers": [name], "logsFile": str(file), "follow": False}
        if previous is not None:
            entry["previousLogsFile"] = str(previous)
        logs.append(entry)
        # KWOK starts the command by its name: it finds those of runner/bin, first on its PATH, which enter the pod.
        envs = {"REHEARSAL_ENTER": str(pid), "REHEARSAL_PYTHON": r.python}
        pairs = [{"name": key, "value": value} for key, value in envs.items()]
        execs.append({"containers": [name], "local": {"workDir": "/", "envs": pairs}})
    forwards = [{"ports": [port], "target": {"address": address, "port": port}} for port in sorted(ports)]
    result: dict[str, Obj] = {"Logs": {"logs": logs}, "Exec": {"execs": execs}}
    if forwards:
        result["PortForward"] = {"forwards": forwards}
    return result


class Publisher:
    """Writes the objects of one pod; without KWOK's CRDs it does nothing."""

    def __init__(self, kube: Kube, pod: Obj):
        self._kube, self._pod = kube, pod
        self._written: dict[str, Obj] = {}

    async def publish(self, wanted: dict[str, Obj]) -> None:
        await asyncio.gather(*(self._apply(kind, spec) for kind, spec in wanted.items()))

    async def _apply(self, kind: str, spec: Obj) -> None:
        if self._written.get(kind) == spec:
            return
        meta = self._pod["metadata"]
        owner = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        body: dict[str, Any] = {
            "apiVersion": API,
            "kind": kind,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "ownerReferences": [owner]},
            "spec": spec,
        }
        path = path_of(API, kind, meta["namespace"], meta["name"])
        try:
            await self._kube.patch(path, body, kind="apply", field_manager="runner", force=True)
            self._written[kind] = spec
        except NotFound:
            log.debug("no %s here: KWOK's CRDs are not installed", kind)
        except ApiError as error:
            log.info("%s of %s not published: %s", kind, meta["name"], error)

    async def withdraw(self) -> None:
        meta = self._pod["metadata"]
        for kind in KINDS:
            path = path_of(API, kind, meta["namespace"], meta["name"])
            try:
                mine = await self._kube.get(path)
                if mine["metadata"].get("ownerReferences", [{}])[0].get("uid") != meta["uid"]:
                    continue
                await self._kube.delete(path, {"preconditions": {"uid": mine["metadata"]["uid"]}})
            except ApiError as error:
                log.debug("%s of %s not withdrawn: %s", kind, meta["name"], error)
