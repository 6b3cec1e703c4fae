"""What a rollout came to, read where an auditor would read it: the ledger in the store, and the tasks' own times.

Every fact is copied into `<state>/reports/<rollout>/`, because the rehearsal's store lives in memory and ends with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import yaml

from rehearsal.airflow_api import AirflowApi, Task
from rehearsal.aws.environment import environment as aws_environment
from rehearsal.config import Rehearsal

#: What the table shows of the benchmark: metric and statistic as in aiperf's report, title, unit.
_METRICS = (
    ("time_to_first_token", "avg", "TTFT avg", "ms"),
    ("time_to_first_token", "p99", "TTFT p99", "ms"),
    ("inter_token_latency", "avg", "ITL avg", "ms"),
    ("output_token_throughput", "avg", "throughput", "tokens/s"),
    ("request_throughput", "avg", "requests", "1/s"),
)


@dataclass(frozen=True)
class Facts:
    """One rollout's ledger records, latest try of each, by (stage, kind)."""

    records: Mapping[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    folder: Path | None = None

    def find(self, *names: str) -> Any:
        """The first value under one of these names, at any depth of any record; None when nothing has one."""
        for name in names:
            for record in self.records.values():
                for key, value in _walk(record):
                    if key == name and value not in (None, "", {}, []):
                        return value
        return None

    @property
    def decision(self) -> str | None:
        """`promoted`, `rejected` or whatever the last stage decided; None when the run never came to it."""
        found = [record for (_, kind), record in self.records.items() if kind == "decision"]
        for record in found:
            for key, value in _walk(record):
                if key == "decision" and isinstance(value, str):
                    return value
        return None

    def metric(self, name: str, statistic: str) -> float | None:
        """A number of the benchmark's report, in the report's own unit."""
        for record in self.records.values():
            for key, value in _walk(record):
                if key == name and isinstance(value, dict) and isinstance(value.get(statistic), int | float):
                    return float(value[statistic])
        return None


def store(r: Rehearsal, environment: str) -> tuple[Any, str, str]:
    """The environment's store as (S3 client of the AWS stand-in, bucket, prefix)."""
    settings = yaml.safe_load((r.root / "include" / "environments" / f"{environment}.yaml").read_text())["store"]
    variables = aws_environment(r.url("aws"))
    client = boto3.client(
        "s3",
        endpoint_url=r.url("aws"),
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_DEFAULT_REGION"],
    )
    return client, settings["bucket"], str(settings.get("prefix") or "").strip("/")


def read(r: Rehearsal, environment: str, deployment: str, run_id: str) -> Facts:
    """Every ledger record of the rollout that this DAG run made, copied into the state's reports as well."""
    client, bucket, prefix = store(r, environment)
    base = "/".join(part for part in (prefix, environment, deployment) if part) + "/"
    texts = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in _keys(client, bucket, base)}
    rollouts = {key[len(base) :].split("/")[0] for key, text in texts.items() if json.dumps(run_id).encode() in text}
    if not rollouts:
        return Facts()
    (rollout,) = rollouts
    folder = r.path("reports") / rollout
    mine = {key: text for key, text in texts.items() if key.startswith(f"{base}{rollout}/")}
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for key in sorted(mine, key=_try_of):
        parts = key[len(base) :].split("/")
        target = folder.joinpath(*parts[1:])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(mine[key])
        if key.endswith(".json"):
            records[(parts[1], Path(parts[-1]).stem)] = json.loads(mine[key])
    return Facts(records, tuple(sorted(mine)), folder)


def stages(api: AirflowApi, dag_id: str, run_id: str) -> list[str]:
    """A line a task, in the pipeline's order: how it ended and how long its last try took."""
    place = {name: index for index, name in enumerate(api.order(dag_id))}
    tasks = sorted(api.tasks(dag_id, run_id), key=lambda task: (place.get(task.task_id, 999), task.map_index))
    return ["", f"{'stage':<24}{'end':<16}{'seconds':>8}", *(_stage(task) for task in tasks)]


def table(api: AirflowApi, dag_id: str, run_id: str, facts: Facts, seconds: float) -> list[str]:
    """The whole summary of a deploy, as lines."""
    tasks = {task.name: task for task in api.tasks(dag_id, run_id)}
    rows = [("decision", facts.decision or "none in the ledger")]
    reason = facts.find("decision_reason", "why") if facts.decision != "promoted" else None
    if reason:
        rows.append(("reason", str(reason)))
    profile = facts.find("profile_id", "profile", "profiles")
    if profile:
        rows.append(("cache profile", profile if isinstance(profile, str) else json.dumps(profile)))
    ready = _ready_seconds(tasks)
    if ready is not None:
        rows.append(("time to ready", f"{ready:.1f} s (service applied until it was judged ready)"))
    for name, statistic, title, unit in _METRICS:
        value = facts.metric(name, statistic)
        if value is not None:
            rows.append((title, f"{value:.1f} {unit}"))
    if facts.folder:
        rows.append(("records", f"{len(facts.keys)} in {facts.folder}"))
        report = next((p for p in sorted(facts.folder.rglob("*report*"))), None)
        rows.append(("report", str(report) if report else "none was made"))
    rows.append(("whole run", f"{seconds:.0f} s"))
    return [*stages(api, dag_id, run_id), "", *(f"{title:<16}{text}" for title, text in rows)]


def _stage(task: Task) -> str:
    took = f"{task.seconds:8.1f}" if task.seconds is not None and task.state != "skipped" else ""
    return f"{task.name:<24}{task.state or 'none':<16}{took}".rstrip()


def _ready_seconds(tasks: Mapping[str, Task]) -> float | None:
    begin, end = tasks.get("apply_service"), tasks.get("wait_service")
    if begin and end and begin.started and end.ended and end.state == "success":
        return (end.ended - begin.started).total_seconds()
    return None


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a record, outer ones first."""
    below: list[Any] = []
    if isinstance(value, dict):
        yield from value.items()
        below = list(value.values())
    elif isinstance(value, list):
        below = value
    for part in below:
        yield from _walk(part)


def _try_of(key: str) -> tuple[int, str]:
    """Records sort by their try, so that the latest of a stage wins."""
    number = key.split("/")[-2]
    return (int(number) if number.isdigit() else 0, key)


def _keys(client: Any, bucket: str, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            yield str(entry["Key"])
