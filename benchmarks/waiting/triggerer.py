"""Airflow's own triggerer without its database: the supervisor's process, and the runner's with all triggers in it.

`python -m benchmarks.waiting.triggerer`, with WAITING_SPEC in its environment. What the supervisor would read from the
database comes from the spec; what it would write there is left out. The runner is Airflow's, but for its queue of
events, which notes the time of each.

Our waits start from their trigger, as nim_deploy's do: each comes with the serialized DAG, from which Airflow builds
the context that renders the trigger's arguments. The stock ones are deferred by a worker, and come without it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import uuid
from collections import deque
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from airflow.api_fastapi.execution_api.datamodels.taskinstance import DagRun
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.executors.workloads.trigger import RunTrigger
from airflow.jobs.triggerer_job_runner import TriggerLoggingFactory, TriggerRunner, TriggerRunnerSupervisor
from airflow.models.trigger import Trigger
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType

from benchmarks.waiting.triggers import SPEC, spec

STOCK = "airflow.providers.cncf.kubernetes.triggers.job.KubernetesJobTrigger"
OURS = "benchmarks.waiting.triggers.ServiceWait"
PROBE = "benchmarks.waiting.triggers.Probe"
NOTHING = "benchmarks.waiting.triggers.Nothing"
_PER_LOOP = 50  # Airflow's max_trigger_to_select_per_loop


class _Stamped(deque[Any]):
    """The runner's queue of events, with the time at which each was put in."""

    def append(self, entry: Any) -> None:
        with (Path(os.environ[SPEC]).parent / "fires.jsonl").open("a") as out:
            out.write(json.dumps({"id": entry.trigger_id, "at": time.time(), "event": str(entry.event)[:1000]}) + "\n")
        super().append(entry)


class Runner(TriggerRunner):
    """Airflow's runner; `events` stamps."""

    def __init__(self) -> None:
        super().__init__()
        self.events = _Stamped()


class Supervisor(TriggerRunnerSupervisor):
    """Airflow's supervisor. Its triggers are the spec's: the first with the probe, the others after `go` is there, so
    many a second."""

    @classmethod
    def run_in_process(cls) -> None:
        Runner().run()

    def load_triggers(self) -> None:
        given, go = spec(), Path(os.environ[SPEC]).parent / "go"
        due = int(given["begin_rate"] * (time.time() - go.stat().st_mtime)) if go.exists() else 0
        wanted = range(min(2 + due, len(given["names"]) + 1))
        started = self.__dict__.setdefault("_started", set())
        for number in [number for number in wanted if number not in started][:_PER_LOOP]:
            started.add(number)
            self.creating_triggers.append(self._workload(number, given))

    def _workload(self, number: int, given: dict[str, Any]) -> RunTrigger:
        name = given["names"][number - 1] if number else "probe"
        task_id, classpath, kwargs, more = "probe", PROBE, {}, {}
        if number and given["side"] == "nothing":
            task_id, classpath = "nothing", NOTHING
        elif number and given["side"] == "stock":
            task_id, classpath, kwargs = "job", STOCK, _stock(name, given)
        elif number:
            task_id, classpath = "wait_service", OURS
            kwargs = _dag().get_task(task_id).start_trigger_args.trigger_kwargs
            more = {"dag_data": _dag_data(), "dag_run_data": _dag_run(name)}
        ti = TaskInstanceDTO(
            id=uuid.uuid4(), task_id=task_id, dag_id="nim_deploy", run_id=name, try_number=1,
            dag_version_id=uuid.uuid4(), pool_slots=1, priority_weight=1,
        )  # fmt: skip
        folder = Path(os.environ[SPEC]).parent / "logs"
        self.logger_cache[number] = TriggerLoggingFactory(log_path=str(folder / f"{name}.log"), ti=ti)
        return RunTrigger(
            id=number, classpath=classpath, encrypted_kwargs=Trigger.encrypt_kwargs(kwargs), ti=ti, **more
        )

    def on_trigger_event(self, trigger_id: int, event: Any) -> None:
        """The database's part."""

    def on_trigger_failure(self, trigger_id: int, exc: list[str] | None) -> None:
        (Path(os.environ[SPEC]).parent / "failures.txt").open("a").write(f"{trigger_id}: {exc}\n")

    def clean_unused(self) -> None:
        """The database's part."""

    def heartbeat(self) -> None:
        """The database's part."""

    def emit_metrics(self) -> None:
        """Nobody reads them."""

    def should_stop(self) -> bool:
        return (Path(os.environ[SPEC]).parent / "stop").exists() or os.getppid() == 1


@cache
def _dag() -> Any:
    """The product's own DAG, whose waits start from their trigger: Airflow hands each of them all of it."""
    return importlib.import_module("dags.nim_deploy").dag


@cache
def _dag_data() -> dict[str, Any]:
    from airflow.serialization.serialized_objects import DagSerialization

    data: dict[str, Any] = DagSerialization.to_dict(_dag())
    return data


def _dag_run(name: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    times = dict.fromkeys(("logical_date", "data_interval_start", "data_interval_end", "run_after", "start_date"), now)
    run = DagRun(
        dag_id="nim_deploy", run_id=name, end_date=None, run_type=DagRunType.MANUAL, state=DagRunState.RUNNING,
        conf={"environment": "benchmark"}, consumed_asset_events=[], partition_key=None, **times,
    )  # fmt: skip
    return run.model_dump(exclude_unset=True)


def _stock(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_name": name, "job_namespace": given["namespace"], "pod_names": [], "pod_namespace": given["namespace"],
        "base_container_name": "base", "kubernetes_conn_id": "kubernetes_default",
    }  # fmt: skip


def main() -> int:
    supervisor = Supervisor.start(job=None, capacity=100_000, logger=structlog.get_logger("waiting"))
    try:
        supervisor.run()
    finally:
        supervisor.kill(escalation_delay=5, force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
