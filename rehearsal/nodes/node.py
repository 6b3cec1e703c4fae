"""The Node object as a kubelet on a fresh instance registers it, and Ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rehearsal.karpenter.catalogue import HOSTNAME_LABEL, INSTANCE_TYPE_LABEL, REGION_LABEL, ZONE_LABEL, Catalogue
from rehearsal.karpenter.resources import as_quantities
from rehearsal.kube import Obj, now_rfc3339
from rehearsal.nodes.userdata import Bootstrap

#: Sizes of a type that the catalogue does not know: enough for a controller.
UNKNOWN = {"cpu": "2", "memory": "8Gi", "pods": "29", "ephemeral-storage": "50Gi"}

_CONDITIONS = (
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
)


def provider_id(instance: Mapping[str, Any]) -> str:
    """How a Node names the instance it runs on."""
    return f"aws:///{instance['Placement']['AvailabilityZone']}/{instance['InstanceId']}"


def node_object(
    instance: Mapping[str, Any], bootstrap: Bootstrap, catalogue: Catalogue, *, disk_gib: int, port: int
) -> Obj:
    """The Node of an instance as EC2 describes it.

    :param disk_gib: of its largest volume
    :param port: where KWOK serves the kubelet's API on 127.0.0.1
    """
    name, type_ = instance["PrivateDnsName"], instance["InstanceType"]
    zone = instance["Placement"]["AvailabilityZone"]
    known = catalogue.types.get(type_)
    capacity = as_quantities(known.capacity(disk_gib)) if known else dict(UNKNOWN)
    allocatable = as_quantities(known.allocatable(disk_gib)) if known else dict(UNKNOWN)
    labels = {
        **bootstrap.labels,
        **(known.discovered if known else {}),
        HOSTNAME_LABEL: name,
        INSTANCE_TYPE_LABEL: type_,
        "beta.kubernetes.io/instance-type": type_,
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        REGION_LABEL: zone.rstrip("abcdefghijklmnopqrstuvwxyz"),
        ZONE_LABEL: zone,
    }
    moment, versions = now_rfc3339(), catalogue.versions
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"providerID": provider_id(instance), "taints": [dict(taint) for taint in bootstrap.taints]},
        "status": {
            "capacity": capacity,
            "allocatable": allocatable,
            "conditions": [
                {"type": type_, "status": status, "reason": reason, "message": message,
                 "lastHeartbeatTime": moment, "lastTransitionTime": moment}
                for type_, status, reason, message in _CONDITIONS
            ],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux",
                "kubeletVersion": versions.get("kubelet", ""), "kubeProxyVersion": "",
                "containerRuntimeVersion": versions.get("runtime", ""), "kernelVersion": versions.get("kernel", ""),
                "osImage": versions.get("os", ""), "bootID": "", "machineID": "", "systemUUID": "",
            },
        },
    }  # fmt: skip
