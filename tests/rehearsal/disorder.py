"""Rollouts under ordered faults: what is ordered when, when its evidence could first be seen, and what was said.

The first of a session is a whole run; it makes the cluster where there is none. Each later one clears that run from the
first task that its fault can meet, as somebody would who has repaired something: what comes before would only be
repeated.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import requests

from tests.rehearsal.live import DEPLOYMENT, NAMESPACE, NIM, ROOT, Live, Run, until

Obj = dict[str, Any]
Evidence = Callable[["Cluster"], bool]
Meanwhile = Callable[[Live], None]

LOOK_S = 0.4
#: What a first run takes longer, since its cluster has to be made.
PROVISIONING_S = 240.0
SAID = re.compile(r"layer=(?P<layer>\S+) reason=(?P<reason>[^\s:]+)")


class Cluster:
    """Lists of objects, straight from the API server: looked at often, so without a process each time."""

    def __init__(self, live: Live):
        self._base = live.r.url("apiserver")
        self._session = requests.Session()
        self._session.verify = str(live.r.ca)
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {live.r.admin_token}"

    def items(self, path: str, query: dict[str, str] | None = None) -> list[Obj]:
        """The objects of a collection below its API path; none where the kind is not served."""
        answer = self._session.get(self._base + path, params=query, timeout=5)
        return list(answer.json()["items"]) if answer.ok else []

    def pods(self, namespace: str = NAMESPACE) -> list[Obj]:
        return self.items(f"/api/v1/namespaces/{namespace}/pods")

    def nim(self, plural: str) -> list[Obj]:
        return self.items(f"/apis/{NIM}/v1alpha1/namespaces/{NAMESPACE}/{plural}")

    def events(self, namespace: str = NAMESPACE) -> list[Obj]:
        return self.items(f"/api/v1/namespaces/{namespace}/events")


# Evidence: what somebody with kubectl could have seen


def waiting(*reasons: str) -> Evidence:
    """A container waits for one of these reasons."""

    def seen(cluster: Cluster) -> bool:
        states = [s for pod in cluster.pods() for s in pod.get("status", {}).get("containerStatuses") or []]
        return any((s["state"].get("waiting") or {}).get("reason") in reasons for s in states)

    return seen


def event(reason: str, text: str = "") -> Evidence:
    """An Event of this reason, with this text, in the models' namespace."""

    def seen(cluster: Cluster) -> bool:
        return any(e["reason"] == reason and text in e.get("message", "") for e in cluster.events())

    return seen


def cache_says(text: str) -> Evidence:
    """A condition of the NIMCache with this text."""

    def seen(cluster: Cluster) -> bool:
        told = [c for one in cluster.nim("nimcaches") for c in one.get("status", {}).get("conditions") or []]
        return any(text in c.get("message", "") for c in told)

    return seen


def pods_ready(cluster: Cluster) -> bool:
    """A pod of the service is ready."""
    of_service = [p for p in cluster.pods() if "app" in (p["metadata"].get("labels") or {})]
    told = [c for pod in of_service for c in pod.get("status", {}).get("conditions") or []]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in told)


def operator_down(cluster: Cluster) -> bool:
    """The operator's container does not run."""
    states = [s for p in cluster.pods("nim-operator") for s in p.get("status", {}).get("containerStatuses") or []]
    return bool(states) and not any("running" in s["state"] for s in states)


# Disorder that lasts for a while


def for_a_while(seconds: float, *order: str) -> Meanwhile:
    """A fault that is ordered, lasts, and is over."""

    def act(live: Live) -> None:
        live.fault(*order)
        time.sleep(seconds)
        live.fault("--clear", order[0])

    return act


def restarted(part: str, away_s: float, *, kill: bool = False) -> Meanwhile:
    """A part that ends, is away, and comes back."""

    def act(live: Live) -> None:
        command = [sys.executable, "-m", "rehearsal", "restart", part, "--away", str(away_s), *(["--kill"] * kill)]
        subprocess.run(command, cwd=ROOT, env=live.environment, check=True, capture_output=True, timeout=120)

    return act


@dataclass(frozen=True)
class Case:
    """One disorder and what must be said of it.

    :param orders: faults that stand before the run begins, as the command line takes them
    :param meanwhile: (task, what happens once this task has begun)
    :param task: which fails; empty for a rollout that is promoted all the same
    :param layers: the layer named must be one of these
    :param reasons: the slug must be one of these
    :param evidence: when the fault could first be seen
    :param told_s: seconds from the evidence (or the task's first start, if that is later) to the first line of the
        task's log, trigger's or worker's, that names layer and slug
    :param within_s: seconds from the evidence to the task's end. 15 s is what Airflow takes to pass an event on and to
        run the worker's part on a loaded machine, with the pod's own back-off; a fault that may still pass by itself
        has the budget of its step besides.
    :param says: (task, pattern) that must be found in the task's log
    :param first: what must hold before the fault is ordered
    :param begins: the first task that the fault can meet; empty where it takes a run of its own, which is ended as soon
        as its task has failed
    """

    name: str
    orders: tuple[tuple[str, ...], ...] = ()
    meanwhile: tuple[tuple[str, Meanwhile], ...] = ()
    task: str = ""
    layers: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    evidence: Evidence | None = None
    told_s: float = 8.0
    within_s: float = 15.0
    patience_s: float = 240.0
    says: tuple[tuple[str, str], ...] = ()
    first: Callable[[Live], None] | None = None
    begins: str = "apply_cache"


@dataclass
class Outcome:
    """What came of a case. Seconds from the first sight of the evidence, or from the task's first start where that is
    later: `told_after` to the first line with layer and slug, `ended_after` to the end of the task that failed."""

    run: Run
    layer: str = ""
    reason: str = ""
    line: str = ""
    told_after: float | None = None
    ended_after: float | None = None
    unsaid: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.run.state}: layer={self.layer} reason={self.reason}\n  {self.line}"


#: (name, outcome, seconds that the case took) of every case of the session, for the table at its end.
PLAYED: list[tuple[str, Outcome, float]] = []


def table() -> list[str]:
    """The matrix: what each fault led to, and how soon."""
    head = f"{'fault':48s} {'layer':15s} {'slug':27s} {'told after':>10s} {'ended after':>11s} {'case':>6s}"
    lines = [head]
    for name, one, took in PLAYED:
        told, ended = (f"{s:.1f} s" if s is not None else "-" for s in (one.told_after, one.ended_after))
        layer, reason = (one.layer, one.reason) if one.layer else ("-", "promoted" if not one.unsaid else one.run.state)
        lines.append(f"{name:48s} {layer:15s} {reason:27s} {told:>10s} {ended:>11s} {took:4.0f} s")
    return lines


def play(live: Live, case: Case) -> Outcome:
    """Order, roll out, look on, clear, and leave no model behind."""
    begin = time.monotonic()
    seen: list[datetime] = []
    notes: list[str] = []
    earlier: dict[str, int] = {}
    if case.first is not None:
        case.first(live)
    for order in case.orders:
        live.fault(*order)
    try:
        patience_s = case.patience_s
        if case.begins and "faults" in live.runs:
            base = live.runs["faults"]
            run_id = base.run_id
            earlier = {task.name: task.try_number for task in live.api.tasks("nim_deploy", run_id)}
            first = _first_to_clear(live, base, case.begins)
            live.api.clear("nim_deploy", run_id, first, downstream=True)
        else:
            run_id = live.api.trigger("nim_deploy", live.params(skip_benchmark=True))
            patience_s += PROVISIONING_S if case.begins else 0
        with _beside(live, case, run_id, seen, notes):
            if not case.begins:
                _until_it_ended(live, run_id, case)
            run = live.follow("nim_deploy", run_id, patience_s)
        if case.begins:
            live.runs["faults"] = run
            live.repair_from = case.begins if run.state != "success" else ""
        if run.state == "timeout":
            _give_up(live, run_id)
    finally:
        live.fault("--clear")
        remove_models(live)
    outcome = Outcome(run, notes=notes)
    _read(live, case, outcome, seen, earlier)
    PLAYED.append((case.name, outcome, time.monotonic() - begin))
    return outcome


def _first_to_clear(live: Live, base: Run, begins: str) -> str:
    """The task with which a case begins, or an earlier one with which the last case is to be repaired.

    A verification tells what an earlier task has found out: what its case broke is asked about anew only from where
    that case began.
    """
    failed = {task.task_id for task in base.tasks.values() if task.state in ("failed", "upstream_failed")}
    wanted = {begins, live.repair_from, *failed}
    return next(name for name in live.api.order("nim_deploy") if name in wanted)


def _read(live: Live, case: Case, outcome: Outcome, seen: list[datetime], earlier: dict[str, int]) -> None:
    """What the logs and the times of the run say; `earlier`: the tries that belong to the cases before."""
    run = outcome.run
    for name, pattern in case.says:
        if name not in run.tasks or not re.search(pattern, live.log(run, name)):
            outcome.unsaid.append(f"{name} did not say {pattern}")
    task = run.tasks.get(case.task)
    if task is None or task.state != "failed":
        return
    outcome.line = next((line for line in run.lines if line.startswith(f"{task.name} failed:")), "")
    if told := SAID.search(outcome.line):
        outcome.layer, outcome.reason = told["layer"], told["reason"]
    first = earlier.get(task.name, 0) + 1
    tries = [one for one in live.api.tries(run.dag_id, run.run_id, task.task_id) if one["try_number"] >= first]
    begins = sorted(datetime.fromisoformat(one["start_date"]) for one in tries if one.get("start_date"))
    if not begins:
        return
    began = max([begins[0], *seen])
    named = [f"({outcome.layer}, {outcome.reason})", f"layer={outcome.layer} reason={outcome.reason}"]
    moments = [
        moment
        for number in range(first, task.try_number + 1)
        for moment, text in live.api.entries(run.dag_id, run.run_id, task, number)
        if moment is not None and any(words in text for words in named)
    ]
    # What is older than the evidence is of an ordinary step before it, or of the half second between two looks.
    outcome.told_after = min(((moment - began).total_seconds() for moment in moments), default=None)
    outcome.ended_after = (task.ended - began).total_seconds() if task.ended else None


@contextlib.contextmanager
def _beside(live: Live, case: Case, run_id: str, seen: list[datetime], notes: list[str]) -> Iterator[None]:
    """Threads that look for the evidence and do what happens meanwhile; all have ended when this ends."""
    over = threading.Event()

    def look() -> None:
        cluster = Cluster(live)
        assert case.evidence is not None
        while not over.wait(LOOK_S):
            with contextlib.suppress(requests.RequestException):
                if case.evidence(cluster):
                    seen.append(datetime.now(UTC))
                    return

    def act(name: str, do: Meanwhile) -> None:
        while not over.wait(LOOK_S):
            tasks = {task.name: task for task in live.api.tasks("nim_deploy", run_id)}
            if name in tasks and tasks[name].state in ("deferred", "running", "success", "failed"):
                notes.append(f"{name} was {tasks[name].state}")
                do(live)
                return

    threads = [threading.Thread(target=act, args=one, daemon=True) for one in case.meanwhile]
    threads += [threading.Thread(target=look, daemon=True)] if case.evidence else []
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(120)


def _until_it_ended(live: Live, run_id: str, case: Case) -> None:
    """Until the task has failed for good, and no longer: the rest of the run is ended by hand."""

    def ended() -> bool:
        tasks = {task.name: task.state for task in live.api.tasks("nim_deploy", run_id)}
        return tasks.get(case.task) in ("failed", "success")

    until(ended, f"{case.task} to end", case.patience_s)
    _give_up(live, run_id)


def _give_up(live: Live, run_id: str) -> None:
    """End a run that goes on beyond the test's patience, so that it does not meet the next one."""
    live.api.call("PATCH", f"/dags/nim_deploy/dagRuns/{run_id}", {"state": "failed"})
    until(lambda: live.api.run_state("nim_deploy", run_id) == "failed", "the run to end", 60)


def no_nodes(live: Live) -> None:
    """Wait until the last case's GPU node has been given back: a download would find it still there."""
    cluster = Cluster(live)
    with_gpus = {"labelSelector": "accelerator=nvidia"}
    until(lambda: not cluster.items("/api/v1/nodes", with_gpus), "the empty nodes to go", 90)


def remove_models(live: Live) -> None:
    """Remove service, cache and claim, so that the next rollout begins anew. By hand: no pipeline is under test."""
    if not live.objects(f"nimcaches.{NIM}", NAMESPACE) and not live.objects(f"nimservices.{NIM}", NAMESPACE):
        return
    # A finished benchmark's pod stays with its Job, for hours.
    for kind in ("jobs.batch", f"nimservices.{NIM}", f"nimcaches.{NIM}"):
        live.kubectl("-n", NAMESPACE, "delete", kind, "--all", "--wait=false")
    cluster = Cluster(live)
    until(
        lambda: (
            not any(p["metadata"]["name"].startswith(DEPLOYMENT) for p in cluster.pods())
            and not cluster.nim("nimcaches")
            and not cluster.items(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims")
        ),
        "the models to be gone",
        90,
    )
