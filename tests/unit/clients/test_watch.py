"""The watch against a server that misbehaves in every way an API server does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from nim_rollouts.clients import feed as module
from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.watch import Watch, snapshots

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """Pods of one namespace: each list and each watch is answered by the next script."""

    def __init__(self) -> None:
        self.lists: list[Any] = []
        self.watches: list[Any] = []
        self.asked: list[dict[str, str]] = []
        self.tokens: list[str] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("Authorization", ""))
        query = dict(request.query)
        if query.get("watch"):
            self.asked.append(query)
            return await self._watch(request, self.watches.pop(0) if self.watches else [])
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(answer, int):
            return web.Response(status=answer, text="no")
        return web.json_response(answer)

    async def _watch(self, request: web.Request, script: Any) -> web.StreamResponse:
        if isinstance(script, int):
            return web.Response(status=script, text="no")
        response = web.StreamResponse()
        await response.prepare(request)
        for event in script:
            if event == "cut":
                assert request.transport is not None
                request.transport.abort()
                return response
            data = json.dumps(event).encode() + b"\n"
            await response.write(data[: len(data) // 2])
            await response.write(data[len(data) // 2 :])
        if script and script[-1] == {"type": "ERROR", "object": {"code": 410}}:
            return response
        await asyncio.sleep(30)
        return response


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/ns/pods", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield api
    await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_NOT_SERVED_PAUSE_S", 0.05)


def pod(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns", "resourceVersion": str(version), "managedFields": [{}]}}


def page(version: int, *pods: dict[str, Any], more: str = "") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(pods)}


def event(type_: str, obj: dict[str, Any]) -> dict[str, Any]:
    return {"type": type_, "object": obj}


def access(api: Api, token: Callable[[], str] = lambda: "t") -> ClusterAccess:
    return ClusterAccess(api.url, None, token)


async def names_until(watch: Watch, wanted: list[str]) -> Any:
    async with asyncio.timeout(5):
        while True:
            snapshot = await watch.next(1)
            if snapshot is not None and sorted(one["metadata"]["name"] for one in snapshot["Pod"]) == wanted:
                return snapshot


async def test_list_pages_then_watch_from_there(api: Api) -> None:
    api.lists = [page(5, pod("a", 1), more="next"), page(5, pod("b", 2))]
    api.watches = [[event("ADDED", pod("c", 6)), event("BOOKMARK", pod("", 9)), event("DELETED", pod("a", 10))]]
    async with Watch(access(api), ("Pod",), "ns") as watch:
        snapshot = await names_until(watch, ["b", "c"])
    assert all("managedFields" not in one["metadata"] for one in snapshot["Pod"])
    assert {one["kind"] for one in snapshot["Pod"]} == {"Pod"}
    assert api.asked[0]["resourceVersion"] == "5"
    assert api.asked[0]["allowWatchBookmarks"] == "true"


async def test_a_cut_goes_on_from_the_last_version_seen(api: Api) -> None:
    api.lists = [page(5)]
    api.watches = [[event("ADDED", pod("a", 6)), event("BOOKMARK", pod("", 8)), "cut"], [event("ADDED", pod("b", 9))]]
    async with Watch(access(api), ("Pod",), "ns") as watch:
        await names_until(watch, ["a", "b"])
    assert [one["resourceVersion"] for one in api.asked] in (["5", "8"], ["5", "5"], ["5", "6"])


@pytest.mark.parametrize("gone", [410, [{"type": "ERROR", "object": {"code": 410}}]])
async def test_gone_lists_anew_and_notices_what_was_deleted(api: Api, gone: Any) -> None:
    api.lists = [page(5, pod("a", 1)), page(50, pod("b", 40))]
    api.watches = [gone, []]
    async with Watch(access(api), ("Pod",), "ns") as watch:
        await names_until(watch, ["b"])
        async with asyncio.timeout(5):
            while len(api.asked) < 2:
                await asyncio.sleep(0.01)
    assert api.asked[1]["resourceVersion"] == "50"


async def test_an_error_is_no_news_about_objects(api: Api) -> None:
    api.lists = [500, 403, page(5, pod("a", 1))]
    api.watches = [503, [event("ADDED", pod("b", 6))]]
    seen: list[str] = []
    async with Watch(access(api), ("Pod",), "ns") as watch:
        async with asyncio.timeout(5):
            while not seen or "403" not in seen[-1]:
                assert not watch.is_synced or seen
                if watch.problem:
                    seen.append(watch.problem)
                await asyncio.sleep(0.001)
        await names_until(watch, ["a", "b"])
        assert watch.problem is None


def test_the_first_cut_after_an_outage_is_not_waited_out_and_many_cuts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.5)
    backoff = module._Backoff()
    outage = [backoff.after(0.01, watched=False) for _ in range(8)]
    assert outage[0] == 0.0 and outage[7] > 7.0
    assert backoff.after(0.01, watched=True) == 0.0
    assert 0.2 < backoff.after(0.01, watched=True) < 0.8
    for _ in range(8):
        pause = backoff.after(0.01, watched=True)
    assert pause > 7.0
    assert backoff.after(60.0, watched=True) == 0.0


async def test_a_server_that_ends_every_watch_at_once_is_a_problem(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNSAID_S", 0.02)
    ended = [{"type": "ERROR", "object": {"code": 410}}]  # after which the script ends, and the lists go on
    api.lists, api.watches = [page(5)], [ended] * 50
    async with Watch(access(api), ("Pod",), "ns") as watch:
        async with asyncio.timeout(5):
            while not watch.problem:
                await asyncio.sleep(0.001)
        assert "ends every watch at once" in watch.problem


async def test_a_kind_that_is_not_served_is_empty_until_it_is(api: Api) -> None:
    api.lists = [404, 404, page(5, pod("a", 1))]
    async with Watch(access(api), ("Pod",), "ns") as watch:
        assert (await watch.next(5)) == {"Pod": []}
        await names_until(watch, ["a"])


async def test_a_refused_token_is_minted_again(api: Api) -> None:
    from nim_rollouts.clients.access import Token

    minted: list[str] = []

    def mint() -> str:
        minted.append("x")
        return f"t{len(minted)}"

    api.lists = [401, page(5)]
    async with Watch(access(api, Token(mint)), ("Pod",), "ns") as watch:
        await names_until(watch, [])
    assert api.tokens[:2] == ["Bearer t1", "Bearer t2"]


async def test_long_lines_and_no_change(api: Api) -> None:
    long = pod("long", 6)
    long["data"] = "x" * 3_000_000
    api.lists = [page(5)]
    api.watches = [[event("ADDED", long)]]
    async with Watch(access(api), ("Pod",), "ns") as watch:
        await names_until(watch, ["long"])
        assert await watch.next(0.05) is None


async def test_snapshots_tick(api: Api) -> None:
    api.lists = [page(5)]
    stream = snapshots(access(api), ("Pod",), "ns", tick_s=0.05)
    seen = [await anext(stream) for _ in range(3)]
    await stream.aclose()
    assert {"Pod": []} in seen and None in seen
