"""``python -m rehearsal.storage``: runs until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys

from rehearsal import config
from rehearsal.kube import Kube
from rehearsal.storage.access_points import AccessPoints
from rehearsal.storage.provisioner import Provisioner


async def main() -> None:
    r = config.load()
    async with Kube.from_rehearsal(r) as kube:
        provisioner = Provisioner(r, kube, AccessPoints.at(r.url("aws")))
        work = asyncio.create_task(provisioner.run(on_synced=lambda: config.mark_ready("storage")))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main())
