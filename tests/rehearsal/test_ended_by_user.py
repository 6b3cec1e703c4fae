"""A user ends a run or a task that waits in the triggerer: its Job does not go on, and the next run begins it again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nim_rollouts.hooks.jobs import STOPPED_BY
from tests.rehearsal.disorder import remove_models
from tests.rehearsal.live import DEPLOYMENT, NAMESPACE, Live, until

pytestmark = [pytest.mark.slow, pytest.mark.live(order=75), pytest.mark.timeout(600)]


def jobs(live: Live, part: str) -> list[dict[str, Any]]:
    return [job for job in live.objects("jobs", NAMESPACE) if part in job["metadata"]["name"]]


def task_state(live: Live, run_id: str, name: str) -> str | None:
    return next((task.state for task in live.api.tasks("nim_deploy", run_id) if task.name == name), None)


def log(live: Live, run_id: str, name: str) -> str:
    task = next(task for task in live.api.tasks("nim_deploy", run_id) if task.name == name)
    return "\n".join(live.api.log("nim_deploy", run_id, task))


@pytest.fixture
def no_model(live: Live) -> Any:
    remove_models(live)
    yield
    (live.r.state / "timing.json").unlink(missing_ok=True)
    remove_models(live)


def test_what_a_user_ends_leaves_no_job_running(live: Live, no_model: None) -> None:
    timing = live.r.state / "timing.json"
    timing.write_text(json.dumps({"nim_download": 600}))  # there is none in a rehearsal that nobody has tuned
    first = live.api.trigger("nim_deploy", live.params())
    until(lambda: task_state(live, first, "wait_cache") == "deferred", "the wait for the cache", 240)
    until(lambda: jobs(live, "-job"), "the download's Job")
    until(lambda: "at most" in log(live, first, "wait_cache"), "the wait's trigger to begin", 60)
    # The whole run: then no task comes after that could stop the Job in the trigger's place.
    live.api.call("PATCH", f"/dags/nim_deploy/dagRuns/{first}", {"state": "failed"})
    (download,) = until(
        lambda: [job for job in jobs(live, "-job") if job["spec"].get("suspend")], "the download to rest", 45
    )
    assert download["metadata"]["annotations"][STOPPED_BY]
    assert "ended by a user" in log(live, first, "wait_cache")
    assert task_state(live, first, "reject") not in ("success", "running")
    timing.unlink()

    # The id of a run that is known no more is not used again: its records would be taken for the new run's.
    live.api.call("DELETE", f"/dags/nim_deploy/dagRuns/{first}")
    body = {"dag_run_id": first, "logical_date": None, "conf": live.params()}
    live.api.call("POST", "/dags/nim_deploy/dagRuns", body)
    until(lambda: live.api.run_state("nim_deploy", first) == "failed", "the refusal", 120)
    assert "reason=run-id-reused" in log(live, first, "validate")
    assert task_state(live, first, "reject") == "skipped"

    second = live.api.trigger("nim_deploy", live.params())
    until(lambda: task_state(live, second, "wait_cache") == "success", "the resumed download", 240)
    assert "resumed" in log(live, second, "apply_cache")
    until(lambda: task_state(live, second, "wait_benchmark") == "deferred", "the benchmark", 240)
    until(lambda: "at most" in log(live, second, "wait_benchmark"), "its trigger to begin", 60)
    (measuring,) = jobs(live, f"{DEPLOYMENT}-bench")
    path = f"/dags/nim_deploy/dagRuns/{second}/taskInstances/wait_benchmark"
    live.api.call("PATCH", path, {"new_state": "failed"})
    until(
        lambda: measuring["metadata"]["uid"] not in [job["metadata"]["uid"] for job in jobs(live, "-bench")],
        "the benchmark's Job to go",
        45,
    )
    assert "ended by a user" in log(live, second, "wait_benchmark")
    until(lambda: live.api.run_state("nim_deploy", second) == "failed", "the run to end", 120)
