"""The loop that starts nodes for pods that wait, and removes nodes that stand empty.

Everything is derived from the API's objects, so a restart loses nothing but the starts that were on their way; they
are planned again. Durations (seconds) can be set in ``timing.json``: ``node_batch`` gathers pods before a decision,
``node_start`` passes from the decision to a Ready node, ``node_empty`` from a node's last pod to its removal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch

import aiohttp

from rehearsal import faults
from rehearsal.config import Rehearsal
from rehearsal.kube import ApiError, Kube, NotFound, Obj, path_of
from rehearsal.nodes.fit import Candidate, place
from rehearsal.nodes.shapes import POOL_LABEL, ZONE_LABEL, Shape, node_object, quantities

log = logging.getLogger(__name__)

COMPONENT = "karpenter"
DISRUPTED = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
KEEP_ANNOTATION = "karpenter.sh/do-not-disrupt"
DRAIN_PAUSE = 1.0
"""Seconds between the taint and the deletion: the scheduler may just be binding a pod."""
REPEAT_REFUSAL = 60.0
"""Seconds after which a pod that no shape can hold is told again."""


@dataclass
class Start:
    """A node on its way."""

    node: Candidate
    due: float


class Provisioner:
    """Plays Karpenter for all pods of one API server."""

    def __init__(self, r: Rehearsal, kube: Kube, shapes: list[Shape]):
        self._r, self._kube, self._shapes = r, kube, shapes
        self._pods = kube.cache("/api/v1/pods")
        self._nodes = kube.cache("/api/v1/nodes")
        self._wake = asyncio.Event()
        self._starts: dict[str, Start] = {}
        self._empty_since: dict[str, float] = {}
        self._drained_since: dict[str, float] = {}
        self._told: dict[str, tuple[str, float]] = {}
        self._short: set[str] = set()
        """Instance types that were refused while the fault `no-capacity` has lasted: not asked for again, as
        Karpenter does not for three minutes."""

    async def run(self, on_synced: Callable[[], None] = lambda: None) -> None:
        """Work until cancelled."""
        for cache in (self._pods, self._nodes):
            cache.subscribe(lambda *_: self._wake.set())
            cache.start()
            await cache.synced()
        on_synced()
        wait: float | None = 0.0
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)
                    await asyncio.sleep(self._r.timing("node_batch", 0.3))
                self._wake.clear()
                wait = await self._round_safely()
        finally:
            for cache in (self._pods, self._nodes):
                await cache.stop()

    async def _round_safely(self) -> float | None:
        try:
            return await self._round()
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            # The API server restarts, or an object changed meanwhile: the next round sees things as they are.
            log.warning("round broken off: %s", error)
            return 1.0

    async def _round(self) -> float | None:
        """One look at everything. Returns seconds until something is due even without a change."""
        now = asyncio.get_running_loop().time()
        waiting = [pod for pod in self._pods.items.values() if is_waiting(pod)]
        existing = self._existing()
        candidates = [*existing.values(), *(self._in_flight(start) for start in self._starts.values())]
        self._short &= self._refused_types()
        plan = place(waiting, candidates, self._shapes, self._zone_use(), self._short)
        for node in plan.starts:
            assert node.shape
            node.claim = f"{node.shape.pool}-{''.join(random.choices('bcdfghjklmnpqrstvwxz2456789', k=5))}"
            self._starts[node.claim] = Start(node, now + self._r.timing("node_start", 2.0))
            log.info("starting %s (%s) for %d pods", node.claim, node.shape.instance_type, len(node.pods))
        await self._tell(plan.nominations, plan.refused, now)
        for claim, start in list(self._starts.items()):
            if start.due <= now:
                await self._register(claim, start)
        nominated = {node.name for _, node in plan.nominations if node.name}
        await self._remove_empty(now, nominated)
        return self._next_due(now, bool(plan.refused))

    def _refused_types(self) -> set[str]:
        fault = faults.get(self._r, "no-capacity")
        types = {shape.instance_type for shape in self._shapes}
        return {type_ for type_ in types if fault and fnmatch(type_, fault["instance_type"])}

    def _existing(self) -> dict[str, Candidate]:
        nodes = {}
        for (_, name), node in self._nodes.items.items():
            taints = node["spec"].get("taints") or []
            if node["metadata"].get("deletionTimestamp") or node["spec"].get("unschedulable") or is_drained(node):
                continue
            # A node that just registered carries not-ready taints for a moment; pods will fit when they are gone.
            lasting = [taint for taint in taints if not taint["key"].startswith("node.kubernetes.io/not-ready")]
            free = quantities(node.get("status", {}).get("allocatable"))
            nodes[name] = Candidate(node["metadata"].get("labels") or {}, lasting, free, name=name)
        for pod in self._pods.items.values():
            home = pod["spec"].get("nodeName")
            if home in nodes and not is_over(pod):
                nodes[home].add(pod)
        return nodes

    def _in_flight(self, start: Start) -> Candidate:
        """An empty node as it will be: pods nominated in earlier rounds are placed on it anew."""
        shape = start.node.shape
        assert shape
        return Candidate(start.node.labels, shape.taints, shape.room, claim=start.node.claim, shape=shape)

    def _zone_use(self) -> dict[str, int]:
        use: dict[str, int] = {}
        labels = [node["metadata"].get("labels") or {} for node in self._nodes.items.values()]
        for each in [*labels, *(start.node.labels for start in self._starts.values())]:
            zone = each.get(ZONE_LABEL, "")
            use[zone] = use.get(zone, 0) + 1
        return use

    async def _tell(self, nominations: list[tuple[Obj, Candidate]], refused: list[tuple[Obj, str]], now: float) -> None:
        known = {pod["metadata"]["uid"] for pod in self._pods.items.values()}
        self._told = {uid: told for uid, told in self._told.items() if uid in known}
        for pod, node in nominations:
            target = f"node/{node.name}" if node.name else f"nodeclaim/{node.claim}"
            # A pod that was nominated to a start need not hear that its node has come.
            if pod["metadata"]["uid"] not in self._told or (not node.name and self._news(pod, target)):
                self._told[pod["metadata"]["uid"]] = (target, now)
                await self._kube.event(
                    pod, reason="Nominated", message=f"Pod should schedule on: {target}", component=COMPONENT
                )
        for pod, reason in refused:
            if self._news(pod, reason) or now - self._told[pod["metadata"]["uid"]][1] >= REPEAT_REFUSAL:
                self._told[pod["metadata"]["uid"]] = (reason, now)
                log.info("no shape holds pod %s: %s", pod["metadata"]["name"], reason)
                await self._kube.event(
                    pod, type_="Warning", reason="FailedScheduling", message=reason, component=COMPONENT
                )

    def _news(self, pod: Obj, what: str) -> bool:
        return self._told.get(pod["metadata"]["uid"], ("", 0.0))[0] != what

    async def _register(self, claim: str, start: Start) -> None:
        shape = start.node.shape
        assert shape
        taken = {name for _, name in self._nodes.items}
        zone = start.node.labels[ZONE_LABEL]
        if shape.instance_type in self._refused_types():
            await self._no_capacity(claim, shape.instance_type, zone)
            return
        node = node_object(shape, claim=claim, zone=zone, port=self._r.ports["kwok"], taken=taken)
        name = node["metadata"]["name"]
        created = await self._kube.create("/api/v1/nodes", node)
        # Known at once, not first when the watch brings it: else the next round would start another one.
        self._nodes.items.setdefault(("", name), created)
        del self._starts[claim]
        log.info("node %s (%s, %s) is up for %s", name, shape.instance_type, zone, claim)

    async def _no_capacity(self, claim: str, instance_type: str, zone: str) -> None:
        """The cloud's refusal: told on the NodeClaim, which goes again; its pods wait for another offering."""
        del self._starts[claim]
        self._short.add(instance_type)
        self._wake.set()
        message = (
            f"NodeClaim {claim} event: creating instance, insufficient capacity, with fleet error(s), "
            f"InsufficientInstanceCapacity: We currently do not have sufficient {instance_type} capacity in the "
            f"Availability Zone you requested ({zone}). Our system will be working on provisioning additional capacity."
        )
        log.info("%s", message)
        about = {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": {"name": claim, "uid": claim}}
        await self._kube.event(
            about, type_="Warning", reason="InsufficientCapacityError", message=message, component=COMPONENT
        )

    async def _remove_empty(self, now: float, nominated: set[str]) -> None:
        occupied = {pod["spec"].get("nodeName") for pod in self._pods.items.values() if holds_node(pod)}
        present = set()
        for (_, name), node in list(self._nodes.items.items()):
            meta = node["metadata"]
            if POOL_LABEL not in (meta.get("labels") or {}) or meta.get("deletionTimestamp"):
                continue
            present.add(name)
            if is_drained(node):
                if now - self._drained_since.setdefault(name, now) >= DRAIN_PAUSE:
                    await self._finish(node)
                continue
            kept = (meta.get("annotations") or {}).get(KEEP_ANNOTATION) == "true"
            if kept or name in occupied or name in nominated:
                self._empty_since.pop(name, None)
            elif now - self._empty_since.setdefault(name, now) >= self._r.timing("node_empty", 10.0):
                await self._drain(node)
        for since in (self._empty_since, self._drained_since):
            for name in set(since) - present:
                del since[name]

    async def _drain(self, node: Obj) -> None:
        name = node["metadata"]["name"]
        taints = [*(node["spec"].get("taints") or []), DISRUPTED]
        await self._patch_taints(node, taints)
        log.info("node %s is empty and goes", name)
        await self._kube.event(
            node, reason="DisruptionTerminating", message="Disrupting Node: Empty", component=COMPONENT
        )

    async def _finish(self, node: Obj) -> None:
        """Delete a tainted node, unless a pod was bound to it in the last moment (asked live, not of the cache)."""
        meta = node["metadata"]
        pods = await self._kube.list("/api/v1/pods", field_selector=f"spec.nodeName={meta['name']}")
        self._drained_since.pop(meta["name"], None)
        self._empty_since.pop(meta["name"], None)
        if any(holds_node(pod) for pod in pods):
            await self._patch_taints(node, [t for t in node["spec"]["taints"] if t["key"] != DISRUPTED["key"]])
            return
        with contextlib.suppress(NotFound):
            body = {"preconditions": {"uid": meta["uid"]}}
            await self._kube.delete(path_of("v1", "Node", None, meta["name"]), body)
        log.info("node %s is gone", meta["name"])

    async def _patch_taints(self, node: Obj, taints: list[dict[str, str]]) -> None:
        # With the version: the node lifecycle controller writes taints too, and a merge patch replaces the list.
        version = {"resourceVersion": node["metadata"]["resourceVersion"]}
        path = path_of("v1", "Node", None, node["metadata"]["name"])
        await self._kube.patch(path, {"metadata": version, "spec": {"taints": taints}})

    def _next_due(self, now: float, refused: bool) -> float | None:
        dues = [start.due for start in self._starts.values()]
        dues += [since + self._r.timing("node_empty", 10.0) for since in self._empty_since.values()]
        dues += [since + DRAIN_PAUSE for since in self._drained_since.values()]
        if refused:
            # While types are short it is looked every second whether the fault is over.
            dues.append(now + (1.0 if self._short else REPEAT_REFUSAL))
        return max(0.05, min(dues) - now) if dues else None


def is_waiting(pod: Obj) -> bool:
    """A pod that the scheduler has found no place for."""
    if pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp") or is_over(pod):
        return False
    if pod.get("status", {}).get("nominatedNodeName"):  # others make way for it
        return False
    return any(
        condition["type"] == "PodScheduled" and condition["status"] == "False"
        and condition.get("reason") == "Unschedulable"
        for condition in pod.get("status", {}).get("conditions") or []
    )  # fmt: skip


def is_over(pod: Obj) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def holds_node(pod: Obj) -> bool:
    """Whether a pod keeps its node from being empty: those of DaemonSets and finished ones do not."""
    owners = pod["metadata"].get("ownerReferences") or []
    return not is_over(pod) and not any(owner["kind"] in ("DaemonSet", "Node") for owner in owners)


def is_drained(node: Obj) -> bool:
    return any(taint["key"] == DISRUPTED["key"] for taint in node["spec"].get("taints") or [])
