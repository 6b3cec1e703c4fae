"""One listening address of a Service: accepts TCP connections and carries them to ready endpoints, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Sequence

log = logging.getLogger(__name__)

Backend = tuple[str, int]
_CONNECT = 5.0


class Side(asyncio.Protocol):
    """One end of a carried connection: what it receives goes to its peer, with back-pressure and half-close."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: Side | None = None
        self._early: list[bytes] = []
        self._ended = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        _no_delay(transport)

    def join(self, peer: Side) -> None:
        """From now on carry to `peer`, first what came before it was there."""
        self.peer = peer
        for data in self._early:
            self._pass(data)
        self._early = []
        if self._ended:
            self._finish()
        if self.closed:
            peer.abort()
        elif self.transport:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self._early.append(data)
            # Until a backend is found, one buffer is enough: the client waits.
            assert self.transport
            self.transport.pause_reading()
        else:
            self._pass(data)

    def _pass(self, data: bytes) -> None:
        if self.peer and self.peer.transport and not self.peer.transport.is_closing():
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        if self.peer:
            self._finish()
        # True keeps this direction's writing half open.
        return True

    def _finish(self) -> None:
        """Pass the end on; when both ends have ended, close once everything is flushed."""
        assert self.peer
        out = self.peer.transport
        if out and not out.is_closing():
            with contextlib.suppress(OSError, RuntimeError):
                out.write_eof()
        if self.peer._ended:
            for side in (self, self.peer):
                if side.transport:
                    side.transport.close()

    def pause_writing(self) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer and self.peer.transport and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.peer is None or self.peer.closed:
            return
        if error is None and self._ended and self.peer._ended:
            return
        self.peer.abort()

    def abort(self) -> None:
        """Reset the connection, as a client sees it of a server that died."""
        if self.transport and not self.closed:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


class Listener:
    """A Service port. Listens while it has backends; without one, connections are refused by the kernel."""

    def __init__(self, address: str, port: int, title: str):
        self.address, self.port, self.title = address, port, title
        self._backends: Sequence[Backend] = ()
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def update(self, backends: Sequence[Backend]) -> None:
        """Raises OSError when the address cannot be listened on."""
        self._backends = tuple(backends)
        if backends and self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, self.address, self.port, backlog=512)
            log.info("%s: %s:%d open, %d endpoints", self.title, self.address, self.port, len(backends))
        elif not backends and self._server is not None:
            self._close()
            log.info("%s: %s:%d closed, no endpoint is ready", self.title, self.address, self.port)

    def close(self) -> None:
        """Stop listening and cut what is still being connected; carried connections live on."""
        self._backends = ()
        self._close()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accept(self) -> Side:
        side = Side()
        task = asyncio.get_running_loop().create_task(self._connect(side))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return side

    async def _connect(self, client: Side) -> None:
        loop = asyncio.get_running_loop()
        order = self._backends
        start, self._turn = self._turn, self._turn + 1
        for step in range(len(order)):
            host, port = order[(start + step) % len(order)]
            try:
                async with asyncio.timeout(_CONNECT):
                    _, backend = await loop.create_connection(Side, host, port)
            except (OSError, TimeoutError):
                continue
            client.join(backend)
            backend.join(client)
            return
        client.abort()


def _no_delay(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
