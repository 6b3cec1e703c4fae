"""The NIMPipeline controller: a list of NIMServices under one name, with the real one's flaws.

A service that exists is never changed again: since v3.1.0 the real controller does not carry a changed spec to it, and
goes on calling the pipeline Ready.
"""

from __future__ import annotations

import copy
import logging

from rehearsal.operator import goform
from rehearsal.operator.api import (
    APPLIED_HASH,
    GROUP_VERSION,
    PIPELINE_FINALIZER,
    Obj,
    controller_of,
    owner_reference,
)
from rehearsal.operator.controller import Result
from rehearsal.operator.recorder import Recorder
from rehearsal.operator.sync import Client, spec_hash

log = logging.getLogger(__name__)

CHILD = "NIMService"


class NimPipelineReconciler:
    kind = "NIMPipeline"
    lead_s = 0.004
    owns: tuple[str, ...] = (CHILD,)

    def __init__(self, client: Client, recorder: Recorder):
        self._client, self._recorder = client, recorder

    async def settle(self) -> None:
        await self._client.settle()

    async def reconcile(self, namespace: str, name: str) -> Result:
        pipeline = self._client.get(self.kind, namespace, name)
        if pipeline is None:
            return Result()
        finalizers = pipeline["metadata"].setdefault("finalizers", [])
        if pipeline["metadata"].get("deletionTimestamp"):
            if PIPELINE_FINALIZER in finalizers:
                finalizers.remove(PIPELINE_FINALIZER)
                await self._client.update(pipeline)
            return Result()
        if PIPELINE_FINALIZER not in finalizers:
            finalizers.append(PIPELINE_FINALIZER)
            pipeline["spec"] = goform.nimpipeline_spec(pipeline["spec"])
            pipeline = await self._client.update(pipeline)
        enabled = [service for service in pipeline["spec"].get("services") or [] if service.get("enabled")]
        for service in enabled:
            await self._make(pipeline, service)
        await self._remove_others(pipeline, {service["name"] for service in enabled})
        await self._judge(pipeline, [service["name"] for service in enabled])
        return Result()

    async def _make(self, pipeline: Obj, service: Obj) -> None:
        """Create the service unless there is one of its name, whatever that one's spec is, and whoever's it is."""
        meta = pipeline["metadata"]
        live = self._client.get(CHILD, meta["namespace"], service["name"])
        if live is not None:
            if not _is_of(live, pipeline):
                log.error("NIMPipeline %s: NIMService %s is not its own: left alone", meta["name"], service["name"])
            return
        spec = rendered(service)
        child = {
            "apiVersion": GROUP_VERSION,
            "kind": CHILD,
            "metadata": {
                "name": service["name"],
                "namespace": meta["namespace"],
                "annotations": {APPLIED_HASH: spec_hash(spec)},
                "ownerReferences": [owner_reference(pipeline)],
            },
            "spec": spec,
        }
        await self._client.create_missing(child)

    async def _remove_others(self, pipeline: Obj, wanted: set[str]) -> None:
        namespace = pipeline["metadata"]["namespace"]
        for live in self._client.all(CHILD):
            meta = live["metadata"]
            of_it = meta["namespace"] == namespace and _is_of(live, pipeline)
            if of_it and meta["name"] not in wanted and not meta.get("deletionTimestamp"):
                await self._client.delete(CHILD, namespace, meta["name"])

    async def _judge(self, pipeline: Obj, names: list[str]) -> None:
        """From the services' states alone: none enabled is Ready, and a state that belongs to an older spec counts."""
        meta = pipeline["metadata"]
        states = {}
        for name in names:
            live = self._client.get(CHILD, meta["namespace"], name)
            states[name] = "NotReady" if live is None else str(live.get("status", {}).get("state", ""))
        failed, ready = "Failed" in states.values(), all(state == "Ready" for state in states.values())
        state = "Failed" if failed else "Ready" if ready else "NotReady"
        told = " ".join(f"{name}:{states[name]}" for name in sorted(states))
        self._recorder.event(
            pipeline, "Normal", state, f"NIMPipeline {meta['name']} status {state}, service states map[{told}]"
        )
        fresh: Obj = {"state": state} | ({"states": states} if states else {})
        if pipeline.get("status") != fresh:
            pipeline["status"] = fresh
            await self._client.update_status(pipeline)


def rendered(service: Obj) -> Obj:
    """The NIMService's spec. A dependency only brings an environment variable, and only with both name and value: it
    orders nothing, and its own name and port are not used."""
    spec = goform.nimservice_spec(copy.deepcopy(service.get("spec") or {}))
    added = [
        {"name": one["envName"], "value": one["envValue"]}
        for one in service.get("dependencies") or []
        if one.get("envName") and one.get("envValue")
    ]
    if added:
        names = {entry["name"] for entry in added}
        spec["env"] = [entry for entry in spec.get("env") or [] if entry["name"] not in names] + added
    return spec


def _is_of(service: Obj, pipeline: Obj) -> bool:
    owner = controller_of(service)
    return owner is not None and owner["uid"] == pipeline["metadata"]["uid"]
