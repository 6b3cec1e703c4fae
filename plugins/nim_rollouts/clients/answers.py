"""GET requests to the API server on an event loop: what each refusal means for one who follows a kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from nim_rollouts.clients.access import ClusterAccess

if TYPE_CHECKING:
    import aiohttp

# Until the answer begins, in seconds. The API server begins a watch's answer at once, whatever there is to tell.
_BEGIN_S = 30.0
_CONNECT_S = 10.0
_LONGEST_RETRY_AFTER_S = 300.0
_TOO_NEW = "Too large resource version"


class Gone(Exception):
    """The version cannot be gone on from: it is compacted, or the server (restored from a backup) never had it."""


class NotServed(Exception):
    """The path is not known."""


class Refused(Exception):
    """Any other answer of 400 and above. `retry_after_s`: what the server asks for, in seconds."""

    def __init__(self, status: int, text: str, retry_after_s: float | None = None) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        super().__init__(f"the API server answers {status}: {text}")


class Answer:
    """A GET as a context. A 401 is met with one new token, then it stands.

    :param silence_s: no answer goes on after that many seconds without a byte (TimeoutError)
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        access: ClusterAccess,
        path: str,
        query: Mapping[str, str],
        *,
        silence_s: float = 30.0,
    ) -> None:
        self._session, self._access = session, access
        self._url, self._query = access.endpoint + path, query
        self._silence_s = silence_s
        self._answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            return await self._ask()
        except Refused as refused:
            if refused.status != 401:
                raise
        return await self._ask()

    async def _ask(self) -> aiohttp.ClientResponse:
        import aiohttp

        # Minting a token may ask AWS: not on the event loop's thread.
        headers = await asyncio.to_thread(self._access.headers)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=self._silence_s)
        async with asyncio.timeout(_BEGIN_S):
            answer = await self._session.get(self._url, params=self._query, headers=headers, timeout=timeout)
            if answer.status < 400:
                self._answer = answer
                return answer
            text = " ".join((await answer.text())[:300].split())
        answer.release()
        if answer.status == 401:
            self._access.forget_token(headers)
        if answer.status == 410 or _TOO_NEW in text:
            raise Gone
        if answer.status == 404:
            raise NotServed
        raise Refused(answer.status, text, _seconds(answer.headers.get("Retry-After")))

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            # Not release(): what is left of a watch would have to be read first.
            self._answer.close()


async def lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length (aiohttp's own reader refuses long ones)."""
    parts: list[bytes] = []
    async for chunk in answer.content.iter_any():
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            line = b"".join((*parts, line))
            parts = []
            if line.strip():
                yield line
        if rest:
            parts.append(rest)


def _seconds(value: str | None) -> float | None:
    return min(float(value), _LONGEST_RETRY_AFTER_S) if value and value.isdigit() else None
