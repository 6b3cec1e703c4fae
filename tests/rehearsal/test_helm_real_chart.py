"""Charts with our values: would they install?

NIM_OPERATOR_CHART names the folder or .tgz of NVIDIA's chart (`helm pull k8s-nim-operator --repo
https://helm.ngc.nvidia.com/nvidia --version 3.1.2`); without it the stand-in's chart is asked. Any other chart:
`python -m scripts.check_chart`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.helm_check import Findings, check
from nim_rollouts.clients.helm_process import HelmProcess
from nim_rollouts.clients.include import Include
from rehearsal.config import ROOT, Rehearsal
from scripts import check_chart
from tests.rehearsal.plane import admin, standing
from tests.rehearsal.releases import PARTS, write_chart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CHART_VARIABLE = "NIM_OPERATOR_CHART"


@pytest.fixture(scope="module")
def r(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with standing(tmp_path_factory.mktemp("plane"), PARTS) as plane:
        yield plane.r


@pytest.fixture
def binary(r: Rehearsal, tmp_path: Path) -> Path:
    path = tmp_path / "helm"
    path.write_text(f'#!/bin/sh\nexec "{r.controlplane}" helm "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def cluster(r: Rehearsal) -> Cluster:
    return Cluster(admin(r))


def _checked(binary: Path, cluster: Cluster, chart: Path, values: Path, name: str) -> Findings:
    return check(HelmProcess(str(binary)), chart, values, release=name, cluster=cluster)


def test_the_nim_operators_chart_would_install_with_our_values(binary: Path, cluster: Cluster) -> None:
    chart = Path(os.environ.get(CHART_VARIABLE) or ROOT / "rehearsal" / "charts" / "k8s-nim-operator")
    values = Include().path("helm/nim-operator.yaml")
    findings = _checked(binary, cluster, chart, values, "nim-operator")
    assert findings.problems == []
    # What the environments wait for is what this chart brings, under these names.
    environment = Include().environment("nvidia-nim-eks" if os.environ.get(CHART_VARIABLE) else "rehearsal")
    addon = next(one for one in environment.addons if one.name == "nim-operator")
    wanted = {f"CustomResourceDefinition/{name}" for name in addon.requires.crds}
    wanted |= {f"Deployment/{name}" for name in addon.requires.deployments}
    assert wanted - set(findings.objects) == set()


@pytest.mark.parametrize("name", ["kube-prometheus-stack", "nvidia-device-plugin"])
def test_our_values_fit_the_stand_ins_charts(binary: Path, cluster: Cluster, name: str) -> None:
    chart, values = ROOT / "rehearsal" / "charts" / name, Include().path(f"helm/{name}.yaml")
    findings = _checked(binary, cluster, chart, values, name)
    assert findings.problems == []
    assert findings.objects


def test_what_would_not_install_is_told(binary: Path, cluster: Cluster, tmp_path: Path) -> None:
    chart, values = write_chart(tmp_path / "sample"), tmp_path / "values.yaml"

    def problems(**given: object) -> list[str]:
        values.write_text(yaml.safe_dump(given))
        return _checked(binary, cluster, chart, values, "bad").problems

    assert problems(text="x") == []
    [unknown] = problems(txt="x")
    assert "no value `txt`; did you mean `text`?" in unknown
    [refused] = problems(mode="refused")
    assert "Service/bad-second" in refused and "99999" in refused
    (chart / "templates" / "more.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: more}\ndada: {a: b}\n---\n"
        "apiVersion: example.com/v1\nkind: Stranger\nmetadata: {name: s}\n"
    )
    found = problems()
    assert any("dada" in one for one in found)
    assert any("Stranger/s: the API server does not serve example.com/v1" in one for one in found)
    (chart / "templates" / "more.yaml").write_text('{{ required "t is needed" .Values.t }}')
    assert any("does not render" in one and "t is needed" in one for one in problems())


def test_the_command(
    binary: Path, r: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HELM", str(binary))
    monkeypatch.setenv("REHEARSAL_STATE", str(r.state))
    chart = write_chart(tmp_path / "sample")
    assert check_chart.main([str(chart)]) == 0
    assert "it would install: 1 objects, accepted by the API server" in capsys.readouterr().out
    (tmp_path / "v.yaml").write_text("mode: refused\n")
    assert check_chart.main([str(chart), str(tmp_path / "v.yaml")]) == 1
    assert "99999" in capsys.readouterr().out
    # A .tgz, and no rehearsal that is up.
    subprocess.run([str(binary), "package", str(chart), "-d", str(tmp_path)], check=True, capture_output=True)
    monkeypatch.setenv("REHEARSAL_STATE", str(tmp_path / "none"))
    assert check_chart.main([str(tmp_path / "sample-1.0.0.tgz"), str(tmp_path / "v.yaml")]) == 0
    assert "not shown to an API server" in capsys.readouterr().out
