"""One rollout under chaos, on a platform that is up, and what must hold of it whatever was killed."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
import yaml

from nim_rollouts.core import errors
from rehearsal import summary
from tests.chaos.audit import AuditLog, Point, Write, made_for_us, makings, points
from tests.chaos.kills import Strike, Strikes
from tests.rehearsal.disorder import LOOK_S, Meanwhile, remove_models
from tests.rehearsal.live import ENVIRONMENT, NAMESPACE, Live, Run, until

DAG = "nim_deploy"


@dataclass
class Rollout:
    """A rollout that has ended."""

    run: Run
    facts: summary.Facts
    writes: list[Write]
    strikes: list[Strike] = field(default_factory=list)
    disorders: list[str] = field(default_factory=list)
    tries: dict[str, list[str]] = field(default_factory=dict)
    """Task -> how each of its tries ended."""

    @property
    def points(self) -> list[Point]:
        """Every write of ours that made its object, in order."""
        return points(self.writes)

    @property
    def makings(self) -> Counter[Point]:
        """How often each object that we mean was made."""
        return makings(self.writes)

    @property
    def made_for_us(self) -> Counter[str]:
        """What the operator and the controllers made for it, by kind."""
        return made_for_us(self.writes, NAMESPACE)

    def records(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(stage and try, facts) of every record of a kind, those of earlier tries too."""
        if self.facts.folder:
            for path in sorted(self.facts.folder.glob(f"*/*/{kind}.json")):
                yield "/".join(path.parts[-3:-1]), json.loads(path.read_text())["facts"]


def roll_out(
    live: Live,
    strikes: Sequence[Strikes] = (),
    disorders: Sequence[tuple[str, Meanwhile]] = (),
    *,
    skip_benchmark: bool = False,
    patience_s: float = 420,
) -> Rollout:
    """Roll out with these kills, and with each disorder (task, what happens) once its task has begun."""
    log = AuditLog(live.r.logs / "audit.jsonl")
    told: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.callback(log.close)
        for one in strikes:
            stack.enter_context(one)
        run_id = live.api.trigger(DAG, live.params(skip_benchmark=skip_benchmark))
        stack.enter_context(_beside(live, run_id, disorders, told))
        run = live.follow(DAG, run_id, patience_s)
    done = sorted((strike for one in strikes for strike in one.done), key=lambda strike: strike.at)
    # A mapped task has a history of its own kind; none of ours that writes here is one.
    tries = {name: live.api.tries(DAG, run_id, name) for name, task in run.tasks.items() if name == task.task_id}
    for one in strikes:
        one.name_tasks(tries)
    ends = {task: [str(each["state"]) for each in those] for task, those in tries.items()}
    return Rollout(run, live.facts(run), log.all(), done, told, ends)


@contextlib.contextmanager
def _beside(live: Live, run_id: str, disorders: Sequence[tuple[str, Meanwhile]], told: list[str]) -> Iterator[None]:
    over = threading.Event()

    def act() -> None:
        for name, do in disorders:
            while not over.wait(LOOK_S):
                with contextlib.suppress(requests.RequestException):
                    tasks = {task.name: task for task in live.api.tasks(DAG, run_id)}
                    if name in tasks and tasks[name].state in ("running", "deferred", "success", "failed"):
                        do(live)
                        told.append(f"{name} ({tasks[name].state})")
                        break

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(120)


def clean_slate(live: Live) -> None:
    """Platform and infrastructure stay; nothing is left of what a rollout makes, so that it makes each object anew."""
    remove_models(live)
    settings = yaml.safe_load((live.r.root / "include" / "environments" / f"{ENVIRONMENT}.yaml").read_text())
    for kind, name in (("namespace", NAMESPACE), ("storageclass", settings["storage_class"])):
        live.kubectl("delete", kind, name, "--ignore-not-found", "--wait=false")
    until(lambda: not live.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"), "the namespace to be gone", 90)


def wrong(live: Live, rollout: Rollout, clean: Rollout | None = None) -> list[str]:
    """What does not hold; nothing, of a rollout that has converged. `clean`: one that nothing was killed in."""
    found = []
    if rollout.run.state != "success" or rollout.facts.decision != "promoted":
        found.append(f"the run ended {rollout.run.state}, its decision is {rollout.facts.decision}")
        found += rollout.run.lines[-6:]
    found += [f"{point} was made {count} times" for point, count in rollout.makings.items() if count != 1]
    if clean is not None and set(rollout.makings) != set(clean.makings):
        found.append(f"made other objects: {set(rollout.makings) ^ set(clean.makings)}")
    if clean is not None and rollout.made_for_us != clean.made_for_us:
        found.append(f"the others made {dict(rollout.made_for_us)}, without chaos {dict(clean.made_for_us)}")
    return found + _false_verdicts(rollout) + _second_lives(live, rollout)


def _false_verdicts(rollout: Rollout) -> list[str]:
    """Whatever says failed or stuck of what is well. That something did not answer for a while is true: no verdict."""
    found = []
    for where, facts in rollout.records("error"):
        kind = getattr(errors, facts["error"], None)
        if kind is None or not issubclass(kind, errors.TransientError):
            found.append(f"{where} says {facts['error']} {facts['reason']}: {facts['message']}")
    for where, facts in rollout.records("result"):
        for ref, verdict in (facts.get("verdicts") or {}).items():
            if verdict["state"] != "healthy":
                found.append(f"{where} says {verdict['state']} of {ref}")
    return found


def _second_lives(live: Live, rollout: Rollout) -> list[str]:
    """Every try must have met the same object: the one that is there now."""
    found = []
    for where, facts in rollout.records("result"):
        for one in facts.get("applied") or ():
            place = ["-n", one["namespace"]] if one["namespace"] else []
            uid = live.kubectl(*place, "get", one["kind"], one["name"], "-o", "jsonpath={.metadata.uid}", check=False)
            if uid != one["uid"]:
                found.append(f"{where} applied {one['kind']}/{one['name']} {one['uid']}, there is {uid or 'none'}")
    return found


def table(title: str, rollout: Rollout) -> str:
    """Each kill in a line: at which write, of what, how the task's tries ended, how often the object was made."""
    rows = [("killed at", "what died", "ms after", "task: its tries", "objects")]
    for strike in rollout.strikes:
        tries = ", ".join(rollout.tries.get(strike.task, ()))
        late = " (late)" if strike.late else ""
        rows.append(
            (
                str(strike.point),
                strike.victim + late,
                f"{strike.after_s * 1000:.1f}",
                f"{strike.task}: {tries}",
                str(rollout.makings[strike.point]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    ours = sum(rollout.makings.values())
    head = f"{title}: {rollout.run.state}, {rollout.facts.decision}; {ours} objects made by {ours} requests of ours"
    return "\n".join([head, *lines, *(f"disorder at {one}" for one in rollout.disorders)])
