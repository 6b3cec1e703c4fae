"""Running one terraform command so that it outlives its worker, and is stopped only the way terraform wants to be.

terraform that is killed in the middle of an apply loses track of what it has just made. So the process gets a session
of its own (no signal reaches it by accident), writes to files (a pipe would kill it when the worker dies), and is asked
to stop by one SIGINT: it then ends the running calls, writes the state and releases the lock.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from nim_rollouts.core.errors import TerraformUnavailable

_POLL_S = 0.2


@dataclass(frozen=True)
class Ended:
    """How a command ended. `interrupted`: we asked it to stop."""

    status: int
    stdout: Path
    stderr: str
    interrupted: bool


class TerraformProcess:
    """Runs commands in `work_dir`, one at a time, and remembers the running one in a file there.

    :param grace_s: how long an interrupted command may take to end before the worker goes on without it
    """

    def __init__(self, work_dir: Path, *, grace_s: float = 300) -> None:
        self.logs = work_dir / "logs"
        self.record = work_dir / "running.json"
        self.grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupted = False
        self._lock = threading.RLock()

    def stop(self) -> None:
        """Ask the running command to stop, once; may be called from any thread or signal handler.

        A second SIGINT would make terraform drop everything, so further calls do nothing.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None and not self._interrupted:
                self._interrupted = True
                self._process.send_signal(signal.SIGINT)

    def run(
        self, name: str, argv: list[str], *, cwd: Path, env: dict[str, str], on_line: Callable[[str], None]
    ) -> Ended:
        """Run to the end; each line of its output goes to `on_line` soon after it is written."""
        self.logs.mkdir(parents=True, exist_ok=True)
        out, err = self.logs / f"{name}.out", self.logs / f"{name}.err"
        with _private(out) as stdout, _private(err) as stderr, self._forwarding_sigterm():
            self._interrupted = False
            self._process = subprocess.Popen(
                argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
            try:
                self._write_record(name)
                status = self._follow(out, on_line)
            except BaseException:
                # A task timeout, a KeyboardInterrupt, a broken callback: terraform must not be left half-way unasked.
                self.stop()
                self._wait_for_end()
                raise
            finally:
                if self._process.poll() is not None:
                    self.record.unlink(missing_ok=True)
        return Ended(status, out, err.read_text(errors="replace"), self._interrupted)

    def wait_for_earlier(self, timeout_s: float, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Wait for a terraform that a dead worker left running here. The record of one that died itself, else None.

        Raises `TerraformUnavailable` if it still runs after `timeout_s`.
        """
        try:
            record: dict[str, Any] = json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return None
        deadline = time.monotonic() + timeout_s
        if _runs(record):
            say(f"waiting for an earlier terraform {record['name']} of this environment (pid {record['pid']})")
        while _runs(record):
            if time.monotonic() > deadline:
                raise TerraformUnavailable(
                    f"An earlier terraform {record['name']} of this environment still runs (pid {record['pid']})",
                    reason="terraform-busy",
                    hint="It was left by a worker that died and is allowed to finish; this task is tried again",
                    retry_after_s=60,
                )
            time.sleep(_POLL_S)
        self.record.unlink(missing_ok=True)
        return record

    def _follow(self, out: Path, on_line: Callable[[str], None]) -> int:
        assert self._process is not None
        with out.open("rb") as reader:
            pending = b""
            while True:
                status = self._process.poll()
                pending += reader.read()
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    on_line(line.decode(errors="replace"))
                if status is not None:
                    if pending:
                        on_line(pending.decode(errors="replace"))
                    return status
                try:
                    self._process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue

    def _wait_for_end(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            # Left running: its record makes the next command wait for it.
            return

    def _write_record(self, name: str) -> None:
        assert self._process is not None
        import psutil

        try:
            started = psutil.Process(self._process.pid).create_time()
        except psutil.NoSuchProcess:
            started = time.time()
        record = {"name": name, "pid": self._process.pid, "started": started, "who": _who()}
        self.record.write_text(json.dumps(record))

    @contextmanager
    def _forwarding_sigterm(self) -> Iterator[None]:
        """While a command runs, SIGTERM stops it first; whoever handled the signal before still does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGTERM)
        pending = False

        def forward(number: int, frame: FrameType | None) -> None:
            nonlocal pending
            self.stop()
            if callable(previous):
                previous(number, frame)
            else:
                pending = previous == signal.SIG_DFL

        signal.signal(signal.SIGTERM, forward)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
            if pending:
                os.kill(os.getpid(), signal.SIGTERM)


def own_lock(record: dict[str, Any] | None, who: str, created_epoch: float | None) -> bool:
    """True when a state lock can only be the one of the dead terraform in `record`: same user and host, made while
    that process lived (it started at most a minute before it asked for the lock)."""
    if record is None or created_epoch is None or who != record["who"]:
        return False
    return bool(-2 <= created_epoch - record["started"] <= 60)


def _runs(record: dict[str, Any]) -> bool:
    import psutil

    try:
        process = psutil.Process(record["pid"])
        return bool(abs(process.create_time() - record["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _who() -> str:
    """user@host as terraform writes it into a lock."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"


def _private(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
