"""The way of a NodeClaim: launched, registered, initialized; and of what has lost its other half."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from rehearsal.karpenter.catalogue import CAPACITY_TYPE_LABEL, INSTANCE_TYPE_LABEL, ZONE_LABEL
from rehearsal.karpenter.cloud import CLAIM_TAG, POOL_TAG, UNREGISTERED, InsufficientCapacity
from rehearsal.karpenter.offers import Offer, disk_gib
from rehearsal.karpenter.provisioner import Provisioner
from rehearsal.karpenter.resources import ZERO, as_quantities, quantities
from rehearsal.karpenter.world import TERMINATION, World, conditions, good, is_true, merged, ready, seconds
from rehearsal.kube import Obj, path

log = logging.getLogger(__name__)

REGISTRATION_S = 900.0
"""Karpenter's own limit from the launch to the registered node."""
ORPHAN_S = 30.0
"""Age from which an instance without a NodeClaim counts as nobody's."""

_UNKNOWN = {
    "Registered": ("NodeNotFound", "Node not registered with cluster"),
    "Initialized": ("AwaitingReconciliation", "object is awaiting reconciliation"),
}


class Lifecycle:
    """Brings every NodeClaim one step further."""

    def __init__(self, world: World, provisioner: Provisioner):
        self.world, self.provisioner = world, provisioner

    async def round(self) -> None:
        for claim in self.world.all("NodeClaim"):
            if claim["metadata"].get("deletionTimestamp"):
                continue
            if not is_true(claim, "Launched"):
                await self._launch(claim)
            elif not is_true(claim, "Registered"):
                await self._register(claim)
            elif not is_true(claim, "Initialized"):
                await self._initialize(claim)
            else:
                await self._expire(claim)

    async def collect(self) -> None:
        """NodeClaims whose instance somebody ended, and instances whose NodeClaim nobody knows."""
        live = {one["InstanceId"]: one for one in await asyncio.to_thread(self.world.cloud.instances, {POOL_TAG: ""})}
        claims = {one["metadata"]["name"]: one for one in self.world.all("NodeClaim")}
        for claim in claims.values():
            id_ = instance_id(claim)
            if id_ and id_ not in live and not claim["metadata"].get("deletionTimestamp"):
                log.info("NodeClaim %s goes: its instance %s has ended", claim["metadata"]["name"], id_)
                await delete(self.world, claim)
        for id_, one in live.items():
            name = next((tag["Value"] for tag in one["Tags"] if tag["Key"] == CLAIM_TAG), "")
            if name not in claims and (datetime.now(UTC) - one["LaunchTime"]).total_seconds() > ORPHAN_S:
                log.info("instance %s ends: there is no NodeClaim %s", id_, name)
                await asyncio.to_thread(self.world.cloud.terminate, id_)

    async def _launch(self, claim: Obj) -> None:
        world, name = self.world, claim["metadata"]["name"]
        node_class = world.get("EC2NodeClass", claim["spec"]["nodeClassRef"]["name"])
        if node_class is None or not is_true(node_class, "Ready"):
            why = f"NodeClaim {name} event: resolving ec2nodeclass, it is missing or not ready"
            await world.event(claim, "NodeClassNotReady", why, "Warning")
            await delete(world, claim)
            return
        open_to = self.provisioner.offerings_of(claim)
        try:
            if not open_to:
                raise InsufficientCapacity([])
            offerings = [offering for offering, _ in open_to]
            offer_of = dict(open_to)
            cheapest = open_to[0][1]
            labels = {**claim["metadata"]["labels"], **cheapest.labels, **_place(offerings[0])}
            # What the fault leaves decides which it is, and so its labels; the launch asks in the same order.
            free = next((one for one in offerings if not world.cloud.is_short(one)), None)
            if free is not None:
                labels = {**claim["metadata"]["labels"], **offer_of[free].labels, **_place(free)}
            launched = await asyncio.to_thread(world.cloud.launch, claim, node_class, offerings, labels)
        except InsufficientCapacity as error:
            self.provisioner.refuse(error.refused)
            log.info("NodeClaim %s: %s", name, error)
            await world.event(claim, "InsufficientCapacityError", f"NodeClaim {name} event: {error}", "Warning")
            await delete(world, claim)
            return
        log.info("NodeClaim %s: instance %s (%s)", name, launched.instance_id, " ".join(launched.offering))
        offer = offer_of.get(launched.offering, cheapest)
        await self._launched(claim, node_class, launched.provider_id, launched.image, offer, launched.offering)

    async def _launched(
        self, claim: Obj, node_class: Obj, provider_id: str, image: str, offer: Offer, offering: tuple[str, str, str]
    ) -> None:
        labels = {**offer.labels, **_place(offering)}
        changed = await self.world.patch(claim, {"metadata": {"labels": labels}})
        if changed is None:
            return
        one = self.world.catalogue.types[offering[0]]
        disk = disk_gib(node_class)
        parts = [good("Launched"), *((type_, "Unknown", *why) for type_, why in _UNKNOWN.items())]
        status = {
            "providerID": provider_id,
            "imageID": image,
            "capacity": as_quantities(one.capacity(disk)),
            "allocatable": as_quantities(one.allocatable(disk)),
            "conditions": merged(claim, [*parts, ready(parts)]) or [],
        }
        await self.world.patch(claim, {"status": status}, status=True)

    async def _register(self, claim: Obj) -> None:
        world = self.world
        node = world.node_of(claim)
        if node is None:
            since = datetime.fromisoformat(conditions(claim)["Launched"]["lastTransitionTime"])
            if (datetime.now(UTC) - since).total_seconds() > REGISTRATION_S:
                log.info("NodeClaim %s goes: its node has not registered", claim["metadata"]["name"])
                await delete(world, claim)
            return
        labels = {**claim["metadata"]["labels"], "karpenter.sh/registered": "true"}
        taints = [one for one in node["spec"].get("taints") or [] if one["key"] != UNREGISTERED["key"]]
        held = node["metadata"].get("finalizers") or []
        owner = {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": claim["metadata"]["name"],
                 "uid": claim["metadata"]["uid"], "blockOwnerDeletion": True}  # fmt: skip
        meta = {"labels": labels, "finalizers": sorted({*held, TERMINATION}), "ownerReferences": [owner]}
        if await world.patch(node, {"metadata": meta, "spec": {"taints": taints}}, pinned=True) is None:
            return
        name = node["metadata"]["name"]
        await asyncio.to_thread(world.cloud.name, instance_id(claim), name)
        parts = [good("Registered"), ("Initialized", "Unknown", "NodeNotReady", "Node status is NotReady")]
        known = [good("Launched"), *parts]
        status = {"nodeName": name, "conditions": merged(claim, [*parts, ready(known)])}
        await world.patch(claim, {"status": status}, status=True)

    async def _initialize(self, claim: Obj) -> None:
        world = self.world
        node = world.node_of(claim)
        if node is None:
            return
        why = self._not_initialized(claim, node)
        part = ("Initialized", "Unknown", *why) if why else good("Initialized")
        if not why:
            await world.patch(node, {"metadata": {"labels": {"karpenter.sh/initialized": "true"}}})
            log.info("NodeClaim %s: node %s is initialized", claim["metadata"]["name"], node["metadata"]["name"])
        changed = merged(claim, [part, ready([good("Launched"), good("Registered"), part])])
        if changed:
            await world.patch(claim, {"status": {"conditions": changed}}, status=True)

    @staticmethod
    def _not_initialized(claim: Obj, node: Obj) -> tuple[str, str] | None:
        if not is_true(node, "Ready"):
            return ("NodeNotReady", "Node status is NotReady")
        taints = node["spec"].get("taints") or []
        for wanted in claim["spec"].get("startupTaints") or []:
            if any((one["key"], one["effect"]) == (wanted["key"], wanted["effect"]) for one in taints):
                return ("StartupTaintsExist", f'StartupTaint "{wanted["key"]}:{wanted["effect"]}" still exists')
        there = quantities((node.get("status") or {}).get("allocatable"))
        for resource in claim["spec"].get("resources", {}).get("requests", {}):
            if "/" in resource and there.get(resource, ZERO) == ZERO:
                return ("ResourceNotRegistered", f'Resource "{resource}" was requested but not registered')
        return None

    async def _expire(self, claim: Obj) -> None:
        after = seconds(claim["spec"].get("expireAfter"))
        age = (datetime.now(UTC) - datetime.fromisoformat(claim["metadata"]["creationTimestamp"])).total_seconds()
        if after is not None and age > after:
            log.info("NodeClaim %s is %s old and goes", claim["metadata"]["name"], claim["spec"]["expireAfter"])
            await delete(self.world, claim)


def instance_id(claim: Obj) -> str:
    """Of a NodeClaim that was launched; else nothing."""
    return str((claim.get("status") or {}).get("providerID", "")).rpartition("/")[2]


async def delete(world: World, obj: Obj) -> None:
    """Order an object's deletion, if it is still that one."""
    from rehearsal.kube import Conflict, NotFound

    try:
        await world.kube.delete(path(obj), {"preconditions": {"uid": obj["metadata"]["uid"]}})
    except (NotFound, Conflict):
        world.woken.set()


def _place(offering: tuple[str, str, str]) -> dict[str, str]:
    type_, zone, capacity_type = offering
    return {INSTANCE_TYPE_LABEL: type_, ZONE_LABEL: zone, CAPACITY_TYPE_LABEL: capacity_type}
