"""Rollouts under ordered faults: what is ordered when, when its evidence could first be seen, and what was said."""

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
SAID = re.compile(r"layer=(?P<layer>\S+) reason=(?P<reason>[^\s:]+)")


class Cluster:
    """Lists of objects, straight from the API server: looked at often, so without a process each time."""

    def __init__(self, live: Live):
        self._base = live.r.url("apiserver")
        self._session = requests.Session()
        self._session.verify = str(live.r.ca)
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {live.r.admin_token}"

    def list(self, path: str) -> list[Obj]:
        """The objects of a collection below its API path; none where the kind is not served."""
        answer = self._session.get(self._base + path, timeout=5)
        return list(answer.json()["items"]) if answer.ok else []

    def pods(self, namespace: str = NAMESPACE) -> list[Obj]:
        return self.list(f"/api/v1/namespaces/{namespace}/pods")

    def nim(self, plural: str) -> list[Obj]:
        return self.list(f"/apis/{NIM}/v1alpha1/namespaces/{NAMESPACE}/{plural}")

    def events(self, namespace: str = NAMESPACE) -> list[Obj]:
        return self.list(f"/api/v1/namespaces/{namespace}/events")


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
    :param evidence: when the fault could first be seen; without one the time counts from the task's start
    :param within_s: seconds from the evidence to the task's end. 15 s is what Airflow takes to pass an event on and to
        run the worker's part on a loaded machine, with the pod's own back-off; a fault that may still pass by itself
        has the budget of its layer besides.
    """

    name: str
    orders: tuple[tuple[str, ...], ...] = ()
    meanwhile: tuple[str, Meanwhile] | None = None
    task: str = ""
    layers: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    evidence: Evidence | None = None
    within_s: float = 15.0
    patience_s: float = 240.0


@dataclass
class Outcome:
    """What came of a case. `late_s`: from the first sight of the evidence to the end of the task that failed."""

    run: Run
    layer: str = ""
    reason: str = ""
    line: str = ""
    late_s: float | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        late = "" if self.late_s is None else f", {self.late_s:.1f} s after its evidence"
        return f"{self.run.state}: layer={self.layer} reason={self.reason}{late}\n  {self.line}"


def play(live: Live, case: Case) -> Outcome:
    """Order, roll out, look on, clear, and leave no model behind."""
    seen: list[datetime] = []
    notes: list[str] = []
    for order in case.orders:
        live.fault(*order)
    try:
        run_id = live.api.trigger("nim_deploy", live.params(skip_benchmark=True))
        with _beside(live, case, run_id, seen, notes):
            run = live.follow("nim_deploy", run_id, case.patience_s)
        if run.state == "timeout":
            _give_up(live, run_id)
    finally:
        live.fault("--clear")
        remove_models(live)
    outcome = Outcome(run, notes=notes)
    task = run.tasks.get(case.task)
    if task is not None and task.state == "failed":
        outcome.line = next((line for line in run.lines if line.startswith(f"{task.name} failed:")), "")
        if told := SAID.search(outcome.line):
            outcome.layer, outcome.reason = told["layer"], told["reason"]
        began = seen[0] if seen else task.started
        if task.ended and began:
            outcome.late_s = (task.ended - began).total_seconds()
    return outcome


@contextlib.contextmanager
def _beside(live: Live, case: Case, run_id: str, seen: list[datetime], notes: list[str]) -> Iterator[None]:
    """Threads that look for the evidence and do what happens meanwhile; both have ended when this ends."""
    over = threading.Event()

    def look() -> None:
        cluster = Cluster(live)
        assert case.evidence is not None
        while not over.wait(LOOK_S):
            with contextlib.suppress(requests.RequestException):
                if case.evidence(cluster):
                    seen.append(datetime.now(UTC))
                    return

    def act() -> None:
        assert case.meanwhile is not None
        name, do = case.meanwhile
        while not over.wait(LOOK_S):
            tasks = {task.name: task for task in live.api.tasks("nim_deploy", run_id)}
            if name in tasks and tasks[name].state in ("deferred", "running", "success", "failed"):
                notes.append(f"{name} was {tasks[name].state}")
                do(live)
                return

    wanted = [do for do, given in ((look, case.evidence), (act, case.meanwhile)) if given]
    threads = [threading.Thread(target=do, daemon=True) for do in wanted]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(120)


def _give_up(live: Live, run_id: str) -> None:
    """End a run that goes on beyond the test's patience, so that it does not meet the next one."""
    live.api.call("PATCH", f"/dags/nim_deploy/dagRuns/{run_id}", {"state": "failed"})
    until(lambda: live.api.run_state("nim_deploy", run_id) == "failed", "the run to end", 60)


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
            and not cluster.list(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims")
        ),
        "the models to be gone",
        90,
    )
