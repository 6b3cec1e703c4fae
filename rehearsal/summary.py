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
    """One rollout's ledger records, latest try of each, by (stage, kind), and the benchmark's whole report."""

    records: Mapping[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    folder: Path | None = None
    report: Path | None = None

    def of(self, stage: str, kind: str = "result") -> dict[str, Any]:
        """What a stage wrote down; nothing when it never did."""
        return dict(self.records.get((stage, kind), {}).get("facts", {}))

    @property
    def decision(self) -> str | None:
        """`promoted`, `rejected` or `failed`; None when the run never came to it."""
        return self.of("conclude", "decision").get("decision")

    @property
    def reason(self) -> str | None:
        """Why it was not promoted, in one line."""
        return self.of("conclude", "decision").get("decision_reason")

    def metric(self, name: str, statistic: str) -> float | None:
        """A number of the benchmark's report, in the report's own unit."""
        value = self.of("judge", "report").get("metrics", {}).get(name, {}).get(statistic)
        return None if value is None else float(value)


def store(r: Rehearsal, environment: str) -> tuple[Any, str, str]:
    """The environment's store as (S3 client of the AWS stand-in, bucket, prefix)."""
    settings = yaml.safe_load((r.include / "environments" / f"{environment}.yaml").read_text())["store"]
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
    keys = list(_keys(client, bucket, base))
    requests = [key for key in keys if key.endswith("/request.json")]
    rollouts = {_rollout(key, base) for key in requests if _get(client, bucket, key)["facts"]["run_id"] == run_id}
    if not rollouts:
        return Facts()
    (rollout,) = rollouts
    folder = r.path("reports") / rollout
    mine = sorted((key for key in keys if _rollout(key, base) == rollout), key=_try_of)
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for key in mine:
        stage, number, file = key[len(base) :].split("/")[1:]
        records[(stage, Path(file).stem)] = record = _get(client, bucket, key)
        _write(folder / stage / number / file, record)
    facts = Facts(records, tuple(mine), folder)
    report_key = facts.of("judge", "report").get("report_key")
    if not report_key:
        return facts
    report = folder / Path(report_key).name
    _write(report, _get(client, bucket, f"{prefix}/{report_key}" if prefix else report_key))
    return Facts(records, tuple(mine), folder, report)


def stages(api: AirflowApi, dag_id: str, run_id: str) -> list[str]:
    """A line a task, in the pipeline's order: how it ended and how long its last try took."""
    place = {name: index for index, name in enumerate(api.order(dag_id))}
    tasks = sorted(api.tasks(dag_id, run_id), key=lambda task: (place.get(task.task_id, 999), task.map_index))
    return ["", f"{'stage':<24}{'end':<16}{'seconds':>8}", *(_stage(task) for task in tasks)]


def table(api: AirflowApi, dag_id: str, run_id: str, facts: Facts, seconds: float) -> list[str]:
    """The whole summary of a deploy, as lines."""
    rows = [("decision", facts.decision or "none in the ledger")]
    if facts.reason:
        rows.append(("reason", facts.reason))
    if profile := facts.of("wait_cache").get("profile"):
        rows.append(("cache profile", profile))
    ready = facts.of("wait_service").get("time_to_ready_s")
    if ready is not None:
        rows.append(("time to ready", f"{ready:.1f} s from applied to the last pod's readiness"))
    for name, statistic, title, unit in _METRICS:
        value = facts.metric(name, statistic)
        if value is not None:
            rows.append((title, f"{value:.1f} {unit}"))
    if facts.folder:
        rows.append(("records", f"{len(facts.keys)} in {facts.folder}"))
    if facts.report:
        rows.append(("report", str(facts.report)))
    rows.append(("whole run", f"{seconds:.0f} s"))
    return [*stages(api, dag_id, run_id), "", *(f"{title:<16}{text}" for title, text in rows)]


def _stage(task: Task) -> str:
    took = f"{task.seconds:8.1f}" if task.seconds is not None and task.state != "skipped" else ""
    return f"{task.name:<24}{task.state or 'none':<16}{took}".rstrip()


def _rollout(key: str, base: str) -> str:
    return key[len(base) :].split("/")[0]


def _get(client: Any, bucket: str, key: str) -> dict[str, Any]:
    return dict(json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read()))


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1))


def _try_of(key: str) -> tuple[int, str]:
    """Records sort by their try, so that the latest of a stage wins."""
    number = key.split("/")[-2]
    return (int(number) if number.isdigit() else 0, key)


def _keys(client: Any, bucket: str, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            yield str(entry["Key"])
