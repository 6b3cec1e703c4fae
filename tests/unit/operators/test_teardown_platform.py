"""Down in order, the platform: nodes before their Karpenter, operators after their objects, others' things named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.core.addons import ADDON_LABEL
from nim_rollouts.core.errors import (
    LeftoversFound,
)
from nim_rollouts.core.manifests import ENVIRONMENT_LABEL, MANAGED_BY
from nim_rollouts.operators import (
    teardown_addons,
    teardown_nodes,
    teardown_others,
    teardown_platform,
    teardown_terraform,
)
from tests.unit.operators.conftest import CRD, OURS, World, karpenters, obj, run


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


def test_a_definition_that_somebody_else_has_installed_stays(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The add-on was never installed, or is gone since an earlier try: its mark alone tells what was ours."""
    for key in [key for key in down.cluster.objects if key[0] == "NIMCache"]:
        del down.cluster.objects[key]
    absent = SimpleNamespace(uninstall=lambda addon, wait_s: False)
    monkeypatch.setattr("nim_rollouts.clients.helm.Helm", lambda cluster, include: absent)
    names = {"group": "apps.nvidia.com", "names": {"kind": "NIMCache"}, "versions": [{"name": "v1", "served": True}]}
    down.cluster.put(obj("CustomResourceDefinition", CRD, spec=names))
    facts = run(down, teardown_addons.UninstallAddonsOperator, "uninstall_addons")
    assert facts == {"uninstalled": [], "crds": []}
    assert ("CustomResourceDefinition", None, CRD) in down.cluster.objects

    ours = {ADDON_LABEL: "nim-operator.nim-operator"}
    down.cluster.put(obj("CustomResourceDefinition", CRD, labels=ours, spec=names))
    assert run(down, teardown_addons.UninstallAddonsOperator, "uninstall_addons")["crds"] == [CRD]


def test_an_add_on_that_has_left_the_file_is_named_before_anything_is_uninstalled(down: World, helm: list[str]) -> None:
    for key in [key for key in down.cluster.objects if key[0] == "NIMCache"]:
        del down.cluster.objects[key]

    def installed(name: str, namespace: str, environment: str) -> None:
        labels = {"owner": "helm", "name": name, "version": "1", "status": "deployed", ENVIRONMENT_LABEL: environment}
        down.cluster.put(obj("Secret", f"sh.helm.release.v1.{name}.v1", namespace, labels))

    installed("nim-operator", "nim-operator", "test")
    installed("monitoring", "elsewhere", "another")
    installed("prometheus", "monitoring", "test")
    installed("nim-operator", "moved-from-here", "test")
    for step in (teardown_addons.UninstallAddonsOperator, teardown_addons.UninstallKarpenterOperator):
        with pytest.raises(LeftoversFound) as told:
            run(down, step, "uninstall_addons")
        assert told.value.message.endswith(
            ": release prometheus in monitoring, release nim-operator in moved-from-here"
        )
        assert "helm uninstall prometheus --namespace monitoring" in told.value.hint
    assert helm == [] and down.cluster.log == []
    told_first = teardown_others.others(down.cluster, down.session().environment, "a=b", whole=True)  # type: ignore[arg-type]
    assert told.value.message in [one.message for one in told_first]
    down.cluster.objects.pop(("Secret", "monitoring", "sh.helm.release.v1.prometheus.v1"))
    down.cluster.objects.pop(("Secret", "moved-from-here", "sh.helm.release.v1.nim-operator.v1"))
    assert run(down, teardown_addons.UninstallAddonsOperator, "uninstall_addons")["uninstalled"] == ["nim-operator"]


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
        run(down, teardown_terraform.TerraformDestroyOperator, "terraform_destroy")


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
    told = ["delete Service/ours", "gone Service/ours"]
    assert down.cluster.log == told, "ours is gone before its controller is; the release's goes with its release"


def test_where_the_network_stays_so_do_the_load_balancers_of_others(down: World) -> None:
    balancers(down)
    down.session(deployment="").ledger.record("validate", 2, "result", {"scope": "platform", "deployments": {}})
    facts = run(down, teardown_platform.FreeNetworkOperator, "free_network")
    assert [one["name"] for one in facts["removed"]] == ["ours", "grafana"]
