"""The gateway between Airflow and the API server: it passes bytes, cuts, and answers for the API server in a storm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from rehearsal import faults, pki
from rehearsal.config import Rehearsal
from rehearsal.gateway import LOOK_S, Gateway


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
async def r(tmp_path: Path) -> AsyncIterator[Rehearsal]:
    """A gateway in front of a server that gives back in capitals what it is sent."""
    ports = {"gateway": _port(), "apiserver": _port()}
    r = Rehearsal(
        root=Path(__file__).resolve().parents[3], state=tmp_path, block=96, ports=ports, admin_token="t",
        controlplane=Path("/cp"), aiperf=Path("/a"), python="/p",
    )  # fmt: skip
    pki.make(r)

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data.upper())
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", ports["apiserver"])
    work = asyncio.create_task(Gateway(r).run())
    await asyncio.sleep(0.05)
    yield r
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    server.close()


async def _connect(r: Rehearsal) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", r.ports["gateway"])


async def test_bytes_pass_both_ways_and_an_end_is_an_end(r: Rehearsal) -> None:
    reader, writer = await _connect(r)
    text = b"x" * 300_000
    writer.write(text)
    assert await asyncio.wait_for(reader.readexactly(len(text)), 5) == text.upper()
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_without_an_api_server_the_connection_ends(r: Rehearsal) -> None:
    r.ports["apiserver"] = _port()
    reader, writer = await _connect(r)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_connections_are_reset_while_the_watch_is_cut(r: Rehearsal) -> None:
    reader, writer = await _connect(r)
    writer.write(b"a")
    assert await reader.readexactly(1) == b"A"
    faults.order(r, "watch-cut", every_s=30)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.readexactly(1), 5)
    writer.close()
    # Not again before its time: what connects now, stays.
    reader, writer = await _connect(r)
    writer.write(b"b")
    assert await asyncio.wait_for(reader.readexactly(1), 5) == b"B"
    writer.close()


async def test_a_storm_answers_as_an_api_server_that_refuses(r: Rehearsal) -> None:
    reader, writer = await _connect(r)
    faults.order(r, "error-storm", status=429, retry_after_s=3)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    writer.close()
    tls = ssl.create_default_context(cafile=str(r.ca))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        for body in (None, b"x" * 100_000):
            async with session.post(f"{r.url('gateway')}/api/v1/pods", data=body) as answer:
                assert answer.status == 429 and answer.headers["Retry-After"] == "3"
                told = await answer.json()
                assert (told["kind"], told["code"], told["reason"]) == ("Status", 429, "TooManyRequests")
    faults.clear(r)
    await asyncio.sleep(2 * LOOK_S)
    reader, writer = await _connect(r)
    writer.write(b"c")
    assert await asyncio.wait_for(reader.readexactly(1), 5) == b"C"
    writer.close()


async def test_a_share_of_the_connections_gets_through(r: Rehearsal) -> None:
    faults.order(r, "error-storm", status=500, percent=50)
    await asyncio.sleep(2 * LOOK_S)
    passed = 0
    for _ in range(6):
        reader, writer = await _connect(r)
        writer.write(b"no handshake\r\n\r\n")
        # The storm's end of a connection speaks TLS, and hangs up on whoever does not.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            passed += await asyncio.wait_for(reader.readexactly(12), 5) == b"NO HANDSHAKE"
        writer.close()
    assert passed == 3


def test_the_storms_answer_is_whole() -> None:
    from rehearsal.gateway import answer

    head, _, body = answer({"status": 503, "retry_after_s": 2}).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and b"Retry-After: 2" in head
    assert f"Content-Length: {len(body)}".encode() in head and json.loads(body)["reason"] == "ServiceUnavailable"
