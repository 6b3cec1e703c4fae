"""The loop: after every change, and when something is due, one step of everything in turn.

Everything is derived from the API's objects and EC2's instances, so a restart loses nothing. Durations (seconds) can be
set in ``timing.json``: ``node_batch`` gathers pods before a decision, ``node_start`` (``rehearsal.nodes``) passes from
the launch to a Ready node, ``node_empty`` is the longest that a node stands empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import aiohttp

from rehearsal.karpenter import statuses, termination
from rehearsal.karpenter.disruption import Disruption
from rehearsal.karpenter.lifecycle import Lifecycle
from rehearsal.karpenter.provisioner import Provisioner
from rehearsal.karpenter.world import World
from rehearsal.kube import ApiError

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between two looks at what changes outside the API server: subnets and groups, instances."""


class Controller:
    """Karpenter, for one API server and one cluster of EC2."""

    def __init__(self, world: World):
        self.world = world
        self.provisioner = Provisioner(world)
        self.lifecycle = Lifecycle(world, self.provisioner)
        self.disruption = Disruption(world)
        self._looked = float("-inf")

    async def run(self, on_synced: Callable[[], None] = lambda: None) -> None:
        """Work until cancelled."""
        caches = list(self.world.caches.values())
        for cache in caches:
            cache.start()
        try:
            for cache in caches:
                await cache.synced()
            on_synced()
            wait = 0.0
            while True:
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: in Python 3.11 it loses the signal to end when that comes with a change.
                    async with asyncio.timeout(wait):
                        await self.world.woken.wait()
                    await asyncio.sleep(self.world.r.timing("node_batch", 0.3))
                self.world.woken.clear()
                wait = await self._round_safely()
        finally:
            for cache in caches:
                await cache.stop()

    async def _round_safely(self) -> float:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return await self._round()
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError, BotoCoreError, ClientError) as error:
            # A server restarts, or an object changed meanwhile: the next round sees things as they are.
            log.warning("round broken off: %s", error)
            return 1.0

    async def _round(self) -> float:
        """One look at everything. Returns seconds until something is due even without a change."""
        now = asyncio.get_running_loop().time()
        outside = now - self._looked >= LOOK_S
        await statuses.node_classes(self.world, look_again=outside)
        await statuses.node_pools(self.world)
        if outside:
            await self.lifecycle.collect()
            self._looked = now
        dues = [LOOK_S, await termination.round_(self.world)]
        # Before empty nodes go: a pod that waits may be meant for one.
        dues.append(await self.provisioner.round())
        dues.append(await self.disruption.round(self.provisioner.nominated))
        await self.lifecycle.round()
        return min(due for due in dues if due is not None)
