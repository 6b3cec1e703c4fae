"""Running one terraform command so that it outlives its worker, and is stopped only the way terraform wants to be.

terraform that is killed in the middle of an apply loses track of what it has just made. So the process gets a session
of its own (no signal reaches it by accident), writes to files (a pipe would kill it when the worker dies), and is asked
to stop by one SIGINT: it then ends the running calls, writes the state and releases the lock.

Files in the work folder, for whoever comes next:

`running.json`  the command that runs, or ran when its worker died: name, pid (also of the process group), when it
                started, user@host, and whose it is (`owner`)
`ended.json`    commands that ended badly: the state lock may still be theirs; see `terraform_locks`
`guard`         locked (flock) by the running command and its children, as long as one of them lives: a pid can be
                another's meanwhile, a lock cannot. Plugins that are left of a killed one are ended: `terraform_orphans`
`logs/`         standard output and error of the last command of each name; the output of one that tells values
                (`show`, `output`, `state`) is not among them: it lies in memory, and is gone with the two processes
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from nim_rollouts.clients.terraform_earlier import Earlier
from nim_rollouts.clients.terraform_locks import held_until, whoami
from nim_rollouts.core.errors import TerraformUnavailable

_POLL_S = 0.2
#: Who has said nothing for so long listens to signals by now.
_SILENT_S = 2.0
#: Between two tries to get the guard. A stop has to be noticed in it: Airflow kills after five seconds.
_LOOK_S = 1.0


@dataclass(frozen=True)
class Ended:
    """How a command ended. `interrupted`: we asked it to stop; `private`: its output may hold what no message may."""

    status: int
    stdout: str
    stderr: str
    interrupted: bool
    private: bool = False


class TerraformProcess:
    """Runs commands in `work_dir`, one at a time, and remembers the running one in a file there.

    :param grace_s: how long an interrupted command may take to end before the worker goes on without it
    """

    def __init__(self, work_dir: Path, *, grace_s: float = 300) -> None:
        self.logs = work_dir / "logs"
        self.record = work_dir / "running.json"
        self.ended = work_dir / "ended.json"
        self.guard = work_dir / "guard"
        #: Whose work it is, for the record: run, task, try.
        self.owner: dict[str, Any] = {}
        self.grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._began = 0.0
        # Asked to stop; and whether it has yet to be told.
        self._interrupted = self._due = False
        # No Event: `stop` is called from a signal handler, in the middle of whatever would hold the Event's own lock.
        self._stopped = False
        self._lock = threading.RLock()

    def stop(self) -> None:
        """Ask the running command to stop, and begin no other; may be called from any thread or signal handler.

        It may come between two commands. Airflow kills the worker a few seconds later, and an apply that was begun in
        them would have nobody who watches it.
        """
        self._stopped = True
        self._interrupt()

    def _interrupt(self) -> None:
        """One SIGINT for the running command, as soon as it listens: a second one would make terraform drop
        everything."""
        with self._lock:
            if self._process is not None and self._process.poll() is None and not self._interrupted:
                self._interrupted = self._due = True
        self._tell()

    def _tell(self) -> None:
        """The SIGINT that is due, if the command listens. Before its first word it may not: where SIGINT is ignored, as
        below a shell's background job, terraform does not hear one that comes too soon.

        The whole group gets it, as from a terminal: terraform's plugins expect it and go on until terraform ends them.
        """
        with self._lock:
            if not self._due or self._process is None:
                return
            if self._process.poll() is None and not self._listens():
                return
            self._due = False
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)

    def _listens(self) -> bool:
        try:
            has_spoken = os.fstat(self._output).st_size > 0
        except OSError:  # read to its end meanwhile, by the thread that runs the command
            return True
        return has_spoken or time.monotonic() - self._began > _SILENT_S

    def run(
        self,
        name: str,
        argv: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        on_line: Callable[[str], None],
        private: bool = False,
    ) -> Ended:
        """Run to the end; each line of its output goes to `on_line` soon after it is written.

        :param private: keep its output in memory, where no kill can leave it behind
        :raises TerraformUnavailable: another command runs in this work folder; or it was stopped before
        """
        self._refuse_stopped(name)
        self.logs.mkdir(parents=True, exist_ok=True)
        out, err = self.logs / f"{name}.out", self.logs / f"{name}.err"
        with _output(out, private) as stdout, _private(err) as stderr, self._forwarding_sigterm():
            self._interrupted = self._due = False
            guard = self._guard()
            try:
                # Before the process is there: a worker killed at the next instruction leaves a trace of what it began.
                self._write_record(name, None)
                self._output, self._began = stdout.fileno(), time.monotonic()
                self._process = subprocess.Popen(
                    argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                    start_new_session=True, pass_fds=(guard,),
                )  # fmt: skip
            finally:
                os.close(guard)
            try:
                if self._stopped:
                    # Since it was looked at above; what `stop` could see was still the command before.
                    self._interrupt()
                self._write_record(name, self._process.pid)
                status = self._follow(on_line)
            except BaseException:
                # A task timeout, a KeyboardInterrupt, a broken callback: terraform must not be left half-way unasked.
                self._interrupt()
                self._wait_for_end()
                raise
            finally:
                if self._process.poll() is not None:
                    self._put_away(failed=self._process.returncode != 0)
            # Only now: until its end the process writes where we would read.
            stdout.seek(0)
            text = stdout.read().decode(errors="replace")
        told = self._interrupted and not self._due
        return Ended(status, text, err.read_text(errors="replace"), told, private)

    def wait_for_earlier(self, patience_s: float, say: Callable[[str], None]) -> None:
        """Wait for a terraform that a dead worker left running here; of one that died itself the record is put away,
        and plugins that it left are ended.

        :raises TerraformUnavailable: it still runs after `patience_s`; or we are told to stop
        """
        deadline = time.monotonic() + patience_s
        earlier: Earlier | None = None
        while True:
            self._refuse_stopped("init")
            try:
                os.close(self._guard())
                break
            except TerraformUnavailable:
                if time.monotonic() > deadline:
                    raise
            earlier = earlier or Earlier(self.running() or {}, self.logs, self.guard, say)
            earlier.look()
            time.sleep(_LOOK_S)
        self._put_away(failed=True)

    def running(self) -> dict[str, Any] | None:
        """The record of the command that runs, or ran when its worker died."""
        found = _read(self.record)
        return found if isinstance(found, dict) else None

    def ended_badly(self) -> list[dict[str, Any]]:
        """Records of our commands that have certainly ended and may have left the state locked."""
        found = _read(self.ended)
        return found if isinstance(found, list) else []

    def forget_ended(self) -> None:
        """The state was locked and released since: nothing of them is left."""
        self.ended.unlink(missing_ok=True)

    def _refuse_stopped(self, name: str) -> None:
        if self._stopped:
            raise TerraformUnavailable(
                f"terraform {name} was not begun: the task was told to stop",
                reason="terraform-interrupted",
                hint="Clear the task to go on",
            )

    def _put_away(self, *, failed: bool) -> None:
        record = self.running()
        if record is not None and failed:
            # Written before the other is removed: killed in between, the record stands twice, which does no harm.
            record["until"] = held_until(record, self.logs / f"{record['name']}.out")
            _write(self.ended, [*self.ended_badly(), record])
        self.record.unlink(missing_ok=True)

    def _guard(self) -> int:
        self.guard.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.guard, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            record = self.running() or {}
            raise TerraformUnavailable(
                f"An earlier terraform {record.get('name', '')} of this environment still runs on this worker"
                f" (pid {record.get('pid')})",
                reason="terraform-busy",
                hint="It was left by a worker that died and is allowed to finish; this task is tried again",
                retry_after_s=60,
            ) from None
        return handle

    def _follow(self, on_line: Callable[[str], None]) -> int:
        assert self._process is not None
        pending, position = b"", 0
        while True:
            status = self._process.poll()
            # By position: the process goes on writing from the place that both share.
            while data := os.pread(self._output, 1 << 20, position):
                position += len(data)
                pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                on_line(line.decode(errors="replace"))
            if status is not None:
                if pending:
                    on_line(pending.decode(errors="replace"))
                return status
            self._tell()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_S)

    def _wait_for_end(self) -> None:
        """One that is not over by then is left running: it holds the guard, so the next command waits for it."""
        assert self._process is not None
        until = time.monotonic() + self.grace_s
        while self._process.poll() is None and time.monotonic() < until:
            self._tell()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(min(_POLL_S, self.grace_s))

    def _write_record(self, name: str, pid: int | None) -> None:
        now = time.time()
        _write(self.record, {"name": name, "pid": pid, "started": now, "who": whoami(), "owner": self.owner})

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


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write(path: Path, content: Any) -> None:
    """Whole or not at all, also when the worker dies meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content))
    fresh.replace(path)


def _output(path: Path, private: bool) -> IO[bytes]:
    if not private:
        return _private(path)
    path.unlink(missing_ok=True)
    return os.fdopen(os.memfd_create(path.name), "w+b")


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b")
