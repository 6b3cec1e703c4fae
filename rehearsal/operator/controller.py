"""One controller: a queue, one worker, and what a reconcile's outcome does to the queue."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from rehearsal.kube import ApiError
from rehearsal.operator.api import Obj, Panic, ReconcileError, controller_of
from rehearsal.operator.workqueue import Key, WorkQueue

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """`requeue_after` in seconds; None: only the next event brings the object back."""

    requeue_after: float | None = None


class Reconciler(Protocol):
    kind: str
    owns: tuple[str, ...]
    lead_s: float
    """Seconds of work that the real operator does in a reconcile before it looks at what it owns. Here they pass
    before the reconcile begins, so that what comes in meanwhile is seen by this one, and is not both seen by it and
    left to the next."""

    async def reconcile(self, namespace: str, name: str) -> Result: ...

    async def settle(self) -> None:
        """What is to be done between two reconciles."""


class Controller:
    """Runs a reconciler. One object at a time: a slow reconcile delays all others of the kind, as in the real
    operator."""

    def __init__(self, reconciler: Reconciler):
        self.reconciler = reconciler
        self.queue = WorkQueue()
        self._seen: dict[Key, tuple[str, int]] = {}

    def on_own(self, type_: str, obj: Obj) -> None:
        """An event of the controller's own kind: only a new generation counts, so labels and status wake nobody."""
        meta = obj["metadata"]
        key = (meta["namespace"], meta["name"])
        now = (meta["uid"], meta.get("generation", 0))
        if type_ == "DELETED":
            self._seen.pop(key, None)
        elif self._seen.get(key) == now:
            return
        else:
            self._seen[key] = now
        self.queue.add(key)

    def on_child(self, type_: str, obj: Obj) -> None:
        """Any event of an object that one of this kind controls."""
        owner = controller_of(obj)
        if owner and owner["kind"] == self.reconciler.kind:
            self.queue.add((obj["metadata"]["namespace"], owner["name"]))

    async def run(self) -> None:
        while True:
            await self.queue.wait()
            await asyncio.sleep(self.reconciler.lead_s)
            key = await self.queue.get()
            try:
                result = await self.reconciler.reconcile(*key)
            except Panic as panic:
                log.error("%s %s/%s: Observed a panic: %s [recovered]", self.reconciler.kind, *key, panic)
                self.queue.add_rate_limited(key)
            except (ReconcileError, ApiError, OSError, TimeoutError) as error:
                log.warning("%s %s/%s: %s", self.reconciler.kind, *key, error)
                self.queue.add_rate_limited(key)
            except Exception:
                log.exception("%s %s/%s: reconcile broke", self.reconciler.kind, *key)
                self.queue.add_rate_limited(key)
            else:
                self.queue.forget(key)
                if result.requeue_after is not None:
                    self.queue.add_after(key, result.requeue_after)
            finally:
                await self.reconciler.settle()
                self.queue.done(key)
