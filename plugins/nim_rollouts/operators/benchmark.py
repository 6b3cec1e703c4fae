"""The benchmark: a Job beside the service, and the judgement on its report."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.errors import BenchmarkFailed, BenchmarkRejected, NeedsHumanError
from nim_rollouts.operators.base import ERROR, RESULT, Facts, Stage, StageOperator, now
from nim_rollouts.operators.platform import apply_and_say

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Object

JUDGE_STAGE = "judge"


class ApplyBenchmarkOperator(StageOperator):
    """The ConfigMap and the Job, named after the run: one measurement a rollout."""

    def run(self, stage: Stage) -> Facts:
        """Server-side apply. A Job that has failed, or whose report could not be used, makes room for another."""
        from airflow.sdk.exceptions import AirflowSkipException

        from nim_rollouts.core import manifests

        session = stage.session
        if session.request.skip_benchmark:
            raise AirflowSkipException("the run was triggered with skip_benchmark")
        objects = manifests.benchmark(session.manifest_context(), session.deployment, session.include.benchmark_files())
        stage.intend({"kind": "Job", "name": session.names.benchmark_job, "namespace": session.names.namespace})
        self._make_room(stage)
        applied = [apply_and_say(stage, obj) for obj in objects]
        load = session.deployment.benchmark
        return {
            "applied": applied,
            "applied_at": now().isoformat(),
            "load": {"requests": load.requests, "concurrency": load.concurrency, "input_tokens": load.input_tokens,
                     "output_tokens": load.output_tokens, "warmup_requests": load.warmup_requests},
        }  # fmt: skip

    @staticmethod
    def _make_room(stage: Stage) -> None:
        from nim_rollouts.operators.model import subject_of, wait_gone

        session = stage.session
        job = session.cluster.get("batch/v1", "Job", session.names.namespace, session.names.benchmark_job)
        if job is None or not _is_spent(stage, job):
            return
        stage.log.info("Job %s was used up by an earlier try: measuring again", session.names.benchmark_job)
        stage.check_claims()
        session.cluster.delete(job, uid=job["metadata"]["uid"], generation=session.request.generation)
        wait_gone(stage, [subject_of(job)], session.environment.budgets.delete_s)


def _is_spent(stage: Stage, job: Object) -> bool:
    if job["metadata"].get("deletionTimestamp"):
        return True
    conditions = (job.get("status") or {}).get("conditions") or ()
    if any(one.get("type") == "Failed" and one.get("status") == "True" for one in conditions):
        return True
    ledger = stage.session.ledger
    return ledger.read(JUDGE_STAGE, ERROR) is not None and ledger.read(JUDGE_STAGE, RESULT) is None


class JudgeOperator(StageOperator):
    """Takes the report out of the Job's log, stores it, and holds it against the deployment's objectives."""

    def run(self, stage: Stage) -> Facts:
        """Passes, or fails with the reason in one line."""
        from nim_rollouts.core import report as reports
        from nim_rollouts.core import slo

        session = stage.session
        envelope = self._envelope(stage)
        key = self._keep(stage, envelope)
        report = reports.parse_report(envelope)
        verdict = slo.judge(report, session.deployment.slos, session.deployment.benchmark.requests)
        facts = {**report.facts(), "slo": verdict.facts(), "report_key": key}
        if count := report.metrics.get("request_count"):
            facts["metrics"]["request_count"] = {"unit": count.unit, **count.statistics}
        session.ledger.record(stage.name, stage.try_number, "report", facts)
        for row in verdict.rows:
            stage.log.info("%s", row.text)
        if verdict.outcome is slo.Outcome.FAIL:
            raise BenchmarkRejected(verdict.reason, hint=f"The whole report is {key} in the store")
        if verdict.outcome is slo.Outcome.INCONCLUSIVE:
            raise NeedsHumanError(
                verdict.reason,
                layer="benchmark",
                reason="benchmark-inconclusive",
                hint=f"Look at {key} in the store; clear apply_benchmark to measure again",
            )
        return facts

    def _envelope(self, stage: Stage) -> dict[str, Any]:
        """From the pod's log; once that is cleaned up, from what an earlier try stored."""
        from nim_rollouts.core import report as reports

        session = stage.session
        names = session.names
        pods = session.cluster.list(
            "v1", "Pod", names.namespace, label_selector=f"batch.kubernetes.io/job-name={names.benchmark_job}"
        )
        newest = sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))[-1:]
        for pod in newest:
            return reports.extract_report(session.cluster.logs(names.namespace, pod["metadata"]["name"]))
        stored = session.store.get(self._key(stage))
        if stored is None:
            raise BenchmarkFailed(
                f"Job {names.benchmark_job} has no pod any more, and no report of it is stored",
                reason="report-missing",
                hint="Clear apply_benchmark and the tasks after it to measure again",
            )
        envelope: dict[str, Any] = json.loads(stored)
        return envelope

    def _keep(self, stage: Stage, envelope: dict[str, Any]) -> str:
        from nim_rollouts.clients.ledger import refuse_secrets

        text = json.dumps(envelope, sort_keys=True, indent=1)
        refuse_secrets(text, "benchmark report")
        key = self._key(stage)
        stage.session.store.put(key, text.encode())
        stage.log.info("report %s (SHA-256 %s)", key, hashlib.sha256(text.encode()).hexdigest()[:12])
        return key

    @staticmethod
    def _key(stage: Stage) -> str:
        session = stage.session
        return f"reports/{session.environment.name}/{session.scope}/{session.rollout}/benchmark-report.json"
