"""What an EC2 instance type offers, and whether it can hold a request at all.

Shapes: AWS, "Amazon EC2 G5 / G6 / G6e / P4d / P5 instances" product pages, read 2026-08, and those of C, M and R.
Memory is the nominal one. What a node keeps for itself (kubelet, system, eviction threshold) is not allocatable; the
amounts are estimated here as EKS reserves them, on the careful side: 2 % of the CPUs, between 0.07 and 1, and 7 % of
the memory, or what the kubelet keeps for as many pods as the network has addresses for, whichever is more.

AWS has more types than stand here. Of another one nothing is known, and so it refuses nothing: only what its name says
is taken for certain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from nim_rollouts.core.errors import GpuFit
from nim_rollouts.core.quantity import parse_quantity

MIB, GIB = 1024**2, 1024**3
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Instance:
    """One instance type: vCPUs, memory in GiB, GPUs and their product (as a NIM profile's `gpu` tag spells it; None
    without any)."""

    name: str
    cpus: int
    memory_gib: int
    gpus: int
    gpu_product: str | None
    gpu_memory_gib: int

    @property
    def allocatable(self) -> dict[str, Fraction]:
        """What pods can ask for, in base units."""
        memory = Fraction(self.memory_gib * GIB)
        pods = 29 if self.cpus <= 2 else 58 if self.cpus <= 8 else 234
        return {
            "cpu": Fraction(self.cpus) - min(Fraction(1), max(Fraction(7, 100), Fraction(self.cpus, 50))),
            "memory": memory - max(memory * Fraction(7, 100), Fraction((355 + 11 * pods) * MIB)),
            GPU: Fraction(self.gpus),
        }


def _plain(families: str, gib_a_cpu: int, sizes: str) -> list[Instance]:
    """Families without accelerator, whose memory goes with the vCPUs."""
    return [
        Instance(f"{family}.{size}", cpus, cpus * gib_a_cpu, 0, None, 0)
        for family in families.split()
        for size in sizes.split()
        if (cpus := cpus_of_size(size))
    ]


def cpus_of_size(size: str) -> int | None:
    """The vCPUs of a size, which are the same in (nearly) every family; None for a size that does not tell."""
    match = re.fullmatch(r"(\d*)xlarge", size)
    if match:
        return 4 * int(match[1] or 1)
    return 2 if size == "large" else None


def may_have_gpus(name: str) -> bool:
    """Whether a family or type can have NVIDIA's GPUs: AWS puts them into G and P alone."""
    return re.match(r"(g|gr|p)\d", name) is not None


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
    *(
        one
        for letter, gib_a_cpu in (("c", 2), ("m", 4), ("r", 8))
        for generation, sizes in (
            ("6i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge"),
            ("7i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"),
            ("6a 7a", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge"),
        )
        for one in _plain(" ".join(letter + each for each in generation.split()), gib_a_cpu, sizes)
    ),
    *_plain("m5", 4, "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"),
    *_plain("r5", 8, "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"),
    *_plain("c5", 2, "large xlarge 2xlarge 4xlarge 9xlarge 12xlarge 18xlarge 24xlarge"),
]  # fmt: skip
INSTANCES: Mapping[str, Instance] = {one.name: one for one in _TYPES}
FAMILIES = frozenset(name.partition(".")[0] for name in INSTANCES)


def fits(
    resources: Mapping[str, str],
    instance_types: Iterable[str],
    gpu_products: Iterable[str] = (),
    *,
    where: str = "service.resources",
) -> list[str]:
    """The types among `instance_types` that can hold one pod with these requests. Where none that is known can, those
    of which nothing is known here.

    :param resources: what the scheduler reserves, resource name -> quantity
    :param gpu_products: when given, the node's GPU must be one of these (the model profile's)
    :param where: the deployment's key that asks for them, for the message
    :raises GpuFit: none can, for certain; names what each lacks, and types we know that could
    """
    wanted = {name: parse_quantity(value) for name, value in resources.items()}
    products = {product.upper() for product in gpu_products}
    allowed = list(instance_types)
    strange = [name for name in allowed if name not in INSTANCES]
    lacking = {name: _lacks(INSTANCES[name], wanted, products) for name in allowed if name in INSTANCES}
    good = [name for name, missing in lacking.items() if not missing]
    if good:
        return good
    if possible := [name for name in strange if could_hold(name, wanted)]:
        return possible
    asked = ", ".join(f"{name}={value}" for name, value in resources.items())
    lines = [f"{name} lacks {'; '.join(missing)}" for name, missing in lacking.items()]
    if strange:
        lines.append(f"{', '.join(strange)} cannot, by the name")
    could = [name for name, one in INSTANCES.items() if not _lacks(one, wanted, products)]
    raise GpuFit(
        f"no allowed instance type can hold {where} ({asked}): {'. '.join(lines) or 'none is allowed'}",
        hint=(
            f"Lower {where}, or allow one of {', '.join(could[:4])} in the environment's instance_types"
            if could
            else f"Lower {where}: no known instance type is large enough"
        ),
    )


def could_hold(name: str, wanted: Mapping[str, Fraction]) -> bool:
    """False where the name of a type or a family that is not known here says that it cannot."""
    cpus = cpus_of_size(name.partition(".")[2])
    if cpus is not None and wanted.get("cpu", 0) > cpus:
        return False
    return not wanted.get(GPU) or may_have_gpus(name)


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
