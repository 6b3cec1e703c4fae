"""Which volumes go by themselves, and what is said of those that do not."""

from __future__ import annotations

from typing import Any

import pytest

from nim_rollouts.core import volumes

PROVISIONED = {"pv.kubernetes.io/provisioned-by": "ebs.csi.aws.com"}


def volume(
    phase: str = "Released",
    policy: str = "Delete",
    *,
    annotations: Any = PROVISIONED,
    uid: str | None = "c-1",
    **spec: Any,
) -> dict[str, Any]:
    owner = {"claimRef": {"namespace": "monitoring", "name": "prometheus-0", "uid": uid}} if uid else {}
    csi = {} if spec else {"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1"}}
    return {
        "metadata": {"name": "pvc-1", "uid": "v-1", "annotations": annotations},
        "spec": {"persistentVolumeReclaimPolicy": policy, **owner, **csi, **spec},
        "status": {"phase": phase},
    }


def claim(uid: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "prometheus-0", "uid": uid, **metadata}}


@pytest.mark.parametrize(
    ("one", "claims", "goes"),
    [
        (volume(), [], True),
        (volume("Bound"), [], True),
        (volume("Bound"), [claim("c-1", deletionTimestamp="2026-01-01T00:00:00Z")], True),
        (volume("Bound"), [claim("c-1")], False),
        (volume("Released"), [claim("c-2")], True),
        (volume("Released", "Retain"), [], False),
        (volume("Failed"), [], False),
        (volume("Available", uid=None), [], False),
        (volume(annotations=None), [], False),
    ],
    ids=[
        "released", "claim just gone", "claim going", "claim stays", "a namesake's claim", "kept", "driver failed",
        "never claimed", "written by hand",
    ],
)  # fmt: skip
def test_a_volume_goes_when_its_claim_does_and_its_driver_made_it(
    one: dict[str, Any], claims: list[dict[str, Any]], goes: bool
) -> None:
    assert volumes.goes(one, volumes.staying(claims)) is goes


def test_whose_storage_a_driver_keeps() -> None:
    """Also in the old form of EBS, which its driver looks after; not a node's folder, nor a server's."""
    assert volumes.is_of_driver(volume())
    assert volumes.is_of_driver(volume(awsElasticBlockStore={"volumeID": "vol-2"}))
    assert not volumes.is_of_driver(volume(hostPath={"path": "/data"}))
    assert not volumes.is_of_driver(volume(nfs={"server": "10.0.0.1", "path": "/"}))


@pytest.mark.parametrize(
    ("one", "told", "remedy"),
    [
        (volume("Bound"), "pvc-1 (claim monitoring/prometheus-0, ebs.csi.aws.com vol-1, Bound)",
         "delete the claim monitoring/prometheus-0"),
        (volume("Released", "Retain"), "pvc-1 (claim monitoring/prometheus-0, ebs.csi.aws.com vol-1, Released, policy "
         "Retain)", "set the reclaim policy of pvc-1 to Delete"),
        (volume("Bound", awsElasticBlockStore={"volumeID": "vol-2"}), "pvc-1 (claim monitoring/prometheus-0, "
         "ebs.csi.aws.com vol-2, Bound)", "delete the claim monitoring/prometheus-0"),
        (volume("Available", uid=None), "pvc-1 (no claim, ebs.csi.aws.com vol-1, Available)",
         "delete the PersistentVolume pvc-1"),
        (volume("Failed"), "pvc-1 (claim monitoring/prometheus-0, ebs.csi.aws.com vol-1, Failed)",
         "see in the events of pvc-1"),
    ],
)  # fmt: skip
def test_what_is_said_of_one_that_stays(one: dict[str, Any], told: str, remedy: str) -> None:
    assert volumes.told(one) == told
    assert volumes.remedy(one).startswith(remedy)
