"""How a rollout ends: promoted, rejected, or failed, written down, sealed, and told by the run's own state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nim_rollouts.core.errors import LedgerError, NimRolloutsError, PermanentError, RolloutRejected, is_retryable
from nim_rollouts.operators.base import ERROR, INTENT, RESULT, Facts, Stage, StageOperator

if TYPE_CHECKING:
    from nim_rollouts.clients.ledger import Record

DECISION = "decision"
# Of the gate and of the smoke test: the way to the pods was broken, and stayed so over all tries.
_UNMEASURED = ("gate-unmeasured", "tunnel-failed", "port-forward-failed", "cluster-unavailable")
PROMOTED, REJECTED, FAILED = "promoted", "rejected", "failed"
# A person said no, or nobody said yes in time: nothing was changed, and the run did as it was told.
DECLINED = "declined"


class PromoteOperator(StageOperator):
    """Everything held: the service stays, and the record says what is in use now."""

    def run(self, stage: Stage) -> Facts:
        """Makes sure that the stable Service leads to the new revision."""
        session = stage.session
        names, deployment = session.names, session.deployment
        service = session.cluster.get("v1", "Service", names.namespace, names.stable_service)
        selector = ((service or {}).get("spec") or {}).get("selector") or {}
        if selector.get("app") != names.service:
            raise PermanentError(
                f"Service/{names.stable_service} does not lead to {names.service}",
                layer="service",
                reason="service-moved",
                hint="Somebody has changed it since; clear apply_service and the tasks after it",
            )
        url = f"http://{names.stable_service}.{names.namespace}:{deployment.service.port}/v1"
        stage.log.info("promoted: %s serves %s at %s", names.service, deployment.model, url)
        return {
            "decision": PROMOTED,
            "url": url,
            "model": deployment.model,
            "image": deployment.image.reference,
            "nim_service": names.service,
            "nim_cache": names.cache,
            "benchmark": None if session.request.skip_benchmark else session.facts("judge", "report")["slo"]["reason"],
        }


class RejectOperator(StageOperator):
    """Something after the cache's application failed: the service of this run goes, the cache stays.

    A service that stood before the run is not taken away: what it answered yesterday it answers today.
    """

    #: Checked once it is known that there is something to take back: a refused run never had a claim.
    claim_scopes = ()

    def open_stage(self, context: Any) -> Stage:
        """The try. Where validation refused the names themselves there is nothing to take back."""
        from airflow.sdk.exceptions import AirflowSkipException

        try:
            return super().open_stage(context)
        except NimRolloutsError as error:
            if is_retryable(error):
                raise
            raise AirflowSkipException(f"the run was refused: {error.message}") from error

    def run(self, stage: Stage) -> Facts:
        """Remove by name and uid what this run made, if the deployment wants it so."""
        from airflow.sdk.exceptions import AirflowSkipException

        from nim_rollouts.hooks import jobs

        ledger = stage.session.ledger
        if ledger.read("apply_cache", INTENT) is None:
            raise AirflowSkipException("the run had not applied anything of the deployment yet")
        stage.scopes = ("deployment",)
        stage.check_claims()
        # A wait that was ended by force, or that had no worker left to end it, could not do it itself.
        for waiting in ("wait_benchmark", "wait_cache"):
            jobs.stop(waiting, stage.session, stage.log.info)
        intent = ledger.read("apply_service", INTENT)
        facts: Facts = {"decision": REJECTED, "cache": "kept", "service": "never applied", "removed": []}
        if intent is None:
            return facts
        if unsettled := self._unsettled(ledger.records()):
            stage.log.info("%s, which is for a person to settle: the service stays", unsettled)
            return facts | {"service": "kept"}
        if stage.session.deployment.on_first_failure == "keep":
            stage.log.info("on_first_failure is keep: the service stays for a look")
            return facts | {"service": "kept"}
        first = self._first(stage)
        if intent["name"] in first.get("standing", {}):
            stage.log.info("NIMService %s stood before this run: it stays", intent["name"])
            return facts | {"service": "stood before"}
        return facts | {"service": "removed", "removed": self._remove(stage)}

    @staticmethod
    def _unsettled(records: list[Record]) -> str | None:
        """Where it was not the measure that was bad: nothing is known against the service."""
        last = {
            one.stage: one for one in sorted(records, key=lambda one: one.try_number) if one.kind in (ERROR, RESULT)
        }
        reasons = {stage: one.facts.get("reason") for stage, one in last.items() if one.kind == ERROR}
        if reasons.get("judge") == "benchmark-inconclusive":
            return "the benchmark was inconclusive"
        for stage in ("gate", "smoke_test"):
            if reasons.get(stage) in _UNMEASURED:
                return f"{stage} could not ask the model ({reasons[stage]})"
        return None

    @staticmethod
    def _first(stage: Stage) -> Facts:
        found = [one for one in stage.session.ledger.records() if (one.stage, one.kind) == ("apply_service", INTENT)]
        return min(found, key=lambda one: one.try_number).facts

    @staticmethod
    def _remove(stage: Stage) -> list[dict[str, Any]]:
        from nim_rollouts.operators.model import NIM_API, subject_of, wait_gone

        session = stage.session
        names, cluster = session.names, session.cluster
        subjects, removed = [], []
        places = (
            ("batch/v1", "Job", names.benchmark_job),
            ("v1", "Service", names.stable_service),
            (NIM_API, "NIMService", names.service),
        )
        for api_version, kind, name in places:
            live = cluster.get(api_version, kind, names.namespace, name)
            if live is None or _is_finished_job(live):
                continue
            stage.check_claims()
            if cluster.delete(live, uid=live["metadata"]["uid"], generation=session.request.generation):
                stage.log.info("%s/%s removed", kind, name)
                removed.append({"kind": kind, "name": name, "uid": live["metadata"]["uid"]})
                subjects.append(subject_of(live))
        wait_gone(stage, subjects, session.environment.budgets.delete_s)
        return removed


def _is_finished_job(obj: dict[str, Any]) -> bool:
    """A finished Job stays for its log, until its own time to live."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return obj["kind"] == "Job" and any(
        one.get("type") in ("Complete", "Failed") and one.get("status") == "True" for one in conditions
    )


class ConcludeOperator(StageOperator):
    """Always last: decision, seal, claims released; and the run fails unless it was promoted (or all is gone), or a
    person declined it.

    :param success: the decision that makes the run a success
    :param decisive: the task whose success means that decision
    """

    def __init__(self, *, success: str = PROMOTED, decisive: str = "promote", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.success = success
        self.decisive = decisive

    claim_scopes = ()

    def run(self, stage: Stage) -> Facts:
        """Works out the decision from the tasks' states, the reason from their records."""
        from nim_rollouts.lineage.seal import seal

        self._refuse_older(stage)
        states = self.states(stage)
        decision, reason = self.decide(stage, states)
        if decision != self.success and (declined := decline(stage, states)):
            decision, reason = DECLINED, declined
        run_id = stage.session.run_id
        facts: Facts = {"decision": decision, "decision_reason": reason, "run_id": run_id, "states": states}
        ledger = stage.session.ledger
        ledger.record(stage.name, stage.try_number, DECISION, facts)
        stage.log.info("decision: %s%s", decision, f" ({reason})" if reason else "")
        facts["seal"] = seal(ledger, stage.name, stage.try_number)
        if self._has_claims(stage):
            stage.release_claims("deployment", "environment")
        if decision not in (self.success, DECLINED):
            raise RolloutRejected(reason or f"the run was not {self.success}", reason=f"rollout-{decision}")
        return facts

    def decide(self, stage: Stage, states: dict[str, str | None]) -> tuple[str, str | None]:
        """The decision, and the reason in one line when it is not the wanted one."""
        if states.get(self.decisive) == "success":
            return self.success, None
        return (REJECTED if states.get("reject") == "success" else FAILED), why(stage, states)

    @staticmethod
    def states(stage: Stage) -> dict[str, str | None]:
        """The states of the run's other tasks."""
        from nim_rollouts.hooks.runs import task_states

        ti = stage.context["ti"]
        found = task_states(ti.dag_id, ti.run_id)
        return {task: state for task, state in sorted(found.items()) if task != ti.task_id}

    @staticmethod
    def _has_claims(stage: Stage) -> bool:
        try:
            return bool(stage.session.claims())
        except LedgerError:
            return False

    def _refuse_older(self, stage: Stage) -> None:
        """Also the end of an older run is not to be written again. A run that was refused has no claims."""
        from nim_rollouts.clients import claims

        if self._has_claims(stage):
            for claim in stage.session.claims():
                if not claim.scope.endswith("/_environment.json"):
                    claims.check(stage.session.store, claim)

    def open_stage(self, context: Any) -> Stage:
        """The try. Where validation refused the names themselves there is no ledger, and nothing to conclude."""
        try:
            stage = super().open_stage(context)
        except NimRolloutsError as error:
            if is_retryable(error):
                raise
            raise RolloutRejected(
                f"refused in validation: {error.message}", hint=error.hint, reason="rollout-failed"
            ) from error
        if self.deployment and self.deployment not in stage.session.include.deployments():
            if not self._has_claims(stage):
                raise RolloutRejected(f'refused in validation: there is no deployment "{self.deployment}"',
                                      hint="See the log of validate", reason="rollout-failed")  # fmt: skip
        return stage


def decline(stage: Stage, states: dict[str, str | None]) -> str | None:
    """Who said no to what, if that is how the run ended: no task of it has failed then."""
    if "failed" in states.values():
        return None
    for task, state in states.items():
        found = stage.session.ledger.read(task, RESULT) if state == "success" else None
        if found and found.get("declined"):
            return f"{task}: {found['told']}"
    return None


def why(stage: Stage, states: dict[str, str | None]) -> str:
    """The first failed task's own reason."""
    failed = [task for task, state in states.items() if state == "failed"]
    errors = [one for one in stage.session.ledger.records() if one.kind == ERROR and _is_of(one, failed)]
    latest: dict[str, Record] = {}
    for one in sorted(errors, key=lambda record: (record.stage == "reject", record.try_number)):
        latest[one.stage] = one
    texts = [f"{one.stage}: {one.facts.get('reason')}: {one.facts.get('message')}" for one in latest.values()]
    unsaid = [task for task in failed if not any(_is_of(one, [task]) for one in latest.values())]
    texts += [f"{task} failed, see its log" for task in unsaid]
    return " | ".join(texts) or "the run was stopped"


def _is_of(record: Record, tasks: list[str]) -> bool:
    """True when the record is of one of the tasks; a mapped one's stage has more behind the task's id."""
    return any(record.stage == task or record.stage.startswith(f"{task.rsplit('_', 1)[0]}-") for task in tasks)
