"""Down in order: only what is ours, only when nobody needs it, and again from any point."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from nim_rollouts.core.addons import ADDON_LABEL
from nim_rollouts.core.errors import (
    ClusterMissing,
    ClusterUnavailable,
    LeftoversFound,
    NeedsHumanError,
)
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators import teardown, teardown_addons, teardown_nodes, teardown_platform, teardown_terraform
from tests.unit.operators.conftest import DEPLOYMENT, OURS, World, obj, run


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


@pytest.mark.parametrize(
    ("scope", "deployments", "waited_for"),
    [
        ("deployment", [DEPLOYMENT], {"mine", "probe"}),
        ("platform", [DEPLOYMENT, "another"], {"mine", "probe", "other"}),
        ("everything", [DEPLOYMENT], {"mine", "probe", "longer", "other", "theirs"}),
    ],
)
def test_volumes_of_others_are_waited_for_where_their_file_system_goes(
    down: World, scope: str, deployments: list[str], waited_for: set[str]
) -> None:
    """Where it stays, theirs do; a name that merely begins like a deployment's is not its."""
    claims = {"mine": f"{DEPLOYMENT}-0123abcd-pvc", "probe": f"{DEPLOYMENT}-probe-0123abcd-x7k2p-data",
              "longer": f"{DEPLOYMENT}-int4-0123abcd-pvc", "other": "another-0123abcd-pvc",
              "theirs": "data"}  # fmt: skip
    for name, claim in claims.items():
        spec = {"claimRef": {"namespace": "nim-service", "name": claim}, "storageClassName": "efs-sc-dynamic"}
        down.cluster.put(obj("PersistentVolume", name, spec=spec))
    of_others = {"claimRef": {"namespace": "nim-service", "name": claims["mine"]}, "storageClassName": "gp3"}
    down.cluster.put(obj("PersistentVolume", "of another class", spec=of_others))
    request = {"scope": scope, "deployments": dict.fromkeys(deployments, 1)}
    down.session(deployment="").ledger.record("validate", 2, "result", request)
    facts = run(down, teardown.DeleteCachesOperator, "delete_caches")
    assert {one["name"] for one in facts["removed"]} == {"my-nimcache", *waited_for}


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


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "CronJob", "Service"])
def test_a_namespace_where_somebody_lives_who_runs_nothing_now_stays(down: World, kind: str) -> None:
    down.cluster.put(obj("Namespace", "nim-service", labels=OURS))
    for key in [key for key in down.cluster.objects if key[0] == "Service"]:
        del down.cluster.objects[key]
    down.cluster.put(obj(kind, "asleep", "nim-service"))
    with pytest.raises(LeftoversFound, match=f"{kind}/asleep"):
        run(down, teardown_platform.DeleteNamespacesOperator, "delete_namespaces")
    assert ("Namespace", None, "nim-service") in down.cluster.objects


def test_the_key_goes_also_where_the_namespace_stays(down: World) -> None:
    down.cluster.put(obj("Namespace", "theirs"))
    down.cluster.put(obj("Secret", "ngc-api-secret", "theirs", OURS))
    down.cluster.put(obj("Secret", "grafana", "monitoring", {**OURS, ADDON_LABEL: "monitoring.stack"}))
    down.cluster.put(obj("Secret", "somebody-elses", "theirs"))
    run(down, teardown_platform.DeleteNamespacesOperator, "delete_namespaces")
    left = {name for kind, _, name in down.cluster.objects if kind in ("Secret", "Namespace")}
    assert left == {"theirs", "grafana", "somebody-elses"}


def test_one_deployment_alone_leaves_the_platform(down: World) -> None:
    down.session(deployment="").ledger.record("validate", 2, "result", {"scope": "deployment", "deployments": {}})
    with pytest.raises(AirflowSkipException):
        run(down, teardown_platform.DeleteNamespacesOperator, "delete_namespaces")


@pytest.mark.parametrize("scope", ["deployment", "platform"])
def test_a_smaller_scope_leaves_the_infrastructure(down: World, scope: str) -> None:
    down.session(deployment="").ledger.record("validate", 2, "result", {"scope": scope, "deployments": {}})
    for step in (teardown_terraform.PlanDestroyOperator, teardown_terraform.TerraformDestroyOperator):
        with pytest.raises(AirflowSkipException):
            run(down, step, "terraform")


@pytest.mark.parametrize("asked", ["approve_destroy", "approve_finalizers"])
def test_after_a_no_nothing_is_deleted_whatever_is_cleared(
    down: World, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    told = {"declined": True, "told": "rejected by grace at noon"}
    down.session(deployment="").ledger.record(asked, 1, "result", told)
    operator = teardown.DeleteCachesOperator(task_id="delete_caches")
    down.prepared(operator, monkeypatch)
    operator.deployment = ""
    with pytest.raises(NeedsHumanError, match="rejected by grace at noon") as refused:
        operator.execute(down.context("delete_caches"))
    assert refused.value.reason == "not-approved"
    assert down.cluster.log == []


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
