"""The triggers that a measured triggerer runs: ours, and a probe of the loop that both sides share."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nim_rollouts.clients.access import ClusterAccess, Token
from nim_rollouts.core.verdicts import Subject
from nim_rollouts.triggers.plans import Plan
from nim_rollouts.triggers.wait import WaitTrigger

SPEC = "WAITING_SPEC"
_PROBE_S = 0.02


@cache
def spec() -> dict[str, Any]:
    """What the benchmark's own process wrote down."""
    found: dict[str, Any] = json.loads(Path(os.environ[SPEC]).read_text())
    return found


@cache
def access() -> ClusterAccess:
    """One for all waits, as the product's session has it in a triggerer."""
    given = spec()
    return ClusterAccess(given["endpoint"], given["ca"], Token(lambda: given["token"]), name="benchmark")


class ServiceWait(WaitTrigger):
    """A wait of ours whose plan does not come from a store and whose way in does not come from AWS; all else is the
    product's. `run_id` is the NIMService's name."""

    def _prepare(self) -> tuple[Plan, ClusterAccess | None, datetime]:
        import nim_rollouts.triggers.watching  # noqa: F401  (off the loop, as the product's own does)

        given = spec()
        subject = Subject("NIMService", self.run_id, given["namespace"], image=given["image"])
        return Plan((subject,), 3600, "service"), access(), datetime.now(UTC)


class Nothing(BaseTrigger):
    """Waits for nothing: what a trigger takes of Airflow alone."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How another triggerer makes the same trigger."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """No event, ever."""
        await asyncio.Event().wait()
        yield TriggerEvent("never")


class Probe(BaseTrigger):
    """Measures by how much a timer of the loop is late, and the process's memory, every second until cancelled.

    A timer may also be late because other processes have the CPU: `own` is how much of the latest one's delay this
    thread itself was running.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How another triggerer makes the same trigger."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when the file `stop` is there."""
        folder = Path(os.environ[SPEC]).parent
        with (folder / "probe.jsonl").open("a", buffering=1) as out:
            while not (folder / "stop").exists():
                late: list[float] = []
                worst = own = 0.0
                until = time.monotonic() + 1.0
                while time.monotonic() < until:
                    began, ran = time.monotonic(), time.thread_time()
                    await asyncio.sleep(_PROBE_S)
                    late.append(round(time.monotonic() - began - _PROBE_S, 4))
                    if late[-1] > worst:
                        worst, own = late[-1], round(time.thread_time() - ran, 4)
                if (folder / "collect").exists():
                    (folder / "collect").unlink()
                    gc.collect()
                    late, worst, own = [], 0.0, 0.0
                cpu = round(time.process_time(), 2)
                row = {"at": time.time(), "late": late, "worst": worst, "own": own, "rss": _rss(), "cpu": cpu}
                out.write(json.dumps(row) + "\n")
        yield TriggerEvent("stopped")


def _rss() -> int:
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
