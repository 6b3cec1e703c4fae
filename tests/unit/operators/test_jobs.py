"""Jobs that nobody waits for any more: stopped as they were seen, and a download begun again by the next apply."""

from __future__ import annotations

from typing import Any

import pytest

from nim_rollouts.core.errors import Superseded
from nim_rollouts.core.manifests import ROLLOUT
from nim_rollouts.core.verdicts import State, Subject
from nim_rollouts.hooks import jobs
from nim_rollouts.operators.base import now
from nim_rollouts.operators.decide import RejectOperator
from nim_rollouts.operators.model import ApplyCacheOperator
from tests.unit.operators.conftest import World


@pytest.fixture
def loading(world: World) -> World:
    """A run that has applied its cache; the operator has made the download's Job."""
    world.accepted()
    ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache"))
    make_download(world)
    world.cluster.log.clear()
    return world


def make_download(world: World, *conditions: str) -> dict[str, Any]:
    names = world.session().names
    cache = world.cluster.get("", "NIMCache", names.namespace, names.cache)
    return world.cluster.put(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": names.cache_job,
                "namespace": names.namespace,
                "ownerReferences": [{"kind": "NIMCache", "name": names.cache, "uid": cache["metadata"]["uid"]}],
            },
            "spec": {"ttlSecondsAfterFinished": 600, "backoffLimit": 5},
            "status": {"conditions": [{"type": one, "status": "True"} for one in conditions]},
        }
    )


def download(world: World) -> dict[str, Any] | None:
    names = world.session().names
    return world.cluster.get("", "Job", names.namespace, names.cache_job)


def benchmark(world: World, *conditions: str, rollout: str | None = None) -> dict[str, Any]:
    names = world.session().names
    return world.cluster.put(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": names.benchmark_job,
                "namespace": names.namespace,
                "annotations": {ROLLOUT: rollout or world.session().rollout},
            },
            "status": {"conditions": [{"type": one, "status": "True"} for one in conditions]},
        }
    )


def stop(world: World, stage: str = "wait_cache") -> bool:
    return jobs.stop(stage, world.session(), lambda text: None)


def apply_again(world: World) -> dict[str, Any]:
    return ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache", 2))


def test_a_download_is_put_to_rest_not_deleted(loading: World) -> None:
    """The operator makes a deleted one anew at once."""
    assert stop(loading)
    job = download(loading)
    assert job is not None and job["spec"]["suspend"] is True
    assert job["metadata"]["annotations"][jobs.STOPPED_BY] == loading.session().rollout
    assert not stop(loading), "it rests already"


def test_a_failed_download_is_kept_so_that_the_operator_makes_no_other(loading: World) -> None:
    make_download(loading, "Failed")
    assert stop(loading)
    job = download(loading)
    assert job is not None and "ttlSecondsAfterFinished" not in job["spec"] and "suspend" not in job["spec"]


@pytest.mark.parametrize("state", ["filled", "complete", "no cache"])
def test_what_is_no_unfinished_download_of_this_cache_is_left_alone(loading: World, state: str) -> None:
    names = loading.session().names
    if state == "complete":
        make_download(loading, "Complete")
    elif state == "filled":
        cache = loading.cluster.get("", "NIMCache", names.namespace, names.cache)
        cache["status"] = {"state": "Failed", "pvc": names.cache_pvc}
    else:
        loading.cluster.objects.pop(("NIMCache", names.namespace, names.cache))
    assert not stop(loading)
    assert loading.cluster.log == []


def test_a_newer_run_keeps_its_download(loading: World) -> None:
    session = loading.session()
    loading.accepted(run_id="manual__2")
    with pytest.raises(Superseded):
        jobs.stop("wait_cache", session, lambda text: None)
    assert loading.cluster.log == []


def test_a_job_that_moves_on_meanwhile_is_looked_at_again(loading: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Job controller writes the status every second or so: a refused version is no reason to leave it running."""
    job, moved = benchmark(loading), []
    get = loading.cluster.get

    def moving(*arguments: Any) -> Any:
        found = get(*arguments)
        if found is not None and found["kind"] == "Job" and len(moved) < 2:
            moved.append(found)
            found, newer = dict(found), dict(found)
            newer["metadata"] = {**found["metadata"], "resourceVersion": str(len(moved) + 1)}
            loading.cluster.put(newer)
        return found

    monkeypatch.setattr(loading.cluster, "get", moving)
    assert stop(loading, "wait_benchmark")
    assert len(moved) == 2
    assert get("", "Job", job["metadata"]["namespace"], job["metadata"]["name"]) is None


@pytest.mark.parametrize(("whose", "stopped"), [("ours", True), ("another run's", False)])
def test_a_benchmark_that_was_interrupted_before_its_record_is_known_by_its_mark(
    loading: World, whose: str, stopped: bool
) -> None:
    benchmark(loading, rollout=None if whose == "ours" else "another")
    assert stop(loading, "wait_benchmark") is stopped


@pytest.mark.parametrize(
    ("conditions", "rest", "done"),
    [((), True, "resumed"), (("Failed",), True, "made anew"), (("Failed",), False, "made anew")],
)
def test_the_next_apply_begins_a_download_again(
    loading: World, conditions: tuple[str, ...], rest: bool, done: str
) -> None:
    """It is what every remedy says: clear apply_cache."""
    make_download(loading, *conditions)
    if rest:
        stop(loading)
    assert apply_again(loading)["download"] == done
    job = download(loading)
    assert job is None if conditions else not (job or {})["spec"]["suspend"]
    if job is not None:
        assert jobs.STOPPED_BY not in job["metadata"]["annotations"]


def test_what_somebody_else_has_suspended_stays_so(loading: World) -> None:
    job = download(loading)
    assert job is not None
    job["spec"]["suspend"] = True
    assert apply_again(loading)["download"] is None
    assert job["spec"]["suspend"] is True


def test_a_download_that_runs_or_is_done_is_not_touched(loading: World) -> None:
    assert apply_again(loading)["download"] is None
    make_download(loading, "Complete")
    assert apply_again(loading)["download"] is None
    assert not [line for line in loading.cluster.log if "Job" in line]


def test_a_resting_download_is_told_as_such(loading: World) -> None:
    stop(loading)
    names = loading.session().names
    objects = {kind: loading.cluster.list("", kind) for kind in ("NIMCache", "Job")}
    verdict = Subject("NIMCache", names.cache, names.namespace).judge(objects, now())
    assert verdict.state is State.PROGRESSING
    assert verdict.overdue().reason == "job-suspended"


@pytest.mark.parametrize("policy", ["keep", "remove"])
def test_a_rejected_run_leaves_neither_job_running(world: World, policy: str) -> None:
    """Also where the service itself is kept."""
    world.accepted(spec={"on_first_failure": policy})
    ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache"))
    world.stage("apply_service").intend({"name": world.session().names.service, "standing": {}})
    make_download(world)
    measuring = benchmark(world)["metadata"]
    RejectOperator(task_id="reject").run(world.stage("reject"))
    job = download(world)
    assert job is not None and job["spec"]["suspend"] is True
    assert world.cluster.get("", "Job", measuring["namespace"], measuring["name"]) is None
