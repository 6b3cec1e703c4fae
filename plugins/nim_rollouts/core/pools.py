"""Which of Karpenter's node pools could start a node for a pod, of which instance types, and why the others could not.

Pure: from NodePool objects (as in the cluster, or as in include/manifests/node-pools) and the shapes of
`core.instances`. Only what Karpenter decides before it asks EC2 is judged: template labels, taints, requirements,
sizes, limits. Requirements on what no shape tells (zones, generations of hypervisors) are taken as met.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from nim_rollouts.core.errors import GpuFit
from nim_rollouts.core.instances import GIB, GPU, INSTANCES, Instance, fits
from nim_rollouts.core.quantity import parse_quantity

NodePool = Mapping[str, Any]
Amounts = dict[str, Fraction]

CAPACITY_TYPE = "karpenter.sh/capacity-type"
ON_DEMAND, SPOT = "on-demand", "spot"
_AWS = "karpenter.k8s.aws/instance-"
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


def options(need: Need, pools: Iterable[NodePool], *, standing: bool = False) -> list[Option]:
    """What the pools can start for the need, the fewest vCPUs first.

    :param standing: an earlier revision runs, whose nodes may be used again: what they take of a limit is not held
        against the need
    :raises GpuFit: none can; says of each pool why
    """
    found: list[Option] = []
    refused: list[str] = []
    for pool in pools:
        try:
            found += _of_pool(need, pool, standing)
        except _Refused as why:
            refused.append(f"{_name(pool)}: {why}")
    if not found:
        asked = ", ".join(f"{name}={value}" for name, value in need.resources.items()) or "nothing in particular"
        raise GpuFit(
            f"no node pool can start a node for {need.what} ({asked}): {'. '.join(refused) or 'there is no node pool'}",
            hint=f"Correct node_selector, tolerations or resources of {need.what}, or the pools that the environment "
            "names in node_pools",
        )
    return sorted(found, key=lambda one: (one.nodes * one.instance.cpus, one.instance.name, one.pool))


class _Refused(Exception):
    """The pool starts nothing for the need; the text says why."""


def _of_pool(need: Need, pool: NodePool, standing: bool) -> list[Option]:
    template = (pool.get("spec") or {}).get("template") or {}
    spec = template.get("spec") or {}
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    labels["karpenter.sh/nodepool"] = _name(pool)
    requirements = list(spec.get("requirements") or ())
    for taint in [*(spec.get("taints") or ())]:
        if not _tolerated(taint, need.tolerations):
            value = f"={taint['value']}" if taint.get("value") else ""
            raise _Refused(f"its taint {taint['key']}{value}:{taint.get('effect')} is not tolerated")
    _selectable(need, labels, requirements)
    types = [one for one in INSTANCES.values() if _allowed(one, labels, requirements, need.node_selector)]
    if not types:
        raise _Refused("its requirements and the node_selector leave no instance type that is known here")
    try:
        good = fits(dict(need.resources), [one.name for one in types], need.gpu_products, where=need.what)
    except GpuFit as error:
        raise _Refused(f"too small: {error.message.partition('): ')[2]}") from None
    limits, used = (
        _amounts((pool.get("spec") or {}).get("limits")),
        _amounts((pool.get("status") or {}).get("resources")),
    )
    capacity_types = tuple(one for one in (ON_DEMAND, SPOT) if _met(CAPACITY_TYPE, one, requirements))
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
        raise _Refused(over)
    return found


def _selectable(need: Need, labels: Mapping[str, str], requirements: Sequence[Mapping[str, Any]]) -> None:
    """Nothing, if nodes of the pool can carry the labels that the need selects by."""
    required = {str(one.get("key")) for one in requirements}
    for key, value in need.node_selector.items():
        if key in labels:
            if labels[key] != value:
                raise _Refused(f"its nodes have {key}={labels[key]}, asked for is {key}={value}")
        elif key in required:
            if not _met(key, value, requirements):
                raise _Refused(f"its requirement on {key} excludes {value}")
        elif not _is_known(key):
            raise _Refused(f"its nodes have no label {key} (asked for is {key}={value})")


def _is_known(key: str) -> bool:
    return bool(
        key in _type_labels(next(iter(INSTANCES.values()))) or key == CAPACITY_TYPE or _FROM_ELSEWHERE.match(key)
    )


def _allowed(
    one: Instance,
    labels: Mapping[str, str],
    requirements: Sequence[Mapping[str, Any]],
    selector: Mapping[str, str],
) -> bool:
    """Whether requirements and selector let the pool start this type."""
    own = _type_labels(one)
    wanted = all(own.get(key, value) == value for key, value in selector.items() if key in own)
    return wanted and all(_holds(own[str(each["key"])], each) for each in requirements if str(each.get("key")) in own)


def _type_labels(one: Instance) -> dict[str, str | None]:
    """The labels that Karpenter gives to nodes of a type; None for one that such nodes lack."""
    family, _, size = one.name.partition(".")
    parts = re.match(r"([a-z]+)(\d*)", family)
    gpus = bool(one.gpus)
    return {
        "node.kubernetes.io/instance-type": one.name,
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        f"{_AWS}family": family,
        f"{_AWS}size": size,
        f"{_AWS}category": parts.group(1) if parts else family,
        f"{_AWS}generation": parts.group(2) if parts else "",
        f"{_AWS}cpu": str(one.cpus),
        f"{_AWS}memory": str(int(one.memory_gib * 1024)),
        f"{_AWS}gpu-count": str(one.gpus) if gpus else None,
        f"{_AWS}gpu-name": (one.gpu_product or "").lower() if gpus else None,
        f"{_AWS}gpu-manufacturer": "nvidia" if gpus else None,
        f"{_AWS}gpu-memory": str(one.gpu_memory_gib * 1024) if gpus else None,
    }


def _met(key: str, value: str, requirements: Sequence[Mapping[str, Any]]) -> bool:
    return all(_holds(value, one) for one in requirements if one.get("key") == key)


def _holds(value: str | None, requirement: Mapping[str, Any]) -> bool:
    """One requirement on a value; None: the label is missing."""
    operator = requirement.get("operator")
    values = [str(one) for one in requirement.get("values") or ()]
    if operator == "In":
        return value is not None and value in values
    if operator == "NotIn":
        return value is None or value not in values
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    if operator in ("Gt", "Lt") and value is not None and values:
        try:
            there, bound = int(value), int(values[0])
        except ValueError:
            return False
        return there > bound if operator == "Gt" else there < bound
    return False


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
