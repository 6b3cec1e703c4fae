"""Which pods an ordered fault meets in the runner."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rehearsal import faults
from rehearsal.nim import image
from rehearsal.operator import selection
from rehearsal.runner import disorder

NIM = "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3.3"
OPERATOR = "nvcr.io/nvidia/cloud-native/k8s-nim-operator:v3.1.2"


class State:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name


@pytest.fixture
def r(tmp_path: Path) -> State:
    return State(tmp_path)


def container(r: State, image: str = NIM, owner: str = "ReplicaSet", **spec: Any) -> Any:
    pod = {"metadata": {"name": "p", "ownerReferences": [{"kind": owner, "name": "o"}]}}
    worker = SimpleNamespace(kubelet=SimpleNamespace(r=r), pod=pod, job="o" if owner == "Job" else "", uid="u")
    return SimpleNamespace(image=image, spec=spec, worker=worker)


@pytest.mark.parametrize(
    ("pods", "met"),
    [("any", {"ReplicaSet", "Job", "NIMCache"}), ("service", {"ReplicaSet"}), ("cache", {"Job", "NIMCache"})],
)
def test_whose_pulls_are_refused(r: State, pods: str, met: set[str]) -> None:
    faults.order(r, "pull-refused", pods=pods, status=403)
    owners = ("ReplicaSet", "Job", "NIMCache")
    assert {owner for owner in owners if disorder.pull_refusal(container(r, owner=owner)) == 403} == met
    assert disorder.pull_refusal(container(r, OPERATOR)) is None


def test_out_of_memory_meets_servers_alone(r: State) -> None:
    faults.order(r, "crash-loop")
    assert disorder.crash(container(r))
    assert disorder.crash(container(r, owner="Job")) is None
    assert disorder.crash(container(r, owner="NIMCache", command=["sh"])) is None
    assert disorder.crash(container(r, OPERATOR)) is None


def test_profiles_of_another_gpu_fit_nothing_that_is_asked_for(r: State) -> None:
    texts = image.root_files(NIM)
    asked = {"engine": "tensorrt_llm", "precision": "fp16", "gpus": [{"product": "A10G"}]}
    assert disorder.files(container(r), texts) == texts
    assert selection.select(selection.parse(texts[image.MANIFEST_PATH]), asked, [])
    faults.order(r, "no-profile")
    changed = selection.parse(disorder.files(container(r), texts)[image.MANIFEST_PATH])
    assert changed.profiles and selection.select(changed, asked, []) == []


@pytest.mark.parametrize("reference", [NIM, "nvcr.io/nim/some/other:1.0.0"])
def test_both_kinds_of_manifest_can_be_made_for_another_gpu(reference: str) -> None:
    text = image.for_gpu(image.manifest_text(image.describe(reference)), "GB300")
    assert {profile.tags.get("gpu") for profile in image.parse_manifest(text)} <= {"GB300"}
