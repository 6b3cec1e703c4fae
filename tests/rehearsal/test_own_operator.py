"""Another program in the place of the NIM Operator's stand-in, as docs/rehearsal.md says: a Go program that asks of its
pod what NVIDIA's manager asks, installed by our Helm client with our values, under a chart of NVIDIA's shape, and under
the stand-in's chart with nine definitions.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.helm import Helm
from nim_rollouts.clients.include import Include
from nim_rollouts.core.addons import Addon
from rehearsal import own_operator, toolbox
from rehearsal.config import ROOT, Rehearsal
from scripts.setup import environments, machine
from tests.rehearsal.plane import admin, standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

HERE = Path(__file__).resolve().parent
CHART = HERE / "operator_chart"
STANDIN_CRDS = ROOT / "rehearsal" / "charts" / "k8s-nim-operator" / "crds"
PARTS = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "cluster-setup", "kwok", "runner"}
GROUP = "apps.nvidia.com/v1alpha1"
DEPLOYMENT = "nim-operator-k8s-nim-operator"
#: Of the nine kinds those of which the stand-in's chart has no definition.
OTHERS = ("NIMBuild", "NemoCustomizer", "NemoDatastore", "NemoEntitystore", "NemoEvaluator", "NemoGuardrail")


@pytest.fixture(scope="module")
def manager() -> Path:
    """The program, built with the control plane's pins (its own build has compiled nearly all of it), kept in the
    cache folder."""
    sources = [*toolbox.controlplane_sources()[:2], HERE / "manager" / "main.go"]
    built = toolbox.cache_dir() / f"test-manager-{toolbox.digest(sources)}" / "bin" / "manager"
    if not built.exists():
        source = built.parent.parent / "source"
        source.mkdir(parents=True, exist_ok=True)
        for file in sources:
            shutil.copy(file, source)
        go = machine.find_go() or environments.go_from_index()
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
        half = built.parent.parent / f"half-{os.getpid()}"
        command = [str(go), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(half), "."]
        done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        built.parent.mkdir(exist_ok=True)
        half.replace(built)
    return built


def definitions(folder: Path) -> Path:
    """Nine definitions: the stand-in's three, and six that take anything."""
    shutil.copytree(STANDIN_CRDS, folder)
    for kind in OTHERS:
        plural = kind.lower() + "s"
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
        names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
        made = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.apps.nvidia.com"},
                "spec": {"group": "apps.nvidia.com", "scope": "Namespaced", "names": names,
                         "versions": [version]}}  # fmt: skip
        (folder / f"{plural}.yaml").write_text(yaml.safe_dump(made))
    return folder


@dataclass
class Ground:
    r: Rehearsal
    cluster: Cluster
    include: Include

    @property
    def addon(self) -> Addon:
        environment = self.include.environment("rehearsal")
        return next(one for one in environment.addons if one.name == "nim-operator")

    def get(self, kind: str, name: str, version: str = GROUP, space: str = "default") -> dict[str, Any]:
        return self.cluster.get(version, kind, space, name) or {}


@pytest.fixture(scope="module", params=["a chart of NVIDIA's shape", "definitions alone"])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, manager: Path) -> Iterator[Ground]:
    own = tmp_path_factory.mktemp("own")
    (own / "manifests").mkdir()
    (own / "manifests" / "service.yaml").write_text("kind: Service\n")
    crds = definitions(own / "crds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(own_operator.BINARY_ENV, str(manager))
        patch.setenv(own_operator.MANIFESTS_ENV, str(own / "manifests"))
        if "chart" in request.param:
            chart = Path(shutil.copytree(CHART, own / "chart"))
            shutil.copytree(crds, chart / "crds")
            patch.setenv(own_operator.CHART_ENV, str(chart))
        else:
            patch.setenv(own_operator.CRDS_ENV, str(crds))
        with standing(tmp_path_factory.mktemp("plane"), PARTS, {"image_pull": 0.1}) as plane:
            r = plane.r
            cluster = Cluster(admin(r))
            room = {"cpu": "8", "memory": "32Gi", "pods": "110"}
            cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"},
                           "status": {"capacity": room, "allocatable": room}})  # fmt: skip
            yield Ground(r, cluster, Include(r.include))


def until(check: Callable[[], Any], what: str, ground: Ground, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            pods = [(one["metadata"]["name"], one.get("status")) for one in ground.cluster.list("v1", "Pod")]
            pytest.fail(f"{what}: not within {seconds:.0f} s; {pods}\n{logs(ground.r)}")
        time.sleep(0.2)


@contextlib.contextmanager
def taken(*ports: int) -> Iterator[None]:
    """Somebody else listens on these ports of loopback, as another rehearsal might: this test, if nobody else does."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            holder = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                holder.bind(("127.0.0.1", port))
                holder.listen()
        yield


def test_another_program_does_the_operators_work(ground: Ground) -> None:
    with taken(8080, 8081):
        Helm(ground.cluster, ground.include, binary=str(ground.r.helm)).upgrade_install(ground.addon)

        def pod() -> dict[str, Any]:
            return next(iter(ground.cluster.list("v1", "Pod", "nim-operator")), {})

        def ready() -> bool:
            deployment = ground.get("Deployment", DEPLOYMENT, "apps/v1", "nim-operator")
            return bool(deployment.get("status", {}).get("availableReplicas"))

        until(ready, "the manager", ground)
        # On its own address and on no other: 127.0.0.1 is somebody else's.
        address = "127." + pod()["status"]["podIP"].partition(".")[2]
        for port in (8080, 8081):
            socket.create_connection((address, port), 2).close()
    assert pod()["status"]["containerStatuses"][0]["restartCount"] == 0
    _it_works(ground)


def _it_works(ground: Ground) -> None:
    spec = {"source": {"ngc": {"modelPuller": "nvcr.io/nim/x:1", "authSecret": "key"}},
            "storage": {"pvc": {"create": True, "size": "1Gi", "volumeAccessMode": "ReadWriteMany"}}}  # fmt: skip
    ground.cluster.apply({"apiVersion": GROUP, "kind": "NIMCache", "spec": spec,
                          "metadata": {"name": "cache", "namespace": "default"}})  # fmt: skip
    until(lambda: ground.get("NIMCache", "cache").get("status", {}).get("state") == "Ready", "the cache", ground)
    managers = {one["manager"] for one in ground.get("NIMCache", "cache")["metadata"]["managedFields"]}
    assert "manager" in managers
    # The operator asks a service's models by ClusterIP, from its pod.
    serve = ("mkdir -p /data/v1 && printf llama > /data/v1/models && "
             "exec python3 -m http.server -d /data -b $REHEARSAL_LISTEN 8000")  # fmt: skip
    container = {"name": "main", "image": "busybox:1", "command": ["sh", "-c", serve],
                 "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                 "volumeMounts": [{"name": "data", "mountPath": "/data"}]}  # fmt: skip
    for version, kind, body in (
        ("v1", "Pod", {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]}),
        ("v1", "Service", {"selector": {"app": "llama"}, "ports": [{"port": 8000}]}),
        (GROUP, "NIMService", {"image": {"repository": "nvcr.io/nim/x", "tag": "1"}, "authSecret": "key",
                               "storage": {"nimCache": {"name": "cache"}}, "expose": {"service": {"port": 8000}}}),
    ):  # fmt: skip
        metadata = {"name": "llama", "namespace": "default", "labels": {"app": "llama"}}
        ground.cluster.apply({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": body})
    until(lambda: ground.get("NIMService", "llama").get("status", {}).get("state") == "Ready", "the service", ground)
    place = ground.get("Service", "llama", "v1")["spec"]["clusterIP"] + ":8000"
    model = ground.get("NIMService", "llama")["status"]["model"]
    assert (model["name"], model["clusterEndpoint"]) == ("llama", place)


def logs(r: Rehearsal) -> str:
    """What every container said."""
    return "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted(r.path("pods").glob("*/*/*.log")))
