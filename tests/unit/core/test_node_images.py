"""GPU node pools start from images of the kind that node_os says, or are refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nim_rollouts.core.node_images import differing

NODE_POOLS = Path(__file__).resolve().parents[3] / "include" / "manifests" / "node-pools"
SHIPPED = {file.stem: list(yaml.safe_load_all(file.read_text())) for file in NODE_POOLS.glob("*.yaml")}
GPU_POOLS = {
    "bottlerocket": ["g5-gpu-karpenter", "g6-gpu-karpenter"],
    "al2023": ["g5-gpu-karpenter-al2023", "g6-gpu-karpenter-al2023"],
}
OF_NO_MATTER = ["inferentia-inf2", "trainium-trn1", "x86-cpu-karpenter"]


def documents(*aliases: str, family: str | None = None, taint: bool = True, **requirement: Any) -> list[dict[str, Any]]:
    spec: dict[str, Any] = {"amiSelectorTerms": [{"alias": one} for one in aliases] or [{"id": "ami-1"}]}
    if family:
        spec["amiFamily"] = family
    template = {
        "nodeClassRef": {"name": "one"},
        "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}] if taint else [],
        "requirements": [{"operator": "In", **requirement}] if requirement else [],
    }
    return [
        {"kind": "EC2NodeClass", "metadata": {"name": "one"}, "spec": spec},
        {"kind": "NodePool", "metadata": {"name": "pool"}, "spec": {"template": {"spec": template}}},
    ]


def test_every_shipped_pool_is_for_one_system_or_for_none() -> None:
    assert {*GPU_POOLS["bottlerocket"], *GPU_POOLS["al2023"], *OF_NO_MATTER} == set(SHIPPED)
    for node_os, names in GPU_POOLS.items():
        own = [(name, SHIPPED[name]) for name in (*names, *OF_NO_MATTER)]
        assert differing(node_os, own) == []
        other = "al2023" if node_os == "bottlerocket" else "bottlerocket"
        assert len(differing(other, own)) == 2


def test_a_variant_is_the_same_pool_but_for_its_image() -> None:
    """So that a deployment need not know on which system it runs."""
    for name in GPU_POOLS["bottlerocket"]:
        one, other = (SHIPPED[each][1]["spec"]["template"] for each in (name, f"{name}-al2023"))
        assert one["metadata"] == other["metadata"]
        assert {**one["spec"], "nodeClassRef": None} == {**other["spec"], "nodeClassRef": None}


@pytest.mark.parametrize(
    ("node_os", "alias", "words"),
    [
        ("al2023", "bottlerocket@v1.64.0", "an add-on would install a second one"),
        ("bottlerocket", "al2023@v20260801", "no add-on would bring it"),
        ("bottlerocket", "al2@latest", "no add-on would bring it"),
    ],
)
def test_the_error_says_which_file_which_image_and_what_follows(node_os: str, alias: str, words: str) -> None:
    (error,) = differing(node_os, [("include/x.yaml", documents(alias))])
    assert error.reason == "node-os-differs"
    assert error.message.startswith(f"node_os is {node_os}, but include/x.yaml starts GPU nodes from {alias}: ")
    assert words in error.message


@pytest.mark.parametrize(
    ("made", "refused"),
    [
        (documents("bottlerocket@latest"), True),
        (documents(family="Bottlerocket"), True),
        (documents(family="AL2023"), False),
        # Of an image of one's own nothing is known.
        (documents(family="Custom"), False),
        (documents(), False),
        # Without the taint: by the families or types that are named.
        (documents("bottlerocket@latest", taint=False), False),
        (documents("bottlerocket@latest", taint=False, key="karpenter.k8s.aws/instance-family", values=["g6e"]), True),
        (documents("bottlerocket@latest", taint=False, key="node.kubernetes.io/instance-type", values=["c6i.large"]),
         False),
        # A class of another file: nothing to look at.
        (documents("bottlerocket@latest")[1:], False),
    ],
)  # fmt: skip
def test_whose_images_matter(made: list[dict[str, Any]], refused: bool) -> None:
    assert bool(differing("al2023", [("file", made)])) is refused
