"""``python -m rehearsal.storage``: runs until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import sys

from rehearsal import config
from rehearsal.kube import Kube
from rehearsal.stopping import until_stopped
from rehearsal.storage.access_points import AccessPoints
from rehearsal.storage.provisioner import Provisioner


async def main() -> None:
    r = config.load()
    async with Kube.from_rehearsal(r) as kube:
        provisioner = Provisioner(r, kube, AccessPoints.at(r.url("aws")))
        await until_stopped(provisioner.run(on_synced=lambda: config.mark_ready("storage")))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main())
