"""What AWS still has of an environment: which things are its, whose they are, and what holds them.

Three answers: empty, leftovers, unknown; only the first is success. What cannot be looked at is never taken for absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: On everything that the root module makes.
ENVIRONMENT_TAG = "nim-rollouts/environment"
#: How many holders a line names.
SHOWN = 8
STATE = "terraform state"


class Answer(StrEnum):
    """What an inventory says."""

    EMPTY = "empty"
    LEFTOVERS = "leftovers"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Scope:
    """Whose things are looked for. `vpcs`: networks that are known to be, or to have been, the environment's."""

    environment: str
    cluster: str
    vpcs: frozenset[str] = frozenset()

    @property
    def marks(self) -> dict[str, str]:
        """Tag -> value by which a thing is this environment's: terraform's tag, and those with which controllers and
        AWS mark what they make for a cluster."""
        return {
            ENVIRONMENT_TAG: self.environment,
            f"kubernetes.io/cluster/{self.cluster}": "owned",
            "eks:cluster-name": self.cluster,
            "aws:eks:cluster-name": self.cluster,
            "eks:eks-cluster-name": self.cluster,
            "elbv2.k8s.aws/cluster": self.cluster,
            "ingress.k8s.aws/cluster": self.cluster,
            "cluster.k8s.amazonaws.com/name": self.cluster,
            "karpenter.k8s.aws/cluster": self.cluster,
            "ebs.csi.aws.com/cluster-name": self.cluster,
            "KubernetesCluster": self.cluster,
        }

    def names(self) -> dict[str, frozenset[str]]:
        """Kind -> the names that the root module and AWS give by the cluster's name. Only of kinds whose names an
        account, or a region of it, has once."""
        c = self.cluster
        roles = ("cluster", "node", "system-node", "ebs-csi", "efs-csi", "cloudwatch", "karpenter")
        rules = ("health", "spot", "rebalance", "state", "capacity")
        return {
            "EKS cluster": frozenset([c]),
            "launch template": frozenset([f"{c}-system"]),
            "IAM role": frozenset(f"{c}-{one}" for one in roles),
            "SQS queue": frozenset([f"{c}-karpenter"]),
            "EventBridge rule": frozenset(f"{c}-{one}" for one in rules),
            "secret": frozenset([f"{c}/grafana"]),
            "KMS alias": frozenset([f"alias/{c}", f"alias/eks/{c}"]),
        }

    def prefixes(self) -> dict[str, tuple[str, ...]]:
        """Kind -> what names begin with that nothing but this cluster has: agents in it choose how they go on."""
        return {"log group": (f"/aws/eks/{self.cluster}/", f"/aws/containerinsights/{self.cluster}/")}

    def has_name(self, thing: Thing) -> bool:
        """True when the thing is called what only this environment's are."""
        known, beginnings = self.names().get(thing.kind, ()), self.prefixes().get(thing.kind, ())
        return any(called in known or called.startswith(beginnings) for called in (thing.name, thing.id))


@dataclass(frozen=True)
class Thing:
    """One thing in AWS as it was read. Identifiers in `holds` and `held_by` are references (see `ref`).

    :param by: whether the look itself knows that it is the environment's, and from what (a part of another thing)
    :param holds: what cannot be deleted while this is there
    :param held_by: what this is known to be held by, where the holder is no thing of the inventory
    :param going: AWS is deleting it already
    """

    kind: str
    id: str
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    vpc: str | None = None
    by: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    held_by: tuple[str, ...] = ()
    description: str = ""
    state: str = ""
    going: bool = False

    @property
    def ref(self) -> str:
        """`kind id`."""
        return ref(self.kind, self.id)


def ref(kind: str, identifier: str) -> str:
    """How one thing is named among all kinds."""
    return f"{kind} {identifier}"


@dataclass(frozen=True)
class Finding:
    """One thing that is left. `going`: AWS is deleting it, or all that holds it (see `going` below)."""

    kind: str
    id: str
    name: str
    found_by: tuple[str, ...]
    owner: str
    held_by: tuple[str, ...]
    state: str
    going: bool

    def text(self) -> str:
        """One line for a log."""
        name = f" ({self.name})" if self.name and self.name != self.id else ""
        parts = [f"found by {' and '.join(self.found_by)}", f"made by {self.owner}"]
        parts += [self.state] if self.state else []
        parts.append(f"held by {shortened(self.held_by)}" if self.held_by else "nothing seen that holds it")
        return f"{self.kind} {self.id}{name}: {', '.join(parts)}"

    def as_facts(self) -> dict[str, Any]:
        """For the ledger."""
        return {
            "kind": self.kind,
            "id": self.id,
            "name": self.name,
            "found_by": list(self.found_by),
            "owner": self.owner,
            "held_by": list(self.held_by),
            "state": self.state,
            "going": self.going,
        }


@dataclass(frozen=True)
class Unseen:
    """A kind that could not be looked at, or not in full. `action`: the right that is missing, if one is."""

    kind: str
    why: str
    action: str | None = None

    def text(self) -> str:
        """One line for a log."""
        return f"{self.kind}: {self.why}" + (f"; grant {self.action}" if self.action else "")

    def as_facts(self) -> dict[str, Any]:
        """For the ledger."""
        return {"kind": self.kind, "why": self.why, "action": self.action}


@dataclass(frozen=True)
class Inventory:
    """What was found, what could not be seen, and the kinds that were looked at in full."""

    leftovers: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]
    looked_at: tuple[str, ...]

    @property
    def answer(self) -> Answer:
        """Something found is a leftover, whatever else could not be seen."""
        if self.leftovers:
            return Answer.LEFTOVERS
        return Answer.UNKNOWN if self.unseen else Answer.EMPTY

    @property
    def denied(self) -> bool:
        """Only a person can help: all that could not be seen lacks a right."""
        return bool(self.unseen) and all(one.action for one in self.unseen)

    def as_facts(self) -> dict[str, Any]:
        """For the ledger."""
        return {
            "answer": str(self.answer),
            "leftovers": [one.as_facts() for one in self.leftovers],
            "unknown": [one.as_facts() for one in self.unseen],
            "looked_at": list(self.looked_at),
        }


def judge(things: Iterable[Thing], unseen: Iterable[Unseen], looked_at: Iterable[str], scope: Scope) -> Inventory:
    """The things that are the environment's, with whose they are and what holds them."""
    seen = {thing.ref: thing for thing in things}
    held, leaving = held_by(seen.values()), going(seen.values())
    ours = {name: by for name, thing in seen.items() if (by := found_by(thing, scope))}
    findings = [
        Finding(
            kind=thing.kind,
            id=thing.id,
            name=thing.name,
            found_by=by,
            owner=owner(thing),
            held_by=held[name],
            state=thing.state,
            going=name in leaving,
        )
        for name, by in ours.items()
        for thing in [seen[name]]
    ]
    return Inventory(
        tuple(sorted(findings, key=lambda one: (one.kind, one.id))),
        tuple(sorted(unseen, key=lambda one: one.kind)),
        tuple(sorted(looked_at)),
    )


def in_state(address: str) -> Finding:
    """A resource that terraform still knows."""
    return Finding(STATE, address, "", ("state",), "us (terraform)", (), "", going=False)


def found_by(thing: Thing, scope: Scope) -> tuple[str, ...]:
    """Why a thing is the environment's: `tag <key>`, `name`, `vpc <id>`, a part of another; empty: it is not.

    What carries another environment's tag is that environment's, whatever it is called; but in our network it is in the
    way, whoever's it is.
    """
    reasons = [*thing.by]
    if thing.tags.get(ENVIRONMENT_TAG, scope.environment) == scope.environment:
        reasons += [f"tag {key}" for key, value in scope.marks.items() if thing.tags.get(key) == value]
        if scope.has_name(thing):
            reasons.append("name")
    if thing.vpc is not None and thing.vpc in scope.vpcs:
        reasons.append(f"vpc {thing.vpc}")
    return tuple(reasons)


def held_by(things: Iterable[Thing]) -> dict[str, tuple[str, ...]]:
    """For each thing what holds it; a holder is followed by what it belongs to itself."""
    direct = _direct(things)

    def told(holder: str) -> str:
        above = [one for one in direct.get(holder, ()) if one != holder]
        return f"{holder} of {above[0]}" if above else holder

    return {name: tuple(dict.fromkeys(told(one) for one in holders)) for name, holders in direct.items()}


def going(things: Iterable[Thing]) -> frozenset[str]:
    """References of what AWS is deleting, and of what such things alone hold: whether that stays, or goes with its
    holder as an instance's disk does, shows only once the holder is gone. Things that hold each other are not."""
    things = list(things)
    direct, leaving = _direct(things), {thing.ref for thing in things if thing.going}
    while more := {name for name, by in direct.items() if by and leaving.issuperset(by)} - leaving:
        leaving |= more
    return frozenset(leaving)


def _direct(things: Iterable[Thing]) -> dict[str, list[str]]:
    things = list(things)
    direct: dict[str, list[str]] = {thing.ref: list(thing.held_by) for thing in things}
    for thing in things:
        for what in thing.holds:
            direct.setdefault(what, []).append(thing.ref)
    return direct


def holders(things: Iterable[Thing], identifiers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Identifier -> what holds it, for those that are among the things or held by one of them."""
    wanted = set(identifiers)
    held = held_by(things)
    return {identifier: held[name] for name in held if (identifier := name.rpartition(" ")[2]) in wanted}


#: Whose things go when terraform destroys the root module, or are taken away by AWS with them.
_GO_WITH_IT = ("us (terraform)", "EKS", "the EFS file system", "a NAT gateway", "a load balancer")


def in_the_way(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Of what lies in the network that which nothing of a destroy takes away: terraform would try for many minutes to
    delete a subnet, group or network that they hold. An interface counts as what it is attached to."""
    return tuple(
        one
        for one in findings
        if one.owner not in _GO_WITH_IT
        and not (one.kind == "network interface" and one.held_by)
        # It does not hold its network.
        and one.kind != "target group"
    )


# --- whose a thing is -----------------------------------------------------------------------------------------------

#: (who, tells it from the thing); the first that does. A controller's own tag says more than the environment's, which
#: an environment may have it put on all it makes.
_OWNERS: tuple[tuple[str, Callable[[Thing], bool]], ...] = (
    ("Karpenter", lambda t: _tagged(t, "karpenter.sh/nodepool", "karpenter.sh/nodeclaim", "karpenter.k8s.aws/")),
    ("a load balancer controller", lambda t: _tagged(t, "elbv2.k8s.aws/", "ingress.k8s.aws/", "service.k8s.aws/",
                                                     "kubernetes.io/service-name")),
    ("the EBS CSI driver", lambda t: _tagged(t, "ebs.csi.aws.com/", "CSIVolumeName", "CSIVolumeSnapshotName",
                                             "kubernetes.io/created-for/pvc/")),
    ("the EFS CSI driver", lambda t: _tagged(t, "efs.csi.aws.com/")),
    ("the VPC CNI", lambda t: _tagged(t, "node.k8s.amazonaws.com/") or _says(t, "aws-K8S-")),
    ("EKS", lambda t: _tagged(t, "eks:nodegroup-name", "eks:cluster-name", "aws:eks:cluster-name")
     or _says(t, "Amazon EKS ", "EKS created security group")),
    ("a load balancer controller", lambda t: t.name.startswith(("k8s-elb-", "k8s-traffic-"))),
    ("the EFS file system", lambda t: _says(t, "EFS mount target")),
    ("a load balancer", lambda t: _says(t, "ELB ")),
    ("a NAT gateway", lambda t: _says(t, "Interface for NAT Gateway")),
    ("us (terraform)", lambda t: ENVIRONMENT_TAG in t.tags),
)  # fmt: skip


def owner(thing: Thing) -> str:
    """Who made it, as far as its tags, name and description tell; else `unknown`."""
    return next((who for who, tells in _OWNERS if tells(thing)), "unknown")


def _tagged(thing: Thing, *keys: str) -> bool:
    """`keys` that end with a slash are beginnings."""
    return any(tag == key or (key.endswith("/") and tag.startswith(key)) for tag in thing.tags for key in keys)


def _says(thing: Thing, *beginnings: str) -> bool:
    return thing.description.startswith(beginnings)


# --- in words -------------------------------------------------------------------------------------------------------


def shortened(items: Iterable[str], shown: int = SHOWN) -> str:
    """The first of them, and how many more there are."""
    items = list(items)
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")
