"""What the rehearsal's follower says of a run that waits for a person."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rehearsal.airflow_api import AirflowApi, Task
from rehearsal.main_job import Follower


class Api:
    """A run with one task, which asks a person and is answered."""

    page = AirflowApi.page
    base = "http://127.0.0.1:1"

    def __init__(self) -> None:
        self.states = ["awaiting_input", "awaiting_input", "success"]

    def run_state(self, dag_id: str, run_id: str) -> str:
        return "running" if len(self.states) > 1 else "success"

    def tasks(self, dag_id: str, run_id: str) -> list[Task]:
        return [Task("approve_plan", -1, self.states.pop(0), 1, None, None)]

    def log(self, *_: Any) -> list[str]:
        return []


def test_it_says_once_that_a_person_is_asked_and_where(monkeypatch: Any) -> None:
    monkeypatch.setattr("rehearsal.main_job.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None))
    lines: list[str] = []
    follower = Follower(Api(), "nim_deploy", "manual__1+00:00", lines.append)  # type: ignore[arg-type]
    assert follower.follow() == "success"
    assert follower.seen == {"approve_plan": ["awaiting_input", "success"]}
    asked, where, done = lines
    assert asked.endswith("approve_plan           asks a person")
    page = "http://127.0.0.1:1/dags/nim_deploy/runs/manual__1%2B00%3A00/tasks/approve_plan/required_actions"
    assert where.endswith(f"answer it at {page}")
    assert done.endswith("success")
