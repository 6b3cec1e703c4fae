"""How a rollout ends: benchmark judged, service kept or removed, decision sealed, claims given up."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from nim_rollouts.clients import claims
from nim_rollouts.core.errors import BenchmarkFailed, BenchmarkRejected, PermanentError, RolloutRejected, Superseded
from nim_rollouts.core.report import ReportError
from nim_rollouts.lineage.seal import digests
from nim_rollouts.operators.benchmark import ApplyBenchmarkOperator, JudgeOperator
from nim_rollouts.operators.decide import ConcludeOperator, PromoteOperator, RejectOperator
from nim_rollouts.operators.model import ApplyCacheOperator, ApplyServiceOperator
from tests.unit.operators.conftest import DEPLOYMENT, ROOT, World
from tests.unit.operators.test_model import old_service


@pytest.fixture
def applied(world: World) -> World:
    """Cache and service of this run are applied."""
    world.accepted()
    ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache"))
    facts = ApplyServiceOperator(task_id="apply_service").run(world.stage("apply_service"))
    world.session().ledger.record("apply_service", 1, "result", facts)
    world.cluster.log.clear()
    return world


def log_of(capsys: pytest.CaptureFixture[str], recording: str = "aiperf-concurrency-20") -> str:
    """What the benchmark's pod would have printed for a recorded report."""
    spec = importlib.util.spec_from_file_location("bench_run_for_judge", ROOT / "include" / "benchmarks" / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    report = json.loads((ROOT / "tests" / "recordings" / "benchmark" / f"{recording}.json").read_text())
    module.print_report({"format": 1, "tool": "aiperf", "times": {"measure_s": 1.0}, "report": report})
    return capsys.readouterr().out


def bench_pod(world: World) -> None:
    names = world.session().names
    world.cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "bench-pod",
                "namespace": names.namespace,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"batch.kubernetes.io/job-name": names.benchmark_job},
            },
        }
    )


def judge(world: World, number: int = 1) -> dict[str, Any]:
    return JudgeOperator(task_id="judge").run(world.stage("judge", number))


def with_objectives(world: World, *slos: dict[str, Any]) -> None:
    from nim_rollouts.core.spec import Slo

    deployment = world.include.deployment(DEPLOYMENT)
    requests = deployment.benchmark.model_copy(update={"requests": 400})
    world.accepted(spec={"slos": [Slo(**one) for one in slos], "benchmark": requests})


def test_a_sound_report_within_its_bounds_passes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with_objectives(world, {"metric": "time_to_first_token", "statistic": "avg", "max": 1e9})
    world.cluster.text = log_of(capsys)
    bench_pod(world)
    facts = judge(world)
    assert facts["slo"]["outcome"] == "pass"
    assert world.session().facts("judge", "report")["metrics"]["request_count"]["avg"] == 400
    assert json.loads(world.session().store.get(facts["report_key"]) or b"")["report"]


def test_a_missed_objective_rejects_in_one_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with_objectives(world, {"metric": "time_to_first_token", "statistic": "avg", "max": 0.001})
    world.cluster.text = log_of(capsys)
    bench_pod(world)
    with pytest.raises(BenchmarkRejected, match="time_to_first_token avg .* misses <= 0.001"):
        judge(world)
    assert world.session().ledger.read("judge", "report") is not None, "the report is kept either way"


def test_a_report_is_judged_again_after_its_pod_has_gone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with_objectives(world, {"metric": "time_to_first_token", "statistic": "avg", "max": 1e9})
    world.cluster.text = log_of(capsys)
    bench_pod(world)
    judge(world)
    world.cluster.objects.clear()
    assert judge(world, 2)["slo"]["outcome"] == "pass"


def test_no_report_is_a_failure_not_a_pass(world: World) -> None:
    world.accepted()
    with pytest.raises(BenchmarkFailed):
        judge(world)
    bench_pod(world)
    world.cluster.text = "benchmark failed: the Service does not answer"
    with pytest.raises(ReportError, match="does not answer"):
        judge(world)


def test_the_benchmark_can_be_left_out(world: World) -> None:
    world.accepted(skip_benchmark=True)
    with pytest.raises(AirflowSkipException):
        ApplyBenchmarkOperator(task_id="apply_benchmark").run(world.stage("apply_benchmark"))
    assert world.cluster.log == []


@pytest.mark.parametrize(
    ("condition", "judged", "again"),
    [("Complete", None, False), ("Failed", None, True), ("Complete", "error", True), ("Complete", "result", False)],
)
def test_a_job_that_is_used_up_makes_room(world: World, condition: str, judged: str | None, again: bool) -> None:
    world.accepted()
    operator = ApplyBenchmarkOperator(task_id="apply_benchmark")
    operator.run(world.stage("apply_benchmark"))
    names = world.session().names
    job = world.cluster.get("", "Job", names.namespace, names.benchmark_job)
    job["status"] = {"conditions": [{"type": condition, "status": "True"}]}
    if judged:
        world.session().ledger.record("judge", 1, judged, {"reason": "report-truncated"})
    world.cluster.log.clear()
    operator.run(world.stage("apply_benchmark", 2))
    assert (f"delete Job/{names.benchmark_job}" in world.cluster.log) is again


def test_promotion_wants_clients_on_the_new_revision(applied: World) -> None:
    applied.session().ledger.record("judge", 1, "report", {"slo": {"reason": "all met"}})
    operator = PromoteOperator(task_id="promote")
    facts = operator.run(applied.stage("promote"))
    assert facts["decision"] == "promoted"
    assert facts["url"] == f"http://{DEPLOYMENT}.nim-service:8000/v1"
    applied.cluster.get("", "Service", "nim-service", DEPLOYMENT)["spec"]["selector"]["app"] = "somebody-elses"
    with pytest.raises(PermanentError, match="does not lead to"):
        operator.run(applied.stage("promote"))


def reject(world: World) -> dict[str, Any]:
    return RejectOperator(task_id="reject").run(world.stage("reject"))


def test_a_rejected_service_goes_and_its_cache_stays(applied: World) -> None:
    names = applied.session().names
    facts = reject(applied)
    assert (facts["decision"], facts["service"], facts["cache"]) == ("rejected", "removed", "kept")
    assert f"delete NIMService/{names.service}" in applied.cluster.log
    assert f"delete Service/{DEPLOYMENT}" in applied.cluster.log
    assert applied.cluster.get("", "NIMCache", names.namespace, names.cache) is not None


def test_keep_keeps(world: World) -> None:
    world.accepted(spec={"on_first_failure": "keep"})
    for operator in (ApplyCacheOperator(task_id="apply_cache"), ApplyServiceOperator(task_id="apply_service")):
        operator.run(world.stage(operator.task_id))
    assert reject(world)["service"] == "kept"


def test_what_stood_before_the_run_is_not_taken_away(world: World) -> None:
    world.accepted()
    old_service(world, world.session().names.service)
    for operator in (ApplyCacheOperator(task_id="apply_cache"), ApplyServiceOperator(task_id="apply_service")):
        operator.run(world.stage(operator.task_id))
    # A second try finds its own: the first one's intent tells what stood before.
    ApplyServiceOperator(task_id="apply_service").run(world.stage("apply_service", 2))
    assert reject(world)["service"] == "stood before"


def test_an_inconclusive_benchmark_is_left_for_a_person(applied: World) -> None:
    applied.session().ledger.record("judge", 1, "error", {"reason": "benchmark-inconclusive"})
    assert reject(applied)["service"] == "kept"


@pytest.mark.parametrize("stage", ["gate", "smoke_test"])
@pytest.mark.parametrize(
    ("reason", "service"), [("gate-unmeasured", "kept"), ("cluster-unavailable", "kept"), ("unsteady", "removed")]
)
def test_what_could_not_be_measured_is_not_taken_away(applied: World, stage: str, reason: str, service: str) -> None:
    ledger = applied.session().ledger
    ledger.record(stage, 1, "error", {"reason": "cluster-unavailable"})
    ledger.record(stage, 2, "error", {"reason": reason})
    assert reject(applied)["service"] == service


def test_what_was_measured_in_the_end_counts(applied: World) -> None:
    ledger = applied.session().ledger
    ledger.record("gate", 1, "error", {"reason": "gate-unmeasured"})
    ledger.record("gate", 2, "result", {"pods": []})
    ledger.record("judge", 1, "error", {"reason": "slo-missed"})
    assert reject(applied)["service"] == "removed"


@pytest.mark.parametrize("accepted", [True, False])
def test_where_nothing_was_applied_there_is_nothing_to_reject(world: World, accepted: bool) -> None:
    if accepted:
        world.accepted()
    with pytest.raises(AirflowSkipException):
        reject(world)


def test_a_refused_environment_leaves_nothing_to_reject(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = RejectOperator(task_id="reject")
    world.prepared(operator, monkeypatch)
    operator.environment = "nowhere"
    with pytest.raises(AirflowSkipException):
        operator.execute(world.context("reject"))


def conclude(world: World, monkeypatch: pytest.MonkeyPatch, states: dict[str, str | None], number: int = 1) -> None:
    monkeypatch.setattr("nim_rollouts.hooks.runs.task_states", lambda dag_id, run_id: states)
    operator = ConcludeOperator(task_id="conclude")
    world.prepared(operator, monkeypatch)
    operator.execute(world.context("conclude", number))


def test_a_promoted_run_ends_well_sealed_and_unclaimed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    conclude(world, monkeypatch, {"validate": "success", "promote": "success", "conclude": "running"})
    session = world.session()
    assert session.facts("conclude", "decision")["decision"] == "promoted"
    assert session.facts("conclude", "seal")["records"] == digests(session.ledger, "conclude")
    assert world.events["nim-rollouts-conclude"].extra["facts"]["seal"]
    assert claims.held_by(session.store, claims.deployment_scope("test", DEPLOYMENT)) is None
    session.store.put(session.ledger.key("judge", 1, "result"), b"{}")
    assert session.facts("conclude", "seal")["records"] != digests(session.ledger, "conclude"), "a late one shows"


def test_a_rejected_run_fails_with_the_first_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    world.session().ledger.record("judge", 1, "error", {"reason": "slo-missed", "message": "too slow"})
    states = {"judge": "failed", "promote": "upstream_failed", "reject": "success"}
    with pytest.raises(RolloutRejected, match="judge: slo-missed: too slow") as ended:
        conclude(world, monkeypatch, states)
    assert ended.value.reason == "rollout-rejected"
    assert world.session().facts("conclude", "decision")["decision"] == "rejected"
    assert claims.held_by(world.session().store, claims.deployment_scope("test", DEPLOYMENT)) is None


def test_a_failed_run_tells_of_a_mapped_task_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    world.session().ledger.record("install_addon-nim-operator", 1, "error", {"reason": "helm-failed", "message": "no"})
    with pytest.raises(RolloutRejected, match="install_addon-nim-operator: helm-failed"):
        conclude(world, monkeypatch, {"install_addon_0": "failed", "reject": "skipped"})


def test_a_declined_run_ends_well_and_says_who_and_when(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    ledger = world.session().ledger
    ledger.record("approve_plan", 1, "result", {"declined": True, "told": "rejected by ada at noon"})
    states = {"validate": "success", "approve_plan": "success", "terraform_apply": "skipped", "promote": "skipped"}
    conclude(world, monkeypatch, states)
    decided = world.session().facts("conclude", "decision")
    assert (decided["decision"], decided["decision_reason"]) == ("declined", "approve_plan: rejected by ada at noon")
    assert claims.held_by(world.session().store, claims.environment_scope("test")) is None


def test_a_no_that_a_later_yes_replaced_is_no_excuse_for_a_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accepted()
    ledger = world.session().ledger
    ledger.record("approve_plan", 1, "result", {"declined": True, "told": "rejected by ada at noon"})
    with pytest.raises(RolloutRejected):
        conclude(world, monkeypatch, {"approve_plan": "success", "terraform_apply": "failed"})
    ledger.record("approve_plan", 2, "result", {"declined": False, "told": "approved by ada at one"})
    with pytest.raises(RolloutRejected):
        conclude(world, monkeypatch, {"approve_plan": "success", "terraform_apply": "skipped"}, 2)


def test_a_refused_run_concludes_without_a_claim(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RolloutRejected, match="validate failed"):
        conclude(world, monkeypatch, {"validate": "failed", "reject": "skipped"})


def test_the_end_of_an_older_run_is_not_written_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    world.accepted(run_id="manual__2")
    with pytest.raises(Superseded):
        conclude(world, monkeypatch, {"promote": "success"}, 2)
    assert world.session().ledger.read("conclude", "decision") is None
