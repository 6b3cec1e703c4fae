"""What an EC2 instance type offers, and whether it can hold a request at all.

Shapes: AWS, "Amazon EC2 G5 / G6 / G6e / P4d / P5 instances" product pages, read 2026-08. Memory is the nominal one.
What a node keeps for itself (kubelet, system, eviction threshold) is not allocatable; the amounts are estimated here as
EKS reserves them, on the careful side: 2 % of the CPUs up to 1, and 7 % of the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from nim_rollouts.core.errors import GpuFit
from nim_rollouts.core.quantity import parse_quantity

GIB = 1024**3
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Instance:
    """One instance type: vCPUs, memory in GiB, GPUs and their product (as a NIM profile's `gpu` tag spells it)."""

    name: str
    cpus: int
    memory_gib: int
    gpus: int
    gpu_product: str | None
    gpu_memory_gib: int

    @property
    def allocatable(self) -> dict[str, Fraction]:
        """What pods can ask for, in base units."""
        return {
            "cpu": Fraction(self.cpus) - min(Fraction(1), Fraction(self.cpus, 50)),
            "memory": Fraction(self.memory_gib * GIB) * Fraction(93, 100),
            GPU: Fraction(self.gpus),
        }


def _family(prefix: str, product: str, gpu_memory_gib: int, sizes: str) -> list[Instance]:
    """`sizes`: "size/vCPU/GiB/GPUs ..." """
    result = []
    for entry in sizes.split():
        size, cpus, memory, gpus = entry.split("/")
        result.append(Instance(f"{prefix}.{size}", int(cpus), int(memory), int(gpus), product, gpu_memory_gib))
    return result


_TYPES = [
    *_family(
        "g5", "A10G", 24,
        "xlarge/4/16/1 2xlarge/8/32/1 4xlarge/16/64/1 8xlarge/32/128/1 16xlarge/64/256/1 "
        "12xlarge/48/192/4 24xlarge/96/384/4 48xlarge/192/768/8",
    ),
    *_family(
        "g6", "L4", 24,
        "xlarge/4/16/1 2xlarge/8/32/1 4xlarge/16/64/1 8xlarge/32/128/1 16xlarge/64/256/1 "
        "12xlarge/48/192/4 24xlarge/96/384/4 48xlarge/192/768/8",
    ),
    *_family(
        "g6e", "L40S", 48,
        "xlarge/4/32/1 2xlarge/8/64/1 4xlarge/16/128/1 8xlarge/32/256/1 16xlarge/64/512/1 "
        "12xlarge/48/384/4 24xlarge/96/768/4 48xlarge/192/1536/8",
    ),
    *_family("p4d", "A100", 40, "24xlarge/96/1152/8"),
    *_family("p4de", "A100", 80, "24xlarge/96/1152/8"),
    *_family("p5", "H100", 80, "48xlarge/192/2048/8"),
]  # fmt: skip
INSTANCES: Mapping[str, Instance] = {one.name: one for one in _TYPES}


def fits(
    resources: Mapping[str, str],
    instance_types: Iterable[str],
    gpu_products: Iterable[str] = (),
    *,
    where: str = "service.resources",
) -> list[str]:
    """The types among `instance_types` that can hold one pod with these requests.

    :param resources: what the scheduler reserves, resource name -> quantity
    :param gpu_products: when given, the node's GPU must be one of these (the model profile's)
    :param where: the deployment's key that asks for them, for the message
    :raises GpuFit: none can; names the closest one and what it lacks, and types we know that could
    """
    wanted = {name: parse_quantity(value) for name, value in resources.items()}
    products = {product.upper() for product in gpu_products}
    allowed = list(instance_types)
    unknown = [name for name in allowed if name not in INSTANCES]
    lacking = {name: _lacks(INSTANCES[name], wanted, products) for name in allowed if name in INSTANCES}
    good = [name for name, missing in lacking.items() if not missing]
    if good:
        return good
    asked = ", ".join(f"{name}={value}" for name, value in resources.items())
    lines = [f"{name} lacks {'; '.join(missing)}" for name, missing in lacking.items()]
    if unknown:
        lines.append(f"unknown: {', '.join(unknown)}")
    could = [name for name, one in INSTANCES.items() if not _lacks(one, wanted, products)]
    raise GpuFit(
        f"no allowed instance type can hold {where} ({asked}): {'. '.join(lines) or 'none is allowed'}",
        hint=(
            f"Lower {where}, or allow one of {', '.join(could[:4])} in the environment's instance_types"
            if could
            else f"Lower {where}: no known instance type is large enough"
        ),
    )


def _lacks(instance: Instance, wanted: Mapping[str, Fraction], products: set[str]) -> list[str]:
    missing = []
    offers = instance.allocatable
    for name, amount in wanted.items():
        offered = offers.get(name)
        if offered is None:
            # Pods can ask for ephemeral storage and the like; a type's shape says nothing about it.
            if "/" in name:
                missing.append(f"any {name}")
        elif amount > offered:
            missing.append(f"{name} ({_shown(name, offered)} of {_shown(name, amount)})")
    if products and wanted.get(GPU) and (instance.gpu_product or "").upper() not in products:
        missing.append(f"a GPU {' or '.join(sorted(products))} (has {instance.gpu_product})")
    return missing


def _shown(name: str, amount: Fraction) -> str:
    if name == "memory":
        return f"{float(amount / GIB):.0f}Gi"
    return f"{float(amount):g}"
