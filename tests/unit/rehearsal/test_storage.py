"""The EFS CSI stand-in without a cluster: parameters, volume objects, what may go, access points in moto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import boto3
import pytest
from moto import mock_aws

from rehearsal import faults
from rehearsal.storage import access_points, volumes
from rehearsal.storage.access_points import AccessPoints, DriverError, wanted
from rehearsal.storage.provisioner import Provisioner

BASE = {"provisioningMode": "efs-ap", "fileSystemId": "fs-1", "directoryPerms": "770", "uid": "1000", "gid": "2000"}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "Missing provisioningMode parameter"),
        ({"provisioningMode": "efs-dir"}, "Only Access point provisioning: 'efs-ap' is supported"),
        ({"provisioningMode": "efs-ap"}, "Missing fileSystemId parameter"),
        ({**BASE, "fileSystemId": " "}, "Parameter fileSystemId cannot be empty"),
        ({**BASE, "uid": "root"}, "Failed to parse invalid uid"),
        ({**BASE, "gidRangeStart": "10"}, "Missing gidRangeEnd parameter"),
        ({**BASE, "gidRangeStart": "10", "gidRangeEnd": "9"}, "gidRangeEnd must be greater than gidRangeStart"),
    ],
)
def test_classes_that_the_driver_refuses(parameters: dict[str, str], says: str) -> None:
    with pytest.raises(DriverError, match="rpc error: code = InvalidArgument desc = ") as caught:
        wanted(parameters, "pvc-1", "claim")
    assert says in str(caught.value)


def test_parameters_are_read() -> None:
    want = wanted({**BASE, "basePath": "/models/"}, "pvc-1", "claim")
    assert (want.directory, want.permissions, want.uid, want.gid) == ("/models/pvc-1", "770", 1000, 2000)
    assert want.token == "pvc-1"
    reused = {**BASE, "reuseAccessPoint": "true"}
    assert wanted(reused, "pvc-1", "claim").token == wanted(reused, "pvc-2", "claim").token != "pvc-1"


def claim(**annotations: str) -> dict[str, Any]:
    given = {"volume.kubernetes.io/storage-provisioner": "efs.csi.aws.com", **annotations}
    return {
        "metadata": {"name": "data", "namespace": "ns", "uid": "u-1", "resourceVersion": "7", "annotations": given},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "50Gi"}}},
    }


def storage_class(**values: Any) -> dict[str, Any]:
    return {"metadata": {"name": "efs"}, "provisioner": "efs.csi.aws.com", **values}


def test_whose_turn_a_claim_is() -> None:
    late = storage_class(volumeBindingMode="WaitForFirstConsumer")
    selected = {"volume.kubernetes.io/selected-node": "n"}
    assert volumes.wants_volume(claim(), storage_class())
    assert not volumes.wants_volume(claim(), late)
    assert volumes.wants_volume(claim(**selected), late)
    assert not volumes.wants_volume(claim(), None)
    assert not volumes.wants_volume(claim(), storage_class(provisioner="ebs.csi.aws.com"))
    other = claim(**{"volume.kubernetes.io/storage-provisioner": "ebs.csi.aws.com"})
    assert not volumes.wants_volume(other, storage_class())
    bound, leaving = claim(), claim()
    bound["spec"]["volumeName"] = "pvc-u-1"
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert not volumes.wants_volume(bound, storage_class())
    assert not volumes.wants_volume(leaving, storage_class())


async def test_what_is_deleted_while_another_object_is_worked_on_gets_no_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round works on one object after the other: a class or a claim may be deleted meanwhile."""
    kube = mock.AsyncMock()
    kube.cache = lambda path: SimpleNamespace(items={})
    r: Any = SimpleNamespace(timing=lambda name, default: 0, path=lambda name: tmp_path)
    points: Any = mock.Mock(create=mock.Mock(return_value="fsap-1"))
    loop = Provisioner(r, kube, points)
    loop._sweep = False
    monkeypatch.setattr(faults, "get", lambda r, name: None)
    parameters = {"provisioningMode": "efs-ap", "fileSystemId": "fs-1"}
    for name in ("first", "claimless", "classless"):
        loop._classes.items["", name] = {**storage_class(parameters=parameters), "metadata": {"name": name}}
        wants = {**claim(), "kind": "PersistentVolumeClaim"}
        wants["metadata"] = {**wants["metadata"], "name": name, "uid": name}
        wants["spec"] = {**wants["spec"], "storageClassName": name}
        loop._claims.items["ns", name] = wants

    async def event(obj: dict[str, Any], **_: Any) -> None:
        assert obj["metadata"]["name"] == "first"
        loop._classes.items.pop(("", "classless"), None)
        loop._claims.items.pop(("ns", "claimless"), None)

    kube.event = event
    assert await loop._round() is None, "and nothing is to be tried again"
    assert [call.args[1]["metadata"]["name"] for call in kube.create.call_args_list] == ["pvc-first"]
    assert points.create.call_count == 1


def test_a_volume_is_for_its_claim_alone() -> None:
    pv = volumes.volume(claim(), storage_class(mountOptions=["tls"]), file_system="fs-1", access_point="fsap-1")
    assert pv["metadata"]["name"] == "pvc-u-1" and volumes.FINALIZER in pv["metadata"]["finalizers"]
    assert pv["spec"]["claimRef"]["uid"] == "u-1" and pv["spec"]["mountOptions"] == ["tls"]
    assert pv["spec"]["csi"]["volumeHandle"] == "fs-1::fsap-1" and volumes.access_point(pv) == "fsap-1"
    assert pv["spec"]["persistentVolumeReclaimPolicy"] == "Delete"


@pytest.mark.parametrize(
    ("phase", "policy", "deleted", "goes"),
    [
        ("Bound", "Delete", False, False),
        ("Released", "Delete", False, True),
        ("Failed", "Delete", False, True),
        ("Released", "Retain", False, False),
        ("Bound", "Delete", True, False),
        ("Available", "Delete", True, True),
    ],
)
def test_when_a_volume_may_go(phase: str, policy: str, deleted: bool, goes: bool) -> None:
    made = storage_class(reclaimPolicy=policy)
    pv = volumes.volume(claim(), made, file_system="fs-1", access_point="fsap-1")
    pv["status"] = {"phase": phase}
    if deleted:
        pv["metadata"]["deletionTimestamp"] = "now"
    assert volumes.may_go(pv) is goes
    pv["metadata"]["annotations"] = {}
    assert not volumes.may_go(pv), "a volume written by hand is not ours"


@pytest.fixture
def efs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        yield boto3.client("efs", region_name="us-west-2", **keys)


def mounted(efs: Any) -> str:
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    fs = efs.create_file_system(CreationToken="t")["FileSystemId"]
    subnet = boto3.client("ec2", region_name="us-west-2", **keys).describe_subnets()["Subnets"][0]["SubnetId"]
    efs.create_mount_target(FileSystemId=fs, SubnetId=subnet)
    return str(fs)


def test_an_access_point_is_made_once_per_token_and_removed(efs: Any) -> None:
    points = AccessPoints(efs)
    want = wanted({**BASE, "fileSystemId": mounted(efs)}, "pvc-1", "claim")
    point = points.create(want)
    assert points.create(want) == point
    assert points.ours() == {point: "pvc-1"}
    points.delete(point)
    points.delete(point)
    assert points.ours() == {}


def test_without_a_gid_each_gets_another_of_the_range(efs: Any) -> None:
    parameters = {"provisioningMode": "efs-ap", "fileSystemId": mounted(efs)}
    points = AccessPoints(efs)
    for number in range(2):
        points.create(wanted(parameters, f"pvc-{number}", "claim"))
    users = [p["PosixUser"] for p in efs.describe_access_points()["AccessPoints"]]
    assert users == [{"Uid": 50000, "Gid": 50000}, {"Uid": 50001, "Gid": 50001}]
    narrow = wanted({**parameters, "gidRangeStart": "50000", "gidRangeEnd": "50002"}, "pvc-9", "claim")
    with pytest.raises(DriverError, match="free GID"):
        points.create(narrow)


def test_no_file_system_or_no_mount_target(efs: Any) -> None:
    points = AccessPoints(efs)
    with pytest.raises(DriverError, match="code = InvalidArgument desc = File System does not exist"):
        points.create(wanted({**BASE, "fileSystemId": "fs-0123456789abcdef0"}, "pvc-1", "claim"))
    fs = efs.create_file_system(CreationToken="t")["FileSystemId"]
    with pytest.raises(DriverError, match="Cannot find mount targets for file system"):
        points.create(wanted({**BASE, "fileSystemId": fs}, "pvc-1", "claim"))


def test_an_unreachable_aws_is_internal() -> None:
    points = AccessPoints.at("http://127.0.0.1:9")
    with pytest.raises(DriverError, match="code = Internal desc = Failed to fetch File System info"):
        points.create(wanted(BASE, "pvc-1", "claim"))
    assert access_points.CLUSTER_TAG == "efs.csi.aws.com/cluster"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("AccessDeniedException", "rpc error: code = Unauthenticated desc = Access Denied."),
        ("FileSystemNotFound", "rpc error: code = InvalidArgument desc = File System does not exist"),
        ("AccessPointLimitExceeded", "rpc error: code = Internal desc = Failed to create Access point"),
    ],
)
def test_an_ordered_refusal_is_worded_as_the_drivers_own(code: str, says: str) -> None:
    assert str(access_points.refusal(code)).startswith(says)
