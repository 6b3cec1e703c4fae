"""Three hundred deferrals under LocalExecutor and PostgreSQL: none is lost, and what is there already is seen at once.

A classic deferral is lost when its trigger fires while the process that deferred still ends: the scheduler then fails
the task ("state mismatch"), or a retry hides it. The waits here are satisfied when they begin, or a few seconds later.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from statistics import median
from typing import Any

import pytest

from nim_rollouts.clients import claims
from nim_rollouts.clients.ledger import Ledger
from nim_rollouts.clients.store import S3Store
from nim_rollouts.core.names import names_for, rollout_id
from nim_rollouts.core.spec import Deployment, Request
from rehearsal import summary
from tests.rehearsal.live import ENVIRONMENT, NAMESPACE, Live, Run, until

pytestmark = pytest.mark.timeout(900)

#: The runs' records lie under a name of their own, beside the real deployment's.
NAME = "waits-at-once"
TASKS = ("wait_platform", "wait_cache", "wait_service", "wait_benchmark", "wait_services_gone", "wait_caches_gone",
         "wait_nodes_gone")  # fmt: skip
# wait_caches_gone waits for a pod that is deleted meanwhile, so its trigger fires when it is some seconds old; what the
# others wait for is there, or gone, before they begin.


class Rollouts:
    """Runs of the two DAGs, with the records and the objects that their waits look at."""

    def __init__(self, live: Live, real: Run) -> None:
        client, bucket, prefix = summary.store(live.r, ENVIRONMENT)
        self.live, self.store = live, S3Store(bucket, prefix, client)
        facts = live.facts(real)
        self.spec = Deployment.model_validate(facts.of("validate", "request")["spec"])
        self.applied = facts.of("apply_service")
        self.claims: dict[str, claims.Claim] = {}
        self.pods: list[str] = []

    def prepare(self, dag_id: str) -> str:
        """The id of a run that may be started: all that its waits look at is there."""
        run_id = f"{dag_id}-{time.time_ns():x}"
        if dag_id not in self.claims:
            # One for all runs of a DAG: they write nothing, and each is to find that it may still.
            scope = claims.deployment_scope(ENVIRONMENT, f"{NAME}-{dag_id.replace('_', '-')}")
            holder = claims.Holder(dag_id, "all of them")
            self.claims[dag_id] = claims.acquire(self.store, scope, holder, is_ended=lambda _: True)
        self._write(run_id, self.claims[dag_id])
        return run_id

    def start(self, dag_id: str, run_id: str) -> None:
        self.live.api.call("POST", f"/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "conf": {}, "logical_date": None})

    def _write(self, run_id: str, claim: claims.Claim) -> None:
        rollout = rollout_id(run_id)
        ledger = Ledger(self.store, ENVIRONMENT, NAME, rollout)
        request = Request(environment=ENVIRONMENT, deployment=NAME, dag_id=claim.holder.dag_id, run_id=run_id,
                          rollout_id=rollout, generation=claim.generation, spec=self.spec)  # fmt: skip
        taken = [{"scope": claim.scope, "generation": claim.generation}]
        names = names_for(self.spec, rollout)
        pod = {"kind": "Pod", "name": f"late-{rollout}"[:60].rstrip("-"), "namespace": NAMESPACE}
        # No pod: a Job that has nothing to do is complete as soon as its controller has looked at it.
        container = {"name": "none", "image": "registry.example/none:1"}
        job = _object("batch/v1", "Job", names.benchmark_job, {
            "completions": 0, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}})  # fmt: skip
        # Of no scheduler's concern: it waits for a node until it is deleted.
        late = _object("v1", "Pod", pod["name"], {"schedulerName": "nobody", "containers": [container]})
        self.live.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List",
                                                                 "items": [job, late]}))  # fmt: skip
        self.pods.append(pod["name"])
        never = {"kind": "NIMService", "name": f"never-{rollout}", "namespace": NAMESPACE}
        for stage, kind, facts in (
            ("validate", "request", request.model_dump(mode="json", by_alias=True)),
            ("validate", "claims", {"dag_id": claim.holder.dag_id, "run_id": claim.holder.run_id, "taken": taken}),
            ("apply_service", "result", self.applied),
            ("delete_services", "result", {"removed": [never]}),
            ("delete_caches", "result", {"removed": [pod]}),
            (
                "delete_node_pools",
                "result",
                {"removed": [{"kind": "Node", "name": f"never-{rollout}", "namespace": None}]},
            ),
        ):
            ledger.record(stage, 1, kind, facts)

    def result(self, run_id: str, stage: str) -> dict[str, Any] | None:
        """What the wait's next_method wrote down in its first try."""
        content = self.store.get(Ledger(self.store, ENVIRONMENT, NAME, rollout_id(run_id)).key(stage, 1, "result"))
        return None if content is None else dict(json.loads(content)["facts"])

    def close(self) -> None:
        """Nothing of it stays for the tests after this one."""
        for key in (*(claim.scope for claim in self.claims.values()), *self.store.list(f"{ENVIRONMENT}/{NAME}/")):
            self.store.delete(key)
        self.live.kubectl("-n", NAMESPACE, "delete", "pods,jobs", "-l", f"test={NAME}", "--wait=false")


def _object(version: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"test": NAME}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


@pytest.fixture
def rollouts(live: Live, deployed: Run) -> Iterator[Rollouts]:
    for dag_id in ("waits_at_once", "waits_in_a_row"):
        live.api.wait_for_dag(dag_id)
    made = Rollouts(live, deployed)
    yield made
    made.close()


def triggers(live: Live, dag_id: str, run_id: str, task_id: str) -> list[datetime]:
    """When each trigger of the task's first try began, from its own log. (Airflow's word that it fired is not always
    there: the log may be closed before it.)"""
    folder = live.r.logs / "airflow" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
    lines = [
        json.loads(line) for log in folder.glob("attempt=1.log.trigger.*") for line in log.read_text().splitlines()
    ]
    starts = [one for one in lines if one["event"].startswith("trigger ") and one["event"].endswith(" starting")]
    return [datetime.fromisoformat(one["timestamp"]) for one in starts]


@pytest.mark.live(order=18)
def test_what_is_there_already_is_seen_within_a_second(live: Live, rollouts: Rollouts) -> None:
    run_id = rollouts.prepare("waits_in_a_row")
    rollouts.start("waits_in_a_row", run_id)
    run = live.follow("waits_in_a_row", run_id, 120)
    assert run.state == "success", "\n".join(run.lines)
    before, ages = None, []
    for task_id in live.api.order("waits_in_a_row"):
        (began,) = triggers(live, "waits_in_a_row", run_id, task_id)
        result, ended = rollouts.result(run_id, task_id), run.tasks[task_id].ended
        assert result and ended
        # As the trigger's event says it: when it had made itself ready, and how long it then looked.
        fired = datetime.fromisoformat(result["started_at"]) + timedelta(seconds=result["waited_s"])
        ages.append((fired - began).total_seconds())
        # Not asserted: what Airflow needs to begin the trigger, and to run the next_method.
        scheduled = f"{(began - before).total_seconds():.1f} s after the task before it" if before else "first"
        print(
            f"{task_id}: {scheduled}, the wait {ages[-1]:.2f} s, its end {(ended - fired).total_seconds():.1f} s later"
        )
        before = ended
    # On a machine with more to do than it has cores for, a second of work takes longer.
    crowded = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert median(ages) < 1.0 * crowded, f"seconds to see what was there: {ages}, load {crowded:.1f} per core"


@pytest.mark.slow
@pytest.mark.live(order=18)
def test_some_deferrals_none_lost(live: Live, rollouts: Rollouts) -> None:
    none_lost(live, rollouts, runs=5)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.live(order=19)
def test_three_hundred_deferrals_none_lost(live: Live, rollouts: Rollouts) -> None:
    none_lost(live, rollouts, runs=43)


def none_lost(live: Live, rollouts: Rollouts, runs: int) -> None:
    """Every wait of `runs` runs, begun side by side, ends well, at its first try, once."""
    names = [rollouts.prepare("waits_at_once") for _ in range(runs)]
    began = time.monotonic()
    for run_id in names:
        rollouts.start("waits_at_once", run_id)
    for pod in rollouts.pods:
        live.kubectl("-n", NAMESPACE, "delete", "pod", pod, "--wait=false", "--grace-period=0")
    going: dict[str, Any] = {"state": ["queued", "running"], "limit": 1}
    until(
        lambda: live.api.call("GET", "/dags/waits_at_once/dagRuns", **going)["total_entries"] == 0,
        f"{runs * len(TASKS)} waits to end",
        60 + 3 * runs * len(TASKS),
        every_s=1.0,
    )
    took = time.monotonic() - began
    tasks = {(run_id, task.task_id): task for run_id in names for task in live.api.tasks("waits_at_once", run_id)}
    results = {key: rollouts.result(*key) for key in tasks}
    ages = sorted(result["waited_s"] for result in results.values() if result)
    print(f"{len(tasks)} deferrals in {took:.0f} s; a trigger's age at its event, with all at once: median"
          f" {median(ages):.1f} s, longest {ages[-1]:.1f} s")  # fmt: skip
    # Lost: failed, or saved by another try.
    assert Counter((task.state, task.try_number) for task in tasks.values()) == {("success", 1): runs * len(TASKS)}
    query: dict[str, Any] = {"dag_id": "waits_at_once", "event": "state mismatch", "limit": 100}
    assert live.api.call("GET", "/eventLogs", **query)["event_logs"] == []
    # Ended once: one trigger, one event of it, one event of the task's asset.
    assert {key: len(triggers(live, "waits_at_once", *key)) for key in tasks} == dict.fromkeys(tasks, 1)
    assets = Counter((one["source_run_id"], one["source_task_id"]) for one in _asset_events(live))
    assert {key: assets[key] for key in tasks} == dict.fromkeys(tasks, 1)
    # Ended by its own next_method: the result that this one writes is there, with what it judged again.
    for (run_id, task_id), result in results.items():
        assert result and result["verdicts"] and result["waited_s"] is not None, f"{task_id} of {run_id}: {result}"


def _asset_events(live: Live) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        query: dict[str, Any] = {"source_dag_id": "waits_at_once", "limit": 100, "offset": offset}
        page = live.api.call("GET", "/assets/events", **query)["asset_events"]
        yield from page
        offset += len(page)
        if not page:
            return
