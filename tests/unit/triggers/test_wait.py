"""The wait's trigger, and the worker's part after it."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients.ledger import Ledger
from nim_rollouts.core.addons import When
from nim_rollouts.core.errors import (
    ClusterMissing,
    ClusterUnavailable,
    NeedsHumanError,
    PermanentError,
    StoreUnavailable,
    Superseded,
    TransientError,
    WaitFailed,
    WaitStuck,
)
from nim_rollouts.core.patience import Step
from nim_rollouts.core.verdicts import Subject
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators.waits import WaitBenchmarkOperator, WaitGoneOperator
from nim_rollouts.triggers import wait
from nim_rollouts.triggers.plans import plan_for
from nim_rollouts.triggers.wait import WaitTrigger
from nim_rollouts.triggers.watching import Outcome, judge_all
from tests.unit.operators.conftest import DEPLOYMENT, ENVIRONMENT, World


@pytest.fixture
def waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A run whose benchmark is applied, and a trigger that would look at its Job."""
    world.accepted()
    operator = WaitBenchmarkOperator(task_id="wait_benchmark")
    world.prepared(operator, monkeypatch)
    monkeypatch.setattr("nim_rollouts.hooks.session.cluster_access", lambda environment: SimpleNamespace())
    return world


def trigger(stage: str = "wait_benchmark", try_number: int = 1, stop_job: bool = True) -> WaitTrigger:
    made = WaitTrigger(ENVIRONMENT, DEPLOYMENT, "manual__1", stage, stop_job)
    made._task_instance = SimpleNamespace(dag_id="nim_deploy", run_id="manual__1", task_id=stage, try_number=try_number)
    return made


async def event(made: WaitTrigger) -> dict[str, Any]:
    (only,) = [one.payload async for one in made.run()]
    return only


def job(world: World, *conditions: str) -> dict[str, Any]:
    names = world.session().names
    return world.cluster.put(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": names.benchmark_job, "namespace": names.namespace},
            "status": {"conditions": [{"type": one, "status": "True"} for one in conditions]},
        }
    )


async def test_the_event_carries_the_outcome_and_the_time(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    async def watch(access: Any, plan: Any, *, started: datetime, say: Any, hangs: Any) -> Outcome:
        seen.update(plan=plan, started=started)
        return Outcome([])

    monkeypatch.setattr("nim_rollouts.triggers.watching.watch_until", watch)
    told = await event(trigger())
    assert told["reached"] is True and told["started_at"] == seen["started"].isoformat()
    assert seen["plan"].subjects[0].name == waiting.session().names.benchmark_job


@pytest.mark.parametrize("away", [False, True])
async def test_what_it_hangs_on_is_in_the_ledger_before_it_ends(
    waiting: World, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    async def watch(access: Any, plan: Any, *, hangs: Any, **_: Any) -> Outcome:
        for reason in ("unschedulable", "image-pull-failing"):
            hangs([{"t": 1.0, "hangs_on": reason}])
        return Outcome([])

    monkeypatch.setattr("nim_rollouts.triggers.watching.watch_until", watch)
    record = Ledger.record

    def flaky(self: Ledger, stage: str, number: int, kind: str, facts: Any) -> str:
        if away and kind == "hanging":
            raise StoreUnavailable("away")
        return record(self, stage, number, kind, facts)

    monkeypatch.setattr(Ledger, "record", flaky)
    assert (await event(trigger()))["reached"] is True
    told = waiting.session().ledger.read("wait_benchmark", "hanging")
    assert told == (None if away else {"timeline": [{"t": 1.0, "hangs_on": "image-pull-failing"}]})


async def test_a_restarted_triggerer_goes_on_with_the_deadline(waiting: World) -> None:
    first = trigger()._prepare()[2]
    assert trigger()._prepare()[2] == first
    assert trigger(try_number=2)._prepare()[2] > first, "another try has time of its own"


def test_what_is_not_installed_here_is_not_waited_for(waiting: World) -> None:
    session = waiting.session()
    (addon,) = session.environment.addons
    required = addon.requires.model_copy(update={"crds": ["others.example.com"]})
    other = addon.model_copy(update={"name": "other", "when": When(node_os="al2023"), "requires": required})
    session.environment.addons[:] = [other, addon]
    assert {one.name for one in plan_for("wait_platform", session).subjects} == set(addon.requires.crds)


def test_each_step_has_its_budget_and_a_kind_its_operator(waiting: World) -> None:
    session = waiting.session()
    (addon,) = session.environment.addons
    deployments = addon.requires.model_copy(update={"deployments": ["the-operator"]})
    session.environment.addons[:] = [addon.model_copy(update={"requires": deployments})]
    budgets = session.environment.budgets
    cache, service = plan_for("wait_cache", session), plan_for("wait_service", session)
    assert cache.patience[Step.NODE_LAUNCH] == budgets.node_launch_s and Step.START_UP not in cache.patience
    assert service.patience[Step.START_UP] == budgets.service_s
    assert [one.ref for one in cache.operators] == ["Deployment/the-operator"]
    assert cache.groups.keys() == {session.names.namespace, addon.namespace}
    assert service.operators == (), "this add-on does not bring NIMServices"
    assert plan_for("wait_benchmark", session).operators == ()


async def test_a_wait_of_an_older_run_is_refused(waiting: World) -> None:
    waiting.accepted(run_id="manual__2")
    told = await event(trigger())
    assert told["final"] is True and told["error"]["error"] == "Superseded"


async def test_a_store_that_is_away_for_a_moment_fails_nothing(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_FIRST_PAUSE_S", 0.001)
    left = [StoreUnavailable("away"), ConnectionError("reset"), OSError("down")]
    prepare = WaitTrigger._prepare

    def flaky(self: WaitTrigger) -> Any:
        if left:
            raise left.pop()
        return prepare(self)

    async def watch(access: Any, plan: Any, **_: Any) -> Outcome:
        return Outcome([])

    monkeypatch.setattr(WaitTrigger, "_prepare", flaky)
    monkeypatch.setattr("nim_rollouts.triggers.watching.watch_until", watch)
    assert (await event(trigger()))["reached"] is True
    assert left == []


async def test_without_a_cluster_absence_is_reached_and_presence_is_not(
    waiting: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(environment: Any) -> Any:
        raise ClusterMissing("no cluster")

    monkeypatch.setattr("nim_rollouts.hooks.session.cluster_access", missing)
    removed = [{"kind": "NIMCache", "name": "x", "namespace": "ns", "uid": "1"}]
    waiting.session().ledger.record("delete_caches", 1, "result", {"removed": removed})
    assert (await event(trigger("wait_caches_gone")))["reached"] is True
    assert (await event(trigger("wait_benchmark")))["error"]["reason"] == "cluster-missing"


@pytest.mark.parametrize(
    ("state", "stopped"), [("failed", True), ("success", True), (None, False), ("deferred", False)]
)
async def test_a_job_is_stopped_when_the_task_was_ended_not_when_it_was_cleared(
    waiting: World, monkeypatch: pytest.MonkeyPatch, state: str | None, stopped: bool
) -> None:
    uid = job(waiting)["metadata"]["uid"]
    deleted = _deletions(waiting)
    waiting.session().ledger.record("apply_benchmark", 1, "result", {"applied": [{"kind": "Job", "uid": uid}]})
    monkeypatch.setattr("nim_rollouts.hooks.runs.task_states", lambda *_: {"wait_benchmark": state})
    await trigger().on_kill()
    assert deleted == ([{"uid": uid, "resourceVersion": "1"}] if stopped else [])


@pytest.mark.parametrize("why", ["finished", "another"])
async def test_a_finished_or_foreign_job_is_left_alone(
    waiting: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    uid = job(waiting, *(["Complete"] if why == "finished" else []))["metadata"]["uid"]
    deleted = _deletions(waiting)
    applied = [{"kind": "Job", "uid": uid if why == "finished" else "older"}]
    waiting.session().ledger.record("apply_benchmark", 1, "result", {"applied": applied})
    monkeypatch.setattr("nim_rollouts.hooks.runs.task_states", lambda *_: {"wait_benchmark": "failed"})
    await trigger().on_kill()
    assert deleted == []


async def test_no_other_wait_stops_anything(waiting: World) -> None:
    deleted = _deletions(waiting)
    await trigger("wait_cache", stop_job=False).on_kill()
    assert deleted == []


def _deletions(world: World) -> list[dict[str, str]]:
    deleted: list[dict[str, str]] = []

    def delete(job: dict[str, Any], *, uid: str, resource_version: str) -> bool:
        deleted.append({"uid": uid, "resourceVersion": resource_version})
        return False  # somebody was quicker: no error

    world.cluster.delete = delete  # type: ignore[method-assign, assignment]
    return deleted


def finish(world: World, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    operator = WaitBenchmarkOperator(task_id="wait_benchmark")
    world.prepared(operator, monkeypatch)
    operator.finish(world.context("wait_benchmark"), told)
    return world.session().facts("wait_benchmark")


def told_of(world: World, *conditions: str, overdue: bool = False) -> dict[str, Any]:
    """The event of a trigger that has seen the Job with these conditions."""
    names = world.session().names
    subject = Subject("Job", names.benchmark_job, names.namespace)
    seen = job(world, *conditions)
    objects = {names.namespace: {"Job": [seen], "Pod": [], "Event": []}}
    outcome = Outcome(judge_all([subject], objects, datetime.now(UTC)), overdue)
    return {**outcome.to_dict(), "waited_s": 12.5, "started_at": "2026-01-01T00:00:00+00:00"}


def test_what_was_reached_is_looked_at_again_and_recorded(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = finish(waiting, told_of(waiting, "Complete"), monkeypatch)
    assert facts["waited_s"] == 12.5
    assert next(iter(facts["verdicts"].values()))["state"] == "healthy"
    assert waiting.events["nim-rollouts-wait_benchmark"].extra["facts"]["waited_s"] == 12.5


def test_a_failure_is_raised_with_its_reason(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WaitFailed, match="the Job failed"):
        finish(waiting, told_of(waiting, "Failed"), monkeypatch)


def test_a_verdict_that_has_changed_since_begins_the_wait_again(
    waiting: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_of(waiting, "Complete")
    job(waiting)
    with pytest.raises(TransientError, match="changed between two looks"):
        finish(waiting, told, monkeypatch)


def test_what_has_come_right_after_the_deadline_counts(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_of(waiting, overdue=True)
    job(waiting, "Complete")
    finish(waiting, told, monkeypatch)


def test_the_deadline_makes_it_stuck(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WaitStuck, match="stuck after"):
        finish(waiting, told_of(waiting, overdue=True), monkeypatch)


def test_a_deadline_that_nobody_could_see_pass_is_the_api_servers(
    waiting: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_of(waiting, overdue=True)
    for one in told["verdicts"]:
        one["verdict"]["reason"] = "cluster-unavailable"
    with pytest.raises(ClusterUnavailable, match="passed while the API server did not answer") as raised:
        finish(waiting, told, monkeypatch)
    assert "layer=api-server reason=cluster-unavailable" in _line(raised.value)
    job(waiting, "Complete")
    finish(waiting, told, monkeypatch)


def test_a_job_that_was_cleaned_up_after_its_end_is_no_failure(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_of(waiting, "Complete")
    waiting.cluster.objects.clear()
    facts = finish(waiting, told, monkeypatch)
    assert next(iter(facts["verdicts"].values()))["reason"] == "recorded"


def test_a_cleared_wait_finds_the_record_when_the_job_is_gone(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(waiting, told_of(waiting, "Complete"), monkeypatch)
    waiting.cluster.objects.clear()
    names = waiting.session().names
    subject = Subject("Job", names.benchmark_job, names.namespace)
    objects = {names.namespace: {"Job": [], "Pod": [], "Event": []}}
    gone = Outcome(judge_all([subject], objects, datetime.now(UTC)))
    finish(waiting, gone.to_dict(), monkeypatch)


@pytest.mark.parametrize(
    ("error", "final", "kind"),
    [
        ("Superseded", True, Superseded),
        ("ClusterMissing", True, PermanentError),
        ("AccessDenied", True, NeedsHumanError),
        ("OSError", False, TransientError),
    ],
)
def test_the_triggers_error_is_the_tasks(
    waiting: World, monkeypatch: pytest.MonkeyPatch, error: str, final: bool, kind: type
) -> None:
    facts = {"error": error, "layer": "claim", "reason": "why", "message": "what", "hint": "how"}
    with pytest.raises(kind) as raised:
        finish(waiting, {"error": facts, "final": final}, monkeypatch)
    assert type(raised.value) is kind
    assert "layer=claim reason=why: what. how" in _line(raised.value)


def test_a_trigger_without_a_verdict_is_tried_again(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransientError, match="without a verdict"):
        finish(waiting, {}, monkeypatch)


def test_what_was_deleted_is_gone_without_a_cluster(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = [{"kind": "NIMCache", "name": "x", "namespace": "ns", "uid": "1"}]
    waiting.session().ledger.record("delete_caches", 1, "result", {"removed": removed})
    operator = WaitGoneOperator(task_id="wait_caches_gone")
    waiting.prepared(operator, monkeypatch)
    monkeypatch.setattr(Session, "cluster_if_any", lambda self: None)
    operator.finish(waiting.context("wait_caches_gone"), Outcome([]).to_dict())
    assert "NIMCache/x" in waiting.session().facts("wait_caches_gone")["verdicts"]


def _line(error: BaseException) -> str:
    from nim_rollouts.core.errors import one_line

    return one_line(error)
