"""What is told of add-ons before anything is made; and our own values, held against the charts that we have."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from nim_rollouts.clients.addon_files import addon_problems, outputs_of, values_of
from nim_rollouts.clients.helm_charts import defaults
from nim_rollouts.clients.include import Include
from nim_rollouts.core import chartvalues
from nim_rollouts.core.environment import Environment

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENTS = Include(ROOT / "include").environments()


@pytest.fixture
def include() -> Include:
    return Include(ROOT / "include")


def changed(include: Include, **changes: object) -> Environment:
    """The production example with its device plugin changed."""
    environment = include.environment("nvidia-nim-eks")
    plugin = next(one for one in environment.addons if one.name == "nvidia-device-plugin")
    return environment.model_copy(update={"addons": [plugin.model_validate({**plugin.model_dump(), **changes})]})


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environments_of_the_project_have_no_problem(include: Include, name: str) -> None:
    environment = include.environment(name)
    assert environment.addons
    for node_os in ("bottlerocket", "al2023"):
        assert addon_problems(environment.model_copy(update={"node_os": node_os}), include) == []


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"when": {}}, "second-device-plugin", "devicePlugin.enabled"),
        ({"when": {}, "values": None}, "second-device-plugin", "each GPU would be given out twice"),
        ({"when": {}, "chart": "charts/none", "repository": None}, "spec-invalid", "no folder charts/none"),
        ({"when": {}, "values": "helm/none.yaml"}, "spec-invalid", "no file include/helm/none.yaml"),
        ({"when": {}, "values_from": {"a": "clustername"}}, "spec-invalid", "no output clustername"),
    ],
)
def test_problems(include: Include, changes: dict[str, object], reason: str, says: str) -> None:
    found = addon_problems(changed(include, **changes), include)
    assert any(one.reason == reason and says in str(one) for one in found), found


def test_values_must_be_a_map(tmp_path: Path, include: Include) -> None:
    (tmp_path / "values.yaml").write_text("- a\n")
    found = addon_problems(changed(include, when={}, values=str(tmp_path / "values.yaml")), include)
    assert any("keys and values" in str(one) for one in found)
    (tmp_path / "values.yaml").write_text("a: 1\na: 2\n")
    found = addon_problems(changed(include, when={}, values=str(tmp_path / "values.yaml")), include)
    assert any("values.yaml:2" in str(one) and "given on line 1 already" in str(one) for one in found)


def test_outputs_are_read_from_the_root() -> None:
    assert {"cluster_name", "interruption_queue_name", "grafana_secret_name"} <= outputs_of(
        ROOT / "include" / "terraform" / "eks"
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_our_values_are_known_to_the_charts_that_we_have(include: Include, name: str) -> None:
    """Those of the rehearsal have the real charts' names for what our values use."""
    looked_at = 0
    for addon in include.environment(name).addons:
        chart = ROOT / "rehearsal" / "charts" / addon.chart_name
        looked_at += 1
        known = defaults(chart)
        given = chartvalues.merged(values_of(addon, include), chartvalues.nested(dict.fromkeys(addon.values_from, "")))
        assert chartvalues.unknown(given, known) == [], addon.name
    assert looked_at


def test_subcharts_count_under_their_names(tmp_path: Path) -> None:
    """Folders and packed ones, by alias, with the conditions that turn them on."""
    chart = tmp_path / "parent"
    (chart / "charts" / "below").mkdir(parents=True)
    (chart / "Chart.yaml").write_text(
        "name: parent\nversion: '1'\ndependencies:\n"
        "  - {name: below, alias: other, condition: other.enabled}\n  - {name: packed, condition: packed.on}\n"
    )
    (chart / "values.yaml").write_text("own: 1\nother: {a: 2}\n")
    (chart / "charts" / "below" / "Chart.yaml").write_text("name: below\n")
    (chart / "charts" / "below" / "values.yaml").write_text("a: 1\nb: {c: 1}\n")
    with tarfile.open(chart / "charts" / "packed-1.tgz", "w:gz") as archive:
        for name, text in (("packed/Chart.yaml", b"name: packed\n"), ("packed/values.yaml", b"deep: {x: 1}\n")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    known = defaults(chart)
    assert known == {
        "own": 1,
        "other": {"a": 2, "b": {"c": 1}, "enabled": True},
        "packed": {"deep": {"x": 1}, "on": True},
    }
    assert chartvalues.unknown({"other": {"b": {"d": 1}}, "below": {}}, known) != []

    packed = tmp_path / "parent-1.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(chart, "parent")
    assert defaults(packed) == known
