"""What each waiting stage waits for: the objects to judge, and how long it may take. Same for trigger and worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nim_rollouts.core.patience import Patience
    from nim_rollouts.core.spent import Part
    from nim_rollouts.core.verdicts import Subject
    from nim_rollouts.hooks.remains import Cloud
    from nim_rollouts.hooks.session import Session


@dataclass(frozen=True)
class Plan:
    """`deadline_s`: seconds from the wait's start until what is not there counts as stuck. `parts`: of what it is
    made, in the order in which a pod goes through them; empty where one budget alone says it."""

    subjects: tuple[Subject, ...]
    deadline_s: int
    layer: str
    parts: tuple[Part, ...] = ()
    budget: str = ""
    #: Seconds of the steps that have a budget of their own.
    patience: Patience = field(default_factory=dict)
    #: Deployments without which nothing moves: looked at to say so.
    operators: tuple[Subject, ...] = ()
    #: What AWS must have none of either, once the objects are gone; and what the deleting stage had named.
    cloud: Cloud | None = None
    removed: tuple[Mapping[str, Any], ...] = ()

    @property
    def why(self) -> str:
        """Of what the deadline is made, in words."""
        return " + ".join(f"{part.name} {part.budget_s:.0f} s" for part in self.parts) or self.budget

    @property
    def groups(self) -> dict[str | None, tuple[str, ...]]:
        """Namespace (None: cluster-scoped) -> the kinds to look at there."""
        found: dict[str | None, dict[str, None]] = {}
        for subject in (*self.subjects, *self.operators):
            found.setdefault(subject.namespace, {}).update(dict.fromkeys(subject.kinds))
        return {namespace: tuple(kinds) for namespace, kinds in found.items()}

    def names_in(self, namespace: str | None) -> tuple[str, ...]:
        """Names of what is looked at in one of the groups."""
        looked_at = (*self.subjects, *self.operators)
        return tuple(subject.name for subject in looked_at if subject.namespace == namespace)


def plan_for(stage: str, session: Session) -> Plan:
    """The plan of a waiting stage, from the environment, the request and the earlier stages' records."""
    plan = _PLANS[stage](session)
    patience = _patience(plan, session)
    return replace(plan, patience=patience, operators=operators_of(session, _KIND_OF.get(stage))) if patience else plan


def _patience(plan: Plan, session: Session) -> Patience:
    """What each step may take; where things are to disappear, how long their controller may be away."""
    from nim_rollouts.core.patience import Step

    if not plan.subjects:
        return {}
    budgets = session.environment.budgets
    if any(subject.absent for subject in plan.subjects):
        return {Step.OPERATOR: budgets.operator_s}
    steps = {
        Step.NODE_LAUNCH: budgets.node_launch_s,
        Step.BINDING: budgets.bind_s,
        Step.IMAGE_PULL: budgets.image_pull_s,
        Step.ENDPOINT: budgets.endpoint_s,
        Step.OPERATOR: budgets.operator_s,
    }
    if plan.layer == "service":
        steps[Step.START_UP] = plan.deadline_s - budgets.node_launch_s - budgets.image_pull_s
    return steps


def operators_of(session: Session, kind: str | None) -> tuple[Subject, ...]:
    """The Deployments of the add-on that brings this kind."""
    from nim_rollouts.core.verdicts import Subject

    addons = [one for one in session.environment.active_addons if kind in one.requires.crds]
    return tuple(Subject("Deployment", name, one.namespace) for one in addons for name in one.requires.deployments)


def _platform(session: Session) -> Plan:
    from nim_rollouts.core.verdicts import Subject

    subjects: list[Subject] = []
    for addon in session.environment.active_addons:
        subjects += [Subject("CustomResourceDefinition", name) for name in addon.requires.crds]
        subjects += [Subject("Deployment", name, addon.namespace) for name in addon.requires.deployments]
    for name in session.environment.node_pools:
        subjects += [Subject("EC2NodeClass", name), Subject("NodePool", name)]
    operator_s = session.environment.budgets.operator_s
    probe = _storage_probe(session)
    if probe is None:
        return Plan(tuple(subjects), operator_s, "platform", budget="budgets.operator_s")
    # Side by side: the longer one decides. What hangs visibly ends with the budget of its step.
    budgets = session.environment.budgets
    whole = budgets.bind_s + budgets.node_launch_s + budgets.image_pull_s
    why = "budgets.operator_s" if operator_s >= whole else "budgets.bind_s + node_launch_s + image_pull_s"
    return Plan((*subjects, probe), max(operator_s, whole), "platform", budget=why)


def _storage_probe(session: Session) -> Subject | None:
    """The probe's Job, where this run has applied one that has not answered an earlier wait already."""
    from nim_rollouts.core.verdicts import Subject

    applied = (session.ledger.read("apply_platform", "result") or {}).get("storage_probe") or {}
    told = (session.ledger.read("wait_platform", "result") or {}).get("storage_probe") or {}
    if not applied.get("uid") or told.get("uid") == applied["uid"]:
        return None
    return Subject("Job", session.names.storage_probe, session.names.namespace)


def _cache(session: Session) -> Plan:
    from nim_rollouts.core.verdicts import Subject

    subject = Subject("NIMCache", session.names.cache, session.names.namespace)
    return _after_launch(session, subject, "cache", "download", session.environment.budgets.cache_s)


def _service(session: Session) -> Plan:
    from nim_rollouts.core.spec import START_BUDGET_S
    from nim_rollouts.core.verdicts import Subject

    budgets, deployment = session.environment.budgets, session.deployment
    subject = Subject(
        "NIMService",
        session.names.service,
        session.names.namespace,
        image=deployment.image.reference,
        replicas=deployment.service.replicas,
    )
    # A deployment that asks for a longer start than usual is waited for as long.
    asked = deployment.service.start.budget_s
    start = max(budgets.service_s, asked) if asked > START_BUDGET_S else budgets.service_s
    return _after_launch(session, subject, "service", "start-up", start)


def _benchmark(session: Session) -> Plan:
    from nim_rollouts.core.verdicts import Subject

    budgets = session.environment.budgets
    subject = Subject("Job", session.names.benchmark_job, session.names.namespace)
    run = max(budgets.benchmark_s, session.deployment.benchmark.deadline_s)
    return _after_launch(session, subject, "benchmark", "benchmark", run)


def _after_launch(session: Session, subject: Subject, layer: str, name: str, own_s: int) -> Plan:
    """What runs in a pod may first need a node and its image."""
    from nim_rollouts.core.spent import Part

    budgets = session.environment.budgets
    parts = (Part("node launch", budgets.node_launch_s), Part("image pull", budgets.image_pull_s), Part(name, own_s))
    return Plan((subject,), budgets.node_launch_s + budgets.image_pull_s + own_s, layer, parts)


def _gone_after(deleting_stage: str, cloud: str = "") -> Callable[[Session], Plan]:
    def plan(session: Session) -> Plan:
        from nim_rollouts.hooks.remains import Cloud

        session.facts(deleting_stage)
        # Of every try: what an interrupted one had ordered, the next one may not find any more.
        records = [one for one in session.ledger.records() if one.stage == deleting_stage]
        removed = tuple(one for record in records for one in record.facts.get("removed", ()))
        named = {(one["kind"], one["name"], one.get("uid")): absence(one) for one in removed}
        return Plan(
            tuple(named.values()),
            session.environment.budgets.delete_s,
            "teardown",
            budget="budgets.delete_s",
            cloud=Cloud[cloud] if cloud else None,
            removed=removed,
        )

    return plan


def absence(one: Mapping[str, Any]) -> Subject:
    """The disappearance of an object that a record names by kind, name, namespace and uid."""
    from nim_rollouts.core.verdicts import Subject

    return Subject(one["kind"], one["name"], one.get("namespace"), absent=True, uid=one.get("uid"))


#: The custom kind that a stage waits for, by its definition's name.
_KIND_OF = {
    "wait_cache": "nimcaches.apps.nvidia.com",
    "wait_service": "nimservices.apps.nvidia.com",
    "wait_services_gone": "nimservices.apps.nvidia.com",
    "wait_caches_gone": "nimcaches.apps.nvidia.com",
    "wait_nodes_gone": "nodepools.karpenter.sh",
}
_PLANS: dict[str, Callable[[Session], Plan]] = {
    "wait_platform": _platform,
    "wait_cache": _cache,
    "wait_service": _service,
    "wait_benchmark": _benchmark,
    "wait_services_gone": _gone_after("delete_services"),
    "wait_caches_gone": _gone_after("delete_caches", "ACCESS_POINTS"),
    "wait_nodes_gone": _gone_after("delete_node_pools", "INSTANCES"),
    "wait_network_free": _gone_after("free_network", "BALANCERS"),
}
