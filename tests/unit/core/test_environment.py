"""Environments: refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from nim_rollouts.core.environment import Environment, load_environment
from nim_rollouts.core.errors import SpecError

NAME = "nvidia-nim-eks"
TEXT = (Path(__file__).resolve().parents[3] / "include" / "environments" / f"{NAME}.yaml").read_text()
POOLS = ["g5-gpu-karpenter", "g6-gpu-karpenter", "x86-cpu-karpenter"]


def load(text: str = TEXT) -> Environment:
    return load_environment(NAME, text, "env.yaml", POOLS)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("region: us-west-2\naws", "region: here\naws", "region"),
        ("kind: s3, bucket: nim-rollouts-ledger, prefix: ledger", "kind: ftp", "store"),
        ("kind: s3, bucket: nim-rollouts-ledger, prefix: ledger", "kind: folder", "`store.path` is missing"),
        ("bucket: nim-rollouts-ledger", "bucket: No", "store.bucket"),
        ("bucket: nim-rollouts-ledger", "buckett: b", "did you mean `bucket`?"),
        ("root: terraform/eks", "root: ../elsewhere", "inside include/"),
        ("    version: 3.1.2\n", "", "needs its version"),
        ("cluster: {name: nvidia-nim-eks}", "cluster: {name: other}", "terraform.variables.cluster_name"),
        ("    environment: nvidia-nim-eks\n", "    environment: copied\n", '"copied"'),
        ("    region: us-west-2\n", "    region: eu-west-1\n", "terraform.variables.region"),
        ("claim: refuse", "claim: ignore", "'refuse' or 'wait'"),
        ("cache_s: 3600", "cache_s: 0", "greater than or equal to 1"),
        (
            "node_pools: [g5-gpu-karpenter",
            "node_pools: [g5-gpu",
            "env.yaml:21: there is no node pool g5-gpu; known:",
        ),
        ("node_pools: [g5-gpu-karpenter", "node_pools: [x86-cpu-karpenter", "a pool stands there twice"),
        ("instance_types: [", "instance_types: [] #", "instance_types"),
    ],
)
def test_refusals(old: str, new: str, says: str) -> None:
    assert old in TEXT
    with pytest.raises(SpecError) as caught:
        load(TEXT.replace(old, new, 1))
    assert says in str(caught.value)
    assert "env.yaml:" in str(caught.value)


def test_a_folder_store() -> None:
    text = TEXT.replace("{kind: s3, bucket: nim-rollouts-ledger, prefix: ledger}", "{kind: folder, path: /data}")
    assert load(text).store.kind == "folder"


def test_the_example_installs_the_published_chart() -> None:
    addon = next(one for one in load().addons if one.name == "nim-operator")
    assert (addon.chart, addon.repository, addon.version) == (
        "k8s-nim-operator",
        "https://helm.ngc.nvidia.com/nvidia",
        "3.1.2",
    )
    assert not addon.is_local
