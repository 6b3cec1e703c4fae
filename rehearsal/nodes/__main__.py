"""``python -m rehearsal.nodes``: runs until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import sys

from rehearsal import config
from rehearsal.kube import Kube
from rehearsal.nodes.machines import Machines
from rehearsal.stopping import until_stopped


async def main() -> None:
    r = config.load()
    async with Kube.from_rehearsal(r) as kube:
        machines = Machines(r, kube)
        await until_stopped(machines.run(on_synced=lambda: config.mark_ready("nodes")))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    asyncio.run(main())
