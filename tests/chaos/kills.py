"""SIGKILL at the moment of a write: the audit log is followed, and when the write's line is there, somebody dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import requests

from rehearsal import __main__ as rehearsal
from rehearsal import supervisor
from tests.chaos.audit import AuditLog, Point, Write
from tests.rehearsal.live import Live

#: The API server writes a line before it sends the answer; a task's next write comes about 10 ms later.
LOOK_S = 0.001
#: A task that is tried again begins 5 s later at the earliest: a write of ours sooner than this is of the same process.
SAME_PROCESS_S = 2.0


class Victim(Protocol):
    """Who dies."""

    name: str

    def is_there(self) -> bool:
        """Whether it is up and at work, so that killing it means something."""

    def kill(self) -> int:
        """By SIGKILL, at once; returns which process it was, 0 when there was none."""

    def settle(self) -> None:
        """What must happen afterwards, such as another start. Called from a thread of its own."""


class TaskProcess:
    """The process that runs an operator's code: child of a LocalExecutor's worker, which is child of the scheduler.

    The worker lives on and sees how it ended, as a pod's entrypoint would.
    """

    name = "task"

    def __init__(self, live: Live):
        self._live = live
        self._scheduler = part_pid(live, "airflow-scheduler")
        self._found: list[int] = []
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def is_there(self) -> bool:
        return bool(self._found)

    def kill(self) -> int:
        # The newest: an earlier task's process may still be on its way out.
        for pid in self._found[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid
        return 0

    def settle(self) -> None:
        """Airflow tries the task again by itself."""

    def end(self) -> None:
        """Look for it no more."""
        self._over.set()

    def _look(self) -> None:
        """Known before it is needed: a task lives for some 300 ms before its first write."""
        parents: dict[int, int] = {}
        while not self._over.wait(0.03):
            # Who a process is a child of is read once: there are hundreds, and one or two of them are new.
            parents = {pid: parents[pid] if pid in parents else _parent(pid) for pid in _pids()}
            workers = {pid for pid, parent in parents.items() if parent == self._scheduler and _is_worker(pid)}
            tasks = [pid for pid, parent in parents.items() if parent in workers and _lives(pid)]
            self._found = sorted(tasks, reverse=True)


class Part:
    """A part of the rehearsal, with its whole process group; it is started again `away_s` seconds later."""

    def __init__(self, live: Live, name: str, away_s: float = 0.0):
        self.name = name.removeprefix("airflow-")
        self._live, self._part, self._away_s = live, name, away_s
        self._back = threading.Event()
        self._back.set()

    def is_there(self) -> bool:
        return self._back.is_set()

    def kill(self) -> int:
        self._back.clear()
        os.killpg(pid := part_pid(self._live, self._part), signal.SIGKILL)
        return pid

    def settle(self) -> None:
        killed = time.time()
        assert rehearsal.restart(self._live.r.state, self._part, self._away_s, kill=True) == 0, self._part
        if self._part == "airflow-triggerer":
            while not _triggerer_beats_since(self._live, killed):
                time.sleep(0.2)
        self._back.set()

    def end(self) -> None:
        """Wait until it is back: what comes next finds it as it was."""
        assert self._back.wait(120), f"{self._part} did not come back"


@dataclass
class Strike:
    """One kill. `late`: the process had done another write before it died, so this was no kill at this write."""

    point: Point
    victim: str
    at: float
    after_s: float
    process: int
    task: str = ""
    late: bool = False


class Strikes:
    """Kills at each of the points, once at each, at the write that makes the object.

    A point that comes while the victim is not there, or at which the victim was not quick enough to die, stays open:
    another rollout takes it.
    """

    def __init__(self, live: Live, victim: TaskProcess | Part, points: Sequence[Point]):
        self.open = list(points)
        self.done: list[Strike] = []
        self.log = AuditLog(live.r.logs / "audit.jsonl")
        self._live, self._victim = live, victim
        self._over = threading.Event()
        self._settling: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Strikes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        for thread in self._settling:
            thread.join(180)
        self._victim.end()
        self.log.close()

    def name_tasks(self, tries: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        """Which task was at work at each kill: from Airflow's own history of the run."""
        for task, those in tries.items():
            for one in those:
                for strike in self.done:
                    if one["start_date"] and _moment(one["start_date"]) <= strike.at <= _moment(one["end_date"]) + 0.5:
                        strike.task = task

    def _follow(self) -> None:
        while not self._over.is_set():
            for write in self.log.fresh():
                self._see(write)
            time.sleep(LOOK_S)

    def _see(self, write: Write) -> None:
        last = self.done[-1] if self.done else None
        if last and isinstance(self._victim, TaskProcess) and write.received < last.at + SAME_PROCESS_S:
            if not last.late and write.point != last.point:
                last.late = True
                self.open.insert(0, last.point)
            return
        if write.point not in self.open or not write.made or not self._victim.is_there():
            return
        process = self._victim.kill()
        now = time.time()
        if not process:
            return
        self.open.remove(write.point)
        self.done.append(Strike(write.point, self._victim.name, now, now - write.answered, process))
        thread = threading.Thread(target=self._victim.settle, daemon=True)
        thread.start()
        self._settling.append(thread)


def part_pid(live: Live, part: str) -> int:
    """The process of a part that is up."""
    return int(json.loads((live.r.state / supervisor.PARTS_FILE).read_text())["parts"][part]["pid"])


def _triggerer_beats_since(live: Live, moment: float) -> bool:
    with contextlib.suppress(requests.RequestException, KeyError):
        health = requests.get(live.r.url("airflow") + "/api/v2/monitor/health", timeout=5).json()
        beat = health["triggerer"]["latest_triggerer_heartbeat"]
        return beat is not None and _moment(beat) > moment
    return False


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_worker(pid: int) -> bool:
    """Whether it is one of LocalExecutor's: Airflow gives them this title."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"airflow worker -- LocalExecutor")
    except OSError:
        return False


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _lives(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def _stat(pid: int) -> list[str]:
    """State, parent and so on; empty when there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
