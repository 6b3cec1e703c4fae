"""What must hold of a platform before a model is put on it: one `Check` each, decided from objects alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from nim_rollouts.core.errorbase import redact
from nim_rollouts.core.layers import Layer
from nim_rollouts.core.verdicts import State, crd, deployment
from nim_rollouts.core.verdicts.model import Object, Snapshot, Verdict
from nim_rollouts.core.verdicts.objects import condition, find

OK, FAILED, UNKNOWN, NOT_APPLICABLE = "ok", "failed", "unknown", "not-applicable"
KARPENTER_GROUPS = ("karpenter.sh", "karpenter.k8s.aws")


@dataclass(frozen=True)
class Check:
    """One line of the verification.

    :param outcome: ok, failed, unknown (nobody told; refuses nothing), not-applicable
    :param seen: what was seen, one sentence without a full stop
    :param hint: of a failed one: what to do
    :param reason: of a failed one: its slug
    """

    name: str
    outcome: str
    seen: str
    hint: str = ""
    reason: str = ""
    layer: str = ""

    @property
    def line(self) -> str:
        """For the log."""
        what = f" (layer={self.layer} reason={self.reason})" if self.reason else ""
        return redact(f"{self.name}: {self.outcome}: {self.seen}{what}" + (f". {self.hint}" if self.hint else ""))

    def to_dict(self) -> dict[str, str]:
        """For the ledger."""
        return {name: redact(str(value)) for name, value in asdict(self).items() if value}


def ok(name: str, seen: str) -> Check:
    """Shorthand."""
    return Check(name, OK, seen)


def failed(name: str, seen: str, hint: str, reason: str, layer: str) -> Check:
    """Shorthand."""
    return Check(name, FAILED, seen, hint, reason, str(layer))


def skipped(name: str, why: str) -> Check:
    """Shorthand."""
    return Check(name, NOT_APPLICABLE, why)


def definitions(objects: Snapshot, wanted: Sequence[str], now: datetime) -> Check:
    """CRDs are established."""
    verdicts = [(name, crd.judge(objects, name, now)) for name in wanted]
    return _of_verdicts(
        "crds", verdicts, "no add-on says which definitions it brings", "are established",
        "Clear install_addon of the add-on that brings them, and what follows",
        "crds-missing", Layer.API_SERVER,
    )  # fmt: skip


def operators(objects: Mapping[str, Snapshot], wanted: Sequence[tuple[str, str]], now: datetime) -> Check:
    """Deployments have observed their newest generation and are available.

    :param objects: namespace -> snapshot
    :param wanted: (namespace, name)
    """
    verdicts = [(f"{space}/{name}", deployment.judge(objects[space], name, now)) for space, name in wanted]
    return _of_verdicts(
        "operators", verdicts, "no add-on says which Deployments it brings", "are available",
        "Look at the pods of what is named, their log and events: nothing is reconciled without them",
        "operator-unavailable", Layer.OPERATOR,
    )  # fmt: skip


def _of_verdicts(
    name: str, verdicts: list[tuple[str, Verdict]], none: str, all_well: str, hint: str, reason: str, layer: Layer
) -> Check:
    if not verdicts:
        return skipped(name, none)
    bad = [f"{which}: {one.message}" for which, one in verdicts if one.state is not State.HEALTHY]
    if bad:
        return failed(name, "; ".join(bad), hint, reason, layer)
    return ok(name, f"{', '.join(which for which, _ in verdicts)} {all_well}")


def webhooks(configurations: Iterable[Object], slices: Iterable[Object], groups: Iterable[str]) -> Check:
    """Every admission webhook that our writes must pass has somebody behind it. (That it answers, and is trusted, only
    a write can show: the dry-run does.)

    :param configurations: Validating- and MutatingWebhookConfigurations
    :param slices: all EndpointSlices
    :param groups: API groups of what is going to be written
    """
    ready = _ready_endpoints(slices)
    concerned = set(groups)
    fine: list[str] = []
    bad: list[str] = []
    for configuration in configurations:
        where = f"{configuration.get('kind')}/{configuration['metadata']['name']}"
        for hook in configuration.get("webhooks") or ():
            if not concerned & {group for rule in hook.get("rules") or () for group in _groups(rule, concerned)}:
                continue
            problem = _problem(hook, ready)
            if problem and hook.get("failurePolicy", "Fail") == "Fail":
                bad.append(f"{where} {hook.get('name')}: {problem}, and its failurePolicy is Fail")
            else:
                fine.append(f"{hook.get('name')}" + (f" ({problem}; its failurePolicy lets pass)" if problem else ""))
    if bad:
        return failed(
            "webhooks",
            "; ".join(bad),
            "Bring the webhook's pods and its certificate up, or delete the configuration that is named if what it "
            "belongs to was uninstalled: nothing of these kinds can be written meanwhile",
            "webhook-unavailable",
            Layer.API_SERVER,
        )
    return ok("webhooks", f"{', '.join(fine)} answer") if fine else skipped("webhooks", "none looks at our kinds")


def _groups(rule: Mapping[str, Any], concerned: Iterable[str]) -> list[str]:
    """The API groups that a rule is for."""
    named = [str(one) for one in rule.get("apiGroups") or ()]
    return list(concerned) if "*" in named else named


def _problem(hook: Mapping[str, Any], ready: Mapping[tuple[str, str], int]) -> str:
    """Why nobody can answer for a webhook; empty where somebody should."""
    client = hook.get("clientConfig") or {}
    service = client.get("service")
    if not service:
        return ""  # by URL: outside of the cluster
    place = (str(service.get("namespace")), str(service.get("name")))
    if not ready.get(place):
        return f"service {place[0]}/{place[1]} has no ready endpoint"
    return "" if client.get("caBundle") else "its CA bundle is empty"


def _ready_endpoints(slices: Iterable[Object]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for one in slices:
        metadata = one["metadata"]
        name = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
        endpoints = one.get("endpoints") or ()
        # `ready` not given means ready.
        there = sum((each.get("conditions") or {}).get("ready") is not False for each in endpoints)
        place = (str(metadata.get("namespace")), str(name))
        found[place] = found.get(place, 0) + there
    return found


def node_pools(objects: Snapshot, wanted: Sequence[str]) -> Check:
    """The node pools exist and are Ready, and so are their node classes: else Karpenter starts nothing."""
    if not wanted:
        return skipped("node-pools", "the environment names none")
    bad = [problem for name in wanted if (problem := _pool_problem(objects, name))]
    if bad:
        return failed(
            "node-pools",
            "; ".join(bad),
            "Look at the conditions of what is named (subnets, security groups, role and image of the EC2NodeClass), "
            "correct it and clear apply_platform and what follows",
            "node-pool-not-ready",
            Layer.CAPACITY,
        )
    return ok("node-pools", f"{', '.join(wanted)} are Ready")


def _pool_problem(objects: Snapshot, name: str) -> str:
    pool = find(objects, "NodePool", name)
    if pool is None:
        return f"NodePool/{name} does not exist"
    reference = ((((pool.get("spec") or {}).get("template") or {}).get("spec") or {}).get("nodeClassRef")) or {}
    told = []
    if reference.get("kind") == "EC2NodeClass":
        node_class = find(objects, "EC2NodeClass", str(reference.get("name")))
        if node_class is None:
            told.append(f"EC2NodeClass/{reference.get('name')} does not exist")
        else:
            told += _not_ready(node_class, f"EC2NodeClass/{reference.get('name')}")
    # What the class lacks is why the pool is not ready: it is told first.
    return ", ".join([*told, *_not_ready(pool, f"NodePool/{name}")])


def _not_ready(obj: Object, where: str) -> list[str]:
    """Why an object of Karpenter's is not Ready: its own word, and that of each condition that is not True."""
    if condition(obj, "Ready").get("status") == "True":
        return []
    found = []
    for one in (obj.get("status") or {}).get("conditions") or ():
        if one.get("status") == "True" or one.get("type") in ("Consolidatable", "Drifted"):
            continue
        words = one.get("message") or one.get("reason") or "no reason given"
        found.append(f"{one.get('type')}={one.get('status')} ({words})")
    return [f"{where} is not Ready: {', '.join(found) or 'it has no conditions yet; does Karpenter run?'}"]
