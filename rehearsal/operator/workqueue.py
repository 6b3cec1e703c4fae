"""The queue of a controller: a key is handled by one worker at a time, and a key queued while it is handled comes
again."""

from __future__ import annotations

import asyncio
from collections import deque

Key = tuple[str, str]
"""Namespace and name."""

BASE_DELAY = 0.005
MAX_DELAY = 1000.0
"""Seconds; 5 ms doubling to 16 min 40 s, the default of controller-runtime."""


class WorkQueue:
    """A level-triggered queue. All methods but `get` return at once and must be called in the event loop."""

    def __init__(self) -> None:
        self._ready: deque[Key] = deque()
        self._dirty: set[Key] = set()
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._waiting: dict[Key, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    def add(self, key: Key) -> None:
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._busy:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Add later. Of several delays of one key the earliest counts; an `add` in between does not cancel it."""
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        waiting = self._waiting.get(key)
        if waiting is not None:
            if waiting.when() <= when:
                return
            waiting.cancel()
        self._waiting[key] = loop.call_at(when, self._due, key)

    def _due(self, key: Key) -> None:
        del self._waiting[key]
        self.add(key)

    def add_rate_limited(self, key: Key) -> None:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_after(key, min(BASE_DELAY * 2 ** min(failures, 40), MAX_DELAY))

    def forget(self, key: Key) -> None:
        """The next failure of this key waits the base delay again."""
        self._failures.pop(key, None)

    async def wait(self) -> None:
        """Until there is a key to handle."""
        while not self._ready:
            self._wake.clear()
            await self._wake.wait()

    async def get(self) -> Key:
        await self.wait()
        key = self._ready.popleft()
        self._busy.add(key)
        self._dirty.discard(key)
        return key

    def done(self, key: Key) -> None:
        self._busy.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()
