"""NodeClaims for pods that the scheduler has found no place for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence

from rehearsal.karpenter.catalogue import CAPACITY_TYPE_LABEL, INSTANCE_TYPE_LABEL, ZONE_LABEL
from rehearsal.karpenter.cloud import Offering
from rehearsal.karpenter.fit import Candidate, Means, Plan, fresh, label_problem, place, problem, requests, tolerates
from rehearsal.karpenter.offers import NODE_CLASS_LABEL, POOL_LABEL, Offer, allows, limits_left, offers
from rehearsal.karpenter.resources import ZERO, Resources, as_quantities, quantities, total
from rehearsal.karpenter.world import DISRUPTED, TERMINATION, World, is_true
from rehearsal.kube import Obj

log = logging.getLogger(__name__)

REPEAT_REFUSAL = 60.0
"""Seconds after which a pod that no pool can hold is told again."""
SHORT_S = 180.0
"""Seconds for which an offering that the cloud refused is not asked for again, as Karpenter's own cache has it."""
MOST_TYPES = 60
_PASSING = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "karpenter.sh/unregistered")


class Provisioner:
    """The scheduling loop's memory: what was told to whom, and what the cloud has just refused."""

    def __init__(self, world: World):
        self.world = world
        self._told: dict[str, tuple[str, float]] = {}
        self._short: dict[Offering, float] = {}
        self.nominated: set[str] = set()
        """Nodes and NodeClaims by name, of the last round: meant for pods that the scheduler has not bound yet."""

    def offers(self) -> list[Offer]:
        """Of all NodePools that are ready, with what DaemonSets would take of each."""
        world = self.world
        pools = [one for one in world.all("NodePool") if is_true(one, "Ready") and not _is_leaving(one)]
        classes = {one["metadata"]["name"]: one for one in world.all("EC2NodeClass") if is_true(one, "Ready")}
        found = offers(pools, classes, world.catalogue, world.cloud.region)
        overheads = [self._overhead(offer) for offer in found]
        return [_with_overhead(offer, taken) for offer, taken in zip(found, overheads, strict=True)]

    def offers_of(self, claim: Obj) -> list[Offer]:
        """Those that a NodeClaim's requirements leave, the cheapest first."""
        pool = (claim["metadata"].get("labels") or {}).get(POOL_LABEL)
        wanted = claim["spec"]["requirements"]
        return [
            offer
            for offer in self.offers()
            if offer.pool == pool
            and all(r["key"] == ZONE_LABEL or allows(r, offer.labels.get(r["key"])) for r in wanted)
        ]

    def offerings_of(self, claim: Obj) -> list[tuple[Offering, Offer]]:
        """What may be launched for a NodeClaim: the cheapest first, then the zone with the fewest nodes."""
        zones = [r for r in claim["spec"]["requirements"] if r["key"] == ZONE_LABEL]
        use = self._zone_use()
        found = [
            ((offer.instance_type, zone, offer.capacity_type), offer)
            for offer in self.offers_of(claim)
            for zone in sorted(offer.zones, key=lambda zone: (use.get(zone, 0), zone))
            if all(allows(r, zone) for r in zones)
        ]
        short = self.short()
        return [one for one in found if one[0] not in short]

    def refuse(self, offerings: Sequence[Offering]) -> None:
        """Remember what the cloud has not got."""
        now = asyncio.get_running_loop().time()
        self._short |= dict.fromkeys(offerings, now)

    def short(self) -> set[Offering]:
        """What need not be asked for now. A fault that is over is forgotten at once: nobody likes to wait for that."""
        now = asyncio.get_running_loop().time()
        still = {one: at for one, at in self._short.items() if now - at < SHORT_S and self.world.cloud.is_short(one)}
        self._short = still
        return set(still)

    async def round(self) -> float | None:
        """Make the NodeClaims that are missing. Returns seconds until something is due even without a change."""
        world, now = self.world, asyncio.get_running_loop().time()
        waiting = [pod for pod in world.all("Pod") if is_waiting(pod)]
        known = {pod["metadata"]["uid"] for pod in world.all("Pod")}
        self._told = {uid: told for uid, told in self._told.items() if uid in known}
        self.nominated = set()
        if not waiting or not world.all("NodePool"):
            return None
        found = self.offers()
        means = Means(found, self._limits(), self.short())
        plan = place(waiting, self._candidates(), means, self._zone_use())
        # All before the first is made: a pool may be deleted while one is.
        for node, wanted in [(node, self._claim(node, found)) for node in plan.starts]:
            claim = await world.create("NodeClaim", wanted)
            node.claim = claim["metadata"]["name"]
            log.info("NodeClaim %s for %d pods", node.claim, len(node.pods))
        self.nominated = {target.name or target.claim for _, target in plan.nominations}
        await self._tell(plan, now)
        # While types are short it is looked every second whether the fault is over.
        return None if not plan.refused else 1.0 if self._short else REPEAT_REFUSAL

    def _limits(self) -> dict[str, Resources]:
        limits = {}
        for pool in self.world.all("NodePool"):
            name = pool["metadata"]["name"]
            held: Resources = {}
            for claim in self.world.all("NodeClaim"):
                if (claim["metadata"].get("labels") or {}).get(POOL_LABEL) == name:
                    held = total(held, self._capacity(claim))
            left = limits_left(pool, held)
            if left is not None:
                limits[name] = left
        return limits

    def _capacity(self, claim: Obj) -> Resources:
        told = (claim.get("status") or {}).get("capacity")
        if told:
            return quantities(told)
        open_to = self.offers_of(claim)
        return dict(open_to[0].capacity) if open_to else {}

    def _candidates(self) -> list[Candidate]:
        existing = self._existing()
        return [*existing, *self._in_flight({one.name for one in existing})]

    def _existing(self) -> list[Candidate]:
        nodes: dict[str, Candidate] = {}
        for node in self.world.all("Node"):
            meta, taints = node["metadata"], node["spec"].get("taints") or []
            labels = meta.get("labels") or {}
            unregistered = POOL_LABEL in labels and labels.get("karpenter.sh/registered") != "true"
            if unregistered or not _is_open(node):
                continue
            lasting = [taint for taint in taints if taint["key"] not in _PASSING and not self._is_startup(node, taint)]
            free = quantities((node.get("status") or {}).get("allocatable"))
            nodes[meta["name"]] = Candidate(labels, lasting, free, name=meta["name"])
        for pod in self.world.all("Pod"):
            home = pod["spec"].get("nodeName")
            if home in nodes and not is_over(pod):
                nodes[home].add(pod)
        return list(nodes.values())

    def _is_startup(self, node: Obj, taint: Obj) -> bool:
        claim = self.world.claim_of(node)
        own = (claim["spec"].get("startupTaints") or []) if claim else []
        return any(one["key"] == taint["key"] and one["effect"] == taint["effect"] for one in own)

    def _in_flight(self, existing: Collection[str]) -> list[Candidate]:
        """Nodes on their way, empty as they will be: pods nominated in earlier rounds are placed on them anew. A node
        that a watch, late for a moment, does not show as registered yet counts as one, or it would be started twice."""
        found = []
        for claim in self.world.all("NodeClaim"):
            node = self.world.node_of(claim)
            if _is_leaving(claim) or (node is None and is_true(claim, "Registered")):
                continue
            if node is not None and (node["metadata"]["name"] in existing or not _is_open(node)):
                continue
            taints = claim["spec"].get("taints") or []
            open_to = self.offerings_of(claim)
            status = claim.get("status") or {}
            if status.get("allocatable"):
                labels, free = claim["metadata"]["labels"], quantities(status["allocatable"])
                taken = self._overhead_of(labels, taints)
                free = {name: amount - taken.get(name, ZERO) for name, amount in free.items()}
            elif open_to:
                (_, zone, _), offer = open_to[0]
                labels, free = {**offer.labels, ZONE_LABEL: zone}, offer.room
            else:
                continue
            found.append(Candidate(labels, taints, free, claim=claim["metadata"]["name"]))
        return found

    def _zone_use(self) -> dict[str, int]:
        use: dict[str, int] = {}
        claims = [one for one in self.world.all("NodeClaim") if not is_true(one, "Registered")]
        for one in [*self.world.all("Node"), *claims]:
            zone = (one["metadata"].get("labels") or {}).get(ZONE_LABEL, "")
            use[zone] = use.get(zone, 0) + 1
        return use

    def _overhead(self, offer: Offer) -> Resources:
        return self._overhead_of(offer.labels, offer.taints)

    def _overhead_of(self, labels: Mapping[str, str], taints: Sequence[Mapping[str, str]]) -> Resources:
        taken: Resources = {}
        for one in self.world.all("DaemonSet"):
            template = one["spec"]["template"]
            pod = {"metadata": {**template.get("metadata", {}), "name": ""}, "spec": template["spec"]}
            if all(tolerates(pod, taint) for taint in taints) and label_problem(pod, labels) is None:
                taken = total(taken, requests(pod))
        return taken

    def _claim(self, node: Candidate, found: Sequence[Offer]) -> Obj:
        assert node.offer
        pool = self.world.get("NodePool", node.offer.pool)
        assert pool
        template = pool["spec"]["template"]
        suitable = [(offer, zone) for offer in found if offer.pool == node.offer.pool
                    for zone in offer.zones if _holds(offer, zone, node.pods, self._short)]  # fmt: skip
        own_keys = {INSTANCE_TYPE_LABEL, ZONE_LABEL, CAPACITY_TYPE_LABEL}
        custom = {
            r["key"]: node.offer.labels[r["key"]]
            for r in template["spec"]["requirements"]
            if r["operator"] == "In" and len(r["values"]) > 1 and _is_custom(r["key"]) and r["key"] in node.offer.labels
        }
        suitable = [one for one in suitable if all(one[0].labels.get(key) == value for key, value in custom.items())]
        types = list(dict.fromkeys(offer.instance_type for offer, _ in suitable))[:MOST_TYPES]
        chosen = {
            INSTANCE_TYPE_LABEL: types,
            ZONE_LABEL: sorted({zone for _, zone in suitable}),
            CAPACITY_TYPE_LABEL: sorted({offer.capacity_type for offer, _ in suitable}),
            POOL_LABEL: [node.offer.pool],
            **{key: [value] for key, value in custom.items()},
        }
        kept = [r for r in template["spec"]["requirements"] if r["key"] not in {*own_keys, *custom}]
        asked: Resources = {}
        for pod in node.pods:
            asked = total(asked, requests(pod))
        meta = template.get("metadata") or {}
        spec = {key: template["spec"][key]
                for key in ("nodeClassRef", "taints", "startupTaints", "expireAfter", "terminationGracePeriod")
                if template["spec"].get(key)}  # fmt: skip
        return {
            "apiVersion": "karpenter.sh/v1",
            "kind": "NodeClaim",
            "metadata": {
                "generateName": f"{node.offer.pool}-",
                "labels": {**meta.get("labels", {}), **custom, POOL_LABEL: node.offer.pool,
                           NODE_CLASS_LABEL: template["spec"]["nodeClassRef"]["name"]},
                "annotations": {**meta.get("annotations", {}), "karpenter.sh/nodepool-hash": _hash(template),
                                "karpenter.sh/nodepool-hash-version": "v3"},
                "finalizers": [TERMINATION],
                "ownerReferences": [{"apiVersion": pool["apiVersion"], "kind": "NodePool",
                                     "name": pool["metadata"]["name"], "uid": pool["metadata"]["uid"],
                                     "blockOwnerDeletion": True}],
            },
            "spec": {
                **spec,
                "requirements": [*kept, *({"key": key, "operator": "In", "values": values}
                                          for key, values in chosen.items())],
                "resources": {"requests": as_quantities(asked)},
            },
        }  # fmt: skip

    async def _tell(self, plan: Plan, now: float) -> None:
        for pod, node in plan.nominations:
            target = f"node/{node.name}" if node.name else f"nodeclaim/{node.claim}"
            # A pod that was nominated to a start need not hear that its node has come.
            if pod["metadata"]["uid"] not in self._told or (not node.name and self._news(pod, target)):
                self._told[pod["metadata"]["uid"]] = (target, now)
                await self.world.event(pod, "Nominated", f"Pod should schedule on: {target}")
        for pod, reason in plan.refused:
            if self._news(pod, reason) or now - self._told[pod["metadata"]["uid"]][1] >= REPEAT_REFUSAL:
                self._told[pod["metadata"]["uid"]] = (reason, now)
                log.info("no pool holds pod %s: %s", pod["metadata"]["name"], reason)
                await self.world.event(pod, "FailedScheduling", reason, "Warning")

    def _news(self, pod: Obj, what: str) -> bool:
        return self._told.get(pod["metadata"]["uid"], ("", 0.0))[0] != what


def is_waiting(pod: Obj) -> bool:
    """A pod that the scheduler has found no place for. DaemonSets' pods belong to a node that there is."""
    if pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp") or is_over(pod):
        return False
    if pod.get("status", {}).get("nominatedNodeName"):  # others make way for it
        return False
    if any(owner["kind"] == "DaemonSet" for owner in pod["metadata"].get("ownerReferences") or []):
        return False
    return any(
        condition["type"] == "PodScheduled" and condition["status"] == "False"
        and condition.get("reason") == "Unschedulable"
        for condition in pod.get("status", {}).get("conditions") or []
    )  # fmt: skip


def is_over(pod: Obj) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_disrupted(node: Obj) -> bool:
    return any(taint["key"] == DISRUPTED["key"] for taint in node["spec"].get("taints") or [])


def _is_leaving(obj: Obj) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def _is_open(node: Obj) -> bool:
    """Whether a node takes new pods."""
    return not (_is_leaving(node) or node["spec"].get("unschedulable") or is_disrupted(node))


def _is_custom(key: str) -> bool:
    """A label that a pool invents: no instance type, zone or capacity type has it."""
    return key not in (INSTANCE_TYPE_LABEL, ZONE_LABEL, CAPACITY_TYPE_LABEL) and not key.startswith(
        ("karpenter.k8s.aws/", "kubernetes.io/", "topology.kubernetes.io/")
    )


def _holds(offer: Offer, zone: str, pods: Sequence[Obj], short: dict[Offering, float]) -> bool:
    """Whether a node of this offer would hold all of these pods, and may be had."""
    if (offer.instance_type, zone, offer.capacity_type) in short:
        return False
    node = fresh(offer, zone)
    for pod in pods:
        if problem(pod, node) is not None:
            return False
        node.add(pod)
    return True


def _with_overhead(offer: Offer, taken: Resources) -> Offer:
    import dataclasses

    return dataclasses.replace(offer, overhead=taken) if taken else offer


def _hash(template: Obj) -> str:
    return str(int(hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16], 16))
