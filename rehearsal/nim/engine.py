"""The engine's stand-in: slots, a queue, and tokens that come at set times.

The k-th token of a request is due at (time its slot was free) + TTFT + k x ITL on the event loop's clock. Due
times are absolute, so a late token does not delay the later ones and a whole answer takes what it should.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rehearsal.nim.metrics import Metrics
from rehearsal.nim.settings import Settings


class Turn:
    """One request's time on the engine. Times in seconds on the event loop's clock."""

    def __init__(self, engine: Engine, arrived: float, prompt_tokens: int) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._arrived, self._began = arrived, self._loop.time()
        self._latest = self._began
        self._prompt_tokens = prompt_tokens
        self.generated = 0

    async def token(self) -> None:
        """Wait until the next token is due, and count it."""
        settings, metrics = self._engine.settings, self._engine.metrics
        due = self._began + settings.ttft_s + self.generated * settings.itl_s
        delay = due - self._loop.time()
        if delay > 0:
            await asyncio.sleep(delay)
        now = self._loop.time()
        if self.generated == 0:
            metrics.ttft.observe(now - self._arrived)
        else:
            metrics.tpot.observe(now - self._latest)
        self._latest = now
        self.generated += 1
        metrics.generation_tokens += 1
        metrics.tokens_held += 1

    async def tokens(self, count: int) -> None:
        """Wait until ``count`` tokens are done, in one sleep (an answer that is not streamed)."""
        if count == 0:
            return
        settings, metrics = self._engine.settings, self._engine.metrics
        due = self._began + settings.ttft_s + (count - 1) * settings.itl_s
        await asyncio.sleep(max(0.0, due - self._loop.time()))
        metrics.ttft.observe(self._began - self._arrived + settings.ttft_s)
        metrics.tpot.observe(settings.itl_s, count - 1)
        self.generated += count
        metrics.generation_tokens += count
        metrics.tokens_held += count

    def finish(self, reason: str) -> None:
        """Count the end of the request: `stop`, `length`, or what went wrong."""
        seconds = self._loop.time() - self._arrived
        self._engine.metrics.finish(reason, seconds, self._prompt_tokens, self.generated)


class Engine:
    """Runs at most `settings.slots` requests at once, the others wait in order of arrival."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._slots = asyncio.Semaphore(settings.slots)

    @property
    def busy(self) -> bool:
        return self.metrics.running + self.metrics.waiting > 0

    @asynccontextmanager
    async def turn(self, prompt_tokens: int) -> AsyncIterator[Turn]:
        """Wait for a slot and hold it; it is given back however the request ends, also when its client has gone."""
        arrived = asyncio.get_running_loop().time()
        self.metrics.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.metrics.waiting -= 1
        turn = Turn(self, arrived, prompt_tokens)
        self.metrics.running += 1
        self.metrics.prompt_tokens += prompt_tokens
        self.metrics.tokens_held += prompt_tokens
        try:
            yield turn
        finally:
            self.metrics.running -= 1
            self.metrics.tokens_held -= prompt_tokens + turn.generated
            self._slots.release()
