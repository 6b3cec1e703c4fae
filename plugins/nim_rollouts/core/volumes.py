"""Volumes in a cluster whose storage is AWS's: only their driver deletes it, so one that is left when the cluster goes
stays on the bill. Which of them go by themselves, and what a person does about the others. Pure."""

from __future__ import annotations

from collections.abc import Collection

from nim_rollouts.core.verdicts.model import Object
from nim_rollouts.core.verdicts.objects import is_deleting, status

#: Who made the storage: nobody deletes that of a volume that was written by hand.
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"


def is_of_driver(volume: Object) -> bool:
    """True where a driver keeps the storage: in its own form, or in that of the old plugin for EBS, for which the
    driver has taken over."""
    return not {"csi", "awsElasticBlockStore"}.isdisjoint(volume["spec"])


def goes(volume: Object, claims: Collection[str]) -> bool:
    """True where the driver deletes it, for its claim is gone or going.

    :param claims: uids of the claims that are there to stay
    """
    owner, annotations = volume["spec"].get("claimRef") or {}, volume["metadata"].get("annotations") or {}
    return (
        _deletes(volume)
        and _PROVISIONED_BY in annotations
        and status(volume).get("phase") != "Failed"
        and bool(owner.get("uid"))
        and owner["uid"] not in claims
    )


def staying(claims: Collection[Object]) -> frozenset[str]:
    """Uids of the claims whose deletion nobody has ordered."""
    return frozenset(one["metadata"]["uid"] for one in claims if not is_deleting(one))


def told(volume: Object) -> str:
    """One volume in words: its claim, its driver, and what it is there."""
    spec = volume["spec"]
    csi, old = spec.get("csi") or {}, spec.get("awsElasticBlockStore") or {}
    where = f"{csi.get('driver', 'ebs.csi.aws.com')} {csi.get('volumeHandle') or old.get('volumeID')}"
    keeps = "" if _deletes(volume) else f", policy {spec.get('persistentVolumeReclaimPolicy')}"
    claim = f"claim {_claim(volume)}" if _claim(volume) else "no claim"
    return f"{volume['metadata']['name']} ({claim}, {where}, {status(volume).get('phase')}{keeps})"


def remedy(volume: Object) -> str:
    """What a person does while the driver runs."""
    name, phase = volume["metadata"]["name"], status(volume).get("phase")
    if not _deletes(volume):
        return f"set the reclaim policy of {name} to Delete and delete its claim, or delete both and keep the data"
    if phase == "Failed":
        return f"see in the events of {name} why its driver does not delete it"
    return f"delete the claim {_claim(volume)}" if phase == "Bound" else f"delete the PersistentVolume {name}"


def _deletes(volume: Object) -> bool:
    return bool(volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete")


def _claim(volume: Object) -> str:
    owner = volume["spec"].get("claimRef") or {}
    return f"{owner.get('namespace')}/{owner.get('name')}" if owner else ""
