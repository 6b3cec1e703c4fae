"""Startup, readiness and liveness probes, as a kubelet runs and words them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from rehearsal.kube import Obj
from rehearsal.runner.process import run_inside

KINDS = {"startup": "startupProbe", "readiness": "readinessProbe", "liveness": "livenessProbe"}


@dataclass(frozen=True)
class Target:
    """Where a container's probes go: they name `shown` (the pod's address) and reach `address` (its loopback one)."""

    shown: str
    address: str
    pid: int
    ports: dict[str, int]


@dataclass
class Counter:
    """Turns single results into a verdict by the probe's thresholds. None while neither is reached."""

    success_threshold: int
    failure_threshold: int
    _last: bool | None = None
    _run: int = 0

    def add(self, good: bool) -> bool | None:
        self._run = self._run + 1 if good == self._last else 1
        self._last = good
        if self._run < (self.success_threshold if good else self.failure_threshold):
            return None
        return good


def port_of(value: int | str, ports: dict[str, int]) -> int:
    """A probe's port: a number, or the name of one of the container's ports. Raises ValueError for an unknown name."""
    if isinstance(value, int) or value.isdigit():
        return int(value)
    if value not in ports:
        raise ValueError(f"couldn't find port: {value!r}")
    return ports[value]


async def check(session: aiohttp.ClientSession, probe: Obj, target: Target) -> tuple[bool, str]:
    """One attempt: whether it succeeded, and else the kubelet's words for why not."""
    timeout = probe.get("timeoutSeconds", 1)
    try:
        if "httpGet" in probe:
            return await _http(session, probe["httpGet"], target, timeout)
        if "tcpSocket" in probe:
            return await _tcp(probe["tcpSocket"], target, timeout)
        if "exec" in probe:
            return await _exec(probe["exec"]["command"], target, timeout)
    except ValueError as error:
        return False, str(error)
    return False, "missing probe handler"


async def _http(session: aiohttp.ClientSession, action: Obj, target: Target, timeout: float) -> tuple[bool, str]:
    port = port_of(action["port"], target.ports)
    scheme, path = action.get("scheme", "HTTP").lower(), action.get("path", "/")
    path = path if path.startswith("/") else f"/{path}"
    host = action.get("host")
    shown = f"{scheme}://{host or target.shown}:{port}{path}"
    headers = {"User-Agent": "kube-probe/1.36", "Accept": "*/*"}
    headers |= {h["name"]: h["value"] for h in action.get("httpHeaders", [])}
    try:
        async with session.get(
            f"{scheme}://{host or target.address}:{port}{path}",
            headers=headers, ssl=False, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=timeout),
        ) as answer:  # fmt: skip
            if 200 <= answer.status < 400:
                return True, ""
            return False, f"HTTP probe failed with statuscode: {answer.status}"
    except TimeoutError:
        return False, f'Get "{shown}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
    except aiohttp.ClientConnectorError as error:
        return False, f'Get "{shown}": dial tcp {host or target.shown}:{port}: connect: {_words(error.os_error)}'
    except aiohttp.ServerDisconnectedError:
        return False, f'Get "{shown}": EOF'
    except aiohttp.ClientError as error:
        return False, f'Get "{shown}": {error}'


async def _tcp(action: Obj, target: Target, timeout: float) -> tuple[bool, str]:
    port = port_of(action["port"], target.ports)
    host, shown = action.get("host") or target.address, action.get("host") or target.shown
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return False, f"dial tcp {shown}:{port}: i/o timeout"
    except OSError as error:
        return False, f"dial tcp {shown}:{port}: connect: {_words(error)}"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True, ""


async def _exec(command: list[str], target: Target, timeout: float) -> tuple[bool, str]:
    try:
        code, output = await run_inside(target.pid, command, timeout)
    except TimeoutError:
        return False, f'command timed out: "{" ".join(command)}" timed out after {timeout:g}s'
    return code == 0, output


def _words(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (error.strerror or str(error)).lower()


class Prober:
    """Runs a container's probes from its start to its end.

    Calls `on_started` and `on_ready` on changes, `on_unhealthy(kind, message)` on each failure (the Unhealthy event),
    and `on_kill(kind)` once the startup or liveness probe has failed for good; then it ends.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        container: Obj,
        target: Target,
        on_started: Callable[[], None],
        on_ready: Callable[[bool], None],
        on_unhealthy: Callable[[str, str], None],
        on_kill: Callable[[str], Awaitable[None]],
    ):
        self._session, self._container, self._target = session, container, target
        self._on_started, self._on_ready = on_started, on_ready
        self._on_unhealthy, self._on_kill = on_unhealthy, on_kill

    async def run(self) -> None:
        if "startupProbe" in self._container and not await self._until_started():
            return
        self._on_started()
        async with asyncio.TaskGroup() as group:
            if "readinessProbe" in self._container:
                group.create_task(self._repeat("readiness"))
            else:
                self._on_ready(True)
            if "livenessProbe" in self._container:
                group.create_task(self._repeat("liveness"))

    async def _until_started(self) -> bool:
        async for verdict in self._verdicts("startup"):
            if verdict is True:
                return True
            if verdict is False:
                await self._on_kill("startup")
                return False
        return False

    async def _repeat(self, kind: str) -> None:
        async for verdict in self._verdicts(kind):
            if kind == "readiness" and verdict is not None:
                self._on_ready(verdict)
            elif kind == "liveness" and verdict is False:
                await self._on_kill("liveness")
                return

    async def _verdicts(self, kind: str) -> AsyncIterator[bool | None]:
        """After each attempt the verdict so far; never ends by itself."""
        probe = self._container[KINDS[kind]]
        counter = Counter(probe.get("successThreshold", 1), probe.get("failureThreshold", 3))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        due = loop.time()
        while True:
            good, words = await check(self._session, probe, self._target)
            if not good:
                self._on_unhealthy(kind, f"{kind.capitalize()} probe failed: {words}")
            yield counter.add(good)
            due = max(due + probe.get("periodSeconds", 10), loop.time())
            await asyncio.sleep(due - loop.time())
