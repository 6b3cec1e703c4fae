"""``python -m rehearsal.nodes``: runs until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import sys

from rehearsal import config
from rehearsal.kube import Kube
from rehearsal.nodes.provisioner import Provisioner
from rehearsal.nodes.shapes import load_shapes
from rehearsal.stopping import until_stopped


async def main() -> None:
    r = config.load()
    async with Kube.from_rehearsal(r) as kube:
        provisioner = Provisioner(r, kube, load_shapes(r.root / "rehearsal" / "nodes.yaml"))
        await until_stopped(provisioner.run(on_synced=lambda: config.mark_ready("nodes")))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main())
