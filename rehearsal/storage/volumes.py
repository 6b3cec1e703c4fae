"""Claims and volumes as objects: whose turn a claim is, what its volume looks like, when a volume may go. Pure."""

from __future__ import annotations

from rehearsal.kube import Obj

DRIVER = "efs.csi.aws.com"
PROVISIONER_ANNOTATIONS = (
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
)
SELECTED_NODE = "volume.kubernetes.io/selected-node"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"


def volume_name(claim: Obj) -> str:
    """The one name that a claim's volume can have: so a claim can never get two."""
    return f"pvc-{claim['metadata']['uid']}"


def wants_volume(claim: Obj, storage_class: Obj | None) -> bool:
    """Whether the controller-manager has handed this claim to us and it may be provisioned now."""
    meta = claim["metadata"]
    annotations = meta.get("annotations") or {}
    if meta.get("deletionTimestamp") or claim["spec"].get("volumeName"):
        return False
    if not any(annotations.get(key) == DRIVER for key in PROVISIONER_ANNOTATIONS):
        return False
    if storage_class is None or storage_class.get("provisioner") != DRIVER:
        return False
    # A class may wait until the scheduler has chosen a node for the claim's first pod.
    return storage_class.get("volumeBindingMode") != "WaitForFirstConsumer" or SELECTED_NODE in annotations


def volume(claim: Obj, storage_class: Obj, *, file_system: str, access_point: str) -> Obj:
    """The PersistentVolume for a claim, already meant for it (claimRef), as external-provisioner writes it."""
    meta = claim["metadata"]
    name = volume_name(claim)
    spec = {
        "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
        "accessModes": list(claim["spec"]["accessModes"]),
        "volumeMode": claim["spec"].get("volumeMode", "Filesystem"),
        "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
        "storageClassName": storage_class["metadata"]["name"],
        "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        },
        "csi": {
            "driver": DRIVER,
            "volumeHandle": f"{file_system}::{access_point}",
            "volumeAttributes": {"storage.kubernetes.io/csiProvisionerIdentity": f"0-{DRIVER}"},
        },
    }
    if storage_class.get("mountOptions"):
        spec["mountOptions"] = list(storage_class["mountOptions"])
    annotations = {
        PROVISIONED_BY: DRIVER,
        "volume.kubernetes.io/provisioner-deletion-secret-name": "",
        "volume.kubernetes.io/provisioner-deletion-secret-namespace": "",
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": annotations, "finalizers": [FINALIZER]},
        "spec": spec,
    }


def is_ours(pv: Obj) -> bool:
    """A volume that this driver provisioned (not one that a user wrote by hand)."""
    return (pv["metadata"].get("annotations") or {}).get(PROVISIONED_BY) == DRIVER and "csi" in pv["spec"]


def may_go(pv: Obj) -> bool:
    """Whether a volume's access point and content are to be deleted: released, and its class says Delete."""
    if not is_ours(pv) or pv["spec"].get("persistentVolumeReclaimPolicy") != "Delete":
        return False
    phase = pv.get("status", {}).get("phase")
    if pv["metadata"].get("deletionTimestamp"):
        # A user deleted the object: as soon as no claim is bound to it any more.
        return phase != "Bound" and FINALIZER in (pv["metadata"].get("finalizers") or [])
    return phase in ("Released", "Failed")


def access_point(pv: Obj) -> str:
    """The access point's id from the volume handle ``fs-..:[path]:fsap-..``; empty when there is none."""
    parts = pv["spec"]["csi"]["volumeHandle"].split(":")
    return parts[2] if len(parts) == 3 else ""
