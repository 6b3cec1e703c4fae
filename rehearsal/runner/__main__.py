"""``python -m rehearsal.runner``: runs the pods of a rehearsal and its Service network until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import aiohttp

from rehearsal import config
from rehearsal.kube import Kube
from rehearsal.runner.kubelet import Kubelet
from rehearsal.runner.process import SandboxError, unshare_argv

log = logging.getLogger("runner")


async def serve() -> None:
    r = config.load()
    async with (
        Kube.from_rehearsal(r) as kube,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        ready, stop = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        kubelet = asyncio.create_task(Kubelet(r, kube, session).run(ready))
        waits = [asyncio.create_task(ready.wait()), asyncio.create_task(stop.wait())]
        await asyncio.wait([kubelet, *waits], return_when=asyncio.FIRST_COMPLETED)
        if ready.is_set():
            config.mark_ready("runner")
            log.info("in sync")
        await asyncio.wait([kubelet, waits[1]], return_when=asyncio.FIRST_COMPLETED)
        kubelet.cancel()
        for each in waits:
            each.cancel()
        try:
            await kubelet
        except asyncio.CancelledError:
            log.info("all pods' processes ended")


def main() -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        unshare_argv()
    except SandboxError as error:
        log.error("%s", error)
        return 1
    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
