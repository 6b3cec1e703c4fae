"""What every step of the set-up shares: plain messages, one lock a thing, commands that show that they move."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

#: Seconds between two lines of progress. Short enough to see that it moves, long enough for a log that is read.
PROGRESS_S = 10.0
#: Lines of a failed command that its error shows.
TAIL = 25


class SetupError(Exception):
    """Set-up cannot go on: what is wrong, where, and what to do."""

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.todo = what, where, todo

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  what to do: {self.todo}")
        return "\n".join(lines)


def say(text: str) -> None:
    """One line for the user, on standard error: standard output belongs to what runs after the set-up."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_one(name: str, folder: Path) -> Iterator[None]:
    """Let one checkout at a time make `name` in a shared folder. The kernel drops the lock of a dead process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is making {name} in {folder}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    progress: Callable[[list[str], float], str] | None = None,
    todo: str = "",
) -> list[str]:
    """Run a command and return its standard output's lines.

    :param env: added to this process's environment.
    :param progress: given the lines of standard error so far and the seconds since the start, says how far it is.
    :param todo: what the user can do when it fails.
    :raises SetupError: with the last lines of what the command said.
    """
    started = time.monotonic()
    try:
        child = subprocess.Popen(
            [str(a) for a in argv],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise SetupError(f"{argv[0]} cannot be started: {error.strerror}", todo=todo) from error
    out: list[str] = []
    err: list[str] = []
    readers = [
        threading.Thread(target=_collect, args=(child.stdout, out), daemon=True),
        threading.Thread(target=_collect, args=(child.stderr, err), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        while True:
            try:
                status = child.wait(timeout=PROGRESS_S)
                break
            except subprocess.TimeoutExpired:
                if progress:
                    say("  " + progress(err, time.monotonic() - started))
    except BaseException:
        # Ctrl-C: nothing of ours may go on building behind the user's back.
        child.terminate()
        child.wait()
        raise
    for reader in readers:
        reader.join()
    if status:
        said = "\n".join(f"  | {line}" for line in (err or out)[-TAIL:])
        raise SetupError(f"this ended with status {status}: {shlex.join(map(str, argv))}\n{said}", todo=todo)
    return out


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 0:07, 4:31."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _collect(stream: Iterator[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line.rstrip("\n"))
