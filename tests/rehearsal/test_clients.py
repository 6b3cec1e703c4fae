"""The product's clients against a real API server, a real Helm, and an S3 and EKS stand-in.

The control plane is this file's own, since the API server is ended and started again here.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from nim_rollouts.clients import claims
from nim_rollouts.clients.access import ClusterAccess, cluster_access
from nim_rollouts.clients.cluster import Cluster, ref
from nim_rollouts.clients.helm import Helm
from nim_rollouts.clients.include import Include
from nim_rollouts.clients.store import S3Store
from nim_rollouts.clients.watch import Watch
from nim_rollouts.core import manifests, names
from nim_rollouts.core.errors import (
    AccessDenied,
    ApplyConflict,
    ApplyRejected,
    ClusterMissing,
    ClusterUnavailable,
    HelmUnavailable,
    NeedsHumanError,
    NimRolloutsError,
    PortForwardFailed,
    Superseded,
)
from nim_rollouts.core.spec import Addon, Environment
from rehearsal.config import Rehearsal
from tests.rehearsal.plane import Plane, admin, standing

PARTS = {"etcd", "kube-apiserver", "kube-controller-manager", "cluster-setup", "kwok", "aws", "gateway"}
CHART = "rehearsal/charts/k8s-nim-operator"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with standing(tmp_path_factory.mktemp("plane"), PARTS) as plane:
        yield plane


@pytest.fixture(scope="module")
def r(plane: Plane) -> Rehearsal:
    return plane.r


@pytest.fixture(scope="module")
def access(r: Rehearsal) -> ClusterAccess:
    return admin(r)


@pytest.fixture(scope="module")
def cluster(access: ClusterAccess) -> Cluster:
    return Cluster(access)


@pytest.fixture(scope="module")
def include() -> Include:
    return Include()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = "t-" + request.node.name.replace("_", "-").split("[")[0][-50:].strip("-")
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    cluster.delete(ref("Namespace", name))


@pytest.fixture(scope="module")
def helm(r: Rehearsal, cluster: Cluster, include: Include, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    binary = tmp_path_factory.mktemp("bin") / "helm"
    binary.write_text(f'#!/bin/sh\nexec "{r.controlplane}" helm "$@"\n')
    binary.chmod(0o755)
    return Helm(cluster, include, binary=str(binary))


def config_map(namespace: str, data: dict[str, str], **annotations: str) -> dict[str, Any]:
    marks = {f"nim-rollouts/{name}": value for name, value in annotations.items()}
    metadata: dict[str, Any] = {"name": "it", "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**metadata, **({"annotations": marks} if marks else {})},
        "data": data,
    }


def kubectl(r: Rehearsal, *arguments: str, check: bool = True, input: str | None = None) -> str:
    done = subprocess.run(
        ["kubectl", f"--kubeconfig={r.kubeconfig}", *arguments],
        capture_output=True,
        text=True,
        input=input,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def until(check: Callable[[], Any], within: float = 20.0) -> Any:
    deadline = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.1)
    return result


# --- apply and delete ---------------------------------------------------------------------------------------------


def test_apply_again_changes_nothing(cluster: Cluster, namespace: str) -> None:
    first = cluster.apply(config_map(namespace, {"a": "1"}))
    again = cluster.apply(config_map(namespace, {"a": "1"}))
    other = cluster.apply(config_map(namespace, {"b": "1"}))
    assert (first.created, first.changed) == (True, True)
    assert (again.created, again.changed) == (False, False)
    assert again.obj["metadata"]["resourceVersion"] == first.obj["metadata"]["resourceVersion"]
    assert other.changed
    assert other.obj["data"] == {"b": "1"}


def test_a_dry_run_writes_nothing(cluster: Cluster, namespace: str) -> None:
    assert cluster.apply(config_map(namespace, {"a": "1"}), dry_run=True).changed
    assert cluster.get("v1", "ConfigMap", namespace, "it") is None


def test_an_unknown_field_is_refused(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ApplyRejected, match="dada"):
        cluster.apply({**config_map(namespace, {}), "dada": {"a": "1"}})
    assert cluster.get("v1", "ConfigMap", namespace, "it") is None


def test_an_older_generation_is_refused(cluster: Cluster, namespace: str) -> None:
    cluster.apply(config_map(namespace, {"a": "2"}, generation="2"))
    with pytest.raises(Superseded, match="generation 2"):
        cluster.apply(config_map(namespace, {"a": "1"}, generation="1"))
    with pytest.raises(Superseded):
        cluster.delete(config_map(namespace, {}), generation=1)
    assert cluster.apply(config_map(namespace, {"a": "3"}, generation="3")).changed
    assert cluster.delete(config_map(namespace, {}), generation=3)


def test_a_strangers_field_is_not_taken(cluster: Cluster, namespace: str, r: Rehearsal) -> None:
    cluster.apply(config_map(namespace, {"a": "1"}))
    patch = json.dumps({"data": {"a": "2"}})
    kubectl(r, "-n", namespace, "patch", "configmap", "it", "-p", patch, "--field-manager", "autoscaler")
    with pytest.raises(ApplyConflict, match=r"\.data\.a is owned by autoscaler"):
        cluster.apply(config_map(namespace, {"a": "1"}))
    assert cluster.apply(config_map(namespace, {"a": "1"}), force_managers=("autoscaler",)).changed


def test_the_operators_field_is_taken(cluster: Cluster, namespace: str, r: Rehearsal) -> None:
    cluster.apply(config_map(namespace, {"a": "1"}))
    kubectl(r, "-n", namespace, "patch", "configmap", "it", "-p", '{"data":{"a":"2"}}', "--field-manager", "manager")
    assert cluster.apply(config_map(namespace, {"a": "1"})).obj["data"] == {"a": "1"}


def test_concurrent_runs_cannot_rewind(access: ClusterAccess, namespace: str) -> None:
    refused = []

    def run(generation: int) -> None:
        try:
            Cluster(access).apply(config_map(namespace, {"by": str(generation)}, generation=str(generation)))
        except NimRolloutsError as error:
            refused.append(error)

    Cluster(access).apply(config_map(namespace, {"by": "0"}, generation="0"))
    threads = [threading.Thread(target=run, args=(generation,)) for generation in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = Cluster(access).get("v1", "ConfigMap", namespace, "it")
    assert end is not None
    assert end["data"] == {"by": "8"}
    assert all(isinstance(error, Superseded) for error in refused), refused


def test_delete_of_another_uid_does_nothing(cluster: Cluster, namespace: str) -> None:
    made = cluster.apply(config_map(namespace, {"a": "1"})).obj
    assert not cluster.delete(made, uid="00000000-0000-0000-0000-000000000000")
    assert not cluster.delete(made, uid=made["metadata"]["uid"], resource_version="1")
    assert cluster.delete(made, uid=made["metadata"]["uid"])
    assert not cluster.delete(made)


def test_an_object_on_its_way_out_is_not_applied_to(cluster: Cluster, namespace: str) -> None:
    obj = config_map(namespace, {"a": "1"})
    obj["metadata"]["finalizers"] = ["nim-rollouts/test"]
    cluster.delete(cluster.apply(obj).obj)
    with pytest.raises(NimRolloutsError) as caught:
        cluster.apply(obj)
    assert caught.value.reason == "object-terminating"
    cluster.rest.json(
        "PATCH",
        ref("ConfigMap", "it", namespace).path,
        body={"metadata": {"finalizers": None}},
        content_type="application/merge-patch+json",
    )


def test_refusals_are_told_apart(access: ClusterAccess, cluster: Cluster) -> None:
    stranger = Cluster(ClusterAccess(access.endpoint, access.ca_pem, lambda: "nobody-knows-this-token"))
    with pytest.raises(AccessDenied):
        stranger.version()
    nobody = Cluster(ClusterAccess("https://127.0.0.1:9", access.ca_pem, lambda: "x"))
    with pytest.raises(NimRolloutsError) as caught:
        nobody.version()
    assert caught.value.reason == "cluster-unavailable"
    assert cluster.version().startswith("v1.")
    assert cluster.list("apps.nvidia.com/v1beta9", "NIMCache") == []


# --- manifests ----------------------------------------------------------------------------------------------------


def test_manifests_are_valid_by_themselves_and_filled(
    cluster: Cluster, helm: Helm, include: Include, r: Rehearsal
) -> None:
    addon = Addon(name="nim-operator", namespace="nim-operator", chart=CHART)
    for definition in helm.crds(addon):
        cluster.apply(definition)
    deployment = include.deployment("meta-llama3-8b-instruct")
    context = manifests.Context(
        templates=include.templates(),
        names=names.names_for(deployment, "a-rollout"),
        deployment=deployment.name,
        environment="test",
        rollout="a-rollout",
        generation=1,
    )
    cluster.apply(manifests.namespace(context))
    until(lambda: "Established" in kubectl(r, "get", "crd", "nimservices.apps.nvidia.com", "-o", "yaml"))
    until(lambda: cluster.get("v1", "ServiceAccount", deployment.namespace, "default"))
    kubectl(r, "apply", "--dry-run=server", "-f", str(include.path("manifests")))
    environment = include.environment("nvidia-nim-eks")
    for obj in (
        *manifests.secrets(context, "nvapi-canary-0123456789"),
        manifests.storage_class(context.templates, environment, "fs-0123456789abcdef0"),
        manifests.nim_cache(context, deployment),
        manifests.nim_service(context, deployment),
        manifests.stable_service(context, deployment),
        *manifests.benchmark(context, deployment, include.benchmark_files()),
    ):
        assert cluster.apply(obj).created
        assert not cluster.apply(obj).changed


# --- helm ---------------------------------------------------------------------------------------------------------


def test_helm_makes_a_revision_only_when_something_changed(
    cluster: Cluster, helm: Helm, include: Include, tmp_path: Path
) -> None:
    addon = Addon(name="again", namespace="helm-again", chart=CHART)
    first = helm.upgrade_install(addon)
    second = helm.upgrade_install(addon)
    assert (first.changed, first.revision, first.status) == (True, 1, "deployed")
    assert (second.changed, second.revision) == (False, 1)
    assert cluster.get("apps/v1", "Deployment", "helm-again", "again-k8s-nim-operator") is not None

    (tmp_path / "values.yaml").write_text("operator: {replicas: 1}\n")
    valued = addon.model_copy(update={"values": str(tmp_path / "values.yaml")})
    third = helm.upgrade_install(valued)
    assert (third.changed, third.revision) == (True, 2)

    # A Helm that was killed between writing its intent and the end.
    secret = cluster.list("v1", "Secret", "helm-again", label_selector="owner=helm,version=2")[0]
    cluster.rest.json(
        "PATCH",
        ref("Secret", secret["metadata"]["name"], "helm-again").path,
        body={"metadata": {"labels": {"status": "pending-upgrade"}}},
        content_type="application/merge-patch+json",
    )
    fourth = helm.upgrade_install(valued)
    assert (fourth.changed, fourth.status) == (True, "deployed")

    assert helm.uninstall(addon)
    assert not helm.uninstall(addon)
    assert cluster.get("apps/v1", "Deployment", "helm-again", "again-k8s-nim-operator") is None


def test_a_strangers_pending_release_is_left_alone(cluster: Cluster, helm: Helm, namespace: str) -> None:
    labels = {"owner": "helm", "name": "theirs", "status": "pending-install", "version": "1"}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "helm.sh/release.v1",
            "metadata": {"name": "sh.helm.release.v1.theirs.v1", "namespace": namespace, "labels": labels},
        }
    )
    addon = Addon(name="theirs", namespace=namespace, chart=CHART)
    with pytest.raises(NeedsHumanError, match="somebody else") as caught:
        helm.upgrade_install(addon)
    assert caught.value.reason == "release-foreign"
    # Also who would take it over waits until theirs has ended.
    with pytest.raises(HelmUnavailable, match="somebody else"):
        helm.upgrade_install(addon.model_copy(update={"adopt": True}))


# --- watch --------------------------------------------------------------------------------------------------------


async def test_the_snapshot_follows(plane: Plane, access: ClusterAccess, cluster: Cluster, namespace: str) -> None:
    def names_in(snapshot: Any) -> list[str]:
        return sorted(one["metadata"]["name"] for one in snapshot["Secret"])

    async def until_names(watch: Watch, wanted: list[str]) -> Any:
        async with asyncio.timeout(45):
            while True:
                snapshot = await watch.next(1.0)
                if snapshot is not None and names_in(snapshot) == wanted:
                    return snapshot

    def secret(name: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}}

    async with Watch(access, ("Secret", "Pod", "NIMBuild"), namespace) as watch:
        await until_names(watch, [])
        assert watch.is_synced
        await asyncio.to_thread(cluster.apply, secret("a"))
        snapshot = await until_names(watch, ["a"])
        assert "managedFields" not in snapshot["Secret"][0]["metadata"]
        assert snapshot["Secret"][0]["kind"] == "Secret"
        assert snapshot["NIMBuild"] == []

        # Its graceful end would wait for the very watch under test.
        await asyncio.to_thread(plane.end, "kube-apiserver", signal.SIGKILL)
        assert names_in(watch.snapshot()) == ["a"]
        async with asyncio.timeout(20):
            while watch.problem is None:
                await watch.next(0.2)
        assert names_in(watch.snapshot()) == ["a"], "an error is no news about an object"

        plane.start()  # on this thread: the part ends with the thread that started it
        await asyncio.to_thread(cluster.apply, secret("b"))
        await asyncio.to_thread(cluster.delete, secret("a"))
        await until_names(watch, ["b"])


# --- port-forward -------------------------------------------------------------------------------------------------


class _Model(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"path": self.path, "filler": "x" * 200_000} if self.path == "/long" else {"path": self.path})

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/slow":
            time.sleep(3)
        self._answer({"sent": sent})

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def served_pod(cluster: Cluster, namespace: str) -> Iterator[str]:
    """A pod on a KWOK node whose port 8000 is a server of this test."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "pf-node", "labels": {"type": "kwok"}}}
    cluster.apply(node)
    until(lambda: cluster.get("v1", "ServiceAccount", namespace, "default"))
    spec = {"nodeName": "pf-node", "containers": [{"name": "main", "image": "example.com/none"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "model", "namespace": namespace}, "spec": spec}
    cluster.apply(pod)
    forward = {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "PortForward",
        "metadata": {"name": "model", "namespace": namespace},
        "spec": {"forwards": [{"ports": [8000], "target": {"port": server.server_port, "address": "127.0.0.1"}}]},
    }
    cluster.apply(forward)
    yield "model"
    server.shutdown()
    server.server_close()
    thread.join()
    cluster.delete(pod)
    cluster.delete(node)


def test_requests_through_the_api_server(cluster: Cluster, namespace: str, served_pod: str) -> None:
    with cluster.port_forward(namespace, served_pod, 8000) as pod:

        def first() -> Any:
            try:
                return pod.request("GET", "/v1/models")
            except PortForwardFailed:
                return None  # KWOK has not seen the node yet

        assert until(first).json() == {"path": "/v1/models"}
        assert len(pod.request("GET", "/long").body) > 200_000
        answer = pod.request("POST", "/v1/chat/completions", {"messages": ["hallo" * 2000]})
        assert answer.json() == {"sent": {"messages": ["hallo" * 2000]}}
        began = time.monotonic()
        with pytest.raises(PortForwardFailed, match="time is up"):
            pod.request("POST", "/slow", {}, timeout_s=1.0)
        assert time.monotonic() - began < 2.5
        with pytest.raises(PortForwardFailed):
            with cluster.port_forward(namespace, "no-such-pod", 8000) as nowhere:
                nowhere.request("GET", "/", timeout_s=5)


# --- AWS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def aws(r: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", r.url("aws"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    return lambda service: boto3.client(service, region_name="us-west-2")


def test_conditional_writes_of_s3(aws: Callable[[str], Any]) -> None:
    s3 = aws("s3")
    s3.create_bucket(Bucket="claims", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    store = S3Store("claims", "ledger", s3)
    assert store.create("a/b.json", b"1")
    assert not store.create("a/b.json", b"2")
    found = store.get_with_etag("a/b.json")
    assert found is not None
    assert store.replace("a/b.json", b"2", found[1])
    assert not store.replace("a/b.json", b"3", found[1])
    assert store.get("a/b.json") == b"2"
    assert store.get("a/none") is None
    assert store.list("a/") == ["a/b.json"]

    held, refused = [], []

    def acquire(number: int) -> None:
        holder = claims.Holder("nim_deploy", f"run-{number}")
        try:
            own = S3Store("claims", "ledger", aws("s3"))
            held.append(claims.acquire(own, "claims/e/d.json", holder, is_ended=lambda _: False))
        except NimRolloutsError as error:
            refused.append(error)

    threads = [threading.Thread(target=acquire, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert {error.reason for error in refused} == {"claim-held"}


def test_access_needs_a_cluster(aws: Callable[[str], Any], include: Include) -> None:
    environment: Environment = include.environment("nvidia-nim-eks").model_copy()
    cluster = environment.cluster.model_copy(update={"name": "no-such-cluster"})
    with pytest.raises(ClusterMissing, match="no-such-cluster"):
        cluster_access(environment.model_copy(update={"cluster": cluster}))


def test_access_through_eks(aws: Callable[[str], Any], include: Include, r: Rehearsal) -> None:
    """DescribeCluster for endpoint and CA, a presigned STS request as token, and an access entry that lets it in."""
    ec2, iam, eks = aws("ec2"), aws("iam"), aws("eks")
    environment = include.environment("nvidia-nim-eks")
    role = iam.create_role(RoleName="access", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{n}.0/24", AvailabilityZone=f"us-west-2{zone}")["Subnet"][
            "SubnetId"
        ]
        for n, zone in enumerate("ab")
    ]
    eks.create_cluster(
        name=environment.cluster.name,
        version="1.35",
        roleArn=role,
        resourcesVpcConfig={"subnetIds": subnets},
        accessConfig={"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": True},
    )
    reached = until(lambda: _when_active(environment))
    assert reached.endpoint.startswith("https://")
    assert Cluster(reached).version().startswith("v1.")
    assert Cluster(reached).list("v1", "Namespace")
    assert "k8s-aws-v1" not in repr(reached)


def _when_active(environment: Environment) -> ClusterAccess | None:
    try:
        return cluster_access(environment)
    except ClusterUnavailable as early:
        assert early.reason == "cluster-not-active", early
        return None
