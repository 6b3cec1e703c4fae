"""`python -m rehearsal.operator`: the operator's process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal

import aiohttp
from aiohttp import web

from rehearsal.kube import Kube
from rehearsal.operator.api import Obj
from rehearsal.operator.controller import Controller
from rehearsal.operator.nimcache import NimCacheReconciler
from rehearsal.operator.nimpipeline import NimPipelineReconciler
from rehearsal.operator.nimservice import NimServiceReconciler
from rehearsal.operator.recorder import Recorder
from rehearsal.operator.sync import Client

HEALTH_ADDRESS = ":8081"
#: Flags of the real manager that its charts give, and that change nothing here.
UNUSED_FLAGS = (
    "--metrics-bind-address", "--leader-elect", "--zap-devel", "--zap-log-level", "--zap-stacktrace-level",
    "--zap-encoder",
)  # fmt: skip


async def serve_health(ready: asyncio.Event, host: str, port: int) -> web.AppRunner:
    """/healthz answers at once, /readyz when the caches are in sync, as the real manager's."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if ready.is_set() else web.Response(status=500, text="caches not in sync")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


def wire(client: Client, caches: Controller, services: Controller, pipelines: Controller) -> None:
    """Which events bring which objects back."""
    for controller in (caches, services, pipelines):
        client.caches[controller.reconciler.kind].subscribe(controller.on_own)
        for kind in controller.reconciler.owns:
            client.caches[kind].subscribe(controller.on_child)

    def on_cache(_: str, cache: Obj) -> None:
        meta = cache["metadata"]
        for service in client.all("NIMService"):
            named = service["spec"].get("storage", {}).get("nimCache", {}).get("name")
            if service["metadata"]["namespace"] == meta["namespace"] and named == meta["name"]:
                services.queue.add((meta["namespace"], service["metadata"]["name"]))

    client.caches["NIMCache"].subscribe(on_cache)


async def _in_sync(client: Client, stop: asyncio.Event) -> bool:
    """Wait for all caches; False when told to stop before."""

    async def synced() -> None:
        for cache in client.caches.values():
            await cache.synced()

    waits = [asyncio.create_task(synced()), asyncio.create_task(stop.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return not stop.is_set()


async def run(kube: Kube, host: str, port: int) -> None:
    ready, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = await serve_health(ready, host, port)
    async with kube, aiohttp.ClientSession() as http:
        client = Client(kube)
        recorders = [Recorder(kube, f"{kind}-controller") for kind in ("nimcache", "nimservice", "nimpipeline")]
        caches = Controller(NimCacheReconciler(client, recorders[0]))
        services = Controller(NimServiceReconciler(client, recorders[1], http))
        pipelines = Controller(NimPipelineReconciler(client, recorders[2]))
        controllers = (caches, services, pipelines)
        wire(client, *controllers)
        tasks = [cache.start() for cache in client.caches.values()]
        try:
            if await _in_sync(client, stop):
                logging.info("caches are in sync")
                ready.set()
                tasks += [asyncio.create_task(recorder.run()) for recorder in recorders]
                tasks += [asyncio.create_task(controller.run()) for controller in controllers]
                await stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await health.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="rehearsal.operator", description=__doc__)
    parser.add_argument("--kubeconfig", help="default: the pod's service account")
    parser.add_argument("--health-probe-bind-address", default=HEALTH_ADDRESS, metavar="[HOST]:PORT")
    for flag in UNUSED_FLAGS:
        parser.add_argument(flag, nargs="?", help="taken, as the real manager takes it")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    host, _, port = args.health_probe_bind_address.rpartition(":")
    kube = Kube.from_kubeconfig(args.kubeconfig) if args.kubeconfig else Kube.in_cluster()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(kube, host or os.environ.get("REHEARSAL_LISTEN", "127.0.0.1"), int(port)))


if __name__ == "__main__":
    main()
