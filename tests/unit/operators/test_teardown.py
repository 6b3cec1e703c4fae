"""Down in order: only what is ours, only when nobody needs it, and again from any point."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from nim_rollouts.core.errors import (
    AccessDenied,
    ClusterMissing,
    ClusterUnavailable,
    LeftoversFound,
    TerraformUnavailable,
)
from nim_rollouts.core.inventory import Finding, Inventory, Unseen
from nim_rollouts.core.manifests import DEPLOYMENT_LABEL, ENVIRONMENT_LABEL, MANAGED_BY, MANAGER
from nim_rollouts.hooks.inventory import networks
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators import teardown, teardown_addons, teardown_nodes, teardown_platform
from tests.unit.operators.conftest import DEPLOYMENT, ENVIRONMENT, World

OURS = {MANAGED_BY: MANAGER, ENVIRONMENT_LABEL: "test"}
CRD = "nimcaches.apps.nvidia.com"


def obj(kind: str, name: str, namespace: str | None = None, labels: Any = None, **rest: Any) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels or {}, **place}, **rest}


@pytest.fixture
def down(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A validated teardown of the whole platform, on a cluster with one deployment and a neighbour's objects."""
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: True)
    monkeypatch.setattr("nim_rollouts.operators.teardown.check_tools", lambda session, problems: {})
    operator = teardown.ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.deployment, operator.scope, operator.confirm = "", "everything", ENVIRONMENT
    operator.execute(world.context("validate"))
    mine = {**OURS, DEPLOYMENT_LABEL: DEPLOYMENT}
    for kind in ("NIMService", "Service", "Job", "ConfigMap", "NIMCache"):
        world.cluster.put(obj(kind, f"my-{kind.lower()}", "nim-service", mine))
        world.cluster.put(obj(kind, f"their-{kind.lower()}", "elsewhere"))
    return world


def run(world: World, cls: type, name: str) -> dict[str, Any]:
    operator = cls(task_id=name)
    operator.deployment = ""
    facts = operator.run(world.stage(name, deployment=""))
    world.session(deployment="").ledger.record(name, 1, "result", facts)
    return facts


def test_services_go_before_caches_and_only_ours(down: World) -> None:
    facts = run(down, teardown.DeleteServicesOperator, "delete_services")
    assert {one["name"] for one in facts["removed"]} == {"my-nimservice", "my-service", "my-job", "my-configmap"}
    assert ("NIMCache", "nim-service", "my-nimcache") in down.cluster.objects


def test_the_volumes_behind_a_cache_are_waited_for_too(down: World) -> None:
    for name, claim in (("pv-1", "my-nimcache-pvc"), ("pv-2", "somebody-elses")):
        reference = {"claimRef": {"namespace": "nim-service", "name": claim}, "storageClassName": "other"}
        down.cluster.put(obj("PersistentVolume", name, spec=reference))
    facts = run(down, teardown.DeleteCachesOperator, "delete_caches")
    assert [(one["kind"], one["name"]) for one in facts["removed"]] == [
        ("NIMCache", "my-nimcache"),
        ("PersistentVolume", "pv-1"),
    ]
    assert ("PersistentVolume", None, "pv-1") in down.cluster.objects, "the driver removes it, not we"


def test_volumes_that_an_earlier_run_left_are_waited_for(down: World) -> None:
    for key in [key for key in down.cluster.objects if key[0] == "NIMCache"]:
        del down.cluster.objects[key]
    spec = {"claimRef": {"namespace": "nim-service", "name": "gone-pvc"}, "storageClassName": "efs-sc-dynamic"}
    down.cluster.put(obj("PersistentVolume", "pv-1", spec=spec))
    assert [one["name"] for one in run(down, teardown.DeleteCachesOperator, "delete_caches")["removed"]] == ["pv-1"]


def test_an_interrupted_try_is_not_forgotten(down: World) -> None:
    from nim_rollouts.triggers.plans import plan_for

    run(down, teardown.DeleteCachesOperator, "delete_caches")
    ledger = down.session(deployment="").ledger
    ledger.record("delete_caches", 2, "result", {"removed": []})
    plan = plan_for("wait_caches_gone", down.session(deployment=""))
    assert [subject.ref for subject in plan.subjects] == ["NIMCache/my-nimcache"]
    assert all(subject.absent for subject in plan.subjects)


def test_what_is_on_its_way_out_is_waited_for_not_deleted_twice(down: World) -> None:
    going = down.cluster.get("", "NIMCache", "nim-service", "my-nimcache")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    facts = run(down, teardown.DeleteCachesOperator, "delete_caches")
    assert [one["name"] for one in facts["removed"]] == ["my-nimcache"]
    assert down.cluster.log == []


def test_a_namespace_where_others_live_stays(down: World) -> None:
    down.cluster.put(obj("Namespace", "nim-service", labels=OURS))
    down.cluster.put(obj("Namespace", "kube-system"))
    down.cluster.put(obj("Pod", "a-neighbour", "nim-service"))
    with pytest.raises(LeftoversFound, match="Pod/a-neighbour"):
        run(down, teardown_platform.DeleteNamespacesOperator, "delete_namespaces")
    del down.cluster.objects["Pod", "nim-service", "a-neighbour"]
    facts = run(down, teardown_platform.DeleteNamespacesOperator, "delete_namespaces")
    assert [one["name"] for one in facts["removed"]] == ["nim-service"]


def test_one_deployment_alone_leaves_the_platform(down: World) -> None:
    down.session(deployment="").ledger.record("validate", 2, "result", {"scope": "deployment", "deployments": {}})
    with pytest.raises(AirflowSkipException):
        run(down, teardown_platform.DeleteNamespacesOperator, "delete_namespaces")


@pytest.fixture
def helm(down: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Helm's calls, and the CRD of its chart in the cluster."""
    calls: list[str] = []
    fake = SimpleNamespace(
        crds=lambda addon: [{"metadata": {"name": CRD}}],
        uninstall=lambda addon, wait_s: calls.append(f"uninstall {addon.name}") or True,
    )
    monkeypatch.setattr("nim_rollouts.clients.helm.Helm", lambda cluster, include: fake)
    names = {"group": "apps.nvidia.com", "names": {"kind": "NIMCache"}, "versions": [{"name": "v1", "served": True}]}
    down.cluster.put(obj("CustomResourceDefinition", CRD, spec=names))
    return calls


def test_the_operator_stays_while_it_is_needed(down: World, helm: list[str]) -> None:
    with pytest.raises(LeftoversFound, match="NIMCache/my-nimcache"):
        run(down, teardown_addons.UninstallAddonsOperator, "uninstall_addons")
    assert helm == []


def test_the_operator_goes_before_its_definitions(down: World, helm: list[str]) -> None:
    for key in [key for key in down.cluster.objects if key[0] == "NIMCache"]:
        del down.cluster.objects[key]
    facts = run(down, teardown_addons.UninstallAddonsOperator, "uninstall_addons")
    assert helm == ["uninstall nim-operator"]
    assert facts == {"uninstalled": ["nim-operator"], "crds": [CRD]}
    assert down.cluster.log[-2:] == [
        f"delete CustomResourceDefinition/{CRD}",
        f"gone CustomResourceDefinition/{CRD}",
    ]


def test_a_node_that_karpenter_launched_must_go_too(down: World) -> None:
    launched = obj("Node", "launched", status={"capacity": {"cpu": "8"}})
    launched["metadata"]["labels"] = {"karpenter.sh/nodepool": "x86"}
    node = down.cluster.put(launched)
    assert run(down, teardown_nodes.DeleteNodePoolsOperator, "delete_node_pools")["removed"] == [], "no claim has it"
    facts = run(down, teardown_platform.FreeNetworkOperator, "free_network")
    assert [(one["name"], one["uid"]) for one in facts["removed"]] == [("launched", node["metadata"]["uid"])]
    claim = karpenters(down, "NodeClaim", "x86-1", status={"nodeName": "launched"})
    facts = run(down, teardown_nodes.DeleteNodePoolsOperator, "delete_node_pools")
    assert {one["uid"] for one in facts["removed"]} == {node["metadata"]["uid"], claim["metadata"]["uid"]}


def test_infrastructure_is_not_destroyed_under_a_gpu_node(down: World) -> None:
    down.cluster.put(obj("Node", "cpu", status={"capacity": {"cpu": "4"}}))
    node = down.cluster.put(obj("Node", "gpu", status={"capacity": {"nvidia.com/gpu": "4"}}))
    assert run(down, teardown_nodes.DeleteNodePoolsOperator, "delete_node_pools")["removed"] == [], "it is no pool's"
    facts = run(down, teardown_platform.FreeNetworkOperator, "free_network")
    assert [(one["name"], one["uid"]) for one in facts["removed"]] == [("gpu", node["metadata"]["uid"])]
    with pytest.raises(LeftoversFound, match="gpu"):
        run(down, teardown_platform.TerraformDestroyOperator, "terraform_destroy")


def karpenters(
    down: World, kind: str, name: str, labels: Any = None, status: Any = None, **metadata: Any
) -> dict[str, Any]:
    made = obj(kind, name, labels=labels, status=status or {})
    made["metadata"].update(metadata)
    return down.cluster.put(made)


def test_our_node_pools_go_with_all_that_they_launched(down: World) -> None:
    karpenters(down, "NodePool", "gpu", OURS)
    karpenters(down, "NodeClaim", "gpu-x1", {"karpenter.sh/nodepool": "gpu"}, finalizers=["karpenter.sh/termination"])
    karpenters(down, "EC2NodeClass", "bottlerocket", OURS)
    facts = run(down, teardown_nodes.DeleteNodePoolsOperator, "delete_node_pools")
    assert [(one["kind"], one["name"]) for one in facts["removed"]] == [("NodePool", "gpu"), ("NodeClaim", "gpu-x1")]
    assert down.cluster.log == ["delete NodePool/gpu"], "Karpenter deletes its NodeClaims, not we"
    with pytest.raises(LeftoversFound, match="NodeClaim/gpu-x1"):
        run(down, teardown_nodes.DeleteNodeClassesOperator, "delete_node_classes")
    assert ("EC2NodeClass", None, "bottlerocket") in down.cluster.objects
    del down.cluster.objects["NodeClaim", None, "gpu-x1"]
    facts = run(down, teardown_nodes.DeleteNodeClassesOperator, "delete_node_classes")
    assert [one["name"] for one in facts["removed"]] == ["bottlerocket"]
    assert down.cluster.log[-1] == "gone EC2NodeClass/bottlerocket"


def test_a_claim_that_was_made_while_its_pool_went_is_waited_for_too(
    down: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    karpenters(down, "NodePool", "gpu", OURS)
    delete = down.cluster.delete

    def late(obj: dict[str, Any], **how: Any) -> bool:
        karpenters(down, "NodeClaim", "late")
        return delete(obj, **how)

    monkeypatch.setattr(down.cluster, "delete", late)
    facts = run(down, teardown_nodes.DeleteNodePoolsOperator, "delete_node_pools")
    assert "late" in [one["name"] for one in facts["removed"]]


def test_a_node_pool_of_somebody_else_is_named_and_nothing_is_deleted(down: World) -> None:
    karpenters(down, "NodePool", "gpu", OURS)
    karpenters(down, "NodePool", "batch", {MANAGED_BY: "somebody"})
    with pytest.raises(LeftoversFound, match="NodePool/batch") as told:
        run(down, teardown_nodes.DeleteNodePoolsOperator, "delete_node_pools")
    assert "NodePool/gpu" not in str(told.value)
    assert down.cluster.log == []


def with_karpenter(world: World) -> None:
    """Karpenter as the environment's first add-on, so that it would go last also by the reverse order."""
    file = world.include.root / "environments" / "test.yaml"
    requires = "requires: {crds: [nodepools.karpenter.sh]}"
    karpenter = f"  - {{name: karpenter, namespace: karpenter, chart: charts/operator, {requires}}}"
    file.write_text(file.read_text().replace("addons:", f"addons:\n{karpenter}"))


def test_karpenter_goes_by_itself_and_not_while_a_node_is_left(down: World, helm: list[str]) -> None:
    with_karpenter(down)
    for key in [key for key in down.cluster.objects if key[0] == "NIMCache"]:
        del down.cluster.objects[key]
    run(down, teardown_addons.UninstallAddonsOperator, "uninstall_addons")
    assert helm == ["uninstall nim-operator"]
    karpenters(down, "NodeClaim", "gpu-x1")
    with pytest.raises(LeftoversFound, match="NodeClaim/gpu-x1"):
        run(down, teardown_addons.UninstallKarpenterOperator, "uninstall_karpenter")
    del down.cluster.objects["NodeClaim", None, "gpu-x1"]
    run(down, teardown_addons.UninstallKarpenterOperator, "uninstall_karpenter")
    assert helm == ["uninstall nim-operator", "uninstall karpenter"]


def test_what_a_release_brought_along_does_not_hold_it_and_what_others_made_holds_its_definition(
    down: World, helm: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitoring stack's own rules go with it; a rule of somebody else must not be lost with the definition."""
    cache = down.cluster.objects["NIMCache", "nim-service", "my-nimcache"]
    cache["metadata"]["annotations"] = {
        "meta.helm.sh/release-name": "nim-operator", "meta.helm.sh/release-namespace": "nim-operator"
    }  # fmt: skip
    del down.cluster.objects["NIMCache", "elsewhere", "their-nimcache"]
    made = obj("NIMCache", "made-by-it", "nim-service")
    made["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "name": "x", "uid": "1"}]
    down.cluster.put(made)
    uninstalled: list[str] = []

    def uninstall(addon: Any, wait_s: float) -> bool:
        uninstalled.append(addon.name)
        down.cluster.objects.pop(("NIMCache", "nim-service", "my-nimcache"))
        down.cluster.objects.pop(("NIMCache", "nim-service", "made-by-it"))
        down.cluster.put(obj("NIMCache", "quick", "elsewhere"))
        return True

    fake = SimpleNamespace(crds=lambda addon: [], uninstall=uninstall)
    monkeypatch.setattr("nim_rollouts.clients.helm.Helm", lambda cluster, include: fake)
    with pytest.raises(LeftoversFound, match="NIMCache/quick"):
        run(down, teardown_addons.UninstallAddonsOperator, "uninstall_addons")
    assert uninstalled == ["nim-operator"]
    assert ("CustomResourceDefinition", None, CRD) in down.cluster.objects


def balancers(down: World) -> None:
    balanced = {"spec": {"type": "LoadBalancer"}}
    down.cluster.put(obj("Service", "ours", "nim-service", OURS, **balanced))
    released = obj("Service", "grafana", "monitoring", **balanced)
    released["metadata"]["annotations"] = {
        "meta.helm.sh/release-name": "nim-operator", "meta.helm.sh/release-namespace": "nim-operator"
    }  # fmt: skip
    down.cluster.put(released)
    down.cluster.put(obj("IngressClass", "public", spec={"controller": "ingress.k8s.aws/alb"}))
    down.cluster.put(obj("Ingress", "theirs", "elsewhere", spec={"ingressClassName": "public"}))
    down.cluster.put(obj("Ingress", "inside", "elsewhere", spec={"ingressClassName": "nginx"}))


def test_a_load_balancer_of_somebody_else_is_named_before_the_network_goes(down: World) -> None:
    balancers(down)
    with pytest.raises(LeftoversFound, match="Ingress/theirs in elsewhere") as told:
        run(down, teardown_platform.FreeNetworkOperator, "free_network")
    assert "inside" not in str(told.value), "this one makes no load balancer of its own"
    assert down.cluster.log == []
    del down.cluster.objects["Ingress", "elsewhere", "theirs"]
    facts = run(down, teardown_platform.FreeNetworkOperator, "free_network")
    assert [one["name"] for one in facts["removed"]] == ["ours", "grafana"]
    assert down.cluster.log == ["delete Service/ours"], "the release's goes with its release"


def test_where_the_network_stays_so_do_the_load_balancers_of_others(down: World) -> None:
    balancers(down)
    down.session(deployment="").ledger.record("validate", 2, "result", {"scope": "platform", "deployments": {}})
    facts = run(down, teardown_platform.FreeNetworkOperator, "free_network")
    assert [one["name"] for one in facts["removed"]] == ["ours", "grafana"]


def test_the_platform_alone_leaves_the_infrastructure(down: World) -> None:
    down.session(deployment="").ledger.record("validate", 2, "result", {"scope": "platform", "deployments": {}})
    with pytest.raises(AirflowSkipException):
        run(down, teardown_platform.TerraformDestroyOperator, "terraform_destroy")


@pytest.mark.parametrize(
    ("scope", "done", "decision"),
    [
        ("deployment", {"wait_caches_gone"}, "gone"),
        ("platform", {"uninstall_karpenter", "delete_storage_class"}, "gone"),
        ("platform", {"uninstall_karpenter"}, "failed"),
        ("everything", {"uninstall_karpenter", "delete_storage_class", "terraform_destroy"}, "failed"),
        ("everything", {"verify_gone"}, "gone"),
    ],
)
def test_the_last_proof_of_the_scope_decides(down: World, scope: str, done: set[str], decision: str) -> None:
    stage = down.stage("conclude", deployment="")
    stage.session.ledger.record("validate", 2, "result", {"scope": scope, "deployments": {}})
    conclude = teardown.ConcludeTeardownOperator(task_id="conclude")
    assert conclude.decide(stage, dict.fromkeys(done, "success"))[0] == decision


def _without_cluster(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def missing(self: Session) -> Any:
        raise error

    monkeypatch.setattr(Session, "cluster", property(missing))


def test_without_a_cluster_every_step_in_it_is_done(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_cluster(monkeypatch, ClusterMissing("no cluster"))
    steps = (
        teardown.DeleteServicesOperator,
        teardown.DeleteCachesOperator,
        teardown_platform.DeleteNamespacesOperator,
        teardown_addons.UninstallAddonsOperator,
        teardown_platform.DeleteStorageClassOperator,
        teardown_nodes.DeleteNodePoolsOperator,
        teardown_nodes.DeleteNodeClassesOperator,
        teardown_platform.FreeNetworkOperator,
        teardown_addons.UninstallKarpenterOperator,
    )
    for number, step in enumerate(steps):
        facts = run(down, step, f"step{number}")
        assert not facts.get("removed") and not facts.get("uninstalled")


def test_a_cluster_that_does_not_answer_is_not_an_absent_one(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_cluster(monkeypatch, ClusterUnavailable("no answer"))
    with pytest.raises(ClusterUnavailable):
        run(down, teardown.DeleteServicesOperator, "delete_services")


LEFT = Finding("EFS file system", "fs-1", "", ("tag nim-rollouts/environment",), "us (terraform)", (), "", going=False)
BLIND = Unseen("volume", "AWS refuses ec2:DescribeVolumes (AccessDenied)", "ec2:DescribeVolumes")


@pytest.fixture
def gone(down: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(terraform's state, AWS's leftovers, what AWS does not tell) -> the facts of verify_gone."""

    def verify(state: list[str], left: tuple[Finding, ...] = (), unseen: tuple[Unseen, ...] = ()) -> dict[str, Any]:
        fake = SimpleNamespace(init=lambda backend: None, state_list=lambda: state)
        monkeypatch.setattr("nim_rollouts.hooks.infrastructure.open_terraform", lambda *_: fake)
        taken = Inventory(left, unseen, ("EFS file system",))
        monkeypatch.setattr("nim_rollouts.hooks.inventory.take", lambda environment, store, say: taken)
        return run(down, teardown_platform.VerifyGoneOperator, "verify_gone")

    return verify


@pytest.mark.parametrize(("state", "aws", "text"), [([], (), None), (["aws_vpc.this"], (), "aws_vpc.this"),
                                                    ([], (LEFT,), "fs-1")])  # fmt: skip
def test_only_empty_is_success(
    down: World, gone: Any, state: list[str], aws: tuple[Finding, ...], text: str | None
) -> None:
    if text is None:
        facts = gone(state, aws)
        assert {"state": "empty", "aws": "empty"}.items() <= facts.items()
        assert facts["answer"] == "empty" and facts["looked_at"] == ["EFS file system", "terraform state"]
        return
    with pytest.raises(LeftoversFound, match=text):
        gone(state, aws)
    written = down.session(deployment="").facts("verify_gone", "inventory")
    assert (written["answer"], len(written["leftovers"])) == ("leftovers", 1)


def test_what_cannot_be_seen_is_no_success(down: World, gone: Any) -> None:
    with pytest.raises(AccessDenied, match="ec2:DescribeVolumes"):
        gone([], (), (BLIND,))
    written = down.session(deployment="").facts("verify_gone", "inventory")
    assert written["answer"] == "unknown" and written["unknown"][0]["action"] == "ec2:DescribeVolumes"


def test_a_state_that_cannot_be_read_hides_nothing_of_aws(
    down: World, gone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(self: Any, stage: Any) -> Any:
        raise TerraformUnavailable("the state is locked")

    monkeypatch.setattr(teardown_platform.VerifyGoneOperator, "terraform", unreadable)
    with pytest.raises(LeftoversFound, match="fs-1.*terraform state: it cannot be read: the state is locked"):
        gone([], (LEFT,))


def test_destroy_remembers_the_network_and_names_what_holds_it(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def destroy(variables: Any) -> Any:
        raise TerraformUnavailable("vpc-00000001: DependencyViolation", reason="dependency-violation")

    fake = SimpleNamespace(init=lambda backend: None, output=lambda: {"vpc_id": "vpc-00000001"}, destroy=destroy)
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.open_terraform", lambda *_: fake)
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.variables", lambda environment: {})
    monkeypatch.setattr(
        "nim_rollouts.hooks.inventory.holders",
        lambda environment, store, ids: dict.fromkeys(ids, ("network interface eni-1",)),
    )
    with pytest.raises(TerraformUnavailable, match="vpc-00000001 is held by network interface eni-1"):
        run(down, teardown_platform.TerraformDestroyOperator, "terraform_destroy")
    session = down.session(deployment="")
    assert networks(session.environment, session.store) == ["vpc-00000001"]
