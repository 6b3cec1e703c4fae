"""Names from a form are compared with what is there, never made into a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from nim_rollouts.clients.include import Include
from nim_rollouts.core.errors import ManifestError, SpecError, UnknownDeployment, UnknownEnvironment

INCLUDE = Path(__file__).resolve().parents[3] / "include"


def test_the_default_is_beside_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Include().root == INCLUDE
    monkeypatch.setenv("NIM_ROLLOUTS_INCLUDE", str(tmp_path))
    assert Include().root == tmp_path


@pytest.mark.parametrize("name", ["", "nope", "../environments/nvidia-nim-eks", "/etc/passwd", "a\nb"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownDeployment, match="include/deployments has no"):
        Include().deployment(name)
    with pytest.raises(UnknownEnvironment):
        Include().environment(name)


def test_a_near_miss_is_pointed_out() -> None:
    with pytest.raises(UnknownDeployment, match='did you mean "meta-llama3-8b-instruct"'):
        Include().deployment("meta-llama3-8b-instuct")


def test_all_are_found() -> None:
    include = Include()
    assert "meta-llama3-8b-instruct" in include.deployments()
    assert "nvidia-nim-eks" in include.environments()
    assert "nimcache.yaml" in include.templates()
    assert "run.py" in include.benchmark_files()


def test_not_text_and_no_program(tmp_path: Path) -> None:
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "d.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"d.yaml:1: not UTF-8"):
        Include(tmp_path).deployment("d")
    with pytest.raises(ManifestError, match="run.py is missing"):
        Include(tmp_path).benchmark_files()
