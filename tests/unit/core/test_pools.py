"""Which node pool could start a node, and what is said of those that could not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nim_rollouts.core.errors import GpuFit
from nim_rollouts.core.instances import GPU
from nim_rollouts.core.pools import Need, Option, fit
from nim_rollouts.core.requirements import holds

NODE_POOLS = Path(__file__).resolve().parents[3] / "include" / "manifests" / "node-pools"
TOLERATED = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
SERVICE = Need(
    "service",
    {"cpu": "40", "nvidia.com/gpu": "2"},
    {"instanceType": "g5-gpu-karpenter"},
    TOLERATED,
    ("A10G",),
)
CACHE = Need("cache", {}, {"accelerator": "nvidia", "instanceType": "g5-gpu-karpenter"}, TOLERATED)


def requirement(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def pool(
    name: str = "g5-gpu-karpenter",
    *requirements: dict[str, Any],
    labels: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
    limits: dict[str, Any] | None = None,
    used: dict[str, Any] | None = None,
) -> dict[str, Any]:
    gpu = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    return {
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "limits": limits or {},
            "template": {
                "metadata": {"labels": labels or {"instanceType": name, "accelerator": "nvidia"}},
                "spec": {
                    "taints": gpu if taints is None else taints,
                    "requirements": list(requirements) or [
                        requirement("karpenter.k8s.aws/instance-family", "In", "g5"),
                        requirement("karpenter.sh/capacity-type", "In", "spot", "on-demand"),
                    ],
                },
            },
        },
        "status": {"resources": used or {}},
    }  # fmt: skip


def options(need: Need, pools: list[dict[str, Any]], *, standing: bool = False) -> list[Option]:
    """What can be started where all of it is known."""
    found = fit(need, pools, standing=standing)
    assert not found.notes
    return list(found.options)


def types(found: list[Any]) -> list[str]:
    return [one.instance.name for one in found]


def test_the_reference_deployment_fits_into_the_larger_ones_alone() -> None:
    """40 CPUs and 2 GPUs: g5.12xlarge and larger with several GPUs; the smallest first."""
    found = options(SERVICE, [pool()])
    assert types(found) == ["g5.12xlarge", "g5.24xlarge", "g5.48xlarge"]
    assert {(one.pool, one.nodes, one.capacity_types) for one in found} == {
        ("g5-gpu-karpenter", 1, ("on-demand", "spot"))
    }
    assert len(options(CACHE, [pool()])) == 8, "a download asks for nothing: every size will do"


@pytest.mark.parametrize(
    ("requirements", "left"),
    [
        ([requirement("karpenter.k8s.aws/instance-size", "NotIn", "12xlarge", "48xlarge")], ["g5.24xlarge"]),
        ([requirement("karpenter.k8s.aws/instance-gpu-count", "Gt", "4")], ["g5.48xlarge"]),
        ([requirement("karpenter.k8s.aws/instance-cpu", "Lt", "96")], ["g5.12xlarge"]),
        ([requirement("karpenter.k8s.aws/instance-cpu", "Lte", "96")], ["g5.12xlarge", "g5.24xlarge"]),
        ([requirement("karpenter.k8s.aws/instance-gpu-count", "Gte", "8")], ["g5.48xlarge"]),
        ([requirement("karpenter.k8s.aws/instance-generation", "Gte", "5")],
         ["g5.12xlarge", "g5.24xlarge", "g5.48xlarge"]),
        ([requirement("node.kubernetes.io/instance-type", "In", "g5.24xlarge")], ["g5.24xlarge"]),
        ([requirement("karpenter.k8s.aws/instance-gpu-name", "Exists"),
          requirement("karpenter.k8s.aws/instance-category", "In", "g"),
          requirement("karpenter.k8s.aws/instance-generation", "In", "5"),
          requirement("topology.kubernetes.io/zone", "In", "us-west-2a")],
         ["g5.12xlarge", "g5.24xlarge", "g5.48xlarge"]),
    ],
)  # fmt: skip
def test_requirements_are_honoured(requirements: list[dict[str, Any]], left: list[str]) -> None:
    family = requirement("karpenter.k8s.aws/instance-family", "In", "g5")
    assert types(options(SERVICE, [pool("g5-gpu-karpenter", family, *requirements)])) == left


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (pool("g6-gpu-karpenter"), "have instanceType=g6-gpu-karpenter, asked for is instanceType=g5-gpu-karpenter"),
        (pool(labels={"type": "karpenter"}), "no label instanceType (asked for is instanceType=g5-gpu-karpenter)"),
        (pool(taints=[{"key": "team", "value": "b", "effect": "NoSchedule"}]), "taint team=b:NoSchedule is not tolera"),
        (pool("g5-gpu-karpenter", requirement("karpenter.k8s.aws/instance-size", "In", "2xlarge")),
         "too small: g5.2xlarge lacks cpu (7.84 of 40); nvidia.com/gpu (1 of 2)"),
        (pool("g5-gpu-karpenter", requirement("karpenter.k8s.aws/instance-family", "In", "g6"),
              requirement("karpenter.k8s.aws/instance-size", "In", "12xlarge")),
         "g6.12xlarge lacks a GPU A10G (has L4)"),
        (pool("g5-gpu-karpenter", requirement("karpenter.k8s.aws/instance-family", "In", "z9")),
         "leave no instance type that is known"),
        (pool(limits={"cpu": 40}), "1 x g5.12xlarge exceed its limit cpu (40)"),
        (pool(limits={"cpu": "96", "nvidia.com/gpu": 8}, used={"cpu": "64"}),
         "1 x g5.12xlarge exceed its limit cpu (96, 64 of it in use)"),
        (pool("g5-gpu-karpenter", requirement("karpenter.sh/capacity-type", "In", "reserved")), "neither on-demand"),
    ],
)  # fmt: skip
def test_each_pool_says_why_it_cannot(one: dict[str, Any], why: str) -> None:
    with pytest.raises(GpuFit) as refused:
        options(SERVICE, [one])
    assert why in refused.value.message
    assert refused.value.message.startswith("no node pool can start a node for service (cpu=40, nvidia.com/gpu=2): g")


def test_all_pools_are_named_and_none_is_an_answer_too() -> None:
    cpu = pool("x86-cpu-karpenter", requirement("karpenter.k8s.aws/instance-family", "In", "m6i"), taints=[])
    with pytest.raises(GpuFit, match=r"g6-gpu-karpenter: its nodes .*\. x86-cpu-karpenter: its nodes"):
        options(SERVICE, [pool("g6-gpu-karpenter"), cpu])
    with pytest.raises(GpuFit, match="there is no node pool"):
        options(SERVICE, [])


def test_a_requirement_may_give_the_label_that_is_selected() -> None:
    given = pool(
        "any", requirement("team", "In", "a", "b"), requirement("karpenter.k8s.aws/instance-family", "In", "g5"),
        labels={"instanceType": "g5-gpu-karpenter"},
    )  # fmt: skip
    chosen = Need(**{**vars(SERVICE), "node_selector": {"team": "a"}})
    assert types(options(chosen, [given]))[0] == "g5.12xlarge"
    with pytest.raises(GpuFit, match="requirement on team excludes c"):
        options(Need(**{**vars(SERVICE), "node_selector": {"team": "c"}}), [given])


def test_replicas_share_a_node_and_count_against_the_limit() -> None:
    two = Need(**{**vars(SERVICE), "replicas": 3})
    found = {one.instance.name: one.nodes for one in options(two, [pool()])}
    assert found == {"g5.12xlarge": 3, "g5.24xlarge": 2, "g5.48xlarge": 1}
    # Three of 48 CPUs exceed it; two of 96 and one of 192 do, too.
    with pytest.raises(GpuFit, match="3 x g5.12xlarge exceed its limit cpu"):
        options(two, [pool(limits={"cpu": "143"})])


def test_what_an_earlier_revision_holds_may_be_used_again() -> None:
    tight = pool(limits={"cpu": "64"}, used={"cpu": "48"})
    with pytest.raises(GpuFit, match="48 of it in use"):
        options(SERVICE, [tight])
    (one,) = options(SERVICE, [tight], standing=True)
    assert one.tight == "limit cpu (64, 48 of it in use)"


def test_a_capacity_type_that_is_selected_leaves_the_other_out() -> None:
    chosen = Need(**{**vars(SERVICE), "node_selector": {"karpenter.sh/capacity-type": "spot"}})
    assert {one.capacity_types for one in options(chosen, [pool()])} == {("spot",)}


FAMILY, SIZE = "karpenter.k8s.aws/instance-family", "karpenter.k8s.aws/instance-size"
TYPE = "node.kubernetes.io/instance-type"
DOWNLOAD = Need("cache", {"cpu": "8", "memory": "16Gi"}, {"instanceType": "x86-cpu-karpenter"})


def cpu_pool(*requirements: dict[str, Any], **more: Any) -> dict[str, Any]:
    return pool("x86-cpu-karpenter", *requirements, taints=[], labels={"instanceType": "x86-cpu-karpenter"}, **more)


def test_a_download_fits_on_nodes_without_gpus() -> None:
    (shipped,) = [
        one
        for one in yaml.safe_load_all((NODE_POOLS / "x86-cpu-karpenter.yaml").read_text())
        if one["kind"] == "NodePool"
    ]
    found = options(DOWNLOAD, [shipped])
    assert types(found)[0] == "c6i.4xlarge" and "r6i.8xlarge" in types(found)
    assert {one.partition(".")[0] for one in types(found)} == {"c6i", "m6i", "r6i"}
    asks_gpu = Need("service", {GPU: "1"}, {"instanceType": "x86-cpu-karpenter"})
    with pytest.raises(GpuFit, match="lacks nvidia.com/gpu"):
        fit(asks_gpu, [shipped])


@pytest.mark.parametrize(
    ("need", "one", "named"),
    [
        (DOWNLOAD, cpu_pool(requirement(FAMILY, "In", "c8i", "m8i")), "c8i, m8i"),
        (DOWNLOAD, cpu_pool(requirement(TYPE, "In", "c8i.2xlarge", "c8i.large")), "c8i.2xlarge"),
        # What is known is too small, what is not may be large enough.
        (DOWNLOAD, cpu_pool(requirement(FAMILY, "In", "c6i", "x2idn"), requirement(SIZE, "In", "2xlarge")), "x2idn"),
        (SERVICE, pool("g5-gpu-karpenter", requirement(FAMILY, "In", "g7e")), "g7e"),
        (SERVICE, pool("g5-gpu-karpenter", requirement("karpenter.k8s.aws/instance-category", "In", "g", "p"),
                       requirement(SIZE, "NotIn", "12xlarge", "24xlarge", "48xlarge")), "other families"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_no_refusal(need: Need, one: dict[str, Any], named: str) -> None:
    found = fit(need, [one])
    assert list(found.options) == []
    assert list(found.notes) == [f"{one['metadata']['name']} may start {named}, of which nothing is known here"]


@pytest.mark.parametrize(
    ("need", "one"),
    [
        # No family of C, M or R has a GPU, no 2xlarge has 40 CPUs, and a limit is a limit.
        (SERVICE, pool("g5-gpu-karpenter", requirement(FAMILY, "In", "c8i"))),
        (SERVICE, pool("g5-gpu-karpenter", requirement(FAMILY, "In", "g7e"), requirement(SIZE, "In", "2xlarge"))),
        (SERVICE, pool("g5-gpu-karpenter", requirement(TYPE, "In", "g7e.2xlarge"))),
        (SERVICE, pool("g5-gpu-karpenter", requirement("karpenter.k8s.aws/instance-category", "In", "m", "inf"))),
        (SERVICE, pool("g5-gpu-karpenter", requirement(SIZE, "In", "48xlarge"), limits={"cpu": "39"})),
        (DOWNLOAD, cpu_pool(requirement(FAMILY, "In", "c8i"), requirement(FAMILY, "In", "m8i"))),
        (Need(**{**vars(DOWNLOAD), "node_selector": {FAMILY: "c6i", SIZE: "large"}}),
         cpu_pool(requirement(FAMILY, "In", "c6i", "c8i"))),
    ],
)  # fmt: skip
def test_what_is_certain_is_refused_of_unknown_families_too(need: Need, one: dict[str, Any]) -> None:
    with pytest.raises(GpuFit):
        fit(need, [one])


def test_an_operator_that_is_not_known_is_taken_as_met_and_told() -> None:
    family = requirement(FAMILY, "In", "g5")
    found = fit(
        SERVICE, [pool("g5-gpu-karpenter", family, requirement("karpenter.k8s.aws/instance-cpu", "Near", "48"))]
    )
    assert types(list(found.options)) == ["g5.12xlarge", "g5.24xlarge", "g5.48xlarge"]
    assert list(found.notes) == [
        "g5-gpu-karpenter: its requirement on karpenter.k8s.aws/instance-cpu has the operator Near, "
        "not known here and taken as met"
    ]


@pytest.mark.parametrize(
    ("value", "how", "bound", "met"),
    [
        ("48", "Gte", "48", True), ("48", "Gt", "48", False), ("48", "Lte", "48", True), ("48", "Lt", "48", False),
        ("9", "Lt", "10", True), (None, "Gte", "0", False), (None, "Lte", "0", False), ("a10g", "Gte", "1", False),
        (None, "Exists", "", False), (None, "NotIn", "1", True), ("1", "DoesNotExist", "", False),
    ],
)  # fmt: skip
def test_operators(value: str | None, how: str, bound: str, met: bool) -> None:
    values = {"values": [bound]} if bound else {}
    assert holds(value, {"key": "k", "operator": how, **values}) is met


def test_a_known_type_that_fits_makes_the_others_no_matter() -> None:
    found = fit(DOWNLOAD, [cpu_pool(requirement(FAMILY, "In", "c6i", "c8i"))])
    assert not found.notes and found.options[0].instance.name == "c6i.4xlarge"
