"""Runs scenarios side by side: their clients' deeds, and a recording of what then happens."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from typing import Any

from rehearsal.kube import Kube, NotFound, path, path_of
from tests.rehearsal.replay.compare import present, states_between
from tests.rehearsal.replay.kubelet import Kubelet
from tests.rehearsal.replay.plane import Plane
from tests.rehearsal.replay.scenario import Scenario
from tests.rehearsal.replay.world import Endpoints, Provisioner, make_nodes

Obj = dict[str, Any]
GROUP = "apps.nvidia.com/v1alpha1"
RECORDED = (
    (GROUP, "NIMCache"), (GROUP, "NIMService"), (GROUP, "NIMPipeline"), ("batch/v1", "Job"), ("v1", "Pod"),
    ("apps/v1", "Deployment"), ("apps/v1", "ReplicaSet"), ("v1", "PersistentVolumeClaim"), ("v1", "Service"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"), ("v1", "Event"),
)  # fmt: skip
VERSIONS = {kind: version for version, kind in RECORDED}
AT_ONCE, STAGGER_S = 6, 1.5
PATIENCE_S = 12.0
"""How long a deed waits for the custom resources to be where they were when the recorded client did it."""


class Replay:
    """All scenarios of one control plane. `seen[scenario]` is what was recorded, in the form of events.jsonl."""

    def __init__(self, plane: Plane, scenarios: list[Scenario]):
        self.plane, self.scenarios = plane, scenarios
        self.seen: dict[str, list[Obj]] = {scenario.name: [] for scenario in scenarios}
        self.notes: dict[str, list[str]] = {scenario.name: [] for scenario in scenarios}
        self._by_namespace = {scenario.namespace: scenario for scenario in scenarios}
        self._began: dict[str, float] = {}

    async def run(self) -> None:
        async with Kube.from_rehearsal(self.plane.r) as kube:
            self._kube = kube
            kubelet, provisioner = Kubelet(kube, self._by_namespace), Provisioner(kube, self._by_namespace)
            self._endpoints = Endpoints(self._by_namespace)
            callbacks = {
                "Pod": kubelet.on_pod,
                "PersistentVolumeClaim": provisioner.on_claim,
                "Service": self._endpoints.on_service,
            }
            logs = await kubelet.serve_logs(self.plane.r, self.plane.kubelet_port)
            await make_nodes(kube, self.scenarios, self.plane.kubelet_port)
            caches = {kind: kube.cache(path_of(version, kind)) for version, kind in RECORDED}
            for kind, cache in caches.items():
                cache.subscribe(self._record)
                if kind in callbacks:
                    cache.subscribe(callbacks[kind])
            tasks = [cache.start() for cache in caches.values()]
            try:
                for cache in caches.values():
                    await cache.synced()
                await self._side_by_side([s for s in self.scenarios if not s.stops_operator])
                for scenario in self.scenarios:
                    if scenario.stops_operator:
                        await self._scenario(scenario)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._endpoints.close()
                await logs.cleanup()

    async def _side_by_side(self, scenarios: list[Scenario]) -> None:
        """The longest first, and not all at once: the operator has one worker a kind, and what it sees of a pod that is
        soon running depends on how long its other work keeps it."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, scenario: Scenario) -> None:
            await asyncio.sleep(number * STAGGER_S)
            async with free:
                await self._scenario(scenario)

        ordered = sorted(scenarios, key=lambda scenario: -scenario.length)
        await asyncio.gather(*(one(number, scenario) for number, scenario in enumerate(ordered)))

    def _record(self, type_: str, obj: Obj) -> None:
        namespace = obj["metadata"].get("namespace", "")
        scenario = self._by_namespace.get(namespace)
        if scenario is None or scenario.name not in self._began:
            return
        obj = copy.deepcopy(obj)
        obj["metadata"].pop("managedFields", None)
        t = round(time.monotonic() - self._began[scenario.name], 3)
        self.seen[scenario.name].append({"t": t, "type": type_, "object": obj})

    async def _scenario(self, scenario: Scenario) -> None:
        self._began[scenario.name] = time.monotonic()
        late = 0.0
        for action in scenario.inputs:
            now = time.monotonic() - self._began[scenario.name]
            await asyncio.sleep(max(0.0, float(action["t"]) + late - now))
            if action["actor"] == "client" and not action["object"].startswith(("Namespace/", "Secret/")):
                late += await self._gate(scenario, action)
            await self._do(scenario, action)

    async def _gate(self, scenario: Scenario, action: Obj) -> float:
        """Wait until the objects are there, and the custom resources in the states, that were so when the recorded
        client did this; the seconds it took. That client waited too; a replay that is a little slower must not act
        too soon."""
        t = float(action["t"])
        wanted = present(scenario.events, t - 0.001)
        # What changed at about the same time as the client acted may be so or so.
        allowed = states_between(scenario.events, t - 0.001, t + 0.25)
        seen = self.seen[scenario.name]
        start = time.monotonic()
        while time.monotonic() - start < PATIENCE_S:
            live, states = present(seen), states_between(seen)
            wrong = {key: state for key, state in states.items() if not state <= allowed.get(key, set())}
            if live == wanted and not wrong:
                break
            await asyncio.sleep(0.02)
        else:
            missing, extra = sorted((wanted - live).elements()), sorted((live - wanted).elements())
            self.notes[scenario.name].append(f"t={t} {action['verb']}: missing {missing}, too much {extra}, {wrong}")
        return time.monotonic() - start

    async def _do(self, scenario: Scenario, action: Obj) -> None:
        kind, _, name = action["object"].partition("/")
        verb, detail = action["verb"], action["detail"]
        if action["actor"] == "endpoint":
            self._endpoints.answer(scenario, action)
        elif action["actor"] == "cluster":
            change = self.plane.stop_operator if verb == "stop" else self.plane.start_operator
            await asyncio.to_thread(change)
        elif verb == "apply":
            await self._apply(detail["manifest"])
        elif verb == "delete":
            where = path_of(VERSIONS.get(kind, "v1"), kind, scenario.namespace, name)
            await self._kube.delete(where, {"propagationPolicy": "Background"})
        elif "patch" in detail:
            where = path_of(VERSIONS.get(kind, "v1"), kind, scenario.namespace, name)
            await self._kube.patch(where, detail["patch"], kind=detail.get("type", "merge"))

    async def _apply(self, manifest: Obj) -> None:
        meta = manifest["metadata"]
        try:
            live = await self._kube.get(path(manifest))
        except NotFound:
            where = path_of(manifest["apiVersion"], manifest["kind"], meta.get("namespace"))
            await self._kube.create(where, manifest, fieldValidation="Strict")
        else:
            await self._kube.patch(path(live), json.loads(json.dumps(manifest)), kind="merge")
