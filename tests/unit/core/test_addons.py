"""Add-ons and their values: refusals, dotted paths, keys that a chart does not know, the rule on device plugins."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from nim_rollouts.core import chartvalues
from nim_rollouts.core.addons import Addon, overlay, second_device_plugins
from nim_rollouts.core.environment import load_environment
from nim_rollouts.core.errors import PlatformNotReady, SpecError
from tests.unit.core.test_environment import NAME, TEXT


def addon(**changes: Any) -> Addon:
    return Addon(**{"name": "a", "namespace": "n", "chart": "charts/a", **changes})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"chart": "oci://example.com/a"}, "needs its version"),
        ({"chart": "a", "repository": "https://example.com"}, "needs its version"),
        (
            {"chart": "oci://example.com/a", "version": "1", "repository": "https://example.com"},
            "remove one of the two",
        ),
        ({"chart": "https://example.com/a.tgz", "version": "1"}, "begins with oci://"),
        ({"digest": "sha256:abc"}, "digest"),
        ({"values_from": {"a..b": "x"}}, "empty part"),
        ({"values_from": {"a.b": "x", "a.b.c": "y"}}, 'leads through "a.b"'),
        ({"wait_s": 0}, "wait_s"),
        ({"when": {"node_os": "windows"}}, "node_os"),
        ({"secrets": [{"name": "s", "key": "k", "from_output": "o", "literals": {"k": "v"}}]}, "must not set k"),
        ({"secrets": [{"name": "s", "key": "k", "from_output": "not an output"}]}, "from_output"),
    ],
)
def test_refusals(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("(", r"\(")):
        addon(**given)


def test_a_refusal_names_file_and_line() -> None:
    text = TEXT.replace("    values: helm/nim-operator.yaml\n", "    values_from: {a.b: x, a.b.c: y}\n", 1)
    line = text[: text.index("values_from: {a.b: x")].count("\n") + 1
    with pytest.raises(SpecError) as caught:
        load_environment(NAME, text, "env.yaml")
    assert "leads through" in str(caught.value)
    reported = int(str(caught.value).split("env.yaml:")[1].split(":")[0])
    assert 0 <= line - reported <= 8, "the add-on's own first line"


def test_outputs_are_put_where_the_paths_say() -> None:
    one = addon(values_from={"settings.clusterName": "cluster_name", r"sa.annotations.eks\.example\.com/role": "role"})
    assert overlay(one, {"cluster_name": "c", "role": "r", "other": 1}) == {
        "settings": {"clusterName": "c"},
        "sa": {"annotations": {"eks.example.com/role": "r"}},
    }
    assert overlay(addon(values_from={"a": "empty"}), {"empty": ""}) == {"a": ""}


@pytest.mark.parametrize(("outputs", "says"), [({"x": None}, "is null"), ({}, "does not exist, or is sensitive")])
def test_an_output_must_be_there(outputs: dict[str, Any], says: str) -> None:
    with pytest.raises(PlatformNotReady, match=says) as caught:
        overlay(addon(values_from={"a": "x"}), outputs)
    assert caught.value.reason == "output-missing"


DEFAULTS = {
    "replicas": 1,
    "image": {"tag": "", "repository": "r"},
    "resources": {"limits": {"cpu": 1}},
    "podAnnotations": {"a": "b"},
    "extra": {},
    "list": [{"a": 1}],
    "nothing": None,
}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"replicas": 2, "image": {"tag": "x"}}, None),
        ({"replica": 2}, "no value `replica`; did you mean `replicas`?"),
        ({"image": {"tags": "x"}}, "no value `image.tags`; did you mean `image.tag`?"),
        ({"image": {"zzz": "x"}}, "it knows here: repository, tag"),
        ({"image": "x"}, "`image` must be a map with repository, tag"),
        ({"image": None}, None),
        ({"resources": {"limits": {"memory": "1Gi"}, "requests": {}}}, None),
        ({"podAnnotations": {"c": "d"}, "extra": {"any": 1}, "list": [{"z": 1}], "nothing": {"any": 1}}, None),
        ({"global": {"any": 1}}, None),
    ],
)
def test_keys_that_a_chart_does_not_know(values: dict[str, Any], says: str | None) -> None:
    found = chartvalues.unknown(values, DEFAULTS)
    assert [says in one for one in found] == [True] if says else found == []
    assert chartvalues.unknown(values, DEFAULTS, ["replica", "image.tags", "image.zzz", "image"]) == []


def test_values_are_put_together_as_helm_does() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1], "e": 1}
    assert chartvalues.merged(base, {"a": {"b": 3}, "d": [2], "e": None, "f": {"g": 1}}) == {
        "a": {"b": 3, "c": 2},
        "d": [2],
        "f": {"g": 1},
    }
    assert base["a"] == {"b": 1, "c": 2}


OFF = {"enabled": False}


@pytest.mark.parametrize(
    ("chart", "values", "twice"),
    [
        ("nvidia-device-plugin", {}, ["devicePlugin.enabled"]),
        (
            "oci://example.com/charts/nvidia-device-plugin",
            {"devicePlugin": {"enabled": True}},
            ["devicePlugin.enabled"],
        ),
        ("nvidia-device-plugin", {"devicePlugin": OFF, "gfd": {"enabled": True}}, []),
        ("gpu-operator", {"driver": OFF}, ["devicePlugin.enabled", "toolkit.enabled"]),
        ("gpu-operator", {"driver": OFF, "devicePlugin": OFF, "toolkit": OFF}, []),
        ("k8s-nim-operator", {}, []),
    ],
)
def test_bottlerocket_has_its_device_plugin(chart: str, values: dict[str, Any], twice: list[str]) -> None:
    source = {} if "://" in chart else {"repository": "https://example.com"}
    one = addon(chart=chart, version="1", **source)
    assert second_device_plugins(one, "bottlerocket", values) == twice
    assert second_device_plugins(one, "al2023", values) == []
    for_al2023 = addon(chart=chart, version="1", when={"node_os": "al2023"}, **source)
    assert second_device_plugins(for_al2023, "bottlerocket", values) == []


def test_the_node_os_decides_what_is_active() -> None:
    def active(text: str) -> list[str]:
        return [one.name for one in load_environment(NAME, text, "env.yaml").active_addons]

    assert "nvidia-device-plugin" not in active(TEXT)
    on_al2023 = active(TEXT.replace("node_os: bottlerocket ", "node_os: al2023 ", 1))
    assert "nvidia-device-plugin" in on_al2023
    assert on_al2023.index("kube-prometheus-stack") < on_al2023.index("nim-operator"), "it may ask for a ServiceMonitor"
