"""The life of one pod on this machine, from its binding to a node to its removal from the API server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from rehearsal.kube import ApiError, Conflict, NotFound, Obj, key_of, now_rfc3339, path_of
from rehearsal.runner import environment, hosts, publish, status
from rehearsal.runner.containers import Container, dropped
from rehearsal.runner.status import ContainerState, PodState
from rehearsal.runner.volumes import MountError, Volumes

if TYPE_CHECKING:
    from rehearsal.runner.kubelet import Kubelet

log = logging.getLogger(__name__)

_REFRESH = 30.0
"""Seconds between two looks at changed Secrets, ConfigMaps and ageing tokens; a kubelet's is a minute or so."""


class PodWorker:
    """Runs one pod. `run` ends when the pod is gone from the API server, or from this runner's care."""

    def __init__(self, kubelet: Kubelet, pod: Obj, node: Obj):
        self.kubelet, self.pod, self.node = kubelet, pod, node
        meta = pod["metadata"]
        self.uid, self.key = str(meta["uid"]), key_of(pod)
        self.title = "/".join(self.key)
        self.folder: Path = kubelet.r.path("pods") / self.uid
        self.pod_ip, self.address = "", ""
        self.job = next((o["uid"] for o in meta.get("ownerReferences", []) if o["kind"] == "Job"), "")
        self.over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        """It had ended before this worker came: its status is not touched any more."""
        self.stopping, self.gone = asyncio.Event(), asyncio.Event()
        self._dirty, self._lock = asyncio.Event(), asyncio.Lock()
        self._last: Obj = {}
        self._publisher = publish.Publisher(kubelet.kube, pod)
        spec = pod["spec"]
        states = [ContainerState(c, init=True) for c in spec.get("initContainers", [])]
        states += [ContainerState(c) for c in spec["containers"]]
        self.state = PodState(states)
        self.containers = [Container(self, each) for each in states]
        self.update(pod)

    # What the kubelet tells the worker.

    def update(self, pod: Obj) -> None:
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self.stopping.set()

    def lost(self) -> None:
        """The pod or its node is gone: there is nobody left to report to."""
        self.gone.set()

    async def run(self) -> None:
        tasks: list[asyncio.Task[Any]] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._adopt()
            tasks = [asyncio.create_task(self._write_status())]
            if not self.over and not self.stopping.is_set():
                tasks.append(asyncio.create_task(self._live()))
                tasks[-1].add_done_callback(self._live_ended)
                tasks.append(asyncio.create_task(self._refresh()))
            leave = [asyncio.create_task(self.stopping.wait()), asyncio.create_task(self.gone.wait())]
            tasks += leave
            await asyncio.wait(leave, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not self.gone.is_set():
                await self._terminate()
        finally:
            for task in tasks:
                task.cancel()
            await self._kill()

    # Its life.

    def _adopt(self) -> None:
        """Take over what the status says. No process outlives a runner, so what it says is running has been lost."""
        old = self.pod.get("status", {})
        states = self.state
        states.host_ip = _node_address(self.node)
        states.start_time = old.get("startTime") or now_rfc3339()
        known = {c["name"]: c for c in [*old.get("initContainerStatuses", []), *old.get("containerStatuses", [])]}
        inits = any(c.state.init for c in self.containers)
        for each in self.containers:
            if each.name in known:
                each.state.adopt(known[each.name])
                each.lose()
            elif inits and not each.state.init:
                each.state.state = dict(status.INITIALIZING)
        self.pod_ip = self.kubelet.addresses.take(self.uid, old.get("podIP"))
        self.address = "127." + self.pod_ip.partition(".")[2]
        addresses = {"podIP": self.pod_ip, "hostIP": states.host_ip}
        kubelet = self.kubelet
        self.volumes = Volumes(kubelet.kube, kubelet.r, self.pod, self.folder, addresses, self.node)

    async def _live(self) -> None:
        """From the first mount to the last container's end. Cancelled when the pod is to stop."""
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        try:
            async with asyncio.timeout(None if deadline is None else self._left(deadline)):
                self.touch()
                await self._mount()
                self.state.sandbox, self.state.pod_ip = True, self.pod_ip
                await self._run_containers()
        except TimeoutError:
            message = "Pod was active on the node longer than the specified deadline"
            self.event("Normal", "DeadlineExceeded", message)
            self.state.failed = ("DeadlineExceeded", message)
            await self._stop_containers(self.grace(None))
        self.state.ending = True
        self.touch()

    def _live_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: the runner's own fault; the pod stays as it is", self.title, exc_info=error)

    def _left(self, deadline: float) -> float:
        return float(deadline) - (self.kubelet.age(self.state.start_time))

    async def _mount(self) -> None:
        pause = 0.5
        while True:
            try:
                await self.volumes.prepare()
                return
            except MountError as error:
                self.event("Warning", "FailedMount", str(error))
            except (aiohttp.ClientError, ApiError, TimeoutError) as error:
                log.warning("%s: volumes: %s", self.title, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 10)

    async def _run_containers(self) -> None:
        mains = [c for c in self.containers if not c.state.init]
        sidecars: list[asyncio.Task[None]] = []
        try:
            for each in [c for c in self.containers if c.state.init]:
                if each.state.sidecar:
                    sidecars.append(asyncio.create_task(each.run()))
                    while not each.state.started:
                        each.changed.clear()
                        await each.changed.wait()
                    continue
                await each.run()
                if each.state.exit_code != 0:
                    return
            for each in mains:
                if each.state.state == status.INITIALIZING:
                    each.wait_for("ContainerCreating")
            async with asyncio.TaskGroup() as group:
                for each in mains:
                    group.create_task(each.run())
        finally:
            for task in sidecars:
                task.cancel()
        await asyncio.gather(*(c.stop(self.grace(None)) for c in self.containers if c.state.sidecar))

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH)
            try:
                await self.volumes.refresh(self.pod)
            except (aiohttp.ClientError, ApiError, TimeoutError) as error:
                log.warning("%s: volumes not brought up to date: %s", self.title, error)

    # What its containers ask of it.

    def event(self, type_: str, reason: str, message: str, container: str = "", init: bool = False) -> None:
        self.kubelet.events.record(self.pod, type_, reason, message, container, init)

    async def environment(self, container: Container) -> dict[str, str]:
        """The complete environment of a container. Raises environment.ConfigError."""
        r, program = self.kubelet.r, container.program
        base = {
            "PATH": os.pathsep.join([*program.path, os.environ.get("PATH", os.defpath)]),
            "HOME": os.environ.get("HOME", "/"), "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOSTNAME": self.pod["spec"].get("hostname") or self.key[1],
            "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(r.ports["apiserver"]),
            "REHEARSAL_STATE": str(r.state), "REHEARSAL_POD_IP": self.pod_ip, "REHEARSAL_LISTEN": self.address,
            "REHEARSAL_IMAGE": container.image, "REHEARSAL_PYTHON": r.python,
        }  # fmt: skip
        if "REHEARSAL_PART" in os.environ:
            # The supervisor knows the processes of a rehearsal by this.
            base["REHEARSAL_PART"] = os.environ["REHEARSAL_PART"]
        addresses = {"podIP": self.pod_ip, "hostIP": self.state.host_ip}
        return await environment.build(
            self.kubelet.kube, self.pod, container.spec, self.node, addresses, base | program.env
        )

    def sandbox_spec(self, container: Container, argv: list[str], binds: list[dict[str, Any]]) -> dict[str, Any]:
        r = self.kubelet.r
        root = container.folder / "root"
        root.mkdir(parents=True, exist_ok=True)
        own_hosts = {"source": str(self._hosts_file()), "target": "/etc/hosts", "read_only": False}
        return {
            "root": str(root),
            "hostname": (self.pod["spec"].get("hostname") or self.key[1])[:63],
            "keep": [str(r.root), str(r.state), str(Path(r.python).parent), str(r.aiperf.parent)],
            "binds": [own_hosts, *container.image_binds(), *binds],
            "workdir": container.spec.get("workingDir") or container.program.workdir,
            "argv": argv,
            "drop": dropped(container.spec),
        }

    def _hosts_file(self) -> Path:
        name = self.pod["spec"].get("hostname") or self.key[1]
        return self.kubelet.hosts.add(hosts.Reader(self.uid, self.key[0], name, self.address, self.folder / "hosts"))

    async def publish(self) -> None:
        listed = []
        ports = {p["containerPort"] for c in self.containers for p in c.spec.get("ports", [])}
        for each in self.containers:
            ports |= set(each.program.ports)
            each.folder.mkdir(parents=True, exist_ok=True)
            count = each.state.restart_count
            each.log_file().touch()
            previous = each.log_file(count - 1)
            listed.append(
                (each.name, each.log_file(), previous if count and previous.exists() else None, each.folder / "pid")
            )
        try:
            await self._publisher.publish(publish.specs(self.kubelet.r, listed, self.address, ports))
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("%s not published: %s", self.title, error)

    def grace(self, default: float | None) -> float:
        meta, spec = self.pod["metadata"], self.pod["spec"]
        chosen = meta.get("deletionGracePeriodSeconds", spec.get("terminationGracePeriodSeconds", default))
        return 30.0 if chosen is None else float(chosen)

    # Its status.

    def touch(self, delay: float = 0.0) -> None:
        """Something changed: write the status soon."""
        if delay:
            asyncio.get_running_loop().call_later(delay, self._dirty.set)
        else:
            self._dirty.set()

    async def _write_status(self) -> None:
        while True:
            await self._dirty.wait()
            # Changes that come together become one write.
            await asyncio.sleep(0.01)
            self._dirty.clear()
            try:
                await self._put_status()
            except (aiohttp.ClientError, TimeoutError, OSError, ApiError) as error:
                log.warning("%s: status not written: %s", self.title, error)
                await asyncio.sleep(1)
                self._dirty.set()

    async def _put_status(self) -> None:
        async with self._lock:
            wanted = status.render(self.pod, self.state, now_rfc3339(), self._last)
            if wanted == self._last or self.over or self.gone.is_set():
                return
            path = path_of("v1", "Pod", *self.key, "status")
            try:
                # The uid makes the server refuse a write meant for an earlier pod of this name.
                self.pod = await self.kubelet.kube.patch(path, {"metadata": {"uid": self.uid}, "status": wanted})
                self._last = wanted
            except (NotFound, Conflict):
                log.debug("%s is another pod now", self.title)

    # Its end.

    async def _stop_containers(self, grace: float) -> None:
        await asyncio.gather(*(c.stop(grace) for c in self.containers))

    async def _terminate(self) -> None:
        """The graceful deletion: end the processes, write the last status, then let the object go."""
        ending = asyncio.create_task(self._stop_containers(self.grace(30)))
        lost = asyncio.create_task(self.gone.wait())
        await asyncio.wait([ending, lost], return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if not ending.done():
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            return
        ending.result()
        self.state.ending, self.state.sandbox = True, False
        for each in self.containers:
            each.state.close()
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        pause = 0.2
        while not self.gone.is_set():
            try:
                await self._put_status()
                await self.kubelet.kube.delete(path_of("v1", "Pod", *self.key), body)
                return
            except (NotFound, Conflict):
                return
            except (aiohttp.ClientError, TimeoutError, OSError, ApiError) as error:
                log.warning("%s: not removed yet: %s", self.title, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5)

    async def _kill(self) -> None:
        """Nothing of the pod runs after this."""
        running = [c.process for c in self.containers if c.process is not None]
        for each in running:
            each.kill()
        if running:
            await asyncio.wait([each.exit_code for each in running])

    async def clean(self) -> None:
        """Take away what the pod had on this machine, once it is gone from the API server."""
        self.kubelet.hosts.remove(self.uid)
        self.kubelet.addresses.release(self.uid)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            await self._publisher.withdraw()
        await asyncio.to_thread(shutil.rmtree, self.folder, True)


def _node_address(node: Obj) -> str:
    addresses = node.get("status", {}).get("addresses", [])
    return next((str(a["address"]) for a in addresses if a["type"] == "InternalIP"), "127.0.0.1")
