"""The supervisor: one process that starts the parts in order, watches them, and ends them all.

It runs detached, so that a rehearsal outlives the command that brought it up. It is found by an abstract unix
socket named after the state folder: who holds the name is the only supervisor of that folder, and the name is
gone with the process, however it ended. A second such name holds the block of loopback addresses and ports.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rehearsal import airflow, control, own_operator, parts, pki, toolbox
from rehearsal.config import DAGS_ENV, IMAGES_ENV, INCLUDE_ENV, ROOT, Rehearsal, write_atomic

log = logging.getLogger("supervisor")

PARTS_FILE = "parts.json"
_PORTS = (
    "etcd", "etcd_peer", "apiserver", "gateway", "kwok", "aws", "webhook", "ngc", "postgres", "airflow",
    "worker_log", "trigger_log",
)  # fmt: skip
# Even second bytes are Services' networks, the odd one after it the pods'. Below 96 would touch 127.0.0.1's usual
# neighbours (127.0.0.53 is a resolver), and 20 blocks are more rehearsals than a laptop holds.
_BLOCKS = range(96, 136, 2)
# Below Linux' ephemeral range, so that no outgoing connection takes a port between choosing and listening.
_FIRST_PORT, _PORTS_PER_BLOCK = 21000, 100
KEPT = ("reports",)
"""Folders of the state that the next `up` leaves alone."""


def socket_name(state: Path) -> str:
    return "\0nim-rollouts-" + hashlib.sha256(str(state).encode()).hexdigest()[:24]


def _claim_name(name: str) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(name)
    except OSError:
        holder.close()
        return None
    return holder


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def choose_block() -> tuple[int, dict[str, int], socket.socket]:
    """A block of addresses and free ports that no other rehearsal on this machine holds, and the lock on it."""
    for index, block in enumerate(_BLOCKS):
        lock = _claim_name(f"\0nim-rollouts-block-{block}")
        if lock is None:
            continue
        first = _FIRST_PORT + index * _PORTS_PER_BLOCK
        free = [port for port in range(first, first + _PORTS_PER_BLOCK) if _free(port)]
        if len(free) >= len(_PORTS):
            return block, dict(zip(_PORTS, free, strict=False)), lock
        lock.close()
    raise RuntimeError("no free block of loopback addresses: end another rehearsal first (`make down` in its checkout)")


@dataclass
class Running:
    part: parts.Part
    process: subprocess.Popen[bytes]
    started: float
    ready_after: float | None = None


# If the supervisor is killed, its parts are told to end by the kernel.
_DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "TERM"]


class Supervisor:
    """Starts, watches and ends the parts of one rehearsal. Nothing here retries: a part that dies is reported."""

    def __init__(self, r: Rehearsal):
        self.r = r
        self.parts = parts.all_parts(r)
        self.running: dict[str, Running] = {}
        self.done: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.began = time.monotonic()
        self.came_up = False
        self.stop = threading.Event()
        self.away: set[str] = set()
        self._lock = threading.Lock()

    def run(self) -> int:
        """Until stopped. 0 when it was asked to stop, 1 when a part failed before all were ready."""
        while not self.stop.is_set():
            with self._lock:
                self._start_what_can_start()
                self._look()
                self._publish()
            self.came_up = self.came_up or self.all_ready
            # Afterwards a dead part is reported by `status` and in the log; the others stay to be looked at.
            if self.failed and not self.came_up:
                break
            self.stop.wait(0.5 if self.came_up else 0.1)
        came_up = self.came_up or self.stop.is_set()
        self.end()
        self._publish()
        return 0 if came_up else 1

    @property
    def all_ready(self) -> bool:
        return all(p.name in self.done or self._is_ready(p.name) for p in self.parts)

    def _is_ready(self, name: str) -> bool:
        entry = self.running.get(name)
        return name in self.done or (entry is not None and entry.ready_after is not None)

    def _start_what_can_start(self) -> None:
        for part in self.parts:
            known = any(part.name in each for each in (self.running, self.done, self.failed, self.away))
            if not known and all(self._is_ready(need) for need in part.needs):
                self.start(part)

    def start(self, part: parts.Part) -> None:
        out: IO[bytes] = (self.r.logs / f"{part.name}.log").open("ab")
        with out:
            process = subprocess.Popen(
                [*_DIE_WITH_PARENT, *part.argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.r.root,
                env=parts.base_environment(self.r, part.name) | part.env,
                start_new_session=True,
            )
        self.running[part.name] = Running(part, process, time.monotonic())
        log.info("%s started, pid %d", part.name, process.pid)

    def _look(self) -> None:
        for name, entry in list(self.running.items()):
            age = time.monotonic() - entry.started
            status = entry.process.poll()
            if status is not None:
                del self.running[name]
                if entry.part.once and status == 0:
                    self.done[name] = round(age, 1)
                else:
                    self._fail(name, f"ended with status {status} after {age:.1f} s")
            elif entry.ready_after is None and not entry.part.once and entry.part.ready and entry.part.ready():
                entry.ready_after = round(age, 1)
                log.info("%s ready after %.1f s", name, age)
            elif entry.ready_after is None and age > entry.part.patience:
                self._fail(name, f"was not ready after {entry.part.patience:.0f} s")

    def _fail(self, name: str, what: str) -> None:
        self.failed[name] = what
        log.error("%s %s", name, what)

    def _publish(self) -> None:
        table = {}
        for part in self.parts:
            entry = self.running.get(part.name)
            state: dict[str, object]
            if part.name in self.failed:
                state = {"state": "failed", "why": self.failed[part.name]}
            elif part.name in self.done:
                state = {"state": "done", "seconds": self.done[part.name]}
            elif part.name in self.away:
                state = {"state": "away"}
            elif entry is None:
                state = {"state": "waiting", "for": [need for need in part.needs if not self._is_ready(need)]}
            elif entry.ready_after is None:
                state = {"state": "starting", "pid": entry.process.pid}
            else:
                state = {"state": "ready", "pid": entry.process.pid, "seconds": entry.ready_after}
            table[part.name] = state | {"log": str(self.r.logs / f"{part.name}.log")}
        up = {"all_ready": self.all_ready, "seconds": round(time.monotonic() - self.began, 1), "parts": table}
        text = json.dumps(up, indent=1)
        # The elapsed time alone is no news once everything stands.
        if not self.all_ready or getattr(self, "_last", None) != (table, self.all_ready):
            self._last = (table, self.all_ready)
            write_atomic(self.r.state / PARTS_FILE, text)

    def restart(self, name: str, away_s: float, *, kill: bool) -> None:
        """End a part, leave it ended for some seconds, start it again and wait until it is ready.

        Called from another thread than `run`'s. With `kill` it ends without a chance to close what it holds. Raises
        ValueError for a part that cannot be restarted, TimeoutError when it does not become ready.
        """
        with self._lock:
            part = next((each for each in self.parts if each.name == name and not each.once), None)
            if part is None or name in self.away or not (name in self.running or name in self.failed):
                there = ", ".join(sorted(self.running))
                raise ValueError(f"{name} cannot be restarted: no part that runs. There are: {there}")
            entry = self.running.pop(name, None)
            self.failed.pop(name, None)
            self.away.add(name)
            self._publish()
        log.info("%s is to be away for %.1f s", name, away_s)
        if entry is not None:
            _end_process(entry.process, signal.SIGKILL if kill else signal.SIGTERM)
        self.stop.wait(away_s)
        with self._lock:
            # `run` starts it: a part dies with the thread that started it (PR_SET_PDEATHSIG), and this one ends soon.
            self.away.discard(name)
        deadline = time.monotonic() + part.patience
        while not self._is_ready(name) and not self.stop.is_set():
            if name in self.failed or time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not come back: {self.failed.get(name, 'it is not ready')}")
            self.stop.wait(0.05)

    def end(self) -> None:
        """End the parts in the reverse of their order, dependants first; whole process groups, at last by SIGKILL."""
        order = [p.name for p in reversed(self.parts) if p.name in self.running]
        # The control plane and the database go last: the others still talk to them while they end.
        last = [n for n in order if n.startswith("kube-") or n in ("postgres", "aws")]
        # An API server without etcd does not end by itself.
        for group in ([n for n in order if n not in last and n != "etcd"], last, ["etcd"] if "etcd" in order else []):
            for name in group:
                # PostgreSQL's SIGINT is its fast shutdown: it does not wait for clients.
                _signal_group(self.running[name].process, signal.SIGINT if name == "postgres" else signal.SIGTERM)
            deadline = time.monotonic() + 8
            for name in group:
                process = self.running.pop(name).process
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    log.warning("%s did not end in time: SIGKILL", name)
                _signal_group(process, signal.SIGKILL)
                process.wait()
        for pid in leftovers(self.r.state):
            log.warning("pid %d was left over: SIGKILL", pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _end_process(process: subprocess.Popen[bytes], number: int, patience: float = 8) -> None:
    _signal_group(process, number)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        pass
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def leftovers(state: Path) -> list[int]:
    """Processes that carry this rehearsal's mark in their environment, the supervisor itself left out."""
    mark = f"REHEARSAL_PART={state}:".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                environ = (folder / "environ").read_bytes()
                zombie = b") Z " in (folder / "stat").read_bytes()
            except OSError:
                continue
            if not zombie and any(entry.startswith(mark) for entry in environ.split(b"\0")):
                found.append(int(folder.name))
    return found


def prepare(state: Path, *, with_airflow: bool) -> tuple[Rehearsal, socket.socket]:
    """A fresh state folder with everything that the parts read. Raises ToolNotReady."""
    own = own_operator.named(os.environ)
    state.mkdir(parents=True, exist_ok=True)
    for entry in state.iterdir():
        if entry.name not in (*KEPT, "supervisor.log"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    block, ports, lock = choose_block()
    r = Rehearsal(
        root=ROOT,
        state=state,
        block=block,
        ports=ports,
        admin_token=secrets.token_urlsafe(32),
        controlplane=toolbox.controlplane_binary(),
        aiperf=toolbox.aiperf_executable(),
        python=sys.executable,
        airflow_password=secrets.token_urlsafe(12),
        supervisor_pid=os.getpid(),
        with_airflow=with_airflow,
        more_dags=[folder for folder in os.environ.get(DAGS_ENV, "").split(os.pathsep) if folder],
        other_include=own_operator.include(own, os.environ.get(INCLUDE_ENV, ""), state / "include-of-own-operator"),
        images=str(Path(images).absolute()) if (images := os.environ.get(IMAGES_ENV)) else "",
        operator_binary=own.binary,
        operator_manifests=own.manifests,
    )
    key = os.environ.get("REHEARSAL_NGC_KEY") or "nvapi-" + secrets.token_urlsafe(48)
    write_atomic(r.ngc_key_file, key, mode=0o600)
    pki.make(r)
    parts.write_files(r)
    airflow.write_files(r)
    r.save()
    return r, lock


def main(argv: list[str]) -> int:
    state, with_airflow = Path(argv[0]), argv[1] == "airflow"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    listener = _claim_name(socket_name(state))
    if listener is None:
        log.info("a supervisor of %s runs already", state)
        return 0
    listener.listen(8)
    r, lock = prepare(state, with_airflow=with_airflow)
    supervisor = Supervisor(r)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop.set())
    threading.Thread(target=control.serve, args=(listener, supervisor), daemon=True).start()
    try:
        return supervisor.run()
    finally:
        # Without state.json nobody takes a rehearsal that has ended for one that is up.
        (state / "state.json").rename(state / "last-state.json")
        lock.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
