"""`python -m rehearsal.gateway`: the network between Airflow and the API server, where it can be cut and clogged.

A cluster's endpoint, as DescribeCluster tells it, is this port; the stand-ins and the control plane go to the API
server itself. Bytes pass as they are, TLS untouched. With the fault `watch-cut` every connection is reset again and
again. With `error-storm` a share of the new connections ends here instead (the certificate is the API server's), and
every request on them gets the ordered status; what was connected before is reset, so that a storm meets watches too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import ssl
import sys
from http import HTTPStatus
from typing import Any

from rehearsal import config, faults
from rehearsal.config import Rehearsal
from rehearsal.nim.settings import Shares
from rehearsal.stopping import until_stopped

log = logging.getLogger("gateway")

CHUNK = 1 << 16
LOOK_S = 0.2
"""How often the faults' files are looked at: two files that are usually not there."""
REASONS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
"""`reason` of the Status objects with which an API server refuses."""


class Gateway:
    """Passes connections on to the API server, or does not."""

    def __init__(self, r: Rehearsal):
        self._r = r
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[socket.socket] = set()
        self._storm: dict[str, Any] | None = None
        self._shares = Shares(0)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = r.state / "pki"
        self._tls.load_cert_chain(folder / "server.crt", folder / "server.key")

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", self._r.ports["gateway"]), backlog=1024) as listener:
            listener.setblocking(False)
            looking = asyncio.create_task(self._look())
            try:
                while True:
                    try:
                        client, _ = await loop.sock_accept(listener)
                    except OSError as error:  # no descriptor is left, or the client has gone again
                        log.warning("not accepted: %s", error)
                        await asyncio.sleep(0.1)
                        continue
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    refuse = self._storm is not None and self._shares.hit()
                    task = asyncio.create_task(self._refuse(client) if refuse else self._pass(client))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            finally:
                for task in (looking, *self._tasks):
                    task.cancel()
                await asyncio.gather(looking, *self._tasks, return_exceptions=True)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        cut_at: float | None = None
        while True:
            try:
                cut, storm = faults.get(self._r, "watch-cut"), faults.get(self._r, "error-storm")
            except faults.FaultError as error:
                log.error("%s", error)
                cut = storm = None
            if storm != self._storm:
                log.info("error-storm: %s", storm or "over")
                self._storm, self._shares = storm, Shares(storm["percent"] if storm else 0)
                self.cut()
            if cut is None:
                cut_at = None
            elif cut_at is None or loop.time() >= cut_at:
                cut_at = loop.time() + float(cut["every_s"])
                self.cut()
            await asyncio.sleep(LOOK_S)

    def cut(self) -> None:
        """Reset every open connection, on both sides."""
        log.info("cutting %d connections", len(self._open) // 2)
        for each in list(self._open):
            # Linger 0: the peer sees a reset in the middle of whatever it reads, not an orderly end.
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                each.shutdown(socket.SHUT_RD)

    async def _pass(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, socket.socket() as server:
            server.setblocking(False)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await loop.sock_connect(server, ("127.0.0.1", self._r.ports["apiserver"]))
            except OSError:
                return
            self._open |= {client, server}
            ways = [asyncio.create_task(_copy(a, b)) for a, b in ((client, server), (server, client))]
            try:
                # A half-closed connection is of no use to HTTP: one side's end is the end of both.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                self._open -= {client, server}

    async def _refuse(self, client: socket.socket) -> None:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=self._tls)
        except (OSError, ssl.SSLError):
            client.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            while (storm := self._storm) is not None:
                await _request(reader)
                writer.write(answer(storm))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
            pass
        finally:
            transport.close()


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, CHUNK):
            await loop.sock_sendall(target, data)


async def _request(reader: asyncio.StreamReader) -> None:
    """Read one request to its end; its body's length is what the header says (our clients send no chunks)."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name == "content-length":
            await reader.readexactly(int(value))


def answer(storm: dict[str, Any]) -> bytes:
    """A whole HTTP answer with the Status object of an API server that refuses."""
    code = int(storm["status"])
    status = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": REASONS[code], "message": f"{HTTPStatus(code).phrase}: the server cannot answer now, try again later",
    }  # fmt: skip
    body = json.dumps(status).encode()
    lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", "Content-Type: application/json"]
    lines.append(f"Content-Length: {len(body)}")
    if code in (429, 503):
        lines.append(f"Retry-After: {storm['retry_after_s']}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def main() -> None:
    # Two descriptors a connection, and a client may hold a thousand.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    await until_stopped(Gateway(config.load()).run())


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main())
