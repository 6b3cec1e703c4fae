"""Probe attempts and thresholds, with the kubelet's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rehearsal.runner.probes import Counter, Prober, Target, check


class Site:
    def __init__(self) -> None:
        self.status, self.port, self.hits = 200, 0, 0

    async def answer(self, request: web.Request) -> web.Response:
        self.hits += 1
        if request.path == "/slow":
            await asyncio.sleep(5)
        return web.Response(status=self.status)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.answer)
    async with TestServer(app) as server:
        site.port = server.port or 0
        yield site


def target(site: Site) -> Target:
    return Target("10.97.0.2", "127.0.0.1", 0, {"api": site.port})


async def attempt(site: Site, **probe: Any) -> tuple[bool, str]:
    async with aiohttp.ClientSession() as session:
        return await check(session, probe, target(site))


async def test_http(site: Site) -> None:
    get = {"path": "/x", "port": "api"}
    assert await attempt(site, httpGet=get) == (True, "")
    site.status = 302
    assert await attempt(site, httpGet=get) == (True, "")
    site.status = 503
    assert await attempt(site, httpGet=get) == (False, "HTTP probe failed with statuscode: 503")
    assert await attempt(site, httpGet={"path": "/slow", "port": "api"}, timeoutSeconds=0.2) == (
        False,
        f'Get "http://10.97.0.2:{site.port}/slow": context deadline exceeded '
        "(Client.Timeout exceeded while awaiting headers)",
    )
    assert await attempt(site, httpGet={"port": 1}) == (
        False, 'Get "http://10.97.0.2:1/": dial tcp 10.97.0.2:1: connect: connection refused')  # fmt: skip
    assert await attempt(site, httpGet={"port": "nope"}) == (False, "couldn't find port: 'nope'")


async def test_tcp(site: Site) -> None:
    assert await attempt(site, tcpSocket={"port": "api"}) == (True, "")
    refused = "dial tcp 10.97.0.2:1: connect: connection refused"
    assert await attempt(site, tcpSocket={"port": 1}) == (False, refused)


def test_thresholds() -> None:
    counter = Counter(success_threshold=2, failure_threshold=3)
    results = [counter.add(good) for good in (True, True, False, False, True, False, False, False)]
    assert results == [None, True, None, None, None, None, None, False]


class Watcher:
    """Runs a prober and keeps what it says."""

    def __init__(self, site: Site, container: dict[str, Any]) -> None:
        self.said: list[str] = []
        self.site, self.container = site, container

    async def run(self, seconds: float) -> list[str]:
        async def kill(kind: str) -> None:
            self.said.append(f"kill {kind}")

        async with aiohttp.ClientSession() as session:
            prober = Prober(
                session, self.container, target(self.site), lambda: self.said.append("started"),
                lambda good: self.said.append(f"ready {good}"), lambda kind, _: self.said.append(f"unhealthy {kind}"),
                kill,
            )  # fmt: skip
            try:
                async with asyncio.timeout(seconds):
                    await prober.run()
            except TimeoutError:
                pass
        return self.said


async def test_nothing_else_is_probed_before_the_start(site: Site) -> None:
    site.status = 503
    get = {"httpGet": {"path": "/", "port": "api"}, "periodSeconds": 0.1}
    watcher = Watcher(site, {"startupProbe": get | {"failureThreshold": 3}, "livenessProbe": get})
    assert await watcher.run(3) == ["unhealthy startup"] * 3 + ["kill startup"]


async def test_a_container_without_probes_is_ready_at_once(site: Site) -> None:
    assert await Watcher(site, {}).run(1) == ["started", "ready True"]


async def test_liveness_kills_after_its_threshold(site: Site) -> None:
    site.status = 500
    get = {"httpGet": {"path": "/", "port": "api"}, "periodSeconds": 0.1, "failureThreshold": 2}
    said = await Watcher(site, {"livenessProbe": get}).run(3)
    assert said == ["started", "ready True", "unhealthy liveness", "unhealthy liveness", "kill liveness"]
