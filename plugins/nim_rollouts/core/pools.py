"""Which of Karpenter's node pools could start a node for a pod, of which instance types, and why the others could not.

Pure: from NodePool objects (as in the cluster, or as in include/manifests/node-pools) and the shapes of
`core.instances`. Only what Karpenter decides before it asks EC2 is judged: template labels, taints, requirements,
sizes, limits. Requirements on what no shape tells (zones, generations of hypervisors) are taken as met, and a pool that
may start types of which no shape is known here is no refusal: it is noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from nim_rollouts.core.errors import GpuFit
from nim_rollouts.core.instances import (
    FAMILIES,
    GIB,
    GPU,
    INSTANCES,
    Instance,
    could_hold,
    cpus_of_size,
    fits,
    may_have_gpus,
)
from nim_rollouts.core.quantity import parse_quantity
from nim_rollouts.core.requirements import (
    CATEGORY,
    FAMILY,
    SIZE,
    TYPE,
    by_name,
    holds,
    listed,
    met,
    strange,
    type_labels,
)

NodePool = Mapping[str, Any]
Amounts = dict[str, Fraction]

CAPACITY_TYPE = "karpenter.sh/capacity-type"
ON_DEMAND, SPOT = "on-demand", "spot"
# Labels that a node gets, from the cloud or from what runs on it, and that no file says beforehand.
_FROM_ELSEWHERE = re.compile(
    r"topology\.kubernetes\.io/|topology\.k8s\.aws/|kubernetes\.io/hostname|karpenter\.k8s\.aws/"
    r"|node\.kubernetes\.io/|nvidia\.com/|feature\.node\.kubernetes\.io/"
)


@dataclass(frozen=True)
class Need:
    """Pods that are alike, each with these requests.

    :param what: the deployment's key, for messages
    :param resources: what the scheduler reserves, resource name -> quantity
    :param tolerations: in the field names of Kubernetes
    :param gpu_products: the node's GPU must be one of these (the model profile's); empty: any
    """

    what: str
    resources: Mapping[str, str]
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    gpu_products: Sequence[str] = ()
    replicas: int = 1


@dataclass(frozen=True)
class Option:
    """One instance type that one pool may start for a need.

    :param nodes: how many of it the replicas take
    :param capacity_types: on-demand, spot
    :param tight: the pool's limit leaves room for it only if nodes that run now are used again; in words, or empty
    """

    pool: str
    instance: Instance
    nodes: int
    capacity_types: tuple[str, ...]
    tight: str = ""


@dataclass(frozen=True)
class Fit:
    """What the pools can start for a need.

    :param options: the fewest vCPUs first; none where only types may do of which nothing is known here
    :param notes: what was taken as met without being known, a sentence each
    """

    options: Sequence[Option]
    notes: Sequence[str] = ()


def fit(need: Need, pools: Iterable[NodePool], *, standing: bool = False) -> Fit:
    """What the pools can start for the need.

    :param standing: an earlier revision runs, whose nodes may be used again: what they take of a limit is not held
        against the need
    :raises GpuFit: none can, for certain; says of each pool why
    """
    found: list[Option] = []
    refused: list[str] = []
    unknown: list[str] = []
    notes: list[str] = []
    for pool in pools:
        try:
            found += _of_pool(need, pool, standing)
            notes += [f"{_name(pool)}: {one}, not known here and taken as met" for one in strange(_requirements(pool))]
        except _Refused as why:
            others = _others(need, pool) if why.by_type else []
            if others:
                unknown.append(f"{_name(pool)} may start {', '.join(others)}, of which nothing is known here")
            refused.append(f"{_name(pool)}: {why}")
    if not found and not unknown:
        asked = ", ".join(f"{name}={value}" for name, value in need.resources.items()) or "nothing in particular"
        raise GpuFit(
            f"no node pool can start a node for {need.what} ({asked}): {'. '.join(refused) or 'there is no node pool'}",
            hint=f"Correct node_selector, tolerations or resources of {need.what}, or the pools that the environment "
            "names in node_pools",
        )
    ordered = sorted(found, key=lambda one: (one.nodes * one.instance.cpus, one.instance.name, one.pool))
    return Fit(ordered, notes if found else unknown)


class _Refused(Exception):
    """The pool starts nothing for the need; the text says why. `by_type`: none of the types that are known would do."""

    def __init__(self, why: str, *, by_type: bool = False) -> None:
        super().__init__(why)
        self.by_type = by_type


def _of_pool(need: Need, pool: NodePool, standing: bool) -> list[Option]:
    template = (pool.get("spec") or {}).get("template") or {}
    spec = template.get("spec") or {}
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    labels["karpenter.sh/nodepool"] = _name(pool)
    requirements = _requirements(pool)
    for taint in [*(spec.get("taints") or ())]:
        if not _tolerated(taint, need.tolerations):
            value = f"={taint['value']}" if taint.get("value") else ""
            raise _Refused(f"its taint {taint['key']}{value}:{taint.get('effect')} is not tolerated")
    _selectable(need, labels, requirements)
    types = [one for one in INSTANCES.values() if _allowed(one, labels, requirements, need.node_selector)]
    if not types:
        raise _Refused("its requirements and the node_selector leave no instance type that is known here", by_type=True)
    try:
        good = fits(dict(need.resources), [one.name for one in types], need.gpu_products, where=need.what)
    except GpuFit as error:
        raise _Refused(f"too small: {error.message.partition('): ')[2]}", by_type=True) from None
    limits, used = (
        _amounts((pool.get("spec") or {}).get("limits")),
        _amounts((pool.get("status") or {}).get("resources")),
    )
    capacity_types = tuple(one for one in (ON_DEMAND, SPOT) if met(CAPACITY_TYPE, one, requirements))
    capacity_types = tuple(one for one in capacity_types if need.node_selector.get(CAPACITY_TYPE, one) == one)
    if not capacity_types:
        raise _Refused(f"its requirement on {CAPACITY_TYPE} leaves neither {ON_DEMAND} nor {SPOT}")
    found, over = [], ""
    for instance in (INSTANCES[name] for name in good):
        nodes = _nodes(need, instance)
        total = {name: amount * nodes for name, amount in _capacity(instance).items()}
        beyond = _beyond(total, limits, {})
        short = _beyond(total, limits, used)
        if beyond or (short and not standing):
            over = over or f"{nodes} x {instance.name} exceed its {beyond or short}"
            continue
        found.append(Option(_name(pool), instance, nodes, capacity_types, short))
    if not found:
        asked = {name: parse_quantity(value) * need.replicas for name, value in need.resources.items()}
        raise _Refused(over, by_type=not _beyond(asked, limits, {}))
    return found


def _others(need: Need, pool: NodePool) -> list[str]:
    """Types or families that the pool may start for the need, for all that their names say, and that are not known
    here. A pool that names neither may start any."""
    requirements = _requirements(pool)
    wanted = {name: parse_quantity(value) for name, value in need.resources.items()}
    if not _a_size_would_do(requirements, wanted):
        return []
    for key, known in ((TYPE, INSTANCES), (FAMILY, FAMILIES)):
        named = listed(key, requirements) if key not in need.node_selector else [need.node_selector[key]]
        if named is not None:
            return [one for one in named if one not in known and by_name(one, requirements) and could_hold(one, wanted)]
    categories = listed(CATEGORY, requirements)
    if categories is not None and wanted.get(GPU):
        categories = [one for one in categories if may_have_gpus(f"{one}0")]
    return ["other families"] if categories is None or categories else []


def _requirements(pool: NodePool) -> list[Mapping[str, Any]]:
    return list((((pool.get("spec") or {}).get("template") or {}).get("spec") or {}).get("requirements") or ())


def _a_size_would_do(requirements: Sequence[Mapping[str, Any]], wanted: Amounts) -> bool:
    sizes = listed(SIZE, requirements)
    cpus = [cpus_of_size(one) for one in sizes or ()]
    return sizes is None or any(one is None or one >= wanted.get("cpu", 0) for one in cpus)


def _selectable(need: Need, labels: Mapping[str, str], requirements: Sequence[Mapping[str, Any]]) -> None:
    """Nothing, if nodes of the pool can carry the labels that the need selects by."""
    required = {str(one.get("key")) for one in requirements}
    for key, value in need.node_selector.items():
        if key in labels:
            if labels[key] != value:
                raise _Refused(f"its nodes have {key}={labels[key]}, asked for is {key}={value}")
        elif key in required:
            if not met(key, value, requirements):
                raise _Refused(f"its requirement on {key} excludes {value}")
        elif not _is_known(key):
            raise _Refused(f"its nodes have no label {key} (asked for is {key}={value})")


def _is_known(key: str) -> bool:
    return bool(
        key in type_labels(next(iter(INSTANCES.values()))) or key == CAPACITY_TYPE or _FROM_ELSEWHERE.match(key)
    )


def _allowed(
    one: Instance,
    labels: Mapping[str, str],
    requirements: Sequence[Mapping[str, Any]],
    selector: Mapping[str, str],
) -> bool:
    """Whether requirements and selector let the pool start this type."""
    own = type_labels(one)
    wanted = all(own.get(key, value) == value for key, value in selector.items() if key in own)
    return wanted and all(holds(own[str(each["key"])], each) for each in requirements if str(each.get("key")) in own)


def _tolerated(taint: Mapping[str, Any], tolerations: Sequence[Mapping[str, Any]]) -> bool:
    if taint.get("effect") == "PreferNoSchedule":
        return True
    for one in tolerations:
        if one.get("effect") not in (None, "", taint.get("effect")):
            continue
        if one.get("key") not in (None, "", taint.get("key")):
            continue
        if one.get("operator") == "Exists" or (
            one.get("key") and (one.get("value") or "") == (taint.get("value") or "")
        ):
            return True
    return False


def _nodes(need: Need, instance: Instance) -> int:
    """How many nodes of a type the replicas take: what fits side by side shares one."""
    room = instance.allocatable
    asked = {name: parse_quantity(value) for name, value in need.resources.items()}
    each = [int(room[name] // amount) for name, amount in asked.items() if amount and name in room]
    return math.ceil(need.replicas / max(1, min(each, default=need.replicas)))


def _capacity(instance: Instance) -> Amounts:
    """What a node of the type counts against a pool's limits."""
    counted = {"cpu": Fraction(instance.cpus), "memory": Fraction(int(instance.memory_gib * GIB)), "nodes": Fraction(1)}
    return {**counted, GPU: Fraction(instance.gpus)}


def _beyond(total: Amounts, limits: Amounts, used: Amounts) -> str:
    """The first limit that is not large enough, in words; empty when all are."""
    for name, limit in limits.items():
        taken = used.get(name, Fraction(0))
        if total.get(name, Fraction(0)) + taken > limit:
            shown = f", {_shown(name, taken)} of it in use" if taken else ""
            return f"limit {name} ({_shown(name, limit)}{shown})"
    return ""


def _amounts(given: Mapping[str, Any] | None) -> Amounts:
    return {name: parse_quantity(str(value)) for name, value in (given or {}).items()}


def _shown(name: str, amount: Fraction) -> str:
    return f"{float(amount / GIB):.0f}Gi" if name == "memory" else f"{float(amount):g}"


def _name(pool: NodePool) -> str:
    return str(pool["metadata"]["name"])
