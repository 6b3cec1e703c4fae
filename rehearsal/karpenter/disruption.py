"""Consolidation of empty nodes, within the pools' budgets.

Both policies end empty nodes; that WhenEmptyOrUnderutilized also moves pods together is not played. Budgets with a
schedule count as if they had none of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Iterator

from rehearsal.karpenter.lifecycle import delete
from rehearsal.karpenter.offers import POOL_LABEL
from rehearsal.karpenter.provisioner import is_disrupted, is_over
from rehearsal.karpenter.world import DISRUPTED, KEEP_ANNOTATION, World, good, is_true, merged, seconds
from rehearsal.kube import Obj

log = logging.getLogger(__name__)

DRAIN_PAUSE = 1.0
"""Seconds between the taint and the deletion: the scheduler may just be binding a pod."""
EMPTY_S = 10.0


class Disruption:
    """Remembers since when which node has been empty."""

    def __init__(self, world: World):
        self.world = world
        self._empty_since: dict[str, float] = {}
        self._tainted_since: dict[str, float] = {}

    async def round(self, nominated: Collection[str]) -> float | None:
        """Seconds until something is due.

        :param nominated: nodes and NodeClaims that pods are meant for which the scheduler has not bound yet: none of
            them is empty
        """
        world, now = self.world, asyncio.get_running_loop().time()
        occupied = {pod["spec"].get("nodeName") for pod in world.all("Pod") if holds_node(pod)}
        dues: list[float] = []
        present = set()
        for claim, node, pool in self._standing():
            name = node["metadata"]["name"]
            present.add(name)
            wanted = name in occupied or name in nominated or claim["metadata"]["name"] in nominated
            if is_disrupted(node):
                dues.append(await self._go_on(claim, node, now))
            elif self._after(pool) is None or self._is_kept(claim, node) or wanted:
                self._empty_since.pop(name, None)
            else:
                dues.append(await self._look_at(claim, node, pool, now))
        for memory in (self._empty_since, self._tainted_since):
            for name in set(memory) - present:
                del memory[name]
        return max(0.05, min(dues) - now) if dues else None

    def _standing(self) -> Iterator[tuple[Obj, Obj, Obj]]:
        """NodeClaim, Node and NodePool of every node that is complete and not on its way out."""
        for claim in self.world.all("NodeClaim"):
            node, pool = self.world.node_of(claim), self._pool(claim)
            if node is None or pool is None or not is_true(claim, "Initialized"):
                continue
            if not any(one["metadata"].get("deletionTimestamp") for one in (claim, node)):
                yield claim, node, pool

    async def _look_at(self, claim: Obj, node: Obj, pool: Obj, now: float) -> float:
        """An empty node: when something is due for it, by the loop's clock."""
        since = self._empty_since.setdefault(node["metadata"]["name"], now)
        after = self._after(pool) or 0.0
        if now - since < after:
            return since + after
        if self._allowed(pool) > 0:
            await self._begin(claim, node)
        return now + DRAIN_PAUSE

    async def _go_on(self, claim: Obj, node: Obj, now: float) -> float:
        """A node that was tainted for being empty."""
        since = self._tainted_since.setdefault(node["metadata"]["name"], now)
        if now - since >= DRAIN_PAUSE:
            await self._finish(claim, node)
        return since + DRAIN_PAUSE

    def _pool(self, claim: Obj) -> Obj | None:
        return self.world.get("NodePool", (claim["metadata"].get("labels") or {}).get(POOL_LABEL, ""))

    def _after(self, pool: Obj) -> float | None:
        """Seconds a node may stand empty: the pool's word, but no longer than the rehearsal's `node_empty`."""
        said = seconds(pool["spec"].get("disruption", {}).get("consolidateAfter"))
        return None if said is None else min(said, self.world.r.timing("node_empty", EMPTY_S))

    @staticmethod
    def _is_kept(claim: Obj, node: Obj) -> bool:
        return any((one["metadata"].get("annotations") or {}).get(KEEP_ANNOTATION) == "true" for one in (claim, node))

    def _allowed(self, pool: Obj) -> int:
        """How many more nodes of the pool may go now."""
        name = pool["metadata"]["name"]
        mine = [one for one in self.world.all("NodeClaim") if one["metadata"].get("labels", {}).get(POOL_LABEL) == name]
        going = 0
        for claim in mine:
            node = self.world.node_of(claim)
            going += bool(claim["metadata"].get("deletionTimestamp") or (node and is_disrupted(node)))
        return allowed(pool["spec"].get("disruption", {}).get("budgets"), len(mine)) - going

    async def _begin(self, claim: Obj, node: Obj) -> None:
        name = node["metadata"]["name"]
        taints = [*(node["spec"].get("taints") or []), DISRUPTED]
        if await self.world.patch(node, {"spec": {"taints": taints}}, pinned=True) is None:
            return
        changed = merged(claim, [good("Consolidatable")])
        if changed:
            await self.world.patch(claim, {"status": {"conditions": changed}}, status=True)
        log.info("node %s is empty and goes", name)
        await self.world.event(node, "DisruptionTerminating", "Disrupting Node: Empty")
        await self.world.event(claim, "DisruptionTerminating", "Disrupting NodeClaim: Empty")

    async def _finish(self, claim: Obj, node: Obj) -> None:
        """Delete the claim of a tainted node, unless a pod was bound to it in the last moment (asked live)."""
        name = node["metadata"]["name"]
        pods = await self.world.kube.list("/api/v1/pods", field_selector=f"spec.nodeName={name}")
        self._tainted_since.pop(name, None)
        self._empty_since.pop(name, None)
        if any(holds_node(pod) for pod in pods):
            taints = [one for one in node["spec"]["taints"] if one["key"] != DISRUPTED["key"]]
            await self.world.patch(node, {"spec": {"taints": taints}}, pinned=True)
            return
        await delete(self.world, claim)


def holds_node(pod: Obj) -> bool:
    """Whether a pod keeps its node from being empty: those of DaemonSets and finished ones do not."""
    owners = pod["metadata"].get("ownerReferences") or []
    return not is_over(pod) and not any(owner["kind"] in ("DaemonSet", "Node") for owner in owners)


def allowed(budgets: list[Obj] | None, nodes: int) -> int:
    """How many of so many nodes may be gone at once for being empty: the strictest budget, shares rounded up."""
    most = nodes
    for budget in budgets if budgets is not None else [{"nodes": "10%"}]:
        if budget.get("reasons") and "Empty" not in budget["reasons"]:
            continue
        text = str(budget["nodes"])
        most = min(most, math.ceil(nodes * int(text[:-1]) / 100) if text.endswith("%") else int(text))
    return most
