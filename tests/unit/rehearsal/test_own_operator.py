"""NVIDIA's own operator in the place of the stand-in: what is asked of the variables, and where its chart is found."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nim_rollouts.clients import helm_charts
from nim_rollouts.clients.include import Include
from rehearsal.config import ROOT
from rehearsal.own_operator import BINARY_ENV, CHART_ENV, CRDS_ENV, MANIFESTS_ENV, OwnOperator, include, named
from rehearsal.toolbox import ToolNotReady

STANDIN = ROOT / "rehearsal" / "charts" / "k8s-nim-operator"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """As NVIDIA's repository has them after a build."""
    for folder in ("bin", "manifests", "chart/templates", "crds"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin" / "manager").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "manager").chmod(0o755)
    (tmp_path / "chart" / "Chart.yaml").write_text("apiVersion: v2\nname: k8s-nim-operator\nversion: 9.9.9\n")
    (tmp_path / "chart" / "templates" / "a.yaml").write_text("kind: ConfigMap\n")
    (tmp_path / "crds" / "one.yaml").write_text("kind: CustomResourceDefinition\n")
    return tmp_path


def test_without_a_variable_all_is_the_stand_ins(tmp_path: Path) -> None:
    own = named({"PATH": "/bin", BINARY_ENV: ""})
    assert own == OwnOperator() and own.in_words == ""
    assert include(own, "/some/include", tmp_path / "over") == "/some/include"
    assert not (tmp_path / "over").exists()


def test_the_templates_are_found_beside_the_programs_folder(sources: Path, tmp_path: Path) -> None:
    binary, chart = str(sources / "bin" / "manager"), str(sources / "chart")
    own = named({BINARY_ENV: binary, CHART_ENV: chart})
    assert own == OwnOperator(binary, str(sources / "manifests"), chart)
    assert binary in own.in_words and chart in own.in_words
    elsewhere = named({BINARY_ENV: binary, CHART_ENV: chart, MANIFESTS_ENV: str(sources / "crds")})
    assert elsewhere.manifests == str(sources / "crds")


def test_what_cannot_work_is_refused_before_anything_starts(sources: Path) -> None:
    binary, chart = str(sources / "bin" / "manager"), str(sources / "chart")

    def words(**variables: str) -> str:
        with pytest.raises(ToolNotReady) as refused:
            named(variables)
        return str(refused.value)

    assert "/no/manager, which does not exist" in words(NIM_OPERATOR_BINARY="/no/manager")
    assert "no program is there" in words(NIM_OPERATOR_BINARY=chart, NIM_OPERATOR_CHART=chart)
    # Of nine kinds the stand-in's chart defines three.
    said = words(NIM_OPERATOR_BINARY=binary)
    assert CHART_ENV in said and CRDS_ENV in said
    assert "neither a folder with a Chart.yaml nor a .tgz" in words(NIM_OPERATOR_CHART=str(sources / "crds"))
    assert "no folder with .yaml files" in words(NIM_OPERATOR_CRDS=str(sources / "bin"))
    (sources / "manifests").rmdir()
    assert MANIFESTS_ENV in words(NIM_OPERATOR_BINARY=binary, NIM_OPERATOR_CHART=chart)


def _chart_of(found: Include, addon: str) -> Path:
    environment = found.environment("rehearsal")
    return helm_charts.folder_of(next(one for one in environment.addons if one.name == addon), found)


@pytest.mark.parametrize("archive", [False, True])
def test_the_environments_file_leads_to_the_other_chart(sources: Path, tmp_path: Path, archive: bool) -> None:
    chart = sources / "chart"
    if archive:
        subprocess.run(["tar", "-czf", str(sources / "c.tgz"), "-C", str(sources), "chart"], check=True)
        chart = sources / "c.tgz"
    found = Include(include(named({CHART_ENV: str(chart)}), "", tmp_path / "over"))
    assert (_chart_of(found, "nim-operator") / "Chart.yaml").read_text().endswith("9.9.9\n")
    assert _chart_of(found, "karpenter") == ROOT / "rehearsal" / "charts" / "karpenter"
    assert found.templates() == Include(ROOT / "include").templates()


def test_definitions_alone_go_into_the_stand_ins_chart(sources: Path, tmp_path: Path) -> None:
    found = Include(include(named({CRDS_ENV: str(sources / "crds")}), "", tmp_path / "over"))
    chart = _chart_of(found, "nim-operator")
    assert [file.name for file in (chart / "crds").iterdir()] == ["one.yaml"]
    template = Path("templates") / "deployment.yaml"
    assert (chart / template).read_text() == (STANDIN / template).read_text()
    assert len(list((STANDIN / "crds").iterdir())) == 3


def test_another_include_folder_stays_what_it_is(sources: Path, tmp_path: Path) -> None:
    base = tmp_path / "mine" / "include"
    (base / "environments").mkdir(parents=True)
    found = Include(include(named({CHART_ENV: str(sources / "chart")}), str(base), tmp_path / "over"))
    assert found.environments() == []
    # What is added while the rehearsal is up is seen.
    (base / "environments" / "late.yaml").write_text("")
    assert found.environments() == ["late"]
    assert (found.repository / "rehearsal" / "charts" / "k8s-nim-operator" / "Chart.yaml").is_file()
