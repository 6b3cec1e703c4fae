"""Notes of a wait for whoever reads the ledger meanwhile, written beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Timeline = list[dict[str, Any]]


class Notes:
    """Writes in a thread, one at a time, the newest alone: the watching never waits for the store."""

    def __init__(self, write: Callable[[Timeline], None]) -> None:
        self._write = write
        self._next: Timeline | None = None
        self._task: asyncio.Task[None] | None = None

    def take(self, timeline: Timeline) -> None:
        """To be written as soon as the one before is; returns at once."""
        self._next = timeline
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def written(self) -> None:
        """Until the newest has been written."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._next is not None:
            timeline, self._next = self._next, None
            await asyncio.to_thread(self._write, timeline)
