"""The operator's Events: written in order, in the background, and dropped when one object has too many, as client-go
does."""

from __future__ import annotations

import asyncio
import copy
import time

from rehearsal.kube import Kube
from rehearsal.operator.api import Obj

BURST = 25
REFILL_S = 300.0
"""client-go's spam filter: 25 Events of one object at once, then one in five minutes."""


class Recorder:
    """Records Events of one controller. `event` never blocks a reconcile and never fails it."""

    def __init__(self, kube: Kube, component: str):
        self._kube, self._component = kube, component
        self._queue: asyncio.Queue[tuple[Obj, str, str, str]] = asyncio.Queue(maxsize=1000)
        self._tokens: dict[str, tuple[float, float]] = {}

    def event(self, obj: Obj, type_: str, reason: str, message: str) -> None:
        if self._admit(obj["metadata"]["uid"]) and not self._queue.full():
            about = {key: obj[key] for key in ("apiVersion", "kind")} | {"metadata": copy.deepcopy(obj["metadata"])}
            self._queue.put_nowait((about, type_, reason, message))

    def _admit(self, uid: str) -> bool:
        tokens, since = self._tokens.get(uid, (float(BURST), time.monotonic()))
        now = time.monotonic()
        tokens = min(BURST, tokens + (now - since) / REFILL_S)
        self._tokens[uid] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1

    async def run(self) -> None:
        while True:
            obj, type_, reason, message = await self._queue.get()
            await self._kube.event(obj, type_=type_, reason=reason, message=message, component=self._component)
