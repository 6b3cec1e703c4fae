"""How long a wait may take over its tries, and what it leaves behind when it gives up."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.core.environment import LONGEST_BUDGET_S
from nim_rollouts.core.errors import ClusterUnavailable, TransientError, WaitFailed, WaitStuck
from nim_rollouts.core.verdicts import Subject
from nim_rollouts.operators.waits import (
    OUTER_BOUND,
    WaitBenchmarkOperator,
    WaitCacheOperator,
    WaitOperator,
    WaitServiceOperator,
)
from nim_rollouts.triggers import wait
from nim_rollouts.triggers.plans import plan_for
from nim_rollouts.triggers.wait import WaitTrigger
from nim_rollouts.triggers.watching import Outcome, judge_all
from tests.unit.operators.conftest import DEPLOYMENT, World
from tests.unit.operators.test_jobs import benchmark, download, loading, make_download  # noqa: F401
from tests.unit.triggers.test_wait import event, trigger, waiting  # noqa: F401

MAX_TRIES = 4


def finish(
    world: World, operator: WaitOperator, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int = 1
) -> None:
    world.prepared(operator, monkeypatch)
    context = world.context(operator.task_id, number)
    context["ti"].max_tries = MAX_TRIES
    operator.finish(context, told)


def told(world: World, stage: str, *, overdue: bool = False) -> dict[str, Any]:
    """The event of a trigger that sees what is in the cluster now."""
    session = world.session()
    plan = plan_for(stage, session)
    objects = {
        namespace: {kind: world.cluster.list("", kind, namespace) for kind in kinds}
        for namespace, kinds in plan.groups.items()
    }
    outcome = Outcome(judge_all(plan.subjects, objects, datetime.now(UTC)), overdue)
    return {**outcome.to_dict(), "waited_s": 1.0, "started_at": "2026-01-01T00:00:00+00:00"}


# --- deadlines ----------------------------------------------------------------------------------------------------


def started(number: int) -> datetime:
    return trigger(try_number=number)._prepare()[2]


def test_a_retry_goes_on_with_the_deadline(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    first = started(1)
    with pytest.raises(TransientError):
        finish(waiting, WaitBenchmarkOperator(task_id="wait_benchmark"), {}, monkeypatch)
    assert started(2) == first
    assert started(2) == first, "nor does a triggerer that restarts meanwhile begin it anew"


async def test_a_deadline_that_is_over_leaves_time_to_look(
    waiting: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a retry, and of a triggerer that was away for long."""
    seen: list[datetime] = []

    async def watch(access: Any, plan: Any, *, started: datetime, **_: Any) -> Outcome:
        seen.append(started + timedelta(seconds=plan.deadline_s))
        return Outcome([])

    monkeypatch.setattr("nim_rollouts.triggers.watching.watch_until", watch)
    long_ago = datetime.now(UTC) - timedelta(days=1)
    waiting.session().ledger.record("wait_benchmark", 1, wait.STARTED, {"started_at": long_ago.isoformat()})
    answer = await event(trigger())
    assert 50 < (seen[0] - datetime.now(UTC)).total_seconds() <= 60
    assert answer["waited_s"] > 86_000, "what is told is the whole"


@pytest.mark.parametrize("answers", [True, False])
def test_time_in_which_the_cluster_was_away_is_not_carried_over(
    waiting: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    answers: bool,
) -> None:
    first = started(1)
    benchmark(waiting)
    away = told(waiting, "wait_benchmark", overdue=not answers)
    if answers:
        waiting.cluster.objects.clear()
        benchmark(waiting, "Complete")
        away = told(waiting, "wait_benchmark")
        benchmark(waiting)
    else:
        away["verdicts"][0]["verdict"] |= {"state": "progressing", "reason": "cluster-unavailable"}
    with pytest.raises(TransientError):
        finish(waiting, WaitBenchmarkOperator(task_id="wait_benchmark"), away, monkeypatch)
    assert (started(2) == first) is answers


def test_a_cleared_wait_has_all_of_its_time(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    first = started(1)
    benchmark(waiting, "Failed")
    with pytest.raises(WaitFailed):
        finish(waiting, WaitBenchmarkOperator(task_id="wait_benchmark"), told(waiting, "wait_benchmark"), monkeypatch)
    assert started(2) > first


def test_what_was_announced_long_ago_was_cleared_since(waiting: World) -> None:  # noqa: F811
    """A task that waits for its retry can be marked failed, and cleared the next day."""
    session, yesterday = waiting.session(), datetime.now(UTC) - timedelta(days=1)
    facts = {"started_at": yesterday.isoformat(), "carried_at": yesterday.isoformat()}
    session.ledger.record("wait_benchmark", 2, wait.STARTED, facts)
    assert started(2) > yesterday + timedelta(hours=23)


async def test_the_deadline_is_told_with_its_reasons(
    waiting: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def watch(access: Any, plan: Any, **_: Any) -> Outcome:
        return Outcome([])

    monkeypatch.setattr("nim_rollouts.triggers.watching.watch_until", watch)
    said: list[str] = []
    one = trigger()
    one._log = SimpleNamespace(info=lambda text, *values: said.append(text % values))
    await event(one)
    names = waiting.session().names
    assert said == [
        f"waiting for Job/{names.benchmark_job}, at most 2700 s "
        "(node launch 300 s + image pull 600 s + benchmark 1800 s)"
    ]
    session, before = waiting.session(), datetime.now(UTC) - timedelta(seconds=100)
    session.ledger.record("wait_benchmark", 1, wait.STARTED, {"started_at": before.isoformat()})
    await event(one)
    assert said[1].endswith("it began 100 s ago, before a retry or a restart")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [({}, [300, 600, 1800]), ({"start": {"budget_s": 4000}}, [300, 600, 4000])],
)
def test_what_a_stuck_wait_says_was_spent_is_of_its_own_deadline(
    world: World, changes: dict[str, Any], parts: list[int]
) -> None:
    service = world.include.deployment(DEPLOYMENT).service
    world.accepted(spec={"service": service.model_validate({**service.model_dump(by_alias=True), **changes})})
    plan = plan_for("wait_service", world.session())
    assert [part.budget_s for part in plan.parts] == parts
    assert plan.deadline_s == sum(parts)


def test_every_wait_has_a_deadline_with_a_reason_within_airflows_own(world: World) -> None:
    """Airflow's bound says nothing about why: it must never be the first."""
    world.accepted()
    for stage in ("delete_services", "delete_caches", "delete_node_pools"):
        world.session().ledger.record(stage, 1, "result", {"removed": []})
    for stage in ("wait_platform", "wait_cache", "wait_service", "wait_benchmark", "wait_services_gone"):
        plan = plan_for(stage, world.session())
        assert plan.why and plan.deadline_s > 0
        assert len(plan.parts) * LONGEST_BUDGET_S < OUTER_BOUND.total_seconds()


# --- what breaks --------------------------------------------------------------------------------------------------


async def test_a_watch_that_breaks_is_told_and_tried_again(
    waiting: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def watch(*_: Any, **__: Any) -> Outcome:
        raise KeyError("a defect")

    monkeypatch.setattr("nim_rollouts.triggers.watching.watch_until", watch)
    answer = await event(trigger())
    assert (answer["final"], answer["error"]["reason"]) == (False, "KeyError")
    with pytest.raises(TransientError, match="a defect"):
        finish(waiting, WaitBenchmarkOperator(task_id="wait_benchmark"), answer, monkeypatch)
    assert waiting.session().facts("wait_benchmark", "error")["reason"] == "KeyError"


# --- giving up ----------------------------------------------------------------------------------------------------


def test_a_stuck_benchmark_is_stopped(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    job = benchmark(waiting)["metadata"]
    operator = WaitBenchmarkOperator(task_id="wait_benchmark")
    with pytest.raises(WaitStuck):
        finish(waiting, operator, told(waiting, "wait_benchmark", overdue=True), monkeypatch)
    assert waiting.cluster.get("", "Job", job["namespace"], job["name"]) is None


def test_a_stuck_download_is_put_to_rest(loading: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with pytest.raises(WaitStuck):
        finish(loading, WaitCacheOperator(task_id="wait_cache"), told(loading, "wait_cache", overdue=True), monkeypatch)
    assert (download(loading) or {})["spec"]["suspend"] is True


def test_an_exhausted_download_is_not_begun_again_by_the_operator(
    loading: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_download(loading, "Failed")
    with pytest.raises(WaitFailed):
        finish(loading, WaitCacheOperator(task_id="wait_cache"), told(loading, "wait_cache"), monkeypatch)
    assert "ttlSecondsAfterFinished" not in (download(loading) or {})["spec"]


@pytest.mark.parametrize(("number", "stopped"), [(1, False), (MAX_TRIES, False), (MAX_TRIES + 1, True)])
def test_a_wait_that_is_tried_again_leaves_the_job_alone(
    loading: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    stopped: bool,
) -> None:
    with pytest.raises(TransientError):
        finish(loading, WaitCacheOperator(task_id="wait_cache"), {}, monkeypatch, number)
    assert bool((download(loading) or {})["spec"].get("suspend")) is stopped


def test_a_job_that_cannot_be_stopped_does_not_hide_why_the_wait_ended(
    loading: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(*_: Any) -> Any:
        raise ClusterUnavailable("away")

    monkeypatch.setattr(loading.cluster, "patch", away)
    with pytest.raises(WaitStuck):
        finish(loading, WaitCacheOperator(task_id="wait_cache"), told(loading, "wait_cache", overdue=True), monkeypatch)


@pytest.mark.parametrize(
    ("state", "rests"), [("failed", True), ("skipped", True), ("success", False), ("deferred", False), (None, False)]
)
async def test_a_download_rests_when_the_wait_was_failed_by_a_user(
    loading: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    state: str | None,
    rests: bool,
) -> None:
    """Not when it was called a success: then the rollout goes on, and the service waits for the cache."""
    loading.prepared(WaitCacheOperator(task_id="wait_cache"), monkeypatch)
    monkeypatch.setattr("nim_rollouts.hooks.runs.task_states", lambda *_: {"wait_cache": state})
    await trigger("wait_cache").on_kill()
    assert bool((download(loading) or {})["spec"].get("suspend")) is rests


async def test_a_cluster_that_is_away_for_a_moment_is_asked_again(
    loading: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loading.prepared(WaitCacheOperator(task_id="wait_cache"), monkeypatch)
    monkeypatch.setattr("nim_rollouts.hooks.runs.task_states", lambda *_: {"wait_cache": "failed"})
    monkeypatch.setattr(wait, "_PAUSES_S", (0.0, 0.0))
    left, patch = [ClusterUnavailable("away"), ClusterUnavailable("away")], loading.cluster.patch

    def flaky(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return patch(*arguments)

    monkeypatch.setattr(loading.cluster, "patch", flaky)
    await trigger("wait_cache").on_kill()
    assert (download(loading) or {})["spec"]["suspend"] is True


async def test_last_words_that_are_cut_off_are_said_all_the_same(
    loading: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Airflow cancels a trigger that it has cancelled again at each of its rounds, until it has ended."""
    loading.prepared(WaitCacheOperator(task_id="wait_cache"), monkeypatch)
    asked, answer = threading.Event(), threading.Event()

    def slow(*_: Any) -> dict[str, str]:
        asked.set()
        answer.wait(10)
        return {"wait_cache": "failed"}

    monkeypatch.setattr("nim_rollouts.hooks.runs.task_states", slow)
    one = trigger("wait_cache")
    killed = asyncio.ensure_future(asyncio.wait_for(one.on_kill(), 30))
    await asyncio.to_thread(asked.wait, 10)
    for _ in range(2):
        killed.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await killed
    answer.set()
    await one._stopping
    assert (download(loading) or {})["spec"]["suspend"] is True


def test_the_trigger_is_told_to_stop_the_jobs_of_both_waits() -> None:
    for operator in (WaitCacheOperator(task_id="wait_cache"), WaitBenchmarkOperator(task_id="wait_benchmark")):
        made = WaitTrigger(**operator.start_trigger_args.trigger_kwargs)
        assert made.stop_job is True
    assert WaitServiceOperator(task_id="wait_service").start_trigger_args.trigger_kwargs["stop_job"] is False


def test_the_record_of_an_earlier_job_says_nothing_of_a_later_one(
    waiting: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a Job that somebody deletes would be taken for measured, and the old report be judged in its place."""
    ledger, operator = waiting.session().ledger, WaitBenchmarkOperator(task_id="wait_benchmark")
    uid = benchmark(waiting, "Complete")["metadata"]["uid"]
    ledger.record("apply_benchmark", 1, "result", {"applied": [{"kind": "Job", "uid": uid}]})
    finish(waiting, operator, told(waiting, "wait_benchmark"), monkeypatch)
    waiting.cluster.objects.clear()
    finish(waiting, operator, told(waiting, "wait_benchmark"), monkeypatch, 2)
    ledger.record("apply_benchmark", 2, "result", {"applied": [{"kind": "Job", "uid": "another"}]})
    with pytest.raises(WaitFailed, match="does not exist"):
        finish(waiting, operator, told(waiting, "wait_benchmark"), monkeypatch, 3)


def test_subjects_of_a_plan_survive_the_way_through_airflow(loading: World) -> None:  # noqa: F811
    for subject in plan_for("wait_cache", loading.session()).subjects:
        assert Subject.from_dict(json.loads(json.dumps(subject.to_dict()))) == subject
