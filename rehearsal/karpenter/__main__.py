"""``python -m rehearsal.karpenter``: the controller's process, in its pod or (--kubeconfig) outside the cluster."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys

from rehearsal import config
from rehearsal.karpenter import catalogue
from rehearsal.karpenter.cloud import Cloud
from rehearsal.karpenter.controller import Controller
from rehearsal.karpenter.world import World
from rehearsal.kube import Kube
from rehearsal.operator.__main__ import serve_health
from rehearsal.stopping import until_stopped

REGION = "us-west-2"


async def run(kube: Kube, cluster: str, region: str, host: str, port: int | None) -> None:
    """Until a signal; /readyz answers once the caches are in sync."""
    r = config.load()
    ready = asyncio.Event()
    health = await serve_health(ready, host, port) if port else None
    async with kube:
        world = World(r, kube, Cloud(r, cluster, region), catalogue.load())
        try:
            await until_stopped(Controller(world).run(on_synced=ready.set))
        finally:
            if health:
                await health.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(prog="rehearsal.karpenter", description=__doc__)
    parser.add_argument("--kubeconfig", help="default: the pod's service account")
    parser.add_argument("--cluster-name", default=os.environ.get("CLUSTER_NAME", ""))
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    if not arguments.cluster_name:
        print("missing required flag or environment variable CLUSTER_NAME (settings.clusterName)", file=sys.stderr)
        return 1
    kube = Kube.from_kubeconfig(arguments.kubeconfig) if arguments.kubeconfig else Kube.in_cluster()
    port = None if arguments.kubeconfig else int(os.environ.get("HEALTH_PROBE_PORT", "8081"))
    host = os.environ.get("REHEARSAL_LISTEN", "127.0.0.1")
    region = os.environ.get("AWS_REGION", REGION)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(kube, arguments.cluster_name, region, host, port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
