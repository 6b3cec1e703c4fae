"""Instance types: read from data, with what a node of each offers and how it is labelled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from rehearsal.karpenter.resources import Resources

FILE = Path(__file__).with_name("instance_types.yaml")

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"
ZONE_LABEL = "topology.kubernetes.io/zone"
REGION_LABEL = "topology.kubernetes.io/region"
HOSTNAME_LABEL = "kubernetes.io/hostname"
CAPACITY_TYPE_LABEL = "karpenter.sh/capacity-type"
SPOT, ON_DEMAND = "spot", "on-demand"

_MIB, _GIB = 1 << 20, 1 << 30
_AWS = "karpenter.k8s.aws/instance-"


class CatalogueError(ValueError):
    """The file of instance types is malformed; the message names file and entry."""


@dataclass(frozen=True)
class InstanceType:
    """One type: vCPUs, memory in GiB, accelerators, USD an hour."""

    family: str
    size: str
    cpus: int
    memory_gib: int
    accelerators: int
    price: float
    gpu: Mapping[str, Any] = field(default_factory=dict)
    neuron: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.family}.{self.size}"

    @property
    def pods(self) -> int:
        """As many as the addresses of its interfaces allow (VPC CNI), in steps: small, middle, large."""
        return 29 if self.cpus <= 2 else 58 if self.cpus <= 8 else 234

    def capacity(self, disk_gib: int) -> Resources:
        """What the machine has."""
        offers = {
            "cpu": Decimal(self.cpus),
            "memory": Decimal(self.memory_gib * _GIB),
            "ephemeral-storage": Decimal(disk_gib * _GIB),
            "pods": Decimal(self.pods),
        }
        if self.gpu:
            offers["nvidia.com/gpu"] = Decimal(self.accelerators)
        if self.neuron:
            offers["aws.amazon.com/neuron"] = Decimal(self.accelerators)
            offers["aws.amazon.com/neuroncore"] = Decimal(self.accelerators * int(self.neuron["cores"]))
        return offers

    def allocatable(self, disk_gib: int) -> Resources:
        """What a kubelet of EKS leaves to pods: 6 %, 1 %, 0.5 %, 0.5 %, then 0.25 % of the CPUs are kept, 255 MiB and
        11 MiB a pod of memory, 100 MiB for eviction, and a tenth of the disk or so."""
        kept_cpu = sum(Decimal(share) for share in ("0.06", "0.01", "0.005", "0.005")[: self.cpus])
        kept_cpu += Decimal("0.0025") * max(0, self.cpus - 4)
        offers = self.capacity(disk_gib)
        offers["cpu"] -= kept_cpu
        offers["memory"] -= (255 + 11 * self.pods + 100) * _MIB
        offers["ephemeral-storage"] = Decimal(disk_gib * 92 // 100 * _GIB)
        return offers

    @cached_property
    def labels(self) -> dict[str, str]:
        """What Karpenter knows of the type before any node exists."""
        generation = re.search(r"\d", self.family)
        known = {
            INSTANCE_TYPE_LABEL: self.name,
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
            _AWS + "category": re.split(r"\d", self.family)[0],
            _AWS + "family": self.family,
            _AWS + "generation": generation[0] if generation else "",
            _AWS + "size": self.size,
            _AWS + "hypervisor": "nitro",
            _AWS + "cpu": str(self.cpus),
            _AWS + "memory": str(self.memory_gib * 1024),
        }
        if self.gpu:
            known |= {
                _AWS + "gpu-manufacturer": "nvidia",
                _AWS + "gpu-name": str(self.gpu["name"]),
                _AWS + "gpu-count": str(self.accelerators),
                _AWS + "gpu-memory": str(self.gpu["memory"]),
            }
        if self.neuron:
            known |= {
                _AWS + "accelerator-manufacturer": "aws",
                _AWS + "accelerator-name": str(self.neuron["name"]),
                _AWS + "accelerator-count": str(self.accelerators),
            }
        return known

    @cached_property
    def discovered(self) -> dict[str, str]:
        """What GPU Feature Discovery and Node Feature Discovery set on a node of this type, once it runs."""
        if not self.gpu:
            return {}
        return {
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.product": str(self.gpu["product"]),
            "nvidia.com/gpu.count": str(self.accelerators),
            "nvidia.com/gpu.memory": str(self.gpu["usable"]),
            "nvidia.com/gpu.family": str(self.gpu["family"]),
            "nvidia.com/gpu.machine": self.name,
            "nvidia.com/gpu.compute.major": str(self.gpu["major"]),
            "nvidia.com/gpu.compute.minor": str(self.gpu["minor"]),
            "nvidia.com/mig.capable": "false",
            "feature.node.kubernetes.io/pci-10de.present": "true",
        }


@dataclass(frozen=True)
class Catalogue:
    """All types by name; `spot` is the share of a price that a spot instance costs."""

    types: Mapping[str, InstanceType]
    spot: float
    versions: Mapping[str, str]

    def price(self, instance_type: str, capacity_type: str) -> float:
        """USD an hour."""
        return self.types[instance_type].price * (self.spot if capacity_type == SPOT else 1.0)


@lru_cache
def load(file: Path = FILE) -> Catalogue:
    """The catalogue of a file. Raises CatalogueError naming what is wrong."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    types = {}
    for family, entry in data["families"].items():
        for size, values in entry.get("sizes", {}).items():
            if not isinstance(values, list) or len(values) != 4:
                raise CatalogueError(f"{file.name}: {family}.{size} is not [vCPUs, GiB, accelerators, USD an hour]")
            cpus, memory, accelerators, price = values
            one = InstanceType(
                family, size, int(cpus), int(memory), int(accelerators), float(price),
                entry.get("gpu", {}), entry.get("neuron", {}),
            )  # fmt: skip
            if bool(one.accelerators) != bool(one.gpu or one.neuron):
                raise CatalogueError(f"{file.name}: {one.name}: accelerators and `gpu` or `neuron` do not go together")
            types[one.name] = one
    return Catalogue(types, float(data["spot"]), data.get("versions", {}))
