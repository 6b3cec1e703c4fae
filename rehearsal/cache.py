"""A local copy of all objects of one API path, kept current by a watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from rehearsal.kube import Kube, Obj, key_of

log = logging.getLogger(__name__)


class Cache:
    """All objects of one path, kept current by a watch."""

    def __init__(self, kube: Kube, path: str, **selectors: str | None):
        self._kube, self.path, self._selectors = kube, path, selectors
        self.items: dict[tuple[str, str], Obj] = {}
        self._synced = asyncio.Event()
        self._changed = asyncio.Event()
        self._subscribers: list[Callable[[str, Obj], None]] = []
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, callback: Callable[[str, Obj], None]) -> None:
        """Call back with (ADDED | MODIFIED | DELETED, object) on every change; must not block."""
        self._subscribers.append(callback)

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(), name=f"cache {self.path}")
        return self._task

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def synced(self) -> None:
        """Until the first list is in."""
        await self._synced.wait()

    async def wait_change(self, timeout: float | None = None) -> bool:
        """Until something changes after this call, or `timeout` seconds have passed (then False)."""
        try:
            # Not wait_for: Python 3.11's may lose a cancellation that meets a change.
            async with asyncio.timeout(timeout):
                await self._changed.wait()
            return True
        except TimeoutError:
            return False

    async def _run(self) -> None:
        async for type_, obj in self._kube.watch(self.path, **self._selectors):
            if type_ == "SYNCED":
                self._synced.set()
                continue
            if type_ == "DELETED":
                self.items.pop(key_of(obj), None)
            else:
                self.items[key_of(obj)] = obj
            for callback in self._subscribers:
                try:
                    callback(type_, obj)
                except Exception:
                    log.exception("a subscriber of %s failed on %s", self.path, key_of(obj))
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
