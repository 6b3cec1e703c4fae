"""EC2's vCPU quotas: which one an instance type counts against, and whether what is asked for fits into it. Pure.

Codes and names: AWS, "Amazon EC2 endpoints and quotas", read 2026-11. A quota is of one region, counts the default
vCPUs of instances that are pending or running, and is kept apart for on-demand and spot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nim_rollouts.core.errors import QuotaTooSmall
from nim_rollouts.core.pools import SPOT
from nim_rollouts.core.verdicts.model import Object

SERVICE = "ec2"
_STANDARD = "Standard (A, C, D, H, I, M, R, T, Z)"


@dataclass(frozen=True)
class Quota:
    """One quota. `code`: as Service Quotas knows it."""

    code: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.code})"


def _both(name: str, on_demand: str, spot: str, as_spot: str = "") -> tuple[Quota, Quota]:
    return Quota(on_demand, f"Running On-Demand {name} instances"), Quota(
        spot, f"All {as_spot or name} Spot Instance Requests"
    )


#: First letters of the family -> on demand, spot.
_OF: dict[str, tuple[Quota, Quota]] = {
    **dict.fromkeys(("g", "gr", "vt"), _both("G and VT", "L-DB2E81BA", "L-3819A6DF")),
    "p": _both("P", "L-417A185B", "L-7212CCBC", "P4, P3 and P2"),
    "inf": _both("Inf", "L-1945791B", "L-B5D1601B"),
    "trn": _both("Trn", "L-2C3B7624", "L-6B0D517C"),
    "dl": _both("DL", "L-6E869C2A", "L-85EED4F7"),
    "f": _both("F", "L-74FC7D96", "L-88CF9481"),
    "x": _both("X", "L-7295265B", "L-E3A00192"),
}
_REST = _both(_STANDARD, "L-1216C47A", "L-34B43A08")
# On demand there is one quota for all of P, on spot there are several; of newer generations none is known here.
_P_SPOT = {**dict.fromkeys("234", _OF["p"][1]), "5": Quota("L-C4BD4855", "All P5 Spot Instance Requests")}


def quota_of(instance_type: str, capacity_type: str) -> Quota | None:
    """The quota that a type counts against; None for families that have none of vCPUs (`u`, `hpc`, `mac`), and where
    it is not known."""
    match = re.match(r"([a-z]+)(\d?)", instance_type)
    letters, generation = match.groups() if match else ("", "")
    if letters == "p" and capacity_type == SPOT:
        return _P_SPOT.get(generation)
    pair = _OF.get(letters) or (_REST if letters[:1] in tuple("acdhimrtz") and letters not in ("hpc", "mac") else None)
    return pair[capacity_type == SPOT] if pair else None


@dataclass(frozen=True)
class Running:
    """An instance that is pending or running. `ours`: Karpenter started it for the environment's cluster."""

    instance_type: str
    capacity_type: str
    vcpus: int
    ours: bool = False
    id: str = ""


@dataclass(frozen=True)
class Candidate:
    """One way to host a need: so many nodes of one type. `vcpus`: of all of them together."""

    what: str
    instance_type: str
    nodes: int
    capacity_type: str
    vcpus: int


@dataclass(frozen=True)
class Finding:
    """What a candidate meets. `limit`, `used`: vCPUs, None where AWS did not tell; `why`: why it is not decided."""

    candidate: Candidate
    quota: Quota
    limit: float | None
    used: int | None
    missing: int
    why: str = ""

    @property
    def is_met(self) -> bool | None:
        """None when it is not known."""
        return None if self.why else self.missing <= 0

    @property
    def in_words(self) -> str:
        """One line."""
        one = self.candidate
        asked = f"{one.nodes} x {one.instance_type} {one.capacity_type} ({one.vcpus} vCPUs) for {one.what}"
        if self.limit is None or self.used is None:
            return f"{asked}: {self.quota} is not known ({self.why})"
        return f"{asked}: {self.quota} is {self.limit:g}, {self.used} in use" + (f" ({self.why})" if self.why else "")

    def command(self, region: str) -> str:
        """What asks AWS for as much as is needed."""
        wanted = int(self.limit or 0) + max(0, self.missing)
        return (
            f"aws service-quotas request-service-quota-increase --service-code {SERVICE} "
            f"--quota-code {self.quota.code} --desired-value {wanted} --region {region}"
        )


_MAYBE = "enough only where nodes that run for this cluster can be used again"
_NOTHING: Mapping[str, bool] = {}


def findings(
    candidates: Iterable[Candidate],
    limits: Mapping[str, float | str],
    running: Sequence[Running] | str,
    again: Mapping[str, bool] = _NOTHING,
) -> list[Finding]:
    """What each candidate meets.

    :param limits: code -> vCPUs, or why it is not known
    :param running: all that run in the region, or why that is not known
    :param again: id of an instance -> whether the deployment may use it again; of one of ours that is not named that
        is not known
    """
    found = []
    for one in candidates:
        quota = quota_of(one.instance_type, one.capacity_type)
        if quota is None:
            continue
        limit = limits.get(quota.code, "it was not asked for")
        if isinstance(limit, str) or isinstance(running, str):
            why = limit if isinstance(limit, str) else str(running)
            found.append(Finding(one, quota, None if isinstance(limit, str) else limit, None, 0, why))
            continue
        counted = [each for each in running if quota_of(each.instance_type, each.capacity_type) == quota]
        used = sum(each.vcpus for each in counted)
        # A rollout that replaces a service has its nodes already: they are not needed twice.
        sure = sum(each.vcpus for each in counted if again.get(each.id))
        maybe = sure + sum(each.vcpus for each in counted if each.ours and each.id not in again)
        missing, least = (used + max(0, one.vcpus - free) - int(limit) for free in (sure, maybe))
        found.append(Finding(one, quota, limit, used, missing, _MAYBE if missing > 0 >= least else ""))
    return found


def usable_again(deployment: str, namespace: str, nodes: Iterable[Object], pods: Iterable[Object]) -> dict[str, bool]:
    """Id of a node's instance -> whether a new revision of the deployment may use the node: where its own pods stand,
    or nobody's. What others stand on is theirs. Pods of DaemonSets are on every node, and ended ones on none."""
    whose: dict[str, set[bool]] = {}
    # The operator names all that it makes after the cache or the service, which we name so.
    own = re.compile(rf"{re.escape(deployment)}-((bench|probe)-)?[0-9a-f]{{8}}(-.*)?")
    for pod in pods:
        metadata, owners = pod["metadata"], pod["metadata"].get("ownerReferences") or ()
        everywhere = any(one.get("kind") in ("DaemonSet", "Node") for one in owners)
        if everywhere or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        is_own = metadata.get("namespace") == namespace and own.fullmatch(metadata["name"]) is not None
        whose.setdefault(str((pod.get("spec") or {}).get("nodeName") or ""), set()).add(is_own)
    instances = {one["metadata"]["name"]: str((one.get("spec") or {}).get("providerID") or "") for one in nodes}
    return {id_.rpartition("/")[2]: whose.get(name) != {False} for name, id_ in instances.items()}


def judge(found: Sequence[Finding], region: str) -> Finding | None:
    """The finding that decides for one need: the first that is met, else one that is not known; None without any.

    :raises QuotaTooSmall: all are known and none is met; says the command that asks for more
    """
    if not found:
        return None
    for answer in (True, None):
        for one in found:
            if one.is_met is answer:
                return one
    # The fewest vCPUs to ask for, on demand before spot where both ask for as many.
    least = min(found, key=lambda one: (one.missing, one.candidate.capacity_type))
    told: dict[str, Finding] = {}
    for one in sorted(found, key=lambda one: one.missing):
        told.setdefault(one.quota.code, one)
    raise QuotaTooSmall(
        f"{found[0].candidate.what} cannot get a node in {region}: " + "; ".join(one.in_words for one in told.values()),
        hint=f"Ask AWS for more and trigger the run again: {least.command(region)}",
    )
