"""Node shapes: what can be started, read from data, and the Node object that a start leads to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from rehearsal.kube import Obj, now_rfc3339

POOL_LABEL = "karpenter.sh/nodepool"
ZONE_LABEL = "topology.kubernetes.io/zone"
HOSTNAME_LABEL = "kubernetes.io/hostname"

Resources = dict[str, Decimal]

_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def quantity(value: str | int | float) -> Decimal:
    """A Kubernetes quantity as an exact number of its base unit (cores, bytes, pieces). Raises ValueError."""
    text = str(value).strip()
    try:
        if text[-2:] in _BINARY:
            return Decimal(text[:-2]) * (1 << _BINARY[text[-2:]])
        if text[-1:] in _DECIMAL:
            return Decimal(text[:-1]).scaleb(_DECIMAL[text[-1:]])
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a Kubernetes quantity") from None


def quantities(values: Mapping[str, str | int | float] | None) -> Resources:
    return {name: quantity(value) for name, value in (values or {}).items()}


@dataclass(frozen=True)
class Shape:
    """One instance type of one pool: what a node started from it looks like to the scheduler."""

    pool: str
    instance_type: str
    price: float
    zones: tuple[str, ...]
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]
    capacity: Mapping[str, str]
    allocatable: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def room(self) -> Resources:
        """What pods can use of it, in base units."""
        return quantities(self.allocatable)


def load_shapes(file: Path) -> list[Shape]:
    """The shapes of a file such as ``rehearsal/nodes.yaml``, cheapest first. Raises ValueError naming what is wrong."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    region, zones = data["region"], tuple(data["zones"])
    shapes = []
    for entry in data["shapes"]:
        missing = {"pool", "instance_type", "price", "capacity", "allocatable"} - set(entry)
        if missing:
            raise ValueError(f"{file}: shape {entry.get('pool', '?')} lacks {', '.join(sorted(missing))}")
        labels = {
            **data.get("labels", {}),
            "topology.kubernetes.io/region": region,
            "node.kubernetes.io/instance-type": entry["instance_type"],
            "beta.kubernetes.io/instance-type": entry["instance_type"],
            POOL_LABEL: entry["pool"],
            **entry.get("labels", {}),
        }
        shape = Shape(
            pool=entry["pool"],
            instance_type=entry["instance_type"],
            price=float(entry["price"]),
            zones=tuple(entry.get("zones", zones)),
            labels={key: str(value) for key, value in labels.items()},
            taints=tuple(entry.get("taints", ())),
            capacity=entry["capacity"],
            allocatable=entry["allocatable"],
            versions=data.get("versions", {}),
        )
        quantities(shape.capacity), shape.room
        shapes.append(shape)
    return sorted(shapes, key=lambda shape: (shape.price, shape.pool))


def node_object(shape: Shape, *, claim: str, zone: str, port: int, taken: set[str]) -> Obj:
    """The Node as a kubelet on a fresh instance would register it, and Ready.

    :param claim: the start's own name, which Karpenter would give to a NodeClaim.
    :param port: where KWOK serves the kubelet's API on 127.0.0.1.
    :param taken: names of existing nodes; the new one gets another.
    """
    region = shape.labels["topology.kubernetes.io/region"]
    while True:
        address = f"10-0-{random.randint(0, 255)}-{random.randint(4, 254)}"
        name = f"ip-{address}.{region}.compute.internal"
        if name not in taken:
            break
    instance = "i-" + hashlib.sha256(f"{claim}{name}{random.random()}".encode()).hexdigest()[:17]
    moment = now_rfc3339()
    conditions = [
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ]
    versions = shape.versions
    labels = {**shape.labels, HOSTNAME_LABEL: name, ZONE_LABEL: zone}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"karpenter.sh/nodeclaim": claim}},
        "spec": {"providerID": f"aws:///{zone}/{instance}", "taints": [dict(taint) for taint in shape.taints]},
        "status": {
            "capacity": dict(shape.capacity),
            "allocatable": dict(shape.allocatable),
            "conditions": [
                {"type": type_, "status": status, "reason": reason, "message": message,
                 "lastHeartbeatTime": moment, "lastTransitionTime": moment}
                for type_, status, reason, message in conditions
            ],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "nodeInfo": {
                "architecture": shape.labels.get("kubernetes.io/arch", "amd64"), "operatingSystem": "linux",
                "kubeletVersion": versions.get("kubelet", ""), "kubeProxyVersion": "",
                "containerRuntimeVersion": versions.get("runtime", ""), "kernelVersion": versions.get("kernel", ""),
                "osImage": versions.get("os", ""), "bootID": "", "machineID": "", "systemUUID": "",
            },
        },
    }  # fmt: skip


def describe(resources: Mapping[str, Any]) -> str:
    """Resources as JSON-like text, as Karpenter's messages carry them."""
    parts = []
    for name, value in sorted(resources.items()):
        amount = value if isinstance(value, Decimal) else quantity(value)
        parts.append(f'"{name}":"{_text(name, amount)}"')
    return "{" + ",".join(parts) + "}"


def _text(name: str, amount: Decimal) -> str:
    if name == "cpu" and amount != amount.to_integral_value():
        return f"{int(amount * 1000)}m"
    if name in ("memory", "ephemeral-storage"):
        for suffix in ("Gi", "Mi", "Ki"):
            whole = amount / (1 << _BINARY[suffix])
            if whole == whole.to_integral_value() and whole:
                return f"{int(whole)}{suffix}"
    return f"{int(amount)}" if amount == amount.to_integral_value() else f"{amount.normalize():f}"
