"""A volume of a driver's that is left stops a destruction while the driver still runs, and stops nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from nim_rollouts.core.errors import LeftoversFound, WaitStuck
from nim_rollouts.operators import teardown_platform, teardown_terraform
from tests.unit.operators.conftest import OURS, World, obj, run

DRIVER = "ebs.csi.aws.com"
GUARDED = [
    (teardown_platform.DeleteStorageClassOperator, "delete_storage_class"),
    (teardown_terraform.TerraformDestroyOperator, "terraform_destroy"),
]


def claimed(down: World, name: str, *, phase: str = "Bound", policy: str = "Delete", claim: bool = True) -> None:
    uid = "gone"
    if claim:
        uid = down.cluster.put(obj("PersistentVolumeClaim", name, "monitoring"))["metadata"]["uid"]
    spec = {
        "csi": {"driver": DRIVER, "volumeHandle": f"vol-{name}"},
        "claimRef": {"namespace": "monitoring", "name": name, "uid": uid},
        "persistentVolumeReclaimPolicy": policy,
    }
    made = obj("PersistentVolume", f"pvc-{name}", spec=spec, status={"phase": phase})
    made["metadata"]["annotations"] = {"pv.kubernetes.io/provisioned-by": DRIVER}
    down.cluster.put(made)


@pytest.fixture
def ready(down: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """All before is done: what is left is to destroy, and a storage class of ours."""
    monkeypatch.setattr(
        "nim_rollouts.operators.terraform.TerraformApplyOperator.run", lambda self, stage: {"done": True}
    )
    down.cluster.put(obj("StorageClass", "efs-sc-dynamic", labels=OURS))
    return down


@pytest.mark.parametrize(("step", "name"), GUARDED)
def test_a_claim_that_outlived_its_release_stops_a_destruction(ready: World, step: type, name: str) -> None:
    claimed(ready, "prometheus-0")
    claimed(ready, "kept", phase="Released", policy="Retain", claim=False)
    claimed(ready, "going", phase="Released", claim=False)
    with pytest.raises(LeftoversFound) as refused:
        run(ready, step, name)
    for word in ("claim monitoring/prometheus-0", f"{DRIVER} vol-prometheus-0", "policy Retain"):
        assert word in refused.value.message
    assert "pvc-going" not in refused.value.message
    assert "elete the claim monitoring/prometheus-0" in refused.value.hint
    assert "set the reclaim policy of pvc-kept to Delete" in refused.value.hint.replace("Set", "set")
    assert ready.cluster.log == [] and ("StorageClass", None, "efs-sc-dynamic") in ready.cluster.objects


@pytest.mark.parametrize(("step", "name"), GUARDED)
def test_what_goes_by_itself_is_waited_for(
    ready: World, monkeypatch: pytest.MonkeyPatch, step: type, name: str
) -> None:
    claimed(ready, "going", phase="Released", claim=False)
    asked: list[Any] = []

    def gone(stage: Any, subjects: list[Any], budget_s: float) -> None:
        asked.append(([one.ref for one in subjects], budget_s))
        del ready.cluster.objects["PersistentVolume", None, "pvc-going"]

    monkeypatch.setattr("nim_rollouts.operators.model.wait_gone", gone)
    run(ready, step, name)
    assert asked == [(["PersistentVolume/pvc-going"], 5)]


def test_what_does_not_go_is_named_with_its_driver(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(ready, "going", phase="Released", claim=False)

    def stuck(stage: Any, subjects: list[Any], budget_s: float) -> None:
        raise WaitStuck("PersistentVolume/pvc-going is not gone")

    monkeypatch.setattr("nim_rollouts.operators.model.wait_gone", stuck)
    with pytest.raises(LeftoversFound, match=f"{DRIVER} vol-going") as refused:
        run(ready, *GUARDED[0])
    assert "driver's log" in refused.value.hint
    assert ("StorageClass", None, "efs-sc-dynamic") in ready.cluster.objects


def test_where_the_cluster_stays_so_do_its_volumes(ready: World) -> None:
    claimed(ready, "prometheus-0")
    ready.session(deployment="").ledger.record("validate", 2, "result", {"scope": "platform", "deployments": {}})
    facts = run(ready, *GUARDED[0])
    assert [one["name"] for one in facts["removed"]] == ["efs-sc-dynamic"]


def test_a_folder_of_a_node_is_nobodys_bill(ready: World) -> None:
    ready.cluster.put(obj("PersistentVolume", "local", spec={"hostPath": {"path": "/data"}}, status={"phase": "Bound"}))
    assert run(ready, *GUARDED[0])["removed"] and run(ready, *GUARDED[1]) == {"done": True}
