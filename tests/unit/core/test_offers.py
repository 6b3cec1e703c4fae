"""What an image offers, from either schema of its manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from nim_rollouts.core.offers import offered

MANIFESTS = Path(__file__).resolve().parents[3] / "rehearsal" / "nim" / "manifests"


@pytest.mark.parametrize("name", ["llama-3.1-8b-instruct.v1", "generic.v2"])
def test_each_profile_is_a_line_with_what_can_be_asked_for(name: str) -> None:
    lines = offered((MANIFESTS / f"{name}.yaml").read_text())
    assert "engine=tensorrt_llm precision=fp16 gpu=A10G tp=2 profile=throughput" in lines
    assert len(lines) == len(set(lines)) > 1


@pytest.mark.parametrize("text", ["", "model_manifest.yaml not found", "[1, 2]", "{a: b}", "{", "schema_version: 2"])
def test_what_is_no_manifest_offers_nothing(text: str) -> None:
    assert offered(text) == []
