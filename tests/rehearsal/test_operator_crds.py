"""The CRDs on a real API server, the chart by the real Helm, and those reconciles that no recording shows."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from rehearsal.kube import ApiError, Kube, NotFound, Obj, path, path_of
from tests.rehearsal.replay.plane import CHART, Plane, running

GROUP = "apps.nvidia.com/v1alpha1"
CACHES = path_of(GROUP, "NIMCache", "default")
SERVICES = path_of(GROUP, "NIMService", "default")
PIPELINES = path_of(GROUP, "NIMPipeline", "default")
CACHE_SPEC: Obj = {
    "source": {"ngc": {"modelPuller": "example.com/nim:1", "authSecret": "key"}},
    "storage": {"pvc": {"create": True, "size": "1Gi", "volumeAccessMode": "ReadWriteMany"}},
}
SERVICE_SPEC: Obj = {
    "image": {"repository": "example.com/nim", "tag": "1"},
    "authSecret": "key",
    "storage": {"emptyDir": {}},
    "expose": {"service": {"port": 8000}},
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane with the operator's chart installed by Helm; its pod has no node, the process runs beside it."""
    with running(tmp_path_factory.mktemp("crds"), crds=False) as plane:
        argv = [str(plane.r.controlplane), "helm", "install", "nim-operator", str(CHART), "--namespace", "nim-operator"]
        done = subprocess.run(
            [*argv, "--create-namespace", "--kubeconfig", str(plane.r.kubeconfig)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        plane.start_operator()
        yield plane


@pytest.fixture
async def kube(plane: Plane) -> AsyncIterator[Kube]:
    async with Kube.from_rehearsal(plane.r) as kube:
        yield kube


def _with(spec: Obj, changes: dict[str, Any]) -> Obj:
    """A copy with values set at dotted paths."""
    result: Obj = {key: dict(value) if isinstance(value, dict) else value for key, value in spec.items()}
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        place = result
        for parent in parents:
            place[parent] = dict(place.get(parent, {}))
            place = place[parent]
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return result


def _object(kind: str, name: str, spec: Obj) -> Obj:
    return {"apiVersion": GROUP, "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


async def _until(check: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            value = await check()
            if value:
                return value
            await asyncio.sleep(0.05)


HF = {"endpoint": "https://huggingface.co", "namespace": "n", "authSecret": "a", "modelPuller": "p", "pullSecret": "s"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"source.ngc.modelpuller": "x"}, "unknown field"),
        ({"storage.pvc.storageclass": "x"}, "unknown field"),
        ({"env": [{"name": "A", "valu": "x"}]}, "unknown field"),
        ({"source.ngc.authSecret": None}, "authSecret: Required value"),
        ({"source.ngc": None}, "Exactly one of ngc, dataStore, or hf"),
        ({"source.hf": {**HF, "modelName": "m"}}, "Exactly one of ngc, dataStore, or hf"),
        ({"source.ngc.model": {"engine": "vllm"}, "source.ngc.modelEndpoint": "x"}, "Only one of"),
        ({"source": {"hf": HF}}, "Exactly one of modelName or datasetName"),
        ({"source": {"hf": {**HF, "modelName": "m", "endpoint": "ftp://x"}}}, "endpoint"),
        ({"resources": {"cpu": "many"}}, "resources.cpu"),
    ],
)
async def test_nimcache_is_refused(kube: Kube, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ApiError) as refusal:
        await kube.create(
            CACHES, _object("NIMCache", "bad", _with(CACHE_SPEC, changes)), fieldValidation="Strict", dryRun="All"
        )
    assert complaint in refusal.value.message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"readinessProbe": {"probe": {"httpget": {}}}}, "unknown field"),
        ({"tolerations": [{"keys": "x"}]}, "unknown field"),
        ({"authSecret": None}, "authSecret: Required value"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 1, "scale": {"enabled": True, "hpa": {"maxReplicas": 2}}}, "spec.replicas cannot be set"),
        (
            {
                "scale": {"enabled": True, "hpa": {"maxReplicas": 2}},
                "multiNode": {"parallelism": {"pipeline": 1, "tensor": 1}},
            },
            "multiNode",
        ),
        ({"inferencePlatform": "ray"}, "Unsupported value"),
        (
            {"expose.router": {"ingress": {"ingressClass": "x"}}, "expose.ingress": {"enabled": True}},
            "expose.ingress is deprecated",
        ),
    ],
)  # fmt: skip
async def test_nimservice_is_refused(kube: Kube, changes: dict[str, Any], complaint: str) -> None:
    spec = _with(SERVICE_SPEC, changes)
    with pytest.raises(ApiError) as refusal:
        await kube.create(SERVICES, _object("NIMService", "bad", spec), fieldValidation="Strict", dryRun="All")
    assert complaint in refusal.value.message


async def test_the_puller_cannot_change(kube: Kube) -> None:
    cache = await kube.create(CACHES, _object("NIMCache", "fixed", CACHE_SPEC), fieldValidation="Strict")
    with pytest.raises(ApiError, match="immutable"):
        await kube.patch(path(cache), {"spec": {"source": {"ngc": {"modelPuller": "other"}}}})
    await kube.delete(path(cache))
    await _until(lambda: _gone(kube, cache))


async def _gone(kube: Kube, obj: Obj) -> bool:
    try:
        await kube.get(path(obj))
    except NotFound:
        return True
    return False


async def test_a_service_without_a_port_panics_once_and_then_gets_the_default(kube: Kube, plane: Plane) -> None:
    spec = _with(SERVICE_SPEC, {"expose": None})
    made = await kube.create(SERVICES, _object("NIMService", "portless", spec), fieldValidation="Strict")
    service = await _until(lambda: _child(kube, "v1", "Service", "portless"))
    assert [port["port"] for port in service["spec"]["ports"]] == [8000]
    assert "NIMService default/portless: Observed a panic" in (plane.r.logs / "operator.log").read_text()
    live = await kube.get(path(made))
    assert live["metadata"]["generation"] == 2
    assert live["spec"]["expose"]["service"] == {"port": 8000}
    manager = {entry["manager"] for entry in live["metadata"]["managedFields"]}
    assert "manager" in manager


async def _child(kube: Kube, version: str, kind: str, name: str) -> Obj | None:
    try:
        return await kube.get(path_of(version, kind, "default", name))
    except NotFound:
        return None


async def test_a_service_monitor_without_its_crd_fails_the_service(kube: Kube) -> None:
    spec = _with(SERVICE_SPEC, {"metrics": {"enabled": True, "serviceMonitor": {"interval": "30s"}}})
    made = await kube.create(SERVICES, _object("NIMService", "watched", spec), fieldValidation="Strict")

    async def failed() -> Obj | None:
        status = (await kube.get(path(made))).get("status", {})
        return status if status.get("state") == "Failed" else None

    status = await _until(failed)
    message = {c["type"]: c["message"] for c in status["conditions"]}["Failed"]
    assert message == 'no matches for kind "ServiceMonitor" in version "monitoring.coreos.com/v1"'
    assert await _child(kube, "apps/v1", "Deployment", "watched") is None


async def test_an_autoscaled_service_leaves_the_replicas_alone(kube: Kube) -> None:
    spec = _with(SERVICE_SPEC, {"scale": {"enabled": True, "hpa": {"maxReplicas": 3}}})
    made = await kube.create(SERVICES, _object("NIMService", "scaled", spec), fieldValidation="Strict")
    scaler = await _until(lambda: _child(kube, "autoscaling/v2", "HorizontalPodAutoscaler", "scaled"))
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (1, 3)
    deployment = await _until(lambda: _child(kube, "apps/v1", "Deployment", "scaled"))
    await kube.patch(path(deployment), {"spec": {"replicas": 2}})
    await kube.patch(path(made), {"spec": {"image": {"tag": "2"}}})

    async def changed() -> Obj | None:
        live = await _child(kube, "apps/v1", "Deployment", "scaled")
        assert live
        return live if live["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":2") else None

    assert (await _until(changed))["spec"]["replicas"] == 2


async def test_a_cache_that_may_not_make_its_claim_says_so(kube: Kube) -> None:
    spec = _with(CACHE_SPEC, {"storage": {"pvc": {"name": "missing"}}})
    made = await kube.create(CACHES, _object("NIMCache", "claimless", spec), fieldValidation="Strict")

    async def not_ready() -> Obj | None:
        status = (await kube.get(path(made))).get("status", {})
        return status if status.get("state") == "NotReady" else None

    status = await _until(not_ready)
    assert "missing" in status["conditions"][0]["message"]
    assert (await kube.get(path(made)))["spec"]["resources"] == {"cpu": "0", "memory": "0"}


async def _pipeline(kube: Kube, name: str, *services: Obj) -> Obj:
    return await kube.create(
        PIPELINES, _object("NIMPipeline", name, {"services": list(services)}), fieldValidation="Strict"
    )


async def _status_of(kube: Kube, obj: Obj, state: str) -> Obj | None:
    status: Obj = (await kube.get(path(obj))).get("status", {})
    return status if status.get("state") == state else None


async def test_a_pipeline_without_an_enabled_service_is_ready(kube: Kube) -> None:
    made = await _pipeline(
        kube, "idle", {"name": "off", "enabled": False, "spec": SERVICE_SPEC}, {"name": "unsaid", "spec": SERVICE_SPEC}
    )
    status = await _until(lambda: _status_of(kube, made, "Ready"))
    assert status == {"state": "Ready"}
    assert await _child(kube, GROUP, "NIMService", "off") is None


async def test_a_pipeline_removes_what_it_no_longer_wants_and_leaves_alone_what_is_not_its_own(kube: Kube) -> None:
    foreign = await kube.create(SERVICES, _object("NIMService", "foreign", SERVICE_SPEC), fieldValidation="Strict")
    services = [
        {"name": name, "enabled": True, "spec": _with(SERVICE_SPEC, {"image.tag": "2"})} for name in ("own", "foreign")
    ]
    made = await _pipeline(kube, "mixed", *services)
    own = await _until(lambda: _child(kube, GROUP, "NIMService", "own"))
    assert own["metadata"]["generation"] == 1
    assert (await _until(lambda: _status_of(kube, made, "NotReady")))["states"].keys() == {"own", "foreign"}
    services[0]["enabled"] = False
    await kube.patch(path(made), {"spec": {"services": services}})
    await _until(lambda: _gone(kube, own))
    live = await kube.get(path(foreign))
    assert live["metadata"]["uid"] == foreign["metadata"]["uid"] and live["spec"]["image"]["tag"] == "1"
    await kube.delete(path(made))
    await _until(lambda: _gone(kube, made))


def test_what_the_chart_installs(plane: Plane) -> None:
    argv = [str(plane.r.controlplane), "helm", "get", "manifest", "nim-operator", "-n", "nim-operator"]
    done = subprocess.run([*argv, "--kubeconfig", str(plane.r.kubeconfig)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'image: "nvcr.io/nvidia/cloud-native/k8s-nim-operator:v3.1.2"' in done.stdout
