"""A teardown begun from eleven half-finished states, on a real control plane with real terraform and Helm: it ends with
nothing left, or says what it waits for.

No Airflow runs here: the tasks of both pipelines are run one after the other in this process. The states follow each
other on one control plane, so each begins where the one before has proven that nothing was left.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.loaders import create_loader

from nim_rollouts.clients.approvals import read_answer
from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.helm import Helm
from nim_rollouts.core.errors import AccessDenied
from nim_rollouts.core.verdicts.objects import is_deleting
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators.finalizers import FREED
from nim_rollouts.operators.teardown_nodes import KARPENTER_API, NODEPOOL_LABEL, launched_nodes
from rehearsal.aws.environment import environment as aws_environment
from rehearsal.aws.inventory import inventory
from rehearsal.config import Rehearsal
from tests.rehearsal.plane import Plane, standing
from tests.rehearsal.without_airflow import ROOT, Pipelines, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "half"
DEPLOYMENT = "meta-llama3-8b-instruct"
NAMESPACE = "nim-service"
NIM_API = "apps.nvidia.com/v1alpha1"
TERMINATION = "karpenter.sh/termination"
#: Of a deploy here: the infrastructure stands already, and there is nobody to measure.
_INFRASTRUCTURE = ("terraform_plan", "approve_plan", "terraform_apply")

_FILE = """
apiVersion: nim-rollouts/v1
kind: Environment
name: {name}
region: us-west-2
cluster: {{name: {name}}}
store: {{kind: folder, path: {store}}}
terraform:
  root: terraform/teardown_root
  state: {{bucket: nim-rollouts-tfstate, key: {name}/terraform.tfstate}}
  variables:
    python: {python}
    admin_principal_arns: [arn:aws:iam::123456789012:user/moto]
    only_network: {only_network}
instance_types: [g5.12xlarge]
node_pools: [g5-gpu-karpenter, x86-cpu-karpenter]
addons:
  - name: karpenter
    namespace: kube-system
    chart: rehearsal/charts/karpenter
    values: helm/karpenter.yaml
    values_from: {{settings.clusterName: cluster_name}}
    requires:
      crds: [nodepools.karpenter.sh, nodeclaims.karpenter.sh, ec2nodeclasses.karpenter.k8s.aws]
      deployments: [karpenter]
  - name: nim-operator
    namespace: nim-operator
    chart: rehearsal/charts/k8s-nim-operator
    values: helm/nim-operator.yaml
    requires:
      crds: [nimcaches.apps.nvidia.com, nimservices.apps.nvidia.com, nimpipelines.apps.nvidia.com]
      deployments: [nim-operator-k8s-nim-operator]
storage_class: efs-sc-dynamic
budgets: {{delete_s: 90, operator_s: 60, cache_s: 120, service_s: 120, node_launch_s: 60}}
policies: {{approval: {approval}, cloud_look_s: 1}}
"""


THEIR_POOL = """
apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {name: theirs}
spec:
  template:
    spec:
      nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: theirs}
      requirements:
        - {key: karpenter.sh/capacity-type, operator: In, values: [on-demand]}
"""


class Ground:
    """One control plane, one environment, and its pipelines."""

    def __init__(self, plane: Plane, folder: Path, pipelines: Pipelines) -> None:
        self.r: Rehearsal = plane.r
        self.pipelines, self.folder = pipelines, folder
        # The control plane's own nodes have a network and a role.
        self.before = inventory(self.r)
        self.environment_file = folder / "repo" / "include" / "environments" / f"{NAME}.yaml"

    def write(
        self, *, only_network: bool = False, approval: str = "on-destroy", without_operator: bool = False
    ) -> None:
        text = _FILE.format(name=NAME, store=self.folder / "store", python=sys.executable, approval=approval,
                            only_network=str(only_network).lower())  # fmt: skip
        if without_operator:
            text = text[: text.index("  - name: nim-operator")] + text[text.index("storage_class:") :]
        self.environment_file.write_text(text)

    def deploy(self, until: str, *, but: tuple[str, ...] = (*_INFRASTRUCTURE, "verify_platform")) -> Run:
        params = {"environment": NAME, "deployment": DEPLOYMENT, "strategy": "replace", "skip_benchmark": "True"}
        run = self.pipelines.run("nim_deploy", params, until=until, but=but)
        assert run.failed == []
        return run

    def teardown(self, scope: str = "platform", **how: Any) -> Run:
        params = {"environment": NAME, "scope": scope, "confirm": NAME}
        return self.pipelines.run("nim_teardown", params, **how)

    @property
    def cluster(self) -> Cluster:
        return Session(NAME, "", "by-hand").cluster

    def objects(self, kind: str, api_version: str = NIM_API) -> list[dict[str, Any]]:
        return self.cluster.list(api_version, kind)

    def aws(self, service: str) -> Any:
        return boto3.client(service)

    def standing(self) -> set[tuple[str, str]]:
        """(kind, uid) of all that a teardown would take."""
        kinds = {"NIMCache": NIM_API, "NodePool": KARPENTER_API, "NodeClaim": KARPENTER_API, "PersistentVolume": "v1",
                 "Namespace": "v1", "CustomResourceDefinition": "apiextensions.k8s.io/v1"}  # fmt: skip
        return {
            (kind, one["metadata"]["uid"]) for kind, version in kinds.items() for one in self.objects(kind, version)
        }

    def instances(self) -> list[str]:
        """What Karpenter has launched and what is paid for."""
        filters = [{"Name": "tag-key", "Values": [NODEPOOL_LABEL]},
                   {"Name": "instance-state-name", "Values": ["pending", "running", "stopping"]}]  # fmt: skip
        reservations = self.aws("ec2").describe_instances(Filters=filters)["Reservations"]
        return [one["InstanceId"] for reservation in reservations for one in reservation["Instances"]]

    @contextmanager
    def timing(self, **seconds: float) -> Iterator[None]:
        """Other durations of the stand-ins, for a while."""
        file = self.r.state / "timing.json"
        kept = file.read_text()
        file.write_text(json.dumps({**json.loads(kept), **seconds}))
        try:
            yield
        finally:
            file.write_text(kept)

    def scale_karpenter(self, replicas: int) -> None:
        """Until its pods are as many."""
        deployment = self.cluster.get("apps/v1", "Deployment", "kube-system", "karpenter")
        assert deployment is not None
        self.cluster.patch(deployment, {"spec": {"replicas": replicas}})
        self.until_karpenters(replicas)

    def until_karpenters(self, number: int) -> None:
        cluster, selector = self.cluster, "app.kubernetes.io/name=karpenter"
        until(lambda: len(cluster.list("v1", "Pod", "kube-system", label_selector=selector)) == number,
              f"{number} pods of Karpenter")  # fmt: skip

    def assert_platform_gone(self, run: Run) -> None:
        assert run.failed == []
        assert run.states["conclude"] == "success"
        for kind in ("NIMService", "NIMCache"):
            assert self.objects(kind) == []
        for kind in ("PersistentVolume", "PersistentVolumeClaim"):
            assert self.objects(kind, "v1") == [], kind
        assert [one for one in self.objects("Namespace", "v1") if one["metadata"]["name"] == NAMESPACE] == []
        # Its release is gone before its pod is: a next one beside it would launch twice.
        self.until_karpenters(0)
        # With Karpenter's definitions, that none of its NodePools, NodeClaims and EC2NodeClasses is left.
        assert self.objects("CustomResourceDefinition", "apiextensions.k8s.io/v1") == self.born_with
        assert launched_nodes(self.cluster) == [] and self.instances() == []
        assert self.aws("iam").list_instance_profiles()["InstanceProfiles"] == []
        assert self.aws("efs").describe_access_points()["AccessPoints"] == []

    def assert_infrastructure_stands(self, run: Run) -> None:
        assert run.states["plan_destroy"] == "skipped" and run.states["verify_gone"] == "skipped"
        assert self.aws("eks").list_clusters()["clusters"] == [NAME]

    def assert_everything_gone(self, run: Run) -> None:
        assert run.failed == []
        assert run.states["verify_gone"] == "success" and run.states["conclude"] == "success"
        left = {kind: sorted({*ids} - {*self.before.get(kind, ())}) for kind, ids in inventory(self.r).items()}
        assert {kind for kind, ids in left.items() if ids} <= {"s3-bucket"}

    born_with: list[dict[str, Any]] = []


class _All(frozenset):  # type: ignore[type-arg]
    """Every part of a rehearsal. Karpenter is not among them: the platform brings it."""

    def __contains__(self, part: object) -> bool:
        return part != "karpenter"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("half")
    include = folder / "repo" / "include"
    (include / "environments").mkdir(parents=True)
    (include / "terraform").mkdir()
    for name in ("deployments", "manifests", "benchmarks", "helm", "prices"):
        (include / name).symlink_to(ROOT / "include" / name)
    (include / "terraform" / "teardown_root").symlink_to(ROOT / "tests" / "rehearsal" / "teardown_root")
    (folder / "repo" / "rehearsal").symlink_to(ROOT / "rehearsal")
    timing = {"node_empty": 0.5, "node_start": 0.5, "image_pull": 0.1, "nim_download": 1.0}
    with standing(folder / "state", _All(), timing) as plane, pytest.MonkeyPatch.context() as patch:
        ngc = {"conn_type": "http", "host": "127.0.0.1", "port": plane.r.ports["ngc"], "schema": "http",
               "login": "$oauthtoken", "password": plane.r.ngc_key_file.read_text().strip()}  # fmt: skip
        variables = aws_environment(plane.r.url("aws")) | {
            "AIRFLOW_CONN_AWS_DEFAULT": "aws://",
            "AIRFLOW_CONN_NGC_DEFAULT": json.dumps(ngc),
            "HELM": str(plane.r.helm),
            "NIM_ROLLOUTS_INCLUDE": str(include),
            "NIM_ROLLOUTS_WORK": str(folder / "work"),
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        # A task is a process of its own and reads botocore's models once; here some hundred tasks are in one process.
        patch.setattr("botocore.session.create_loader", cache(create_loader))
        made = Ground(plane, folder, Pipelines(patch))
        made.write()
        yield made


@pytest.fixture(scope="module")
def infrastructure(ground: Ground) -> Ground:
    """Applied once; teardowns of the platform leave it."""
    ground.write()
    ground.deploy("cluster_access", but=())
    Ground.born_with = ground.objects("CustomResourceDefinition", "apiextensions.k8s.io/v1")
    return ground


def test_1_nothing_was_ever_applied(ground: Ground) -> None:
    run = ground.teardown("everything")
    ground.assert_everything_gone(run)
    assert run.questions == []


def test_2_terraform_came_half_way_and_there_is_no_cluster(ground: Ground) -> None:
    ground.write(only_network=True)
    ground.deploy("terraform_apply", but=())
    assert ground.aws("ec2").describe_vpcs(Filters=[{"Name": "tag:Name", "Values": [NAME]}])["Vpcs"]
    run = ground.teardown("everything")
    ground.assert_everything_gone(run)
    session = Session(NAME, "", run.run_id)
    planned = session.facts("plan_destroy")
    kept = read_answer(session.store, NAME, planned["checksum"])
    assert kept is not None and (kept.answer, kept.by) == ("approved", "ada"), "the typed name"
    assert ["aws_vpc.this", "delete"] in kept.changes


def test_3_a_cluster_without_add_ons(infrastructure: Ground) -> None:
    run = infrastructure.teardown()
    infrastructure.assert_platform_gone(run)
    infrastructure.assert_infrastructure_stands(run)


def test_4_an_operator_without_models(infrastructure: Ground) -> None:
    infrastructure.deploy("wait_platform")
    infrastructure.write(without_operator=True)
    told = infrastructure.teardown(until="validate")
    error = told.errors["validate"]
    assert error.reason == "leftovers" and "release nim-operator in nim-operator" in error.message
    infrastructure.write()
    run = infrastructure.teardown()
    infrastructure.assert_platform_gone(run)
    session = Session(NAME, "", run.run_id)
    assert session.facts("uninstall_addons")["uninstalled"] == ["nim-operator"]
    assert session.facts("uninstall_karpenter")["uninstalled"] == ["karpenter"]


def test_5_a_cache_that_is_being_filled(infrastructure: Ground) -> None:
    with infrastructure.timing(nim_download=600):
        infrastructure.deploy("apply_cache")
        until(lambda: _downloading(infrastructure), "the download to run")
        run = infrastructure.teardown()
    infrastructure.assert_platform_gone(run)
    removed = Session(NAME, "", run.run_id).facts("delete_caches")["removed"]
    assert [one for one in removed if one.get("handle", "").count("::")], "the access point was waited for by name"


def test_6_a_service_under_load(infrastructure: Ground) -> None:
    infrastructure.deploy("wait_service")
    with Load(infrastructure) as load:
        until(lambda: load.answered > 3, "answers")
        run = infrastructure.teardown()
        until(lambda: load.refused > 3, "refusals")
    infrastructure.assert_platform_gone(run)
    assert [one for one in run.states.values() if one == "failed"] == []


def test_7_an_earlier_teardown_was_killed_after_the_node_pools(infrastructure: Ground) -> None:
    ground = infrastructure
    with ground.timing(node_empty=600):
        ground.deploy("wait_cache")
        launched = ground.instances()
        # Karpenter is away just then, so that the nodes are still to go.
        away = {"delete_node_pools": lambda: ground.scale_karpenter(0)}
        before = ground.teardown(until="delete_node_pools", before=away)
    assert "wait_nodes_gone" not in before.states and before.failed == []
    assert ground.objects("NodePool", KARPENTER_API) == []
    until(lambda: all(is_deleting(one) for one in ground.objects("NodeClaim", KARPENTER_API)), "the claims' deletion")
    assert [one["metadata"]["finalizers"] for one in ground.objects("NodeClaim", KARPENTER_API)] == [[TERMINATION]]
    assert len(launched) == 1 and ground.instances() == launched

    # It comes back only when its claims are waited for: whatever is gone before is not named any more.
    run = ground.teardown(before={"wait_nodes_gone": lambda: ground.scale_karpenter(1)})
    ground.assert_platform_gone(run)
    removed = Session(NAME, "", run.run_id).facts("delete_node_pools")["removed"]
    assert sorted(one["kind"] for one in removed) == ["Node", "NodeClaim"]


def test_8_the_operator_was_uninstalled_by_hand(infrastructure: Ground) -> None:
    ground = infrastructure
    ground.deploy("wait_cache")
    addon = Session(NAME, "", "by-hand").environment.addons[-1]
    Helm(ground.cluster, Session(NAME, "", "by-hand").include).uninstall(addon)
    (cache,) = ground.objects("NIMCache")

    # A teardown of before, or somebody's kubectl, that asks nobody: the wait says what it hangs on.
    told = ground.teardown(until="wait_caches_gone", but=("approve_finalizers",))
    assert told.states["wait_caches_gone"] == "failed"
    error = told.errors["wait_caches_gone"]
    assert (error.layer, error.reason) == ("operator", "finalizer-stuck")
    for word in (cache["metadata"]["name"], "finalizer.nimcache.apps.nvidia.com", "the NIM operator", "does not exist"):
        assert word in error.message
    assert "install it anew" in error.hint

    # No: nothing is touched, and the run ends as declined.
    declined = ground.teardown(answer=lambda subject, body: False)
    assert declined.questions and declined.states["delete_services"] == "skipped"
    assert ground.objects("NIMCache")[0]["metadata"]["finalizers"] == cache["metadata"]["finalizers"]

    # Yes: these and no others, by name, in the records.
    run = ground.teardown(answer=lambda subject, body: cache["metadata"]["uid"] in body)
    ((task, _, body),) = run.questions
    assert task == "approve_finalizers" and "install the controller again" in body
    freed = Session(NAME, "", run.run_id).facts("delete_caches", FREED)
    assert freed["approved_by"] == "ada"
    assert freed["finalizers"] == [f"NIMCache/{cache['metadata']['name']}: finalizer.nimcache.apps.nvidia.com"]
    ground.assert_platform_gone(run)


def test_9_karpenter_was_uninstalled_by_hand_and_its_nodes_remain(infrastructure: Ground) -> None:
    ground = infrastructure
    with ground.timing(node_empty=600):
        ground.deploy("wait_cache")
        karpenter = Session(NAME, "", "by-hand").environment.addons[0]
        Helm(ground.cluster, Session(NAME, "", "by-hand").include).uninstall(karpenter)
        ground.until_karpenters(0)
    (claim,), launched = ground.objects("NodeClaim", KARPENTER_API), ground.instances()

    # Asked nothing, the wait says what it hangs on, and whose it is.
    told = ground.teardown(until="wait_nodes_gone", but=("approve_finalizers",))
    assert told.states["wait_nodes_gone"] == "failed"
    error = told.errors["wait_nodes_gone"]
    assert error.reason == "finalizer-stuck"
    for word in (claim["metadata"]["name"], TERMINATION, "Karpenter", "karpenter does not exist"):
        assert word in error.message
    assert "install it anew" in error.hint

    # Asked, it says what a yes would cost; no leaves everything, the paid instance too.
    declined = ground.teardown(answer=lambda subject, body: False)
    ((task, _, body),) = declined.questions
    assert task == "approve_finalizers" and "its EC2 instance, which goes on and is paid for without it" in body
    assert ground.objects("NodeClaim", KARPENTER_API)[0]["metadata"]["finalizers"] == [TERMINATION]
    assert ground.instances() == launched

    # The better way: Karpenter again, and nobody is asked.
    ground.deploy("install_addon")
    run = ground.teardown()
    assert run.questions == []
    ground.assert_platform_gone(run)


def test_what_refuses_it_refuses_before_anything_is_deleted(infrastructure: Ground) -> None:
    ground = infrastructure
    with ground.timing(node_empty=600):
        ground.deploy("wait_cache")
        stands = ground.standing()
        assert {"NIMCache", "NodePool", "NodeClaim"} <= {kind for kind, _ in stands}

        pool = yaml.safe_load(THEIR_POOL)
        ground.cluster.apply(pool)
        run = ground.teardown("everything")
        assert run.errors["validate"].reason == "leftovers"
        assert "these node pools are not ours: NodePool/theirs" in run.errors["validate"].message
        assert {state for task, state in run.states.items() if task not in ("validate", "conclude")} == {
            "upstream_failed"
        }
        ground.cluster.delete(pool)

        ground.write(approval="always")
        run = ground.teardown("everything", answer=lambda subject, body: False)
        ((task, subject, body),) = run.questions
        assert (task, subject.partition(":")[0]) == ("approve_destroy", NAME)
        assert "aws_vpc.this" in body and f"services and caches of `{DEPLOYMENT}`" in body
        ran = {"validate", "plan_destroy", "approve_destroy", "conclude"}
        assert {task for task, state in run.states.items() if state == "success"} == ran
        assert {state for task, state in run.states.items() if task not in ran} == {"skipped"}
        assert Session(NAME, "", run.run_id).facts("conclude", "decision")["decision"] == "declined"
        # Whatever of it somebody clears: it was declined.
        again = ground.pipelines.run("nim_teardown", run.params, again=run, from_task="delete_services")
        assert again.errors["delete_services"].reason == "not-approved"
        assert ground.standing() == stands

        ground.write()
        ground.assert_platform_gone(ground.teardown())


def test_10_the_cluster_was_deleted_by_hand_and_the_network_remains(infrastructure: Ground) -> None:
    eks = infrastructure.aws("eks")
    for group in eks.list_nodegroups(clusterName=NAME)["nodegroups"]:
        eks.delete_nodegroup(clusterName=NAME, nodegroupName=group)
    until(lambda: not eks.list_nodegroups(clusterName=NAME)["nodegroups"], "the node group's end")
    eks.delete_cluster(name=NAME)
    until(lambda: not eks.list_clusters()["clusters"], "the cluster's end")
    run = infrastructure.teardown("everything")
    infrastructure.assert_everything_gone(run)
    assert Session(NAME, "", run.run_id).facts("delete_services")["cluster"] == "absent"


def test_11_everything_is_gone_already(ground: Ground) -> None:
    run = ground.teardown("everything")
    ground.assert_everything_gone(run)


def test_12_terraform_was_cut_off_between_the_cluster_and_its_access_entries(ground: Ground) -> None:
    """On its way up or down: the cluster stands, and answers nobody."""
    ground.write()
    ground.deploy("terraform_apply", but=())
    eks = ground.aws("eks")
    for entry in eks.list_access_entries(clusterName=NAME)["accessEntries"]:
        eks.delete_access_entry(clusterName=NAME, principalArn=entry)
    with pytest.raises(AccessDenied):
        ground.objects("Namespace", "v1")
    run = ground.teardown("everything")
    ground.assert_everything_gone(run)
    assert Session(NAME, "", run.run_id).facts("delete_services")["cluster"] == "absent"


def _downloading(ground: Ground) -> bool:
    pods = ground.cluster.list("v1", "Pod", NAMESPACE)
    return any(
        one["metadata"]["name"].find("-job-") > 0 and (one.get("status") or {}).get("phase") == "Running"
        for one in pods
    )


class Load:
    """A client of the service that asks on and on, through the API server."""

    def __init__(self, ground: Ground) -> None:
        self.answered = self.refused = 0
        self._cluster, self._end = ground.cluster, threading.Event()
        (service,) = ground.objects("NIMService")
        selector = f"app={service['metadata']['name']}"
        self._pod = ground.cluster.list("v1", "Pod", NAMESPACE, label_selector=selector)[0]["metadata"]["name"]
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def _ask(self) -> None:
        while not self._end.wait(0.05):
            try:
                with self._cluster.port_forward(NAMESPACE, self._pod, 8000) as http:
                    ok = http.request("GET", "/v1/models", timeout_s=5.0).status == 200
            except Exception:
                ok = False
            self.answered, self.refused = self.answered + ok, self.refused + (not ok)


def until(condition: Callable[[], Any], what: str, patience_s: float = 90) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain for {what}"
        time.sleep(0.2)
