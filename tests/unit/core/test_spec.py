"""Deployments, environments, requests: what is accepted, and what each refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest

from nim_rollouts.core.environment import load_environment
from nim_rollouts.core.errors import SpecError
from nim_rollouts.core.spec import Deployment, Request, load_deployment, resolve

INCLUDE = Path(__file__).resolve().parents[3] / "include"
NAME = "meta-llama3-8b-instruct"
TEXT = (INCLUDE / "deployments" / f"{NAME}.yaml").read_text()
SOURCE = f"include/deployments/{NAME}.yaml"
LINES = TEXT.splitlines()


def load(text: str = TEXT) -> Deployment:
    return load_deployment(NAME, text, SOURCE)


def line_of(fragment: str) -> int:
    return next(number for number, line in enumerate(LINES, start=1) if fragment in line)


@pytest.mark.parametrize("path", sorted((INCLUDE / "deployments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_deployment_is_accepted(path: Path) -> None:
    assert load_deployment(path.stem, path.read_text(), path.name).name == path.stem


@pytest.mark.parametrize("path", sorted((INCLUDE / "environments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_environment_is_accepted(path: Path) -> None:
    assert load_environment(path.stem, path.read_text(), path.name).name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("replicas: 1", "replica: 1", "replicas: 1", "did you mean `replicas`?"),
        ("  size: 50Gi\n", "", "cache:", "`cache.size` is missing"),
        ('tag: "1.3.3"', "tag: 1.3", "tag:", "put it in quotes"),
        ('requests: {cpu: "40"', "requests: {cpu: lots", "requests: {cpu", "not a Kubernetes quantity"),
        ('limits: {cpu: "40"', 'limits: {cpu: "4"', "resources:", "is larger than limits.cpu"),
        ('limits: {cpu: "40", nvidia.com/gpu: "2"}', "limits: {}", "resources:", "needs limits.nvidia.com/gpu"),
        ("streaming: true", "streaming: 5", "streaming", "valid boolean"),
        ("max: 2000", "max: fast", "max: 2000", "valid number, found text"),
        ("on_first_failure: remove", "on_first_failure: retry", "on_first_failure", "'remove' or 'keep'"),
        ("namespace: nim-service", "namespace: NIM", "namespace:", "not a name that Kubernetes accepts"),
        ("repository: nvcr.io/nim", "repository: nim", "repository:", "with its registry"),
        ("concurrency: 20", "concurrency: 200", "benchmark:", "larger than requests"),
        ("metric: error_rate, max: 0.01", "metric: error_rate", "error_rate", "neither max nor min"),
        ("kind: Deployment", "kind: Environment", "kind:", "'Deployment'"),
        ("port: 8000", "port: 99999", "port: 8000", "less than or equal to 65535"),
        ("  port: 8000", "  port: 8000\n  port: 8001", "port: 8000", "was given on line"),
        ("  replicas: 1", "\treplicas: 1", "replicas: 1", "malformed YAML"),
    ],
)
def test_refusals_name_file_line_and_what_to_do(old: str, new: str, at: str, says: str) -> None:
    assert old in TEXT
    with pytest.raises(SpecError) as caught:
        load(TEXT.replace(old, new, 1))
    message = str(caught.value)
    assert says in message
    line = line_of(at)
    assert any(f"{SOURCE}:{near}:" in message for near in (line, line + 1)), message
    assert caught.value.hint


def test_all_findings_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        load(TEXT.replace("replicas: 1", "replica: 1").replace("  size: 50Gi\n", ""))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["", "[]", "just text", "- a\n- b\n"])
def test_not_a_mapping(text: str) -> None:
    with pytest.raises(SpecError, match="expected keys and values"):
        load(text)


@pytest.mark.parametrize("text", ["a: &x {b: *x}", "a: 1\n---\nb: 2\n", "1: a", "a: !!python/object:os.system {}"])
def test_yaml_that_is_more_than_data(text: str) -> None:
    with pytest.raises(SpecError, match=f"{SOURCE}:"):
        load(text)


@pytest.mark.parametrize("name", ["Upper", "9starts", "-a", "a-", "a_b", "a.b", "a" * 41, ""])
def test_names_that_kubernetes_would_refuse(name: str) -> None:
    with pytest.raises(SpecError, match=rf"{SOURCE}:\d+: `name`"):
        load_deployment(name, TEXT.replace(f"name: {NAME}", f'name: "{name}"', 1), SOURCE)


def test_the_name_is_the_files() -> None:
    with pytest.raises(SpecError, match="is not that of the file"):
        load_deployment("other", TEXT, SOURCE)


def test_numbers_are_quantities() -> None:
    deployment = load(TEXT.replace('cpu: "40"', "cpu: 40"))
    assert deployment.service.resources.limits["cpu"] == "40"
    assert deployment.service.gpus == 2


def test_merge_keys_and_anchors_work() -> None:
    text = TEXT.replace("  requests: {cpu:", "  requests: &r {cpu:").replace(
        'limits: {cpu: "40", nvidia.com/gpu: "2"}', "limits: {<<: *r}"
    )
    assert load(text).service.resources.limits == {"cpu": "40", "nvidia.com/gpu": "2"}


def request(**values: object) -> Request:
    fixed = {"environment": "e", "deployment": NAME, "dag_id": "nim_deploy", "run_id": "r", "rollout_id": "r"}
    return Request.model_validate({**fixed, **values})


def test_the_forms_tag_wins() -> None:
    assert resolve(load(), request()).image.tag == "1.3.3"
    assert resolve(load(), request(image_tag="")).image.tag == "1.3.3"
    assert resolve(load(), request(image_tag="1.3.4")).image.reference.endswith(":1.3.4")
    with pytest.raises(SpecError, match="not an image tag"):
        resolve(load(), request(image_tag="a b"))


def test_what_validation_pinned_stays() -> None:
    pinned = resolve(load(), request(image_tag="1.3.4"))
    edited = load(TEXT.replace("replicas: 1", "replicas: 3"))
    assert resolve(edited, request(spec=pinned)) == pinned


def test_a_request_survives_json() -> None:
    once = request(spec=load(), generation=3)
    assert Request.model_validate_json(once.model_dump_json()) == once
    assert Request.model_validate(once.model_dump(mode="json")) == once


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{instanceType: g5-gpu-karpenter}", "{instanceType: 'g5 gpu'}"),
        ("{instanceType: g5-gpu-karpenter}", "{'instance type': g5}"),
        ("{instanceType: g5-gpu-karpenter}", "{_Bad.com/x: g5}"),
        ("{key: nvidia.com/gpu, operator: Exists", "{key: nvidia.com/gpu/x, operator: Exists"),
    ],
)
def test_labels_that_kubernetes_would_refuse(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(SpecError, match="Kubernetes accepts"):
        load(TEXT.replace(old, new))
