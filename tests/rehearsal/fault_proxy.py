"""A reverse proxy in front of an API server that does what networks, load balancers and overloaded servers do."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp
from aiohttp import web


class FaultProxy:
    """Plain HTTP in, the API server's HTTPS out. Faults are attributes, so a test turns them on and off.

    `refuse`: (status, headers) that every request gets. `swallow`: nothing more of a running answer is passed on.
    """

    def __init__(self, upstream: str, ca_pem: str) -> None:
        self.upstream = upstream
        self.refuse: tuple[int, dict[str, str]] | None = None
        self.swallow = False
        self.tokens: set[str] | None = None
        """Bearer tokens that are let through; None: all."""
        self.asked: list[tuple[str, dict[str, str], int]] = []
        """(path, query, status) of every request."""
        self.url = ""
        self._context = ssl.create_default_context(cadata=ca_pem)
        self._open: set[Any] = set()

    async def __aenter__(self) -> FaultProxy:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._context, limit=0), auto_decompress=False
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await self._runner.cleanup()
        await self._session.close()

    def cut(self) -> None:
        """Reset every connection on which an answer is running."""
        for transport in list(self._open):
            transport.abort()

    @property
    def watches(self) -> int:
        """Answers that are running just now."""
        return len(self._open)

    def lists(self, path_end: str) -> int:
        """Lists of a kind that were answered."""
        return sum(
            1
            for path, query, status in self.asked
            if path.endswith(path_end) and status == 200 and "watch" not in query
        )

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        status, headers = self.refuse or (0, {})
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not status and self.tokens is not None and token not in self.tokens:
            status = 401
        if status:
            self.asked.append((request.path, dict(request.query), status))
            return web.Response(status=status, headers=headers, text="refused by the proxy")
        passed = {k: v for k, v in request.headers.items() if k in ("Authorization", "Accept", "Accept-Encoding")}
        try:
            answer = await self._session.get(self.upstream + request.path_qs, headers=passed)
        except aiohttp.ClientError:
            assert request.transport is not None
            request.transport.abort()
            raise web.HTTPBadGateway from None
        self.asked.append((request.path, dict(request.query), answer.status))
        kept = {k: v for k, v in answer.headers.items() if k in ("Content-Type", "Content-Encoding", "Retry-After")}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        transport = request.transport  # it is gone from the request once it is closed
        self._open.add(transport)
        try:
            async for chunk in answer.content.iter_any():
                if self.swallow and "watch" in request.query:
                    await asyncio.sleep(3600)
                await response.write(chunk)
        finally:
            self._open.discard(transport)
            answer.close()
        return response
