"""How nodes go: tainted, drained, their instance ended, then let go of. Only this takes Karpenter's finalizers away."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from rehearsal.karpenter.cloud import CLAIM_TAG, POOL_TAG
from rehearsal.karpenter.fit import tolerates
from rehearsal.karpenter.lifecycle import delete, instance_id
from rehearsal.karpenter.provisioner import is_disrupted, is_over
from rehearsal.karpenter.world import DISRUPTED, KEEP_ANNOTATION, TERMINATION, World, merged, seconds
from rehearsal.kube import ApiError, NotFound, Obj, path

log = logging.getLogger(__name__)


async def round_(world: World) -> float | None:
    """One step for all that is being deleted. Returns seconds until the next look, where something is on its way."""
    busy = False
    for node in world.all("Node"):
        meta = node["metadata"]
        if meta.get("deletionTimestamp") and TERMINATION in (meta.get("finalizers") or []):
            busy = True
            await _node(world, node)
    for claim in world.all("NodeClaim"):
        if claim["metadata"].get("deletionTimestamp") and TERMINATION in (claim["metadata"].get("finalizers") or []):
            busy = True
            await _claim(world, claim)
    return 1.0 if busy else None


async def _claim(world: World, claim: Obj) -> None:
    node = world.node_of(claim)
    if node is not None:
        if not node["metadata"].get("deletionTimestamp"):
            await delete(world, node)
        return
    instance = instance_id(claim)
    live = await asyncio.to_thread(world.cloud.instances, {CLAIM_TAG: claim["metadata"]["name"]})
    if live:
        for one in live:
            await asyncio.to_thread(world.cloud.terminate, one["InstanceId"])
        changed = merged(claim, [("InstanceTerminating", "True", "InstanceTerminating", "")])
        if changed:
            await world.patch(claim, {"status": {"conditions": changed}}, status=True)
        world.woken.set()
        return
    log.info(
        "NodeClaim %s is gone%s", claim["metadata"]["name"], f", its instance {instance} has ended" if instance else ""
    )
    await world.remove_finalizer(claim, TERMINATION)


async def _node(world: World, node: Obj) -> None:
    claim = world.claim_of(node)
    if claim is not None and not claim["metadata"].get("deletionTimestamp"):
        await delete(world, claim)
    if not is_disrupted(node):
        taints = [*(node["spec"].get("taints") or []), DISRUPTED]
        await world.patch(node, {"spec": {"taints": taints}}, pinned=True)
        return
    instance = node["spec"].get("providerID", "").rpartition("/")[2]
    live = await asyncio.to_thread(world.cloud.instances, {POOL_TAG: ""})
    if instance not in {one["InstanceId"] for one in live}:
        log.info("node %s goes undrained: its instance %s has ended", node["metadata"]["name"], instance)
        await world.remove_finalizer(node, TERMINATION)
        return
    if not await _is_drained(world, node, claim):
        return
    await asyncio.to_thread(world.cloud.terminate, instance)
    log.info("node %s is drained, its instance %s ends", node["metadata"]["name"], instance)
    await world.remove_finalizer(node, TERMINATION)


async def _is_drained(world: World, node: Obj, claim: Obj | None) -> bool:
    """True when no pod that has to leave is left; asked live, not of the cache. Orders evictions."""
    name = node["metadata"]["name"]
    pods = await world.kube.list("/api/v1/pods", field_selector=f"spec.nodeName={name}")
    leaving = [pod for pod in pods if must_leave(pod)]
    overdue = _is_overdue(node, claim)
    for pod in leaving:
        if overdue:
            await _force(world, pod)
        elif not pod["metadata"].get("deletionTimestamp") and not _is_kept(pod):
            await _evict(world, node, pod)
    return not leaving


def must_leave(pod: Obj) -> bool:
    """Whether a node waits for a pod before it goes: not for finished ones, DaemonSets', and those that tolerate it."""
    owners = pod["metadata"].get("ownerReferences") or []
    return not (is_over(pod) or any(o["kind"] in ("DaemonSet", "Node") for o in owners) or tolerates(pod, DISRUPTED))


def _is_kept(pod: Obj) -> bool:
    return bool((pod["metadata"].get("annotations") or {}).get(KEEP_ANNOTATION) == "true")


def _is_overdue(node: Obj, claim: Obj | None) -> bool:
    """Past the template's terminationGracePeriod, pods are no longer asked."""
    grace = seconds(claim["spec"].get("terminationGracePeriod")) if claim else None
    since = datetime.fromisoformat(node["metadata"]["deletionTimestamp"])
    return grace is not None and (datetime.now(UTC) - since).total_seconds() > grace


async def _evict(world: World, node: Obj, pod: Obj) -> None:
    meta = pod["metadata"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": meta["name"], "namespace": meta["namespace"]}}  # fmt: skip
    try:
        await world.kube.create(path(pod, "eviction"), eviction)
    except NotFound:
        return
    except ApiError as error:
        if error.status != 429:
            raise
        why = f"Failed to drain node, pod {meta['namespace']}/{meta['name']} is not evicted: {error.message}"
        await world.event(node, "FailedDraining", why, "Warning")
        return
    await world.event(pod, "Evicted", "Evicted pod: Forceful Termination")


async def _force(world: World, pod: Obj) -> None:
    try:
        await world.kube.delete(path(pod), {"gracePeriodSeconds": 0})
    except NotFound:
        return
