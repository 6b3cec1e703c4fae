"""Waits: they start in the triggerer, cost no worker meanwhile, and are judged again here from fresh objects.

A wait only reads. Clearing one writes nothing but its own records.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import StartTriggerArgs

from nim_rollouts.core.errors import (
    ClusterUnavailable,
    NeedsHumanError,
    NimRolloutsError,
    PermanentError,
    Superseded,
    TransientError,
    WaitFailed,
    WaitStuck,
    error_classes,
    is_retryable,
    one_line,
)
from nim_rollouts.operators.base import RESULT, Facts, Stage, StageOperator
from nim_rollouts.operators.explain import explain, profiles_offered
from nim_rollouts.operators.remains import refuse_remains

if TYPE_CHECKING:
    from nim_rollouts.core.verdicts import Snapshot, Subject, Verdict
    from nim_rollouts.triggers.plans import Plan
    from nim_rollouts.triggers.watching import Outcome

# How many of an image's profiles the last line has room for; the record has all.
_OFFERS = 6
TRIGGER = "nim_rollouts.triggers.wait.WaitTrigger"
# The wait has a deadline of its own, with a reason; this one, above all that budgets can add up to, only ends a wait
# whose trigger is lost.
OUTER_BOUND = timedelta(days=4)


class WaitOperator(StageOperator):
    """Waits for what `triggers.plans` has for this task's id.

    Airflow starts it in the triggerer (`start_from_trigger`), where the three names are rendered: they are template
    fields here and attributes of the trigger there, and none of them may use an XCom.
    """

    start_from_trigger = True
    reads_only = True
    ui_color = "#d5e8f0"
    stops_job = False

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("execution_timeout") is None:
            kwargs["execution_timeout"] = OUTER_BOUND
        super().__init__(**kwargs)
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=TRIGGER,
            trigger_kwargs={
                "environment": self.environment,
                "deployment": self.deployment,
                "run_id": self.run_id,
                "stage": self.task_id,
                "stop_job": self.stops_job,
            },
            next_method="finish",
        )

    def execute(self, context: Any) -> Any:
        """Where Airflow runs a task without a triggerer before it (`dag.test`): the same wait, deferred from here."""
        from nim_rollouts.triggers.wait import WaitTrigger

        trigger = WaitTrigger(self.environment, self.deployment, self.run_id, self.task_id, self.stops_job)
        self.defer(trigger=trigger, method_name="finish")

    def finish(self, context: Any, event: Mapping[str, Any] | None = None) -> Any:
        """Judge again, record, emit; fails with the verdict's reason."""
        try:
            return self.perform(context, lambda stage: self._conclude(stage, event or {}))
        except Exception as error:
            self._after(context, event or {}, error)
            raise

    def _after(self, context: Any, event: Mapping[str, Any], error: Exception) -> None:
        """A wait that begins again goes on with its deadline, unless that has passed unseen; one that gives up leaves
        no Job behind."""
        from nim_rollouts.hooks import jobs
        from nim_rollouts.hooks.session import Session
        from nim_rollouts.triggers.wait import carry_on
        from nim_rollouts.triggers.watching import Outcome

        ti = context["ti"]
        last = getattr(ti, "max_tries", None)
        try:
            session = Session(self.environment, self.deployment, self.run_id)
            if is_retryable(error) and (last is None or ti.try_number <= last):
                if not ("verdicts" in event and Outcome.from_dict(event).is_unseen):
                    carry_on(session, self.task_id, ti.try_number)
            elif self.stops_job:
                jobs.stop(self.task_id, session, self.log.info)
        except Exception as lost:  # what the wait itself ended with matters more
            self.log.warning("%s", one_line(lost))

    def run(self, stage: Stage) -> Facts:
        """Never called: a wait has no work of its own."""
        raise NotImplementedError

    def details(self, stage: Stage, snapshots: Mapping[str | None, Snapshot]) -> Facts:
        """What the record says besides the verdicts."""
        return {}

    def accepts_gone(self, stage: Stage, subject: Subject, told: Verdict | None) -> bool:
        """True when the object may have gone since it was seen finished."""
        return False

    def _conclude(self, stage: Stage, event: Mapping[str, Any]) -> Facts:
        from nim_rollouts.triggers.plans import plan_for
        from nim_rollouts.triggers.watching import Outcome

        if event.get("error"):
            raise _told(event)
        if "verdicts" not in event:
            raise TransientError("the trigger ended without a verdict", layer="triggerer", reason="no-verdict")
        told = Outcome.from_dict(event)
        plan = plan_for(stage.name, stage.session)
        snapshots = self._look(stage, plan, told)
        fresh = self._judge(stage, plan, snapshots, told, event.get("started_at"))
        self._decide(stage, plan, told, fresh, snapshots)
        refuse_remains(stage, plan, bool(event.get("remaining")))
        for subject, verdict in fresh.verdicts:
            stage.log.info("%s: %s", subject.ref, verdict.message)
        return {
            "waited_s": event.get("waited_s"),
            "started_at": event.get("started_at"),
            "deadline_s": plan.deadline_s,
            "verdicts": {subject.ref: _short(verdict) for subject, verdict in fresh.verdicts},
            "timeline": told.timeline,
            **self.details(stage, snapshots),
        }

    @staticmethod
    def _look(stage: Stage, plan: Plan, told: Outcome) -> dict[str | None, Snapshot]:
        """The objects as they are now. Without a cluster there are none."""
        from nim_rollouts.clients.resources import api_version_of, is_namespaced

        cluster = stage.session.cluster_if_any() if plan.subjects else None
        if cluster is None:
            return {namespace: {kind: [] for kind in kinds} for namespace, kinds in plan.groups.items()}
        return {
            namespace: {
                kind: cluster.list(api_version_of(kind), kind, namespace if is_namespaced(kind) else None)
                for kind in kinds
            }
            for namespace, kinds in plan.groups.items()
        }

    def _judge(
        self,
        stage: Stage,
        plan: Plan,
        snapshots: Mapping[str | None, Snapshot],
        told: Outcome,
        started_at: str | None,
    ) -> Outcome:
        from nim_rollouts.core.verdicts import State
        from nim_rollouts.operators.base import now
        from nim_rollouts.triggers.watching import Outcome, judge_plan

        before = {subject.ref: verdict for subject, verdict in told.verdicts}
        verdicts = []
        moment = now()
        started = datetime.fromisoformat(started_at) if started_at else moment
        for subject, verdict in judge_plan(plan, snapshots, started, moment):
            earlier = before.get(subject.ref)
            if verdict.state is State.GONE and not subject.absent and self.accepts_gone(stage, subject, earlier):
                verdict = type(verdict)(State.HEALTHY, "recorded", "it had finished, and has been cleaned up since")
            verdicts.append((subject, verdict))
        return Outcome(verdicts, told.overdue, told.timeline)

    def _decide(
        self, stage: Stage, plan: Plan, told: Outcome, fresh: Outcome, snapshots: Mapping[str | None, Snapshot]
    ) -> None:
        if fresh.reached:
            return
        subject, verdict = fresh.missing[0]
        final = subject.is_final(verdict)
        if told.is_unseen and not final:
            # How much of its time the API server was away is not known: the next try has time of its own.
            raise ClusterUnavailable(
                f"{subject.ref}: the deadline of {plan.deadline_s} s passed while the API server did not answer, "
                f"now {verdict.in_words}"
            )
        if final or told.overdue:
            why = explain(stage, subject, verdict, snapshots[subject.namespace], plan.parts)
            for one in why.to_dict()["events"] + why.to_dict()["log"]:
                stage.log.info("| %s", one)
            failure = WaitStuck if str(verdict.overdue().state) == "stuck" else WaitFailed
            error = failure.explained(subject.ref, verdict, why, None if final else plan.deadline_s)
            error.diagnosis = {**why.to_dict(), "timeline": told.timeline}
            if verdict.reason == "no-matching-profile" and (offers := profiles_offered(stage)):
                error.diagnosis["offers"] = offers
                error.hint += f". It offers {'; '.join(offers[:_OFFERS])}" + ("; ..." if offers[_OFFERS:] else "")
            raise error
        # What was final a moment ago is not: one look is no verdict, so the wait begins again.
        raise TransientError(
            f"{subject.ref}: the verdict has changed between two looks, now {verdict.in_words}",
            layer=plan.layer,
            reason="verdict-changed",
        )


class WaitPlatformOperator(WaitOperator):
    """Waits until the add-ons' CRDs are established, their Deployments available, and the storage probe has ended."""

    stops_job = True

    def details(self, stage: Stage, snapshots: Mapping[str | None, Snapshot]) -> Facts:
        """What the storage probe has found."""
        from nim_rollouts.operators import storage_probe

        namespace = stage.session.names.namespace
        return {storage_probe.FACT: storage_probe.answer(stage.session, snapshots.get(namespace) or {})}


class WaitCacheOperator(WaitOperator):
    """Waits until the NIMCache is filled."""

    stops_job = True

    def details(self, stage: Stage, snapshots: Mapping[str | None, Snapshot]) -> Facts:
        """Profile and claim."""
        from nim_rollouts.core.verdicts.objects import find, status

        names = stage.session.names
        cache = find(snapshots[names.namespace], "NIMCache", names.cache)
        profiles = list(status(cache).get("profiles") or ()) if cache else []
        for profile in profiles:
            stage.log.info("profile %s %s", profile.get("name"), profile.get("config"))
        return {
            "pvc": status(cache).get("pvc") if cache else None,
            "profile": _profile_text(profiles),
            "profiles": profiles,
        }


class WaitServiceOperator(WaitOperator):
    """Waits until the new revision of the NIMService serves."""

    def details(self, stage: Stage, snapshots: Mapping[str | None, Snapshot]) -> Facts:
        """Pods with their nodes, and the time from applied to ready of the slowest."""
        from nim_rollouts.core.verdicts.objects import condition, find, selected, status

        names = stage.session.names
        snapshot = snapshots[names.namespace]
        service = find(snapshot, "NIMService", names.service)
        pods = selected(snapshot, "Pod", {"app": names.service})
        applied_at = stage.session.facts("apply_service").get("applied_at")
        times = [str(condition(pod, "Ready").get("lastTransitionTime") or "") for pod in pods]
        return {
            "model": status(service).get("model") if service else None,
            "pods": [
                {"name": pod["metadata"]["name"], "node": (pod.get("spec") or {}).get("nodeName")} for pod in pods
            ],
            "time_to_ready_s": _seconds_between(applied_at, max(times, default="")),
        }


class WaitBenchmarkOperator(WaitOperator):
    """Waits until the benchmark's Job has ended."""

    stops_job = True

    def details(self, stage: Stage, snapshots: Mapping[str | None, Snapshot]) -> Facts:
        """Which Job it was."""
        return {"job_uid": _applied_job(stage)}

    def accepts_gone(self, stage: Stage, subject: Subject, told: Verdict | None) -> bool:
        """A finished Job is cleaned up after some hours; its end is in the event or in the record. What is recorded of
        an earlier Job says nothing of one that was applied since."""
        if told is not None and subject.is_reached(told):
            return True
        recorded = stage.session.ledger.read(stage.name, RESULT)
        return recorded is not None and recorded.get("job_uid") == _applied_job(stage)


class WaitGoneOperator(WaitOperator):
    """Waits until what an earlier stage deleted is gone, with all that it owned."""

    claim_scopes = ("deployment", "environment")


def _applied_job(stage: Stage) -> str | None:
    applied = (stage.session.ledger.read("apply_benchmark", RESULT) or {}).get("applied", ())
    return next((one["uid"] for one in applied if one["kind"] == "Job"), None)


def _told(event: Mapping[str, Any]) -> Exception:
    """The trigger's error as one of ours."""
    facts = event["error"]
    said = next((cls for cls in error_classes() if cls.__name__ == facts.get("error")), None)
    kind: type[NimRolloutsError] = PermanentError if event.get("final") else TransientError
    if said is Superseded:
        kind = Superseded
    elif said is not None and issubclass(said, NeedsHumanError):
        kind = NeedsHumanError
    return kind(facts["message"], hint=facts.get("hint") or "", reason=facts["reason"], layer=facts["layer"])


def _short(verdict: Verdict) -> dict[str, Any]:
    return {
        "state": str(verdict.state),
        "reason": verdict.reason,
        "message": verdict.message,
        "evidence": verdict.evidence,
    }


def _profile_text(profiles: list[Mapping[str, Any]]) -> str | None:
    """The first profile in one line: id and the tags that tell it apart."""
    if not profiles:
        return None
    tags = profiles[0].get("config") or {}
    wanted = ("llm_engine", "precision", "gpu", "tp", "profile")
    shown = " ".join(f"{name}={tags[name]}" for name in wanted if name in tags)
    return f"{profiles[0].get('name')} {shown}".strip()


def _seconds_between(begin: str | None, end: str) -> float | None:
    """None where either is unknown or the pods were ready before the run applied anything."""
    if not begin or not end:
        return None
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
    return round(seconds, 1) if seconds >= 0 else None
