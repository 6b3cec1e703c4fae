"""Which profiles the operator's stand-in selects, by the rules of manifests of schema 1 and 2."""

from __future__ import annotations

import pytest
import yaml

from rehearsal.operator import selection
from rehearsal.operator.api import ReconcileError

V1_TAGS = {
    "a10g-tp1": {
        "llm_engine": "tensorrt_llm",
        "precision": "fp16",
        "gpu": "A10G",
        "gpu_device": "2237:10de",
        "tp": "1",
    },
    "a10g-tp2": {
        "llm_engine": "tensorrt_llm",
        "precision": "fp16",
        "gpu": "A10G",
        "gpu_device": "2237:10de",
        "tp": "2",
    },
    "a10g-lora": {"llm_engine": "tensorrt_llm", "precision": "fp16", "gpu": "A10G", "tp": "2", "feat_lora": "true"},
    "h100": {"llm_engine": "tensorrt_llm", "precision": "fp8", "gpu": "H100", "gpu_device": "2330:10de", "tp": "1"},
    "vllm": {"llm_engine": "vllm", "precision": "fp16", "tp": "1"},
    "embedding": {"backend": "tensorrt", "precision": "fp16", "gpu": "A10G", "tp": "1"},
}


def v1() -> selection.Manifest:
    entries = {id_: {"model": "some/model", "release": "1.0", "tags": tags} for id_, tags in V1_TAGS.items()}
    return selection.parse(yaml.safe_dump(entries, sort_keys=False))


@pytest.mark.parametrize(
    ("model", "nodes", "expected"),
    [
        (
            {"precision": "fp16", "engine": "tensorrt_llm", "gpus": [{"product": "A10G"}]},
            [],
            ["a10g-tp1", "a10g-tp2", "embedding"],
        ),
        ({"tensorParallelism": "2", "gpus": [{"product": "A10G"}]}, [], ["a10g-tp2"]),
        # The engine may be named with or without its _llm.
        ({"engine": "tensorrt", "gpus": [{"ids": ["2330"]}]}, [], ["h100"]),
        ({"engine": "vllm"}, [], ["vllm"]),
        ({"engine": "tensorrt_llm"}, ["NVIDIA-A10G"], ["a10g-tp1", "a10g-tp2", "embedding"]),
        # Neither the spec nor a node names a GPU: no filter.
        ({"engine": "tensorrt_llm"}, [], ["a10g-tp1", "a10g-tp2", "h100", "embedding"]),
        # With GPUs in the spec only TensorRT profiles are left, whatever the engine.
        ({"precision": "fp16", "gpus": [{"product": "A10G"}]}, [], ["a10g-tp1", "a10g-tp2", "embedding"]),
        ({"lora": True, "gpus": [{"product": "A10G"}]}, [], ["a10g-lora"]),
        # A profile without the tag is not "feat_lora=false".
        ({"lora": False}, [], []),
        ({"precision": "fp8", "gpus": [{"product": "A10G"}]}, [], []),
        ({"profiles": ["anything"]}, [], ["anything"]),
        ({"profiles": ["all"]}, [], ["all"]),
    ],
)
def test_schema_1(model: dict, nodes: list[str], expected: list[str]) -> None:
    assert selection.select(v1(), model, nodes) == expected


V2 = {
    "schema_version": "2.0",
    "profiles": [
        {"id": "trt", "tags": {"llm_engine": "tensorrt_llm", "precision": "FP16", "gpu": "A10G", "feat_lora": "false"}},
        {"id": "lora", "tags": {"llm_engine": "tensorrt_llm", "precision": "fp16", "gpu": "A10G", "feat_lora": "true"}},
        {
            "id": "buildable",
            "tags": {"llm_engine": "tensorrt_llm", "precision": "bf16", "gpu": "H100", "trtllm_buildable": "true"},
        },
        {"id": "vllm", "tags": {"llm_engine": "vllm", "precision": "bf16"}},
        {"id": "vllm-h100", "tags": {"llm_engine": "vllm", "precision": "bf16", "gpu": "H100"}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # Case does not count, and LoRA only if it is asked for.
        ({"precision": "fp16", "gpus": [{"product": "a10g"}]}, ["trt", "lora"]),
        ({"lora": False, "buildable": False, "gpus": [{"product": "A10G"}]}, ["trt", "vllm"]),
        # A buildable profile passes on another GPU; a GPU-tagged one of any other engine does not.
        ({"precision": "bf16", "gpus": [{"product": "A10G"}]}, ["buildable", "vllm"]),
        ({"engine": "vllm", "gpus": [{"product": "H100"}]}, ["vllm", "vllm-h100"]),
    ],
)
def test_schema_2(model: dict, expected: list[str]) -> None:
    assert selection.select(selection.parse(yaml.safe_dump(V2)), model, []) == expected


def test_trimmed_manifest_reads_as_the_whole_one() -> None:
    for manifest in (v1(), selection.parse(yaml.safe_dump(V2))):
        assert selection.parse(manifest.dump()) == manifest


def test_status_entry_of_schema_2_has_no_model() -> None:
    profile = selection.parse(yaml.safe_dump(V2)).get("vllm")
    assert profile is not None
    expected = {"llm_engine": "vllm", "precision": "bf16"}
    assert profile.status() == {"name": "vllm", "model": "", "release": "", "config": expected}


@pytest.mark.parametrize("text", ["", "model_manifest.yaml not found", "a: [", "- just\n- a list"])
def test_no_manifest(text: str) -> None:
    with pytest.raises(ReconcileError):
        selection.parse(text)
