"""A rehearsal's Airflow as its user sees it: the public API, with the login that the UI takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import requests

from rehearsal.config import Rehearsal

Json = dict[str, Any]

#: Loggers of libraries that say, at each of their starts, what nobody waits for.
_CHATTER = ("botocore", "boto3", "airflow.providers.amazon")
ENDED = {"success", "failed", "skipped", "upstream_failed", "removed"}


class AirflowError(RuntimeError):
    """Airflow answered with an error, or does not know a DAG; the message says what was asked and what it said."""


@dataclass(frozen=True)
class Task:
    """One task instance as the API tells it. Times are aware; a task that has not begun has none."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    started: datetime | None
    ended: datetime | None

    @classmethod
    def read(cls, data: Json) -> Task:
        return cls(
            task_id=data["task_id"],
            map_index=data.get("map_index", -1),
            state=data.get("state"),
            try_number=data.get("try_number") or 0,
            started=_time(data.get("start_date")),
            ended=_time(data.get("end_date")),
        )

    @property
    def name(self) -> str:
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"

    @property
    def seconds(self) -> float | None:
        """How long its last try took, from the first moment that Airflow counts to its end."""
        return (self.ended - self.started).total_seconds() if self.started and self.ended else None


class AirflowApi:
    """The few calls that a rehearsal makes. One instance is one login."""

    def __init__(self, r: Rehearsal):
        self.base = r.url("airflow")
        self._session = requests.Session()
        # The server is on loopback: a proxy of the user's environment has no part in it.
        self._session.trust_env = False
        answer = self._session.post(
            f"{self.base}/auth/token", json={"username": r.airflow_user, "password": r.airflow_password}, timeout=30
        )
        if answer.status_code not in (200, 201):
            raise AirflowError(f"the login of {r.airflow_user} was refused: {answer.status_code} {answer.text[:200]}")
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, body: Json | None = None, **query: Any) -> Json:
        """One request below /api/v2. Raises `AirflowError` for every status from 400 on."""
        answer = self._session.request(method, f"{self.base}/api/v2{path}", json=body, params=query, timeout=60)
        if answer.status_code >= 400:
            raise AirflowError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return dict(answer.json()) if answer.content else {}

    def wait_for_dag(self, dag_id: str, patience_s: float = 90) -> None:
        """Wait until Airflow has read the DAG and will run it.

        :raises AirflowError: at once when its file cannot be imported; after `patience_s` when it is not known.
        """
        deadline = time.monotonic() + patience_s
        while True:
            errors = self.call("GET", "/importErrors")["import_errors"]
            if errors:
                raise AirflowError("\n".join(f"{e['filename']}: {e['stack_trace'].strip()}" for e in errors))
            try:
                paused = self.call("GET", f"/dags/{dag_id}")["is_paused"]
            except AirflowError as error:
                if ": 404 " not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise AirflowError(
                        f"Airflow did not find {dag_id} in its DAGs folder in {patience_s:.0f} s;"
                        " see the log airflow-dag-processor.log"
                    ) from None
                time.sleep(0.5)
                continue
            if paused:
                self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False}, update_mask="is_paused")
            return

    def trigger(self, dag_id: str, params: Json, *, patience_s: float = 90) -> str:
        """Start a run with these params, as the form of the UI does, and return its run id."""
        self.wait_for_dag(dag_id, patience_s)
        run = self.call("POST", f"/dags/{dag_id}/dagRuns", {"conf": params, "logical_date": None})
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.call("GET", _run(dag_id, run_id))["state"])

    def tasks(self, dag_id: str, run_id: str) -> list[Task]:
        """Every task instance of the run; the order is Airflow's, not the pipeline's."""
        data = self.call("GET", f"{_run(dag_id, run_id)}/taskInstances", limit=200)
        return [Task.read(task) for task in data["task_instances"]]

    def tries(self, dag_id: str, run_id: str, task_id: str) -> list[Json]:
        """The history of one task instance: every try with its states' times."""
        return list(self.call("GET", f"{_run(dag_id, run_id)}/taskInstances/{task_id}/tries")["task_instances"])

    def log(self, dag_id: str, run_id: str, task: Task) -> list[str]:
        """The messages of the task's latest try so far, of worker and trigger. Empty before the first."""
        return [text for _, text in self.entries(dag_id, run_id, task, max(task.try_number, 1))]

    def entries(self, dag_id: str, run_id: str, task: Task, try_number: int) -> list[tuple[datetime | None, str]]:
        """The messages of one try, each with its time."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task.task_id)}/logs/{try_number}"
        try:
            content = self.call("GET", path, map_index=task.map_index, full_content="true").get("content", [])
        except AirflowError:
            return []
        entries = [entry for entry in content if isinstance(entry, dict) and entry.get("event")]
        ours = [entry for entry in entries if not str(entry.get("logger", "")).startswith(_CHATTER)]
        return [(_time(entry.get("timestamp")), str(entry["event"])) for entry in ours]

    def clear(self, dag_id: str, run_id: str, task_id: str, *, downstream: bool = False) -> list[str]:
        """Clear one task of a run, so that Airflow runs it again. Returns the ids of what was cleared."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task_id],
            "only_failed": False,
            "include_downstream": downstream,
            "reset_dag_runs": True,
        }
        cleared = self.call("POST", f"/dags/{dag_id}/clearTaskInstances", body)
        return [str(task["task_id"]) for task in cleared["task_instances"]]

    def page(self, dag_id: str, run_id: str, task: Task) -> str:
        """Where a person answers the task's question."""
        return f"{self.base}/dags/{dag_id}/runs/{quote(run_id, safe='')}/tasks/{task.task_id}/required_actions"

    def questions(self, dag_id: str = "~", run_id: str = "~") -> list[Json]:
        """Questions to people that nobody has answered."""
        found = self.call("GET", f"{_run(dag_id, run_id)}/hitlDetails", response_received="false", limit=100)
        return list(found["hitl_details"])

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> Json:
        """Answer a task's question. Raises `AirflowError`; its text begins with method, path and status."""
        body = {"chosen_options": [option], "params_input": {}}
        return self.call("PATCH", f"{_run(dag_id, run_id)}/taskInstances/{task_id}/-1/hitlDetails", body)

    def order(self, dag_id: str) -> list[str]:
        """The DAG's task ids, each after all that it depends on; those at one height in Airflow's own order."""
        tasks = self.call("GET", f"/dags/{dag_id}/tasks")["tasks"]
        below = {task["task_id"]: set(task.get("downstream_task_ids") or []) for task in tasks}
        waiting = {name: sum(name in d for d in below.values()) for name in below}
        ordered: list[str] = []
        while waiting:
            free = [name for name, count in waiting.items() if count == 0] or list(waiting)
            for name in free:
                del waiting[name]
                ordered.append(name)
                for later in below[name] & waiting.keys():
                    waiting[later] -= 1
        return ordered


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
