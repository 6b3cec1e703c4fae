"""What else surrounds the operator in a replay: nodes, the volume provisioner, and the model endpoint behind each
Service."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from rehearsal.kube import ApiError, Kube, path
from tests.rehearsal.replay.scenario import Scenario

Obj = dict[str, Any]
CLASS = "efs-sc-dynamic"
PROVISIONER = "efs.csi.aws.com"
BIND_S = 1.0
NODES = 8
INSTANCE_LABEL = "node.kubernetes.io/instance-type"
USUAL = "g5.48xlarge"


def _node(number: int, labels: dict[str, str], gpus: int, kubelet_port: int) -> Obj:
    name = f"ip-10-0-1-{number}.ec2.internal"
    amounts = {"cpu": "192", "memory": "768Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, INSTANCE_LABEL: USUAL, **labels}},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}],
        },
    }


async def make_nodes(kube: Kube, scenarios: list[Scenario], kubelet_port: int) -> None:
    """Eight nodes: those that scenarios want different, and for the rest the usual ones."""
    special = {tuple(sorted(pool["node_selector"].items())): pool for s in scenarios for pool in s.pools}
    nodes = []
    for pool in special.values():
        nodes += [(dict(pool["node_selector"]), int(pool["gpu_allocatable"]))] * int(pool.get("nodes", 1))
    nodes += [({}, 8)] * (NODES - len(nodes))
    for number, (labels, gpus) in enumerate(nodes, 11):
        node = _node(number, labels, gpus, kubelet_port)
        status = {"status": node["status"]}
        await kube.create("/api/v1/nodes", node)
        await kube.patch(path(node, "status"), status)
        # Admission taints a new node as not ready; with node lifecycle off nobody takes that away.
        await kube.patch(path(node), {"spec": {"taints": None}})
    storage_class = {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
        "provisioner": PROVISIONER, "volumeBindingMode": "Immediate", "reclaimPolicy": "Delete",
    }  # fmt: skip
    await kube.create("/apis/storage.k8s.io/v1/storageclasses", storage_class)


class Provisioner:
    """Binds claims a second after they came, unless the scenario says that it cannot."""

    def __init__(self, kube: Kube, scenarios: dict[str, Scenario]):
        self._kube, self._scenarios = kube, scenarios
        self._begun: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def on_claim(self, type_: str, claim: Obj) -> None:
        meta = claim["metadata"]
        scenario = self._scenarios.get(meta["namespace"])
        ours = claim["spec"].get("storageClassName") == CLASS and not claim["spec"].get("volumeName")
        if scenario is None or type_ == "DELETED" or not ours or meta["uid"] in self._begun:
            return
        self._begun.add(meta["uid"])
        if not scenario.never_bound(meta["name"]):
            task = asyncio.create_task(self._bind(claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _bind(self, claim: Obj) -> None:
        await asyncio.sleep(BIND_S)
        meta = claim["metadata"]
        name = f"pvc-{meta['uid']}"
        volume = {
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
            "spec": {
                "accessModes": claim["spec"]["accessModes"],
                "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": meta["name"],
                             "namespace": meta["namespace"], "uid": meta["uid"]},
                "csi": {"driver": PROVISIONER, "volumeHandle": "fs-0::fsap-0"},
                "persistentVolumeReclaimPolicy": "Delete", "storageClassName": CLASS,
            },
        }  # fmt: skip
        await self._kube.create("/api/v1/persistentvolumes", volume)


class Endpoints:
    """Answers /v1/models on the ClusterIP of every Service of a scenario, whatever its pods do, as in the
    recordings."""

    def __init__(self, scenarios: dict[str, Scenario]):
        self._scenarios = scenarios
        self._answers: dict[str, Obj] = {}
        self._servers: dict[tuple[str, str], asyncio.Task[web.AppRunner]] = {}

    def answer(self, scenario: Scenario, action: Obj) -> None:
        """From now on this is what the NIMService's endpoint says."""
        name = action["object"].partition("/")[2]
        self._answers[f"{scenario.namespace}/{name}"] = action["detail"]

    def on_service(self, type_: str, service: Obj) -> None:
        meta = service["metadata"]
        key = (meta["namespace"], meta["uid"])
        if meta["namespace"] not in self._scenarios:
            return
        if type_ == "DELETED":
            task = self._servers.pop(key, None)
            if task:
                task.add_done_callback(lambda done: asyncio.ensure_future(done.result().cleanup()))
        elif key not in self._servers:
            self._servers[key] = asyncio.create_task(self._serve(service))

    async def _serve(self, service: Obj) -> web.AppRunner:
        meta = service["metadata"]
        scenario = self._scenarios[meta["namespace"]]

        async def models(_: web.Request) -> web.Response:
            detail = self._answers.get(f"{meta['namespace']}/{meta['name']}", {"code": 200})
            if detail["code"] != 200:
                return web.Response(status=detail["code"])
            model = detail.get("model") or scenario.model()
            return web.json_response({"object": "list", "data": [{"id": model, "object": "model", "root": model}]})

        app = web.Application()
        app.add_routes([web.get("/v1/models", models)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]).start()
        return runner

    async def close(self) -> None:
        for task in self._servers.values():
            try:
                await (await task).cleanup()
            except (OSError, ApiError):
                continue
