"""One run of a container: its sandboxed process and its log file in the CRI's format."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from rehearsal.runner import sandbox

_PARTIAL = 16 * 1024
"""Bytes after which containerd splits a log line."""


class SandboxError(RuntimeError):
    """This machine gives no private mount namespaces; the message says what was tried."""


class StartError(Exception):
    """The command could not be started; the message is what a container runtime says."""


@cache
def unshare_argv() -> tuple[str, ...]:
    """How to get a private mount namespace here: as root directly, else in a user namespace. Raises SandboxError."""
    tool = shutil.which("unshare")
    if tool is None:
        raise SandboxError("the program `unshare` (util-linux) is not on PATH; pods need it for their mounts")
    said = ""
    for extra in ([], ["--map-root-user"]):
        argv = [tool, "--mount", "--uts", *extra, "--propagation", "private"]
        probe = subprocess.run([*argv, "true"], capture_output=True, text=True)
        if probe.returncode == 0:
            return tuple(argv)
        said = probe.stderr.strip()
    raise SandboxError(f"no private mount namespace to be had, neither as this user nor in a user namespace: {said}")


class CriLog:
    """Writes lines as ``<RFC3339Nano> stdout|stderr F|P <text>``, which `kubectl logs` reads."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)

    async def pump(self, reader: asyncio.StreamReader, stream: str) -> None:
        """Until end of file. A line longer than 16 KiB is written in parts."""
        rest = b""
        while chunk := await reader.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._line(stream, line)
            while len(rest) > _PARTIAL:
                self._entry(stream, b"P", rest[:_PARTIAL])
                rest = rest[_PARTIAL:]
        if rest:
            self._line(stream, rest)

    def _line(self, stream: str, line: bytes) -> None:
        while len(line) > _PARTIAL:
            self._entry(stream, b"P", line[:_PARTIAL])
            line = line[_PARTIAL:]
        self._entry(stream, b"F", line)

    def _entry(self, stream: str, tag: bytes, text: bytes) -> None:
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        self._file.write(b" ".join((moment.encode(), stream.encode(), tag, text)) + b"\n")

    def close(self) -> None:
        self._file.close()


def log_tail(path: Path, lines: int = 80, limit: int = 2048) -> str:
    """The end of a log without the CRI's columns: what FallbackToLogsOnError reports."""
    with contextlib.suppress(OSError):
        tail = path.read_bytes().splitlines()[-lines:]
        return b"\n".join(line.split(b" ", 3)[-1] for line in tail).decode(errors="replace")[-limit:]
    return ""


class Process:
    """A running container. `exit_code` completes when nothing of it runs any more."""

    def __init__(self, process: asyncio.subprocess.Process, log: CriLog):
        self._process, self._log = process, log
        assert process.stdout and process.stderr
        self._pumps = [
            asyncio.create_task(log.pump(process.stdout, "stdout")),
            asyncio.create_task(log.pump(process.stderr, "stderr")),
        ]
        self.exit_code: asyncio.Task[int] = asyncio.create_task(self._wait())

    @property
    def pid(self) -> int:
        """The container's init: its namespaces, root and environment are the container's."""
        return self._process.pid

    @classmethod
    async def start(cls, spec: dict[str, Any], env: Mapping[str, str], log_file: Path, python: str) -> Process:
        """Start a command as `sandbox` describes. Raises StartError; leaves nothing behind then, nor when cancelled."""
        spec_read, spec_write = os.pipe()
        status_read, status_write = os.pipe()
        argv = [*unshare_argv(), python, "-I", "-S", sandbox.__file__, str(spec_read), str(status_write)]
        try:
            raw = await asyncio.create_subprocess_exec(
                *argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(spec_read, status_write), start_new_session=True, cwd="/",
            )  # fmt: skip
        except BaseException:
            os.close(spec_write)
            os.close(status_read)
            raise
        finally:
            os.close(spec_read)
            os.close(status_write)
        process = cls(raw, CriLog(log_file))
        try:
            # The sandbox reads while this writes, so a specification larger than a pipe's buffer passes too.
            with os.fdopen(spec_write, "wb") as pipe, contextlib.suppress(BrokenPipeError):
                pipe.write(json.dumps(spec | {"parent": os.getpid()}).encode())
            said = await _read_all(status_read)
        except BaseException:
            process.kill()
            await asyncio.shield(process.exit_code)
            raise
        if said:
            await process.exit_code
            raise StartError(_runtime_error(spec["argv"][0], said))
        return process

    async def _wait(self) -> int:
        code = await self._process.wait()
        await asyncio.gather(*self._pumps)
        self._log.close()
        return 128 - code if code < 0 else code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the command and every process below it at once."""
        self._send(sandbox.KILL_ALL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


async def _read_all(fd: int) -> str:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    try:
        return (await reader.read()).decode(errors="replace")
    finally:
        transport.close()


def _runtime_error(program: str, said: str) -> str:
    if said == os.strerror(2):
        said = f'exec: "{program}": executable file not found in $PATH'
    return (
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
        f"unable to start container process: error during container init: {said}: unknown"
    )


async def run_inside(pid: int, argv: list[str], timeout: float) -> tuple[int, str]:
    """Run a command in a container, as an exec probe does: exit code and output. `timeout` in s, then TimeoutError."""
    enter = Path(__file__).with_name("enter.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(enter), str(pid), *argv,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), timeout)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return process.returncode or 0, out.decode(errors="replace")
