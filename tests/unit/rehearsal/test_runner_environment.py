"""A container's environment by Kubernetes' rules, and the kubelet's words for what is missing."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from rehearsal.kube import NotFound, Obj
from rehearsal.runner import environment
from rehearsal.runner.environment import ConfigError, expand, quantity

ADDRESSES = {"podIP": "10.97.0.2", "hostIP": "127.0.0.1"}
POD: Obj = {
    "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "x", "b": "y"}},
    "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [{"name": "c"}]},
}
NODE: Obj = {"status": {"allocatable": {"cpu": "48", "memory": "192Gi"}}}


class Objects:
    def __init__(self, **objects: Obj) -> None:
        self.objects = objects

    async def get(self, path: str, **_: Any) -> Obj:
        name = path.rpartition("/")[2]
        if name not in self.objects:
            raise NotFound(404, "NotFound", name)
        return self.objects[name]


KUBE = Objects(sec={"data": {"KEY": base64.b64encode(b"v$(A)1").decode()}}, conf={"data": {"A": "1", "B": "2"}})


async def env_of(**container: Any) -> dict[str, str]:
    return await environment.build(KUBE, POD, {"name": "c", **container}, NODE, ADDRESSES, {"BASE": "b", "A": "base"})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(A)/$(B)", "1/2"), ("$(C)", "$(C)"), ("$$(A)", "$(A)"), ("$$$(A)", "$1"), ("$A $", "$A $"),
        ("$(A", "$(A"), ("a$$b", "a$b"), ("$()", "$()"),
    ],
)  # fmt: skip
def test_expansion(text: str, wanted: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == wanted


@pytest.mark.parametrize(("text", "number"), [("100m", 0.1), ("2", 2), ("1Gi", 2**30), ("1e3", 1000), ("5k", 5000)])
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


async def test_env_wins_over_env_from_which_wins_over_the_base() -> None:
    env = await env_of(envFrom=[{"configMapRef": {"name": "conf"}}], env=[{"name": "B", "value": "own $(A) $(LATER)"}])
    assert env["A"] == "1" and env["B"] == "own 1 $(LATER)" and env["BASE"] == "b"


async def test_values_of_secrets_are_not_expanded_and_prefixes_apply() -> None:
    env = await env_of(
        envFrom=[{"prefix": "P_", "secretRef": {"name": "sec"}}],
        env=[{"name": "S", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "KEY"}}}],
    )
    assert env["P_KEY"] == env["S"] == "v$(A)1"


async def test_fields_and_resources() -> None:
    def ref(path: str) -> Obj:
        return {"fieldRef": {"fieldPath": path}}

    env = await env_of(
        resources={"limits": {"cpu": "1500m"}, "requests": {"memory": "1Gi"}},
        env=[
            {"name": "NAME", "valueFrom": ref("metadata.name")},
            {"name": "IP", "valueFrom": ref("status.podIP")},
            {"name": "LABEL", "valueFrom": ref("metadata.labels['app']")},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MILLI", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
            {"name": "NODE", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Gi"}}},
        ],
    )
    got = [env[name] for name in ("NAME", "IP", "LABEL", "CPU", "MILLI", "MEM", "NODE")]
    assert got == ["p", "10.97.0.2", "x", "2", "1500", "1024", "192"]


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({"envFrom": [{"secretRef": {"name": "none"}}]}, 'secret "none" not found'),
        ({"envFrom": [{"configMapRef": {"name": "none"}}]}, 'configmap "none" not found'),
        (
            {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "NO"}}}]},
            "couldn't find key NO in Secret ns/sec",
        ),
        (
            {"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "NO"}}}]},
            "couldn't find key NO in ConfigMap ns/conf",
        ),
    ],
)
async def test_what_is_missing_is_worded_as_the_kubelet_does(container: Obj, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        await env_of(**container)


async def test_optional_sources_may_be_missing() -> None:
    env = await env_of(
        envFrom=[{"secretRef": {"name": "none", "optional": True}}],
        env=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": True}}}],
    )
    assert "X" not in env


def test_the_command_line() -> None:
    container = {"command": ["run", "$(A)"], "args": ["$$(A)", "$(NO)"]}
    assert environment.command_line(container, ["image"], {"A": "1"}) == ["run", "1", "$(A)", "$(NO)"]
    assert environment.command_line({"args": ["x"]}, ["image"], {}) == ["image", "x"]
