"""Which waiting pod fits which node: a pure simulation of the scheduler's filters that matter for starting nodes.

Kept: requests against free room, nodeSelector and required node affinity, taints, host ports, required pod
anti-affinity between pods of one node. Left to the scheduler: preferences, topology spread, pod affinity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rehearsal.kube import Obj
from rehearsal.nodes.shapes import HOSTNAME_LABEL, POOL_LABEL, ZONE_LABEL, Resources, Shape, describe, quantities

ZERO = Decimal(0)


@dataclass
class Candidate:
    """A node that pods can be placed on: one that exists (``name`` is set), or one that is started or could be."""

    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, str]]
    free: Resources
    pods: list[Obj] = field(default_factory=list)
    name: str = ""
    claim: str = ""
    shape: Shape | None = None

    def add(self, pod: Obj) -> None:
        self.pods.append(pod)
        for resource, amount in requests(pod).items():
            self.free[resource] = self.free.get(resource, ZERO) - amount


@dataclass
class Plan:
    """What a round of placing came to."""

    nominations: list[tuple[Obj, Candidate]] = field(default_factory=list)
    starts: list[Candidate] = field(default_factory=list)
    refused: list[tuple[Obj, str]] = field(default_factory=list)


def requests(pod: Obj) -> Resources:
    """What a pod asks of a node: the sum of its containers, or its largest init container; and one pod."""
    spec = pod["spec"]
    running: Resources = {}
    peak: Resources = {}
    for container in spec.get("initContainers") or []:
        asked = _asked(container)
        if container.get("restartPolicy") == "Always":  # a sidecar stays beside what comes after it
            running = _sum(running, asked)
            peak = _max(peak, running)
        else:
            peak = _max(peak, _sum(running, asked))
    for container in spec.get("containers") or []:
        running = _sum(running, _asked(container))
    total = _max(running, peak)
    total.update(_asked(spec))  # pod-level resources, where given, are the pod's word
    total = _sum(total, quantities(spec.get("overhead")))
    total["pods"] = Decimal(1)
    return {name: amount for name, amount in total.items() if amount}


def _asked(holder: Mapping[str, Any]) -> Resources:
    resources = holder.get("resources") or {}
    return quantities({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _sum(a: Resources, b: Resources) -> Resources:
    return {name: a.get(name, ZERO) + b.get(name, ZERO) for name in {*a, *b}}


def _max(a: Resources, b: Resources) -> Resources:
    return {name: max(a.get(name, ZERO), b.get(name, ZERO)) for name in {*a, *b}}


def tolerates(pod: Obj, taint: Mapping[str, str]) -> bool:
    """Whether a pod may be placed in spite of a taint."""
    if taint.get("effect") == "PreferNoSchedule":
        return True
    for toleration in pod["spec"].get("tolerations") or []:
        if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
            continue
        key = toleration.get("key")
        if key and key != taint["key"]:
            continue
        if toleration.get("operator") == "Exists":
            return True
        if key and (toleration.get("value") or "") == (taint.get("value") or ""):
            return True
    return False


def _label_problem(key: str, operator: str, values: Sequence[str], labels: Mapping[str, str]) -> str | None:
    """Why a requirement does not hold on labels, in Karpenter's words; None when it holds."""
    value = labels.get(key)
    wanted = f"{key} {operator}" + (f" [{' '.join(values)}]" if values else "")
    if operator in ("NotIn", "DoesNotExist"):
        wrong = value is not None and (operator == "DoesNotExist" or value in values)
    elif value is None:
        return f'label "{key}" does not have known values'
    elif operator == "In":
        wrong = value not in values
    elif operator in ("Gt", "Lt"):
        try:
            there, bound = int(value), int(values[0])
            wrong = there <= bound if operator == "Gt" else there >= bound
        except ValueError:
            wrong = True
    else:  # Exists
        wrong = False
    return f"key {key}, {wanted} not in {key} In [{value}]" if wrong else None


def label_problem(pod: Obj, labels: Mapping[str, str], name: str = "") -> str | None:
    """Why nodeSelector or required node affinity rules a node out; None when they do not."""
    spec = pod["spec"]
    for key, value in (spec.get("nodeSelector") or {}).items():
        if problem := _label_problem(key, "In", [value], labels):
            return problem
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    problem = None
    for term in (affinity or {}).get("nodeSelectorTerms") or []:  # one term that holds is enough
        problem = _term_problem(term, labels, name)
        if problem is None:
            return None
    return problem


def _term_problem(term: Mapping[str, Any], labels: Mapping[str, str], name: str) -> str | None:
    expressions = term.get("matchExpressions") or []
    fields = term.get("matchFields") or []
    if not expressions and not fields:
        return "an empty node selector term matches no node"
    for expression in expressions:
        if problem := _label_problem(expression["key"], expression["operator"], expression.get("values") or [], labels):
            return problem
    for expression in fields:
        there = {"metadata.name": name} if name else {}
        if problem := _label_problem(expression["key"], expression["operator"], expression.get("values") or [], there):
            return problem
    return None


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A LabelSelector on labels; none selects nothing, an empty one everything."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(
        _label_problem(e["key"], e["operator"], e.get("values") or [], labels) is None
        for e in selector.get("matchExpressions") or []
    )


def _repels(pod: Obj, other: Obj) -> bool:
    """Whether ``pod`` refuses to share a node with ``other`` (required anti-affinity on the host name)."""
    anti = ((pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    meta = other["metadata"]
    for term in anti or []:
        if term.get("topologyKey") != HOSTNAME_LABEL:
            continue
        namespaces = term.get("namespaces") or [pod["metadata"].get("namespace", "")]
        if meta.get("namespace", "") in namespaces and selects(term.get("labelSelector"), meta.get("labels") or {}):
            return True
    return False


def _host_ports(pod: Obj) -> set[tuple[int, str]]:
    return {
        (port["hostPort"], port.get("protocol", "TCP"))
        for container in pod["spec"].get("containers") or []
        for port in container.get("ports") or []
        if port.get("hostPort")
    }


def problem(pod: Obj, node: Candidate) -> str | None:
    """Why a pod cannot be placed on a node, in Karpenter's words; None when it can."""
    for taint in node.taints:
        if not tolerates(pod, taint):
            value = f"={taint['value']}" if taint.get("value") else ""
            return f"did not tolerate {taint['key']}{value}:{taint.get('effect')}"
    if wrong := label_problem(pod, node.labels, node.name):
        return f"incompatible requirements, {wrong}"
    asked = requests(pod)
    if any(amount > node.free.get(resource, ZERO) for resource, amount in asked.items()):
        return _no_room(pod, node, "no instance type has enough resources")
    ports = _host_ports(pod)
    if any(ports & _host_ports(other) for other in node.pods):
        return "a host port is taken"
    if any(_repels(pod, other) or _repels(other, pod) for other in node.pods):
        return f"unsatisfiable topology constraint for pod anti-affinity, key={HOSTNAME_LABEL}"
    return None


def _no_room(pod: Obj, node: Candidate, why: str) -> str:
    shown = (POOL_LABEL, "node.kubernetes.io/instance-type", "kubernetes.io/arch", ZONE_LABEL)
    requirements = ", ".join(f"{key} In [{node.labels[key]}]" for key in shown if key in node.labels)
    return f"no instance type satisfied resources {describe(requests(pod))} and requirements {requirements} ({why})"


def place(
    waiting: Iterable[Obj],
    nodes: Sequence[Candidate],
    shapes: Sequence[Shape],
    zone_use: Mapping[str, int],
    short: Collection[str] = (),
) -> Plan:
    """Place waiting pods on nodes that are there or on the way, and start the cheapest shapes for the rest.

    Changes ``nodes``: pods placed on them take their room. The largest pods come first, so that small ones fill gaps.

    :param shapes: cheapest first.
    :param zone_use: nodes per zone; a start goes to the least used zone that the pod allows.
    :param short: instance types that the cloud has just refused.
    """
    plan = Plan()
    use = dict(zone_use)
    ordered = sorted(waiting, key=_size, reverse=True)
    for pod in ordered:
        target = next((node for node in [*nodes, *plan.starts] if problem(pod, node) is None), None)
        if target is None:
            target, reasons = _start_for(pod, shapes, use, short)
            if target is None:
                plan.refused.append((pod, reasons))
                continue
            plan.starts.append(target)
            zone = target.labels[ZONE_LABEL]
            use[zone] = use.get(zone, 0) + 1
        target.add(pod)
        plan.nominations.append((pod, target))
    return plan


def _size(pod: Obj) -> tuple[Decimal, Decimal]:
    asked = requests(pod)
    return asked.get("cpu", ZERO), asked.get("memory", ZERO)


def _start_for(
    pod: Obj, shapes: Sequence[Shape], use: Mapping[str, int], short: Collection[str]
) -> tuple[Candidate | None, str]:
    reasons: dict[str, str] = {}
    for shape in shapes:
        for zone in sorted(shape.zones, key=lambda zone: (use.get(zone, 0), zone)):
            node = Candidate(
                labels={**shape.labels, ZONE_LABEL: zone}, taints=shape.taints, free=shape.room, shape=shape
            )
            wrong = problem(pod, node)
            if wrong is None and shape.instance_type not in short:
                return node, ""
            wrong = wrong or _no_room(pod, node, "no instance type has the required offering")
            reasons[shape.pool] = f'incompatible with nodepool "{shape.pool}", daemonset overhead={{}}, {wrong}'
    return None, "Failed to schedule pod, " + "; ".join(reasons.values())
