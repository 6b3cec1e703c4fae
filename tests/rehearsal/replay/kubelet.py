"""The kubelet of a replay: gives each pod the behaviour that the recorded pod of the same owner and number had."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict
from typing import Any

from aiohttp import web

from rehearsal.config import Rehearsal
from rehearsal.kube import ApiError, Kube, NotFound, now_rfc3339, path
from tests.rehearsal.replay.scenario import Behaviour, Scenario, Step

Obj = dict[str, Any]
END_S = 1.0
"""From a pod's deletion to the end of its containers; its removal follows after REMOVE_S."""
REMOVE_S = 0.15


def controller(obj: Obj) -> Obj:
    return next((ref for ref in obj["metadata"].get("ownerReferences") or [] if ref.get("controller")), {})


class Kubelet:
    def __init__(self, kube: Kube, scenarios: dict[str, Scenario]):
        self._kube, self._scenarios = kube, scenarios
        self._numbers: dict[str, tuple[str, int]] = {}
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._owners: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def on_pod(self, type_: str, pod: Obj) -> None:
        meta = pod["metadata"]
        scenario, uid = self._scenarios.get(meta["namespace"]), meta["uid"]
        if scenario is None:
            return
        if type_ == "DELETED":
            self._stop(uid)
            return
        if uid not in self._numbers:
            self._numbers[uid] = self._number(scenario, pod)
        if meta.get("deletionTimestamp"):
            if uid not in self._ending:
                self._ending.add(uid)
                self._stop(uid)
                self._spawn(self._end(pod))
        elif pod["spec"].get("nodeName") and uid not in self._running:
            self._running[uid] = self._spawn(self._live(pod, self._behaviour(scenario, uid)))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stop(self, uid: str) -> None:
        task = self._running.get(uid)
        if task:
            task.cancel()

    def _number(self, scenario: Scenario, pod: Obj) -> tuple[str, int]:
        """The recorded owner that this pod's stands for, and which pod of it this is.

        A ReplicaSet's name holds a hash of the pod template: one of another name stands for the recorded one of the
        same place in order.
        """
        owner = controller(pod)
        kind, name, namespace = owner.get("kind", "Pod"), owner.get("name", pod["metadata"]["name"]), scenario.namespace
        mine, recorded = self._owners[namespace, kind], scenario.owners(kind)
        if name not in mine:
            mine.append(name)
        if kind == "ReplicaSet" and name not in recorded and len(recorded) >= len(mine):
            name = recorded[mine.index(name)]
        key = (namespace, f"{kind}/{name}")
        self._counts[key] += 1
        return key[1], self._counts[key]

    def _behaviour(self, scenario: Scenario, uid: str) -> Behaviour:
        owner, number = self._numbers[uid]
        while number > 1 and (owner, number) not in scenario.behaviours:
            number -= 1
        return scenario.behaviours.get((owner, number), Behaviour())

    async def _live(self, pod: Obj, behaviour: Behaviour) -> None:
        start = time.monotonic()
        await asyncio.sleep(0.1)
        containers = Containers(pod)
        await self._write(pod, containers.waiting("ContainerCreating", ""))
        for step in behaviour.steps:
            await asyncio.sleep(max(0.0, step.after - behaviour.scheduled - (time.monotonic() - start)))
            await self._write(pod, containers.after(step))

    async def _end(self, pod: Obj) -> None:
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed") and pod["spec"].get("nodeName"):
            await asyncio.sleep(END_S)
            exits = (
                143
                if pod["spec"].get("restartPolicy") == "Always" and controller(pod).get("kind") != "ReplicaSet"
                else 0
            )
            ended = Containers(pod).after(
                Step("exit", 0, {"exit_code": exits, "phase": "Failed" if exits else "Succeeded"})
            )
            await self._write(pod, ended)
            await asyncio.sleep(REMOVE_S)
        try:
            await self._kube.delete(
                path(pod), {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
            )
        except ApiError:
            return

    async def _write(self, pod: Obj, status: Obj) -> None:
        try:
            await self._kube.patch(path(pod, "status"), {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status})
        except NotFound:
            return

    async def serve_logs(self, r: Rehearsal, port: int) -> web.AppRunner:
        """The one thing of a kubelet's API that is asked for: the log of a selection pod, which is a manifest."""

        async def logs(request: web.Request) -> web.Response:
            scenario = self._scenarios[request.match_info["namespace"]]
            pod = await self._kube.get(f"/api/v1/namespaces/{scenario.namespace}/pods/{request.match_info['pod']}")
            return web.Response(text=scenario.manifest(pod["spec"]["containers"][0]["image"]))

        app = web.Application()
        app.add_routes([web.get("/containerLogs/{namespace}/{pod}/{container}", logs)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(r.state / "pki" / "server.crt", r.state / "pki" / "server.key")
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        return runner


class Containers:
    """A pod's status as its containers go through the recorded steps."""

    def __init__(self, pod: Obj):
        self._pod = pod
        self._restarts, self._started = 0, False
        self._last: Obj = {}

    def waiting(self, reason: str, message: str) -> Obj:
        state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        return self._status("Running" if self._started else "Pending", state, ready=False)

    def after(self, step: Step) -> Obj:
        detail = step.detail
        if step.verb == "wait":
            self._restarts = detail.get("restarts", self._restarts)
            return self.waiting(detail["reason"], detail.get("message", ""))
        if step.verb == "exit":
            reason = "Error" if detail["exit_code"] else "Completed"
            times = {"startedAt": now_rfc3339(), "finishedAt": now_rfc3339()}
            state = {"terminated": {"exitCode": detail["exit_code"], "reason": reason, **times}}
            return self._status(detail.get("phase", "Failed"), state, ready=False)
        if step.verb == "restart":
            self._restarts = detail["restarts"]
            self._last = {"terminated": {"exitCode": detail["last_exit_code"], "reason": detail["last_reason"]}}
        self._started = True
        return self._status("Running", {"running": {"startedAt": now_rfc3339()}}, ready=step.verb == "ready")

    def _status(self, phase: str, state: Obj, *, ready: bool) -> Obj:
        flags = {
            "Initialized": True, "PodReadyToStartContainers": "running" in state, "Ready": ready,
            "ContainersReady": ready, "PodScheduled": True,
        }  # fmt: skip
        conditions = [
            {"type": name, "status": str(value), "lastTransitionTime": now_rfc3339()} for name, value in flags.items()
        ]
        entries = []
        for container in self._pod["spec"]["containers"]:
            entry = {
                "name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                "restartCount": self._restarts, "started": "running" in state, "state": state,
            }  # fmt: skip
            entries.append(entry | ({"lastState": self._last} if self._last else {}))
        return {"phase": phase, "conditions": conditions, "containerStatuses": entries, "podIP": "10.244.0.9",
                "podIPs": [{"ip": "10.244.0.9"}], "hostIP": "127.0.0.1"}  # fmt: skip
