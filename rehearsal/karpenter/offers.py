"""What nodes could be started: every instance type that a NodePool's requirements leave, spot and on demand."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rehearsal.karpenter.catalogue import (
    CAPACITY_TYPE_LABEL,
    ON_DEMAND,
    REGION_LABEL,
    SPOT,
    ZONE_LABEL,
    Catalogue,
    InstanceType,
)
from rehearsal.karpenter.resources import ZERO, Resources, quantity
from rehearsal.kube import Obj

POOL_LABEL = "karpenter.sh/nodepool"
NODE_CLASS_LABEL = "karpenter.k8s.aws/ec2nodeclass"
DEFAULT_DISK_GIB = 20

Requirement = Mapping[str, Any]
# Gte and Lte are Karpenter's own, and not a pod's.
NUMERIC = {"Gt": operator.gt, "Gte": operator.ge, "Lt": operator.lt, "Lte": operator.le}


@dataclass(frozen=True)
class Offer:
    """One instance type of one pool, spot or on demand: what a node started from it looks like to the scheduler."""

    pool: str
    instance_type: str
    capacity_type: str
    price: float
    zones: tuple[str, ...]
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]
    capacity: Resources
    allocatable: Resources
    overhead: Resources = field(default_factory=dict)
    """What pods of DaemonSets take of every such node."""

    @property
    def room(self) -> Resources:
        """What waiting pods can use of it, in base units."""
        return {name: amount - self.overhead.get(name, ZERO) for name, amount in self.allocatable.items()}


def allows(requirement: Requirement, value: str | None) -> bool:
    """Whether one requirement holds for a label's value (None: the label is not there)."""
    how, values = requirement["operator"], requirement.get("values") or []
    if how == "DoesNotExist":
        return value is None
    if how == "NotIn":
        return value is None or value not in values
    if value is None:
        return False
    if how == "In":
        return value in values
    return numerically(how, value, values) if how in NUMERIC else True  # Exists


def numerically(how: str, value: str, values: Sequence[str]) -> bool:
    """Whether a label's value is on the right side of a bound. What is no number is on none."""
    try:
        return bool(NUMERIC[how](int(value), int(values[0])))
    except ValueError:
        return False


def offers(pools: Sequence[Obj], classes: Mapping[str, Obj], catalogue: Catalogue, region: str) -> list[Offer]:
    """Of all pools that are ready: the heaviest pool first, then by name; within a pool the cheapest first."""
    found: list[Offer] = []
    for pool in sorted(pools, key=lambda pool: (-int(pool["spec"].get("weight", 1)), pool["metadata"]["name"])):
        node_class = classes.get(pool["spec"]["template"]["spec"]["nodeClassRef"]["name"])
        if node_class is not None:
            found += sorted(of_pool(pool, node_class, catalogue, region), key=lambda offer: offer.price)
    return found


def of_pool(pool: Obj, node_class: Obj, catalogue: Catalogue, region: str) -> Iterator[Offer]:
    """Of one pool, in no order."""
    template = pool["spec"]["template"]
    requirements: list[Requirement] = template["spec"].get("requirements") or []
    subnets = {subnet["zone"] for subnet in (node_class.get("status") or {}).get("subnets") or []}
    zones = tuple(sorted(zone for zone in subnets if _all_allow(requirements, {ZONE_LABEL: zone})))
    if not zones:
        return
    base = {
        **(template.get("metadata") or {}).get("labels", {}),
        POOL_LABEL: pool["metadata"]["name"],
        NODE_CLASS_LABEL: node_class["metadata"]["name"],
        REGION_LABEL: region,
    }
    disk = disk_gib(node_class)
    for one, capacity_type in itertools.product(catalogue.types.values(), (SPOT, ON_DEMAND)):
        known = {**base, **one.labels, CAPACITY_TYPE_LABEL: capacity_type}
        for custom in _custom(requirements, known):
            labels = {**known, **custom}
            if all(r["key"] == ZONE_LABEL or allows(r, labels.get(r["key"])) for r in requirements):
                yield Offer(
                    pool=pool["metadata"]["name"],
                    instance_type=one.name,
                    capacity_type=capacity_type,
                    price=catalogue.price(one.name, capacity_type),
                    zones=zones,
                    labels=labels,
                    taints=tuple(template["spec"].get("taints") or ()),
                    capacity=_sized(one, disk)[0],
                    allocatable=_sized(one, disk)[1],
                )


def _sized(one: InstanceType, disk: int) -> tuple[Resources, Resources]:
    return one.capacity(disk), one.allocatable(disk)


def _all_allow(requirements: Sequence[Requirement], labels: Mapping[str, str]) -> bool:
    return all(allows(r, labels[r["key"]]) for r in requirements if r["key"] in labels)


def _custom(requirements: Sequence[Requirement], known: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Every choice of values for the labels that a pool names and no instance type has: they become the node's."""
    free = {
        r["key"]: list(r["values"])
        for r in requirements
        if r["operator"] == "In" and r["key"] not in known and r["key"] != ZONE_LABEL and not _well_known(r["key"])
    }
    for values in itertools.product(*free.values()):
        yield dict(zip(free, values, strict=True))


def _well_known(key: str) -> bool:
    """Labels that Karpenter knows of instance types: one without it (a CPU type's GPU, say) does not get it."""
    return key.startswith("karpenter.k8s.aws/instance-")


def disk_gib(node_class: Obj) -> int:
    """The disk of containers and their images: the last mapping, which is Bottlerocket's second volume."""
    sizes = [
        mapping["ebs"]["volumeSize"]
        for mapping in node_class["spec"].get("blockDeviceMappings") or []
        if (mapping.get("ebs") or {}).get("volumeSize")
    ]
    return int(quantity(sizes[-1]) / (1 << 30)) if sizes else DEFAULT_DISK_GIB


def limits_left(pool: Obj, used: Resources) -> Resources | None:
    """What a pool's limits leave; None where it has none."""
    limits = pool["spec"].get("limits")
    if not limits:
        return None
    return {name: quantity(amount) - used.get(name, ZERO) for name, amount in limits.items()}
