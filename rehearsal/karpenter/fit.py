"""Which waiting pod fits which node: a pure simulation of the scheduler's filters that matter for starting nodes.

Kept: requests against free room, nodeSelector and required node affinity, taints, host ports, required pod
anti-affinity between pods of one node. Left to the scheduler: preferences, topology spread, pod affinity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rehearsal.karpenter.catalogue import HOSTNAME_LABEL, INSTANCE_TYPE_LABEL, ZONE_LABEL
from rehearsal.karpenter.offers import NUMERIC, POOL_LABEL, Offer, numerically
from rehearsal.karpenter.resources import ZERO, Resources, describe, largest, quantities, total
from rehearsal.kube import Obj


@dataclass
class Candidate:
    """A node that pods can be placed on: one that exists (``name`` is set), or one that is started or could be."""

    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, str]]
    free: Resources
    pods: list[Obj] = field(default_factory=list)
    name: str = ""
    claim: str = ""
    offer: Offer | None = None

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
            running = total(running, asked)
            peak = largest(peak, running)
        else:
            peak = largest(peak, total(running, asked))
    for container in spec.get("containers") or []:
        running = total(running, _asked(container))
    whole = largest(running, peak)
    whole.update(_asked(spec))  # pod-level resources, where given, are the pod's word
    whole = total(whole, quantities(spec.get("overhead")))
    whole["pods"] = Decimal(1)
    return {name: amount for name, amount in whole.items() if amount}


def _asked(holder: Mapping[str, Any]) -> Resources:
    resources = holder.get("resources") or {}
    return quantities({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


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
    elif operator in NUMERIC:
        wrong = not numerically(operator, value, values)
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
    shown = (POOL_LABEL, INSTANCE_TYPE_LABEL, "kubernetes.io/arch", ZONE_LABEL)
    labels = {**node.labels, **({ZONE_LABEL: " ".join(node.offer.zones)} if node.offer else {})}
    requirements = ", ".join(f"{key} In [{labels[key]}]" for key in shown if key in labels)
    return f"no instance type satisfied resources {describe(requests(pod))} and requirements {requirements} ({why})"


@dataclass
class Means:
    """What nodes can be started with: offers in the order of preference, and what still may be used of each pool."""

    offers: Sequence[Offer]
    limits: dict[str, Resources] = field(default_factory=dict)
    """Pool -> what its limits leave, where it has any."""
    short: Collection[tuple[str, str, str]] = ()
    """(instance type, zone, capacity type) that the cloud has just refused."""

    def exceeds(self, offer: Offer) -> bool:
        left = self.limits.get(offer.pool)
        return left is not None and any(offer.capacity.get(name, ZERO) > amount for name, amount in left.items())

    def take(self, offer: Offer) -> None:
        left = self.limits.get(offer.pool)
        if left is not None:
            for name in left:
                left[name] -= offer.capacity.get(name, ZERO)


def place(waiting: Iterable[Obj], nodes: Sequence[Candidate], means: Means, zone_use: Mapping[str, int]) -> Plan:
    """Place waiting pods on nodes that are there or on the way, and start nodes for the rest.

    Changes ``nodes`` and ``means``: pods placed take their room. The largest pods come first, so that small ones fill
    gaps. Of several pools the first that can hold a pod is taken, of its offers the cheapest.

    :param zone_use: nodes per zone; a start goes to the least used zone that the pod allows.
    """
    plan = Plan()
    use = dict(zone_use)
    ordered = sorted(waiting, key=_size, reverse=True)
    for pod in ordered:
        target = next((node for node in [*nodes, *plan.starts] if problem(pod, node) is None), None)
        if target is None:
            target, reasons = _start_for(pod, means, use)
            if target is None:
                plan.refused.append((pod, reasons))
                continue
            assert target.offer
            means.take(target.offer)
            plan.starts.append(target)
            zone = target.labels[ZONE_LABEL]
            use[zone] = use.get(zone, 0) + 1
        target.add(pod)
        plan.nominations.append((pod, target))
    return plan


def _size(pod: Obj) -> tuple[Decimal, Decimal]:
    asked = requests(pod)
    return asked.get("cpu", ZERO), asked.get("memory", ZERO)


def fresh(offer: Offer, zone: str) -> Candidate:
    """The empty node that an offer would become."""
    return Candidate(labels={**offer.labels, ZONE_LABEL: zone}, taints=offer.taints, free=offer.room, offer=offer)


def _start_for(pod: Obj, means: Means, use: Mapping[str, int]) -> tuple[Candidate | None, str]:
    reasons: dict[str, str] = {}
    exceeded: set[str] = set()
    for offer in means.offers:
        for zone in sorted(offer.zones, key=lambda zone: (use.get(zone, 0), zone)):
            node = fresh(offer, zone)
            wrong = problem(pod, node)
            if wrong is None and means.exceeds(offer):
                exceeded.add(offer.pool)
                continue
            if wrong is None and (offer.instance_type, zone, offer.capacity_type) not in means.short:
                return node, ""
            wrong = wrong or _no_room(pod, node, "no instance type has the required offering")
            overhead = describe(offer.overhead)
            # What an offer could hold but for the cloud's refusal says more than what all the others lack.
            if offer.pool not in reasons or "required offering" not in reasons[offer.pool]:
                reasons[offer.pool] = (
                    f'incompatible with nodepool "{offer.pool}", daemonset overhead={overhead}, {wrong}'
                )
    for pool in exceeded:
        if "required offering" not in reasons.get(pool, ""):
            reasons[pool] = f'all available instance types exceed limits for nodepool: "{pool}"'
    if not means.offers:
        return None, "Failed to schedule pod, no nodepools found"
    return None, "Failed to schedule pod, " + "; ".join(reasons.values())
