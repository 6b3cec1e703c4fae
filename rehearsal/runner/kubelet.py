"""The kubelet of every node at once: gives each bound pod a worker, and each worker what it shares with the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from datetime import UTC, datetime

import aiohttp

from rehearsal.config import Rehearsal
from rehearsal.kube import Kube, Obj, key_of
from rehearsal.runner.addresses import Addresses
from rehearsal.runner.events import Events
from rehearsal.runner.hosts import Hosts
from rehearsal.runner.images import ImageMap
from rehearsal.runner.network import Network
from rehearsal.runner.pods import PodWorker
from rehearsal.runner.registry import Registry

log = logging.getLogger(__name__)


class Kubelet:
    """Runs the pods that are bound to nodes which exist. A pod's uid has at most one worker, ever."""

    def __init__(self, r: Rehearsal, kube: Kube, session: aiohttp.ClientSession):
        self.r, self.kube, self.session = r, kube, session
        self.images, self.registry, self.events = ImageMap(r), Registry(kube, r, session), Events(kube)
        self.addresses = Addresses(r.pod_cidr)
        self.present: dict[str, dict[str, str]] = {}
        """Node -> image -> image id: what was pulled there."""
        self._nodes = kube.cache("/api/v1/nodes")
        self._pods = kube.cache("/api/v1/pods", field_selector="spec.nodeName!=")
        self._services = kube.cache("/api/v1/services")
        self._slices = kube.cache("/apis/discovery.k8s.io/v1/endpointslices")
        self.hosts = Hosts(self._services.items, self._slices.items, r.pod_cidr)
        self.network = Network(self._services, self._slices, r.service_cidr, r.pod_cidr)
        self._workers: dict[tuple[str, str], PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed_pods: dict[str, set[str]] = {}

    async def run(self, ready: asyncio.Event) -> None:
        """Until cancelled; then every process of every pod is ended first."""
        for cache in (self._services, self._slices):
            cache.subscribe(self._on_service)
        self._nodes.subscribe(self._on_node)
        self._pods.subscribe(self._on_pod)
        tasks = [asyncio.create_task(self.events.run())]
        try:
            caches = [self._nodes, self._services, self._slices]
            tasks += [cache.start() for cache in caches]
            for cache in caches:
                await cache.synced()
            tasks += [asyncio.create_task(self.network.run()), asyncio.create_task(self.hosts.run())]
            await asyncio.to_thread(end_strays, self.r)
            tasks.append(self._pods.start())
            await self._pods.synced()
            self._sweep()
            ready.set()
            await asyncio.gather(*tasks)
        finally:
            for task in [*tasks, *self._tasks.values()]:
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks.values(), return_exceptions=True)

    def age(self, moment: str) -> float:
        """Seconds since an RFC 3339 time."""
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()

    def may_fail(self, job: str, pod: str, limit: int) -> bool:
        """Whether the fault of a Job's first `limit` pods meets this one. A pod that failed so once does so again."""
        failed = self._failed_pods.setdefault(job, set())
        if pod not in failed and len(failed) >= limit:
            return False
        failed.add(pod)
        return True

    def _on_service(self, _: str, __: Obj) -> None:
        self.hosts.touch()
        self.network.touch()

    def _on_node(self, type_: str, node: Obj) -> None:
        name = node["metadata"]["name"]
        if type_ == "DELETED":
            self.present.pop(name, None)
            for worker in list(self._workers.values()):
                if worker.pod["spec"]["nodeName"] == name:
                    log.info("%s: its node %s is gone", worker.title, name)
                    worker.lost()
        elif type_ == "ADDED":
            for pod in self._pods.items.values():
                if pod["spec"].get("nodeName") == name:
                    self._on_pod("ADDED", pod)

    def _on_pod(self, type_: str, pod: Obj) -> None:
        key, uid = key_of(pod), pod["metadata"]["uid"]
        worker = self._workers.get(key)
        if worker is not None and (type_ == "DELETED" or worker.uid != uid):
            worker.lost()
            del self._workers[key]
            if worker.uid not in self._tasks:
                # It had lost its node before; what is left of it goes now.
                self._tasks[worker.uid] = asyncio.create_task(self._clean(worker))
            worker = None
        if type_ == "DELETED":
            return
        if worker is not None and not worker.gone.is_set():
            worker.update(pod)
            return
        node = self._nodes.items.get(("", pod["spec"]["nodeName"]))
        if node is None:
            # Either this node's own watch is a moment behind, and it calls again, or the pod has lost its node.
            return
        worker = self._workers[key] = PodWorker(self, pod, node)
        earlier = self._tasks.get(uid)
        self._tasks[uid] = asyncio.create_task(self._serve(worker, earlier), name=worker.title)

    async def _serve(self, worker: PodWorker, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            # The same pod, whose node came back: its processes of before end first.
            await asyncio.gather(earlier, return_exceptions=True)
        try:
            log.info("%s on %s", worker.title, worker.pod["spec"]["nodeName"])
            await worker.run()
            # The object goes with the last finalizer, which may be another's.
            await worker.gone.wait()
            now = self._pods.items.get(worker.key)
            if now is None or now["metadata"]["uid"] != worker.uid:
                await self._clean(worker)
        except Exception:
            log.exception("%s: the runner's own fault; the pod is left as it is", worker.title)
        finally:
            if self._tasks.get(worker.uid) is asyncio.current_task():
                del self._tasks[worker.uid]

    async def _clean(self, worker: PodWorker) -> None:
        await worker.clean()
        self.events.forget(worker.uid)
        log.info("%s gone", worker.title)
        if self._tasks.get(worker.uid) is asyncio.current_task():
            del self._tasks[worker.uid]

    def _sweep(self) -> None:
        """Folders of pods that went while no runner was there."""
        known = {pod["metadata"]["uid"] for pod in self._pods.items.values()}
        for folder in self.r.path("pods").iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)


def end_strays(r: Rehearsal) -> None:
    """End processes of pods that outlived a runner which was killed together with a container's init.

    They are known by their environment: this state folder, and a pod's address to listen on.
    """
    marks = (f"REHEARSAL_STATE={r.state}".encode(), b"REHEARSAL_LISTEN=")
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/environ", "rb") as file:
                    entries = file.read().split(b"\0")
                if marks[0] in entries and any(entry.startswith(marks[1]) for entry in entries):
                    log.warning("ending stray process %s of an earlier runner", name)
                    os.kill(int(name), signal.SIGKILL)
