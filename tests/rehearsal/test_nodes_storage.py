"""Nodes and volumes on a real control plane: etcd, API server, controller-manager, scheduler and KWOK, and moto.
The nodes are Karpenter's (stand-in), from the committed node pools.

The control plane is this file's own (no Airflow, no runner), because KWOK and the stand-ins are ended and started
again here. Pods get no kubelet: they are bound, and end when they are deleted at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from rehearsal import faults
from rehearsal.config import ROOT, Rehearsal
from rehearsal.karpenter import local
from rehearsal.kube import ApiError, Kube, NotFound, Obj, path, path_of
from tests.rehearsal.aws_standin import client
from tests.rehearsal.plane import Plane, standing

PARTS = {
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "cluster-setup", "kwok",
    "aws", "nodes", "karpenter", "storage",
}  # fmt: skip
TIMING = {"node_start": 0.5, "node_empty": 1.0, "node_batch": 0.1, "volume_provision": 0.1, "volume_retry_max": 2.0}
GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
POOL = {"instanceType": "g5-gpu-karpenter"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with standing(tmp_path_factory.mktemp("plane"), PARTS, TIMING) as plane:
        yield plane


@pytest.fixture
def r(plane: Plane) -> Rehearsal:
    return plane.r


@pytest.fixture
async def kube(r: Rehearsal) -> AsyncIterator[Kube]:
    async with Kube.from_rehearsal(r) as kube:
        yield kube
        for pod in await kube.list("/api/v1/namespaces/default/pods"):
            await kube.delete(path(pod), {"gracePeriodSeconds": 0})
        for claim in await kube.list("/api/v1/namespaces/default/persistentvolumeclaims"):
            await kube.delete(path(claim))
        for storage_class in await kube.list("/apis/storage.k8s.io/v1/storageclasses"):
            await kube.delete(path(storage_class))
        await until(lambda: _none(kube, "/api/v1/persistentvolumes"))
        await until(lambda: _none(kube, "/api/v1/nodes"))


async def _none(kube: Kube, collection: str) -> bool:
    return not await kube.list(collection)


async def until(check: Callable[[], Awaitable[Any]], *, within: float = 25.0) -> Any:
    """The check's result as soon as it is true; fails after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not (result := await check()):
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.2)
    return result


def pod(name: str, limits: dict[str, str] | None = None, **spec: Any) -> Obj:
    container = {"name": "main", "image": "example.com/none", "resources": {"limits": limits or {}}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [container], **spec}}  # fmt: skip


async def create(kube: Kube, obj: Obj) -> Obj:
    return await kube.create(path_of(obj["apiVersion"], obj["kind"], obj["metadata"].get("namespace")), obj)


async def messages(kube: Kube, name: str, reason: str, component: str) -> list[str]:
    events = await kube.list("/api/v1/namespaces/default/events", field_selector=f"involvedObject.name={name}")
    return [e["message"] for e in events if e["reason"] == reason and e["reportingComponent"].startswith(component)]


CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"


def instances(r: Rehearsal) -> dict[str, Any]:
    """What runs, by id."""
    found = [one for group in client(r, "ec2").describe_instances()["Reservations"] for one in group["Instances"]]
    return {one["InstanceId"]: one for one in found if one["State"]["Name"] != "terminated"}


async def true_conditions(kube: Kube, obj: Obj) -> set[str] | None:
    live = await kube.get(path(obj))
    found = {one["type"] for one in live["status"]["conditions"] if one["status"] == "True"}
    return found if "Ready" in found else None


def home(kube: Kube, name: str) -> Callable[[], Awaitable[str | None]]:
    async def look() -> str | None:
        return (await kube.get(f"/api/v1/namespaces/default/pods/{name}"))["spec"].get("nodeName")

    return look


# --- nodes ---------------------------------------------------------------------------------------------------------


async def test_two_gpu_pods_get_one_node_which_goes_when_they_are_gone(r: Rehearsal, kube: Kube) -> None:
    assert await kube.list("/api/v1/nodes") == []
    limits = {"cpu": "20", "nvidia.com/gpu": "2"}
    for name in ("one", "two"):
        await create(kube, pod(name, limits, tolerations=[GPU], nodeSelector=POOL))
    homes = {await until(home(kube, "one")), await until(home(kube, "two"))}
    nodes = await kube.list("/api/v1/nodes")
    assert len(nodes) == 1 and homes == {nodes[0]["metadata"]["name"]}
    node = nodes[0]
    labels = node["metadata"]["labels"]
    assert {**labels, **POOL, "type": "karpenter", "accelerator": "nvidia", "gpuType": "a10g"} == labels
    assert (labels["node.kubernetes.io/instance-type"], labels["nvidia.com/gpu.product"]) == (
        "g5.12xlarge", "NVIDIA-A10G",
    )  # fmt: skip
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "4"
    zone = labels["topology.kubernetes.io/zone"]
    assert node["spec"]["providerID"].startswith(f"aws:///{zone}/i-")
    assert {"key": "nvidia.com/gpu", "effect": "NoSchedule"} in node["spec"]["taints"]
    (nodeclaim,) = await kube.list(CLAIMS)
    assert nodeclaim["status"]["nodeName"] == node["metadata"]["name"]
    assert nodeclaim["status"]["providerID"] == node["spec"]["providerID"]
    assert {"Launched", "Registered", "Initialized", "Ready"} <= await until(lambda: true_conditions(kube, nodeclaim))
    instance = instances(r)[node["spec"]["providerID"].rpartition("/")[2]]
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags["karpenter.sh/nodepool"] == "g5-gpu-karpenter" and tags["Name"] == node["metadata"]["name"]
    assert tags["karpenter.sh/nodeclaim"] == nodeclaim["metadata"]["name"]
    assert tags["kubernetes.io/cluster/local"] == "owned" and tags["eks:eks-cluster-name"] == "local"
    nominated = await messages(kube, "one", "Nominated", "karpenter")
    assert len(nominated) == 1 and nominated[0].startswith("Pod should schedule on: nodeclaim/g5-gpu-karpenter-")
    await kube.delete("/api/v1/namespaces/default/pods/one", {"gracePeriodSeconds": 0})
    await asyncio.sleep(TIMING["node_empty"] + 1.5)
    assert len(await kube.list("/api/v1/nodes")) == 1, "a node with a pod stays"
    await kube.delete("/api/v1/namespaces/default/pods/two", {"gracePeriodSeconds": 0})
    await until(lambda: _none(kube, "/api/v1/nodes"))
    assert await messages(kube, node["metadata"]["name"], "DisruptionTerminating", "karpenter") == [
        "Disrupting Node: Empty"
    ]
    await until(lambda: _none(kube, CLAIMS))
    assert instances(r) == {}


@pytest.mark.slow
async def test_a_node_that_a_pod_still_waits_for_is_not_empty(kube: Kube) -> None:
    """The scheduler may bind a pod seconds after its node has come: it tries again ever later."""
    limits = {"cpu": "20", "nvidia.com/gpu": "2"}
    late = await create(kube, pod("late", limits, tolerations=[GPU], nodeSelector=POOL, schedulerName="nobody"))
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    await kube.patch(path(late, "status"), {"status": {"conditions": [waits]}})
    (node,) = await until(lambda: kube.list("/api/v1/nodes"))
    (nodeclaim,) = await kube.list(CLAIMS)
    assert "Initialized" in await until(lambda: true_conditions(kube, nodeclaim))
    await asyncio.sleep(TIMING["node_empty"] + 1.5)
    (still,) = await kube.list("/api/v1/nodes")
    assert still["metadata"]["uid"] == node["metadata"]["uid"] and len(await kube.list(CLAIMS)) == 1
    assert "karpenter.sh/disrupted" not in {taint["key"] for taint in still["spec"]["taints"]}
    await kube.delete(path(late), {"gracePeriodSeconds": 0})
    await until(lambda: _none(kube, "/api/v1/nodes"))


async def test_a_pod_without_a_gpu_gets_the_cheap_shape(kube: Kube) -> None:
    await create(kube, pod("cpu"))
    name = await until(home(kube, "cpu"))
    node = await kube.get(f"/api/v1/nodes/{name}")
    assert node["metadata"]["labels"]["karpenter.sh/nodepool"] == "x86-cpu-karpenter"


async def test_a_pod_that_no_shape_holds_is_told_why(kube: Kube) -> None:
    await create(kube, pod("untolerated", {"nvidia.com/gpu": "1"}))
    await create(kube, pod("large", {"nvidia.com/gpu": "9"}, tolerations=[GPU]))
    told = await until(lambda: messages(kube, "large", "FailedScheduling", "karpenter"))
    assert 'incompatible with nodepool "g5-gpu-karpenter"' in told[0]
    assert 'no instance type satisfied resources {"nvidia.com/gpu":"9","pods":"1"}' in told[0]
    told = await until(lambda: messages(kube, "untolerated", "FailedScheduling", "karpenter"))
    assert "did not tolerate nvidia.com/gpu:NoSchedule" in told[0]
    assert await kube.list("/api/v1/nodes") == []


async def test_limits_of_a_pool_are_kept_and_told(kube: Kube) -> None:
    pool = "/apis/karpenter.sh/v1/nodepools/x86-cpu-karpenter"
    await kube.patch(pool, {"spec": {"limits": {"cpu": 2}}})
    try:
        await create(kube, pod("cpu"))
        told = await until(lambda: messages(kube, "cpu", "FailedScheduling", "karpenter"))
        assert 'all available instance types exceed limits for nodepool: "x86-cpu-karpenter"' in told[-1]
        assert await kube.list(CLAIMS) == []
    finally:
        await kube.patch(pool, {"spec": {"limits": {"cpu": 1000}}})
    await until(home(kube, "cpu"))


@pytest.mark.slow
async def test_a_node_class_that_finds_nothing_is_told_and_its_pool_is_not_used(kube: Kube) -> None:
    name = "/apis/karpenter.k8s.aws/v1/ec2nodeclasses/x86-cpu-karpenter"
    good = (await kube.get(name))["spec"]["subnetSelectorTerms"]
    await kube.patch(name, {"spec": {"subnetSelectorTerms": [{"tags": {"karpenter.sh/discovery": "elsewhere"}}]}})
    try:

        async def refused() -> str | None:
            conditions = {c["type"]: c for c in (await kube.get(name))["status"]["conditions"]}
            return str(conditions["SubnetsReady"]["message"]) if conditions["Ready"]["status"] == "False" else None

        assert await until(refused) == "SubnetSelector did not match any Subnets"
        pool = await kube.get("/apis/karpenter.sh/v1/nodepools/x86-cpu-karpenter")
        assert "True" not in {c["status"] for c in pool["status"]["conditions"] if c["type"] == "Ready"}
    finally:
        await kube.patch(name, {"spec": {"subnetSelectorTerms": good}})
    await create(kube, pod("cpu"))
    await until(home(kube, "cpu"))


@pytest.mark.slow
async def test_without_karpenter_nothing_lets_go_of_what_it_made(plane: Plane, r: Rehearsal, kube: Kube) -> None:
    await create(kube, pod("cpu"))
    node = path_of("v1", "Node", None, await until(home(kube, "cpu")))
    plane.end("karpenter")
    await kube.delete("/api/v1/namespaces/default/pods/cpu", {"gracePeriodSeconds": 0})
    (nodeclaim,) = await kube.list(CLAIMS)
    await kube.delete(path(nodeclaim))
    await kube.delete(node)
    await asyncio.sleep(TIMING["node_empty"] + 1)
    assert (await kube.get(node))["metadata"]["finalizers"] == ["karpenter.sh/termination"]
    assert len(await kube.list(CLAIMS)) == 1 and len(instances(r)) == 1
    plane.start()
    await until(lambda: _none(kube, "/api/v1/nodes"))
    await until(lambda: _none(kube, CLAIMS))
    assert instances(r) == {}


@pytest.mark.slow
async def test_a_node_whose_instance_is_ended_from_outside_goes(r: Rehearsal, kube: Kube) -> None:
    await create(kube, pod("cpu"))
    first = await until(home(kube, "cpu"))
    (identifier,) = instances(r)
    client(r, "ec2").terminate_instances(InstanceIds=[identifier])

    async def replaced() -> bool:
        names = [node["metadata"]["name"] for node in await kube.list("/api/v1/nodes")]
        return first not in names

    await until(replaced)
    assert identifier not in instances(r)


@pytest.mark.slow
async def test_what_is_not_to_be_disturbed_stays(kube: Kube) -> None:
    await create(kube, pod("cpu"))
    node = path_of("v1", "Node", None, await until(home(kube, "cpu")))
    await kube.patch(node, {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}})
    await kube.delete("/api/v1/namespaces/default/pods/cpu", {"gracePeriodSeconds": 0})
    await asyncio.sleep(TIMING["node_empty"] + 1.5)
    assert len(await kube.list("/api/v1/nodes")) == 1
    await kube.patch(node, {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": None}}})
    await until(lambda: _none(kube, "/api/v1/nodes"))


@pytest.mark.slow
async def test_kwok_keeps_address_lease_and_logs_also_over_its_restart(plane: Plane, kube: Kube) -> None:
    await create(kube, pod("logged"))
    name = await until(home(kube, "logged"))
    file = plane.r.state / "logged.log"
    file.write_text("2026-01-01T00:00:00.000000000Z stdout F hello from a pod\n")
    entry = {"containers": ["main"], "logsFile": str(file), "follow": False}
    await create(kube, {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Logs",
                        "metadata": {"name": "logged", "namespace": "default"}, "spec": {"logs": [entry]}})  # fmt: skip

    async def logs() -> bool:
        try:
            return "hello from a pod" in await kube.text("/api/v1/namespaces/default/pods/logged/log")
        except Exception:  # KWOK has not seen the object, or is not up yet
            return False

    async def complete() -> bool:
        node = await kube.get(f"/api/v1/nodes/{name}")
        addresses = {a["type"]: a["address"] for a in node["status"].get("addresses") or []}
        return addresses == {"InternalIP": "127.0.0.1", "Hostname": name}

    async def leased() -> bool:
        try:
            return bool(await kube.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"))
        except NotFound:
            return False

    remove = [{"op": "remove", "path": "/status/addresses"}]
    await until(logs)
    await until(leased)
    await kube.patch(f"/api/v1/nodes/{name}/status", remove, kind="json")
    await until(complete)
    plane.end("kwok")
    plane.start()
    await until(logs)
    assert await complete()
    live = await kube.get("/api/v1/namespaces/default/pods/logged")
    assert live["status"]["phase"] == "Pending" and "podIP" not in live["status"], "KWOK writes no pod"


@pytest.mark.slow
async def test_karpenter_goes_on_after_a_restart(plane: Plane, kube: Kube) -> None:
    await create(kube, pod("before"))
    first = await until(home(kube, "before"))
    plane.end("karpenter")
    await create(kube, pod("gpu", {"nvidia.com/gpu": "1"}, tolerations=[GPU]))
    await kube.delete("/api/v1/namespaces/default/pods/before", {"gracePeriodSeconds": 0})
    plane.start()
    second = await until(home(kube, "gpu"))
    assert second != first

    async def only_second() -> bool:
        return [n["metadata"]["name"] for n in await kube.list("/api/v1/nodes")] == [second]

    await until(only_second)


async def test_the_definitions_accept_every_pool_that_is_shipped(kube: Kube) -> None:
    files = sorted(file.stem for file in (ROOT / "include/manifests/node-pools").glob("*.yaml"))
    objects = local.pools(ROOT, tuple(files))
    assert len(objects) == 2 * len(files)
    for obj in objects:
        # Under another name, since some of them stand.
        await kube.create(
            path_of(obj["apiVersion"], obj["kind"]),
            {**obj, "metadata": {**obj["metadata"], "name": "tried"}}, fieldValidation="Strict", dryRun="All",
        )  # fmt: skip


async def test_karpenters_own_operators_are_taken_and_honoured(kube: Kube) -> None:
    """Gte and Lte: pods have no such operators."""
    place = path_of("karpenter.sh/v1", "NodePool", None, "g5-gpu-karpenter")
    requirements = (await kube.get(place))["spec"]["template"]["spec"]["requirements"]

    async def restrict(*more: Obj) -> None:
        await kube.patch(place, {"spec": {"template": {"spec": {"requirements": [*requirements, *more]}}}})

    cpus = "karpenter.k8s.aws/instance-cpu"
    with pytest.raises(ApiError, match="single positive integer"):
        await restrict({"key": cpus, "operator": "Gte", "values": ["64", "96"]})
    await restrict(
        {"key": cpus, "operator": "Gte", "values": ["96"]}, {"key": cpus, "operator": "Lte", "values": ["96"]}
    )
    try:
        await create(kube, pod("bound", {"nvidia.com/gpu": "2"}, tolerations=[GPU], nodeSelector=POOL))
        await until(home(kube, "bound"))
    finally:
        await restrict()
    (node,) = await kube.list("/api/v1/nodes")
    assert node["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "g5.24xlarge"


# --- storage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def efs(r: Rehearsal) -> Iterator[Any]:
    efs = client(r, "efs")
    yield efs
    for fs in efs.describe_file_systems()["FileSystems"]:
        for target in efs.describe_mount_targets(FileSystemId=fs["FileSystemId"])["MountTargets"]:
            efs.delete_mount_target(MountTargetId=target["MountTargetId"])
        efs.delete_file_system(FileSystemId=fs["FileSystemId"])


def file_system(r: Rehearsal, efs: Any, *, mounted: bool = True) -> str:
    fs = efs.create_file_system(CreationToken=f"test-{time.monotonic_ns()}")["FileSystemId"]
    if mounted:
        mount(r, efs, fs)
    return str(fs)


def mount(r: Rehearsal, efs: Any, fs: str) -> None:
    subnet = client(r, "ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    efs.create_mount_target(FileSystemId=fs, SubnetId=subnet)


async def storage_class(kube: Kube, fs: str, *, mode: str = "Immediate", **parameters: str) -> str:
    name = f"class-{time.monotonic_ns()}"
    given = {"provisioningMode": "efs-ap", "fileSystemId": fs, "directoryPerms": "770", "uid": "1000", "gid": "2000",
             "basePath": "/volumes", **parameters}  # fmt: skip
    await create(kube, {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "efs.csi.aws.com", "reclaimPolicy": "Delete", "volumeBindingMode": mode,
        "mountOptions": ["tls", "iam"], "parameters": given,
    })  # fmt: skip
    return name


def claim(class_name: str, name: str = "data") -> Obj:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
            "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": class_name,
                     "resources": {"requests": {"storage": "50Gi"}}}}  # fmt: skip


def bound(kube: Kube, name: str = "data") -> Callable[[], Awaitable[Obj | None]]:
    async def look() -> Obj | None:
        live = await kube.get(f"/api/v1/namespaces/default/persistentvolumeclaims/{name}")
        return live if live["status"]["phase"] == "Bound" else None

    return look


def points(efs: Any) -> list[dict[str, Any]]:
    return list(efs.describe_access_points()["AccessPoints"])


async def test_a_claim_is_bound_and_released(r: Rehearsal, kube: Kube, efs: Any) -> None:
    fs = file_system(r, efs)
    made = await create(kube, claim(await storage_class(kube, fs)))
    live = await until(bound(kube))
    name = live["spec"]["volumeName"]
    assert name == f"pvc-{made['metadata']['uid']}"
    pv = await kube.get(f"/api/v1/persistentvolumes/{name}")
    (point,) = points(efs)
    assert pv["spec"]["csi"]["volumeHandle"] == f"{fs}::{point['AccessPointId']}"
    assert pv["spec"]["capacity"]["storage"] == "50Gi" and pv["spec"]["accessModes"] == ["ReadWriteMany"]
    assert pv["spec"]["mountOptions"] == ["tls", "iam"] and pv["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert point["PosixUser"] == {"Uid": 1000, "Gid": 2000}
    assert point["RootDirectory"]["Path"] == f"/volumes/{name}"
    assert point["RootDirectory"]["CreationInfo"]["Permissions"] == "770"
    folder = r.path("volumes") / name
    assert folder.stat().st_mode & 0o7777 == 0o770
    assert await messages(kube, "data", "Provisioning", "efs.csi.aws.com") == [
        'External provisioner is provisioning volume for claim "default/data"'
    ]
    assert await messages(kube, "data", "ProvisioningSucceeded", "efs.csi.aws.com") == [
        f"Successfully provisioned volume {name}"
    ]
    assert await messages(kube, "data", "ExternalProvisioning", "persistentvolume-controller")
    (folder / "model").write_text("content")
    await kube.delete(path(made))
    await until(lambda: _none(kube, "/api/v1/persistentvolumes"))
    assert points(efs) == [] and not folder.exists()
    driver = await kube.get("/apis/storage.k8s.io/v1/csidrivers/efs.csi.aws.com")
    assert driver["spec"]["attachRequired"] is False


async def test_a_restart_makes_no_second_volume_and_forgets_no_release(
    plane: Plane, r: Rehearsal, kube: Kube, efs: Any
) -> None:
    class_name = await storage_class(kube, file_system(r, efs))
    kept = await create(kube, claim(class_name, "kept"))
    released = await create(kube, claim(class_name, "released"))
    await until(bound(kube, "kept"))
    await until(bound(kube, "released"))
    plane.end("storage")
    # An access point whose claim was deleted before it had a volume, one that another tool made, and a release.
    fs = points(efs)[0]["FileSystemId"]
    efs.create_access_point(ClientToken="pvc-gone", FileSystemId=fs,
                            Tags=[{"Key": "efs.csi.aws.com/cluster", "Value": "true"}])  # fmt: skip
    foreign = efs.create_access_point(ClientToken="other", FileSystemId=fs)["AccessPointId"]
    late = await create(kube, claim(class_name, "late"))
    await kube.delete(path(released))
    # As if it had been ended between the access point and the volume.
    half = efs.create_access_point(ClientToken=f"pvc-{late['metadata']['uid']}", FileSystemId=fs,
                                   Tags=[{"Key": "efs.csi.aws.com/cluster", "Value": "true"}])  # fmt: skip
    plane.start()
    await until(bound(kube, "late"))

    async def settled() -> bool:
        return len(await kube.list("/api/v1/persistentvolumes")) == 2 and len(points(efs)) == 3

    await until(settled)
    handles = {pv["spec"]["csi"]["volumeHandle"] for pv in await kube.list("/api/v1/persistentvolumes")}
    assert f"{fs}::{half['AccessPointId']}" in handles
    tokens = {f"pvc-{each['metadata']['uid']}" for each in (kept, late)}
    assert {p["ClientToken"] for p in points(efs)} == {"other", *tokens}
    efs.delete_access_point(AccessPointId=foreign)


async def test_failures_are_worded_as_the_drivers_and_tried_again(r: Rehearsal, kube: Kube, efs: Any) -> None:
    missing = await storage_class(kube, "fs-0123456789abcdef0")
    unmounted = file_system(r, efs, mounted=False)
    waiting = await storage_class(kube, unmounted)
    incomplete = await storage_class(kube, unmounted, provisioningMode="efs-dir")
    for name, class_name in (("missing", missing), ("unmounted", waiting), ("incomplete", incomplete)):
        await create(kube, claim(class_name, name))

    async def told(name: str) -> list[str]:
        return await messages(kube, name, "ProvisioningFailed", "efs.csi.aws.com")

    assert await until(lambda: told("missing")) == [
        f'failed to provision volume with StorageClass "{missing}": rpc error: code = InvalidArgument '
        "desc = File System does not exist: Resource was not found"
    ]
    assert "Cannot find mount targets for file system" in (await until(lambda: told("unmounted")))[0]
    assert "Provisioning mode efs-dir is not supported" in (await until(lambda: told("incomplete")))[0]
    assert points(efs) == [] and await kube.list("/api/v1/persistentvolumes") == []
    mount(r, efs, unmounted)
    await until(bound(kube, "unmounted"))
    events = await kube.list("/api/v1/namespaces/default/events", field_selector="involvedObject.name=missing")
    assert max(e["count"] for e in events if e["reason"] == "ProvisioningFailed") > 1


@pytest.mark.slow
async def test_wait_for_first_consumer_waits_for_the_scheduler(r: Rehearsal, kube: Kube, efs: Any) -> None:
    await create(kube, claim(await storage_class(kube, file_system(r, efs), mode="WaitForFirstConsumer")))
    await asyncio.sleep(1.5)
    assert points(efs) == []
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    await create(kube, pod("consumer", volumes=volumes))
    await until(bound(kube))
    assert await until(home(kube, "consumer"))


@pytest.mark.slow
async def test_an_immediate_claim_and_its_gpu_pod_come_together(r: Rehearsal, kube: Kube, efs: Any) -> None:
    await create(kube, claim(await storage_class(kube, file_system(r, efs))))
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    await create(kube, pod("model", {"nvidia.com/gpu": "2"}, tolerations=[GPU], volumes=volumes))
    assert await until(home(kube, "model"))
    assert len(await kube.list("/api/v1/nodes")) == 1


# --- ordered faults --------------------------------------------------------------------------------------------------


async def test_no_capacity_is_told_as_karpenter_tells_it_until_there_is_some(r: Rehearsal, kube: Kube) -> None:
    faults.order(r, "no-capacity")
    try:
        await create(kube, pod("gpu", {"nvidia.com/gpu": "2"}, tolerations=[GPU], nodeSelector=POOL))

        async def told() -> list[str]:
            mine = await messages(kube, "gpu", "FailedScheduling", "karpenter")
            return [message for message in mine if "(no instance type has the required offering)" in message]

        assert await until(told)
        # Of all NodeClaims' events these alone: earlier tests' claims have left theirs, and names are random.
        events = await kube.list("/api/v1/namespaces/default/events", field_selector="involvedObject.kind=NodeClaim")
        refusals = [e for e in events if e["reason"] == "InsufficientCapacityError"]
        assert refusals, "the refused claim's event"
        refusal = refusals[0]
        assert refusal["type"] == "Warning"
        assert await kube.list(CLAIMS) == [], "a claim that cannot be launched goes"
        assert "We currently do not have sufficient g5.12xlarge capacity" in refusal["message"]
        assert await kube.list("/api/v1/nodes") == []
        await create(kube, pod("cpu"))
        await until(home(kube, "cpu"))
    finally:
        faults.clear(r)
    await until(home(kube, "gpu"))


async def test_a_claim_stays_unbound_as_long_as_it_is_ordered(r: Rehearsal, kube: Kube, efs: Any) -> None:
    faults.order(r, "claim-unbound")
    try:
        await create(kube, claim(await storage_class(kube, file_system(r, efs))))
        (told,) = await until(lambda: messages(kube, "data", "ProvisioningFailed", "efs.csi.aws.com"))
        assert told.endswith("Access Denied. Please ensure you have the right AWS permissions: Access denied")
        assert points(efs) == []
    finally:
        faults.clear(r)
    await until(bound(kube))
