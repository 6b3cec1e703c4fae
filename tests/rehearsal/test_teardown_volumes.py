"""Volumes before a destruction, with a real volume controller and the storage's stand-in: a claim that is left stops
it, one that was deleted is waited for, and what is kept is named until somebody decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.cluster import Cluster, ref
from nim_rollouts.clients.include import Include
from nim_rollouts.core.errors import LeftoversFound
from nim_rollouts.operators.teardown_volumes import refuse_volumes
from tests.rehearsal.plane import Plane, admin, standing
from tests.rehearsal.test_verify_platform import ENVIRONMENT, Live, until
from tests.unit.operators.conftest import ROOT

pytestmark = pytest.mark.slow

PARTS = {"etcd", "kube-apiserver", "kube-controller-manager", "cluster-setup", "kwok", "aws", "storage"}
TIMING = {"volume_provision": 0.1, "volume_retry_max": 1.0}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with standing(tmp_path_factory.mktemp("plane"), PARTS, TIMING) as plane:
        yield plane


@pytest.fixture(scope="module")
def access(plane: Plane) -> ClusterAccess:
    return admin(plane.r)


@pytest.fixture(scope="module")
def file_system(plane: Plane) -> str:
    return plane.file_system("volumes")


@pytest.fixture
def teardown(access: ClusterAccess, tmp_path: Path) -> Live:
    """A run that is to take everything down."""
    environments = tmp_path / "include" / "environments"
    environments.mkdir(parents=True)
    (tmp_path / "include" / "manifests").symlink_to(ROOT / "include" / "manifests")
    (environments / "test.yaml").write_text(ENVIRONMENT.replace("STORE", str(tmp_path / "store")))
    live = Live(Include(tmp_path / "include"), run_id="manual__volumes")
    live.access, live.cluster = access, Cluster(access)  # type: ignore[assignment]
    live.session().ledger.record("validate", 1, "result", {"scope": "everything", "deployments": {}})
    return live


def claim(cluster: Any, name: str, file_system: str, policy: str) -> None:
    """Bound, by a class of this policy."""
    points = {"provisioningMode": "efs-ap", "fileSystemId": file_system, "directoryPerms": "770", "basePath": "/v"}
    cluster.apply({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": policy.lower()},
        "provisioner": "efs.csi.aws.com", "reclaimPolicy": policy, "volumeBindingMode": "Immediate",
        "parameters": {**points, "uid": "1000", "gid": "2000"},
    })  # fmt: skip
    cluster.apply({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": policy.lower(),
                 "resources": {"requests": {"storage": "1Gi"}}},
    })  # fmt: skip
    until(lambda: phase(cluster) == "Bound", f"claim {name} to be bound")


def phase(cluster: Any) -> str | None:
    """Of the one volume that there is."""
    return next((one["status"].get("phase") for one in cluster.list("v1", "PersistentVolume")), None)


def test_a_claim_that_is_left_stops_a_destruction_until_it_is_deleted(teardown: Live, file_system: str) -> None:
    cluster = teardown.cluster
    claim(cluster, "prometheus-0", file_system, "Delete")
    with pytest.raises(LeftoversFound) as told:
        refuse_volumes(teardown.stage("delete_storage_class"))
    assert f"claim default/prometheus-0, efs.csi.aws.com {file_system}::fsap-" in told.value.message
    assert told.value.hint.startswith("Delete the claim default/prometheus-0 while the driver runs")
    assert phase(cluster) == "Bound", "nothing was deleted"

    # At once: the volume has not been released yet, and goes while it is waited for.
    cluster.delete(ref("PersistentVolumeClaim", "prometheus-0", "default"))
    refuse_volumes(teardown.stage("delete_storage_class"))
    assert phase(cluster) is None


def test_a_volume_that_is_kept_is_named_until_somebody_decides(teardown: Live, file_system: str) -> None:
    cluster = teardown.cluster
    claim(cluster, "kept", file_system, "Retain")
    cluster.delete(ref("PersistentVolumeClaim", "kept", "default"))
    until(lambda: phase(cluster) == "Released", "the volume to be released")
    with pytest.raises(LeftoversFound, match="Released, policy Retain") as told:
        refuse_volumes(teardown.stage("delete_storage_class"))
    assert "to Delete" in told.value.hint
    (volume,) = cluster.list("v1", "PersistentVolume")
    cluster.patch(volume, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    refuse_volumes(teardown.stage("delete_storage_class"))
    assert phase(cluster) is None
