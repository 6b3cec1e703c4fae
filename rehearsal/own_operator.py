"""NVIDIA's own NIM Operator in a rehearsal, in place of the stand-in: what the environment says of it, looked at before
anything starts, and the include folder by which the pipelines find its chart.

The environment's file stays as it is: it names the chart `rehearsal/charts/k8s-nim-operator`, relative to the folder
above include/. So that folder is made anew, of links, with another chart under this name.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rehearsal.config import ROOT
from rehearsal.toolbox import ToolNotReady

BINARY_ENV, MANIFESTS_ENV = "NIM_OPERATOR_BINARY", "NIM_OPERATOR_MANIFESTS"
CHART_ENV, CRDS_ENV = "NIM_OPERATOR_CHART", "NIM_OPERATOR_CRDS"
CHART = "k8s-nim-operator"
_CHARTS = Path("rehearsal") / "charts"


@dataclass(frozen=True)
class OwnOperator:
    """Absolute paths; what is empty is the stand-in's.

    :param binary: the manager
    :param manifests: the templates that it reads from /manifests
    :param chart: a folder, or the .tgz of `helm pull`
    :param crds: a folder with definitions, in place of the chart's
    """

    binary: str = ""
    manifests: str = ""
    chart: str = ""
    crds: str = ""

    @property
    def in_words(self) -> str:
        """What is not the stand-in's; empty when all is."""
        parts = {"program": self.binary, "its templates": self.manifests, "chart": self.chart, "CRDs": self.crds}
        return ", ".join(f"{what} {path}" for what, path in parts.items() if path)


def named(environment: Mapping[str, str]) -> OwnOperator:
    """What the variables name. Raises ToolNotReady for what is not there, or lacks what it needs beside it."""
    binary, chart, crds = (_there(environment, name) for name in (BINARY_ENV, CHART_ENV, CRDS_ENV))
    manifests = _there(environment, MANIFESTS_ENV)
    if chart and not _is_archive(Path(chart)) and not (Path(chart) / "Chart.yaml").is_file():
        raise ToolNotReady(f"{CHART_ENV} names {chart}, which is neither a folder with a Chart.yaml nor a .tgz.")
    if crds and not _definitions(Path(crds)):
        raise ToolNotReady(f"{CRDS_ENV} names {crds}, which is no folder with .yaml files.")
    if not binary:
        return OwnOperator(manifests=manifests, chart=chart, crds=crds)
    if not (Path(binary).is_file() and os.access(binary, os.X_OK)):
        raise ToolNotReady(f"{BINARY_ENV} names {binary}, but no program is there.")
    if not chart and not crds:
        raise ToolNotReady(
            f"{BINARY_ENV} needs {CHART_ENV} (NVIDIA's chart) or {CRDS_ENV} (its definitions alone): the manager ends "
            "where one of its nine kinds is not served, and the stand-in's chart has three."
        )
    return OwnOperator(binary, manifests or _manifests_of(Path(binary)), chart, crds)


def _there(environment: Mapping[str, str], name: str) -> str:
    given = environment.get(name)
    if not given:
        return ""
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise ToolNotReady(f"{name} names {path}, which does not exist. Mend it or unset it.")
    return str(path)


def _manifests_of(binary: Path) -> str:
    """The templates beside the program, or beside its bin/, as in its sources."""
    for folder in (binary.parent, binary.parent.parent):
        if (folder / "manifests").is_dir():
            return str(folder / "manifests")
    raise ToolNotReady(
        f"The manager makes a NIMService's objects from the templates in /manifests of its image: {MANIFESTS_ENV} must "
        f"name the folder `manifests` of its sources, where it does not lie beside {binary}."
    )


def _is_archive(chart: Path) -> bool:
    return chart.is_file() and chart.name.endswith((".tgz", ".tar.gz"))


def _definitions(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


def include(own: OwnOperator, base: str, folder: Path) -> str:
    """The include folder that the pipelines read: `base` (empty: the checkout's) as it is, or, where the chart is
    another one, the same folder below a new one above it, made at `folder`."""
    if not own.chart and not own.crds:
        return base
    original = Path(base).absolute() if base else ROOT / "include"
    charts = folder / _CHARTS
    charts.mkdir(parents=True)
    _link_all(original.parent, folder, leave_out=("rehearsal", ".git", original.name))
    (folder / "include").symlink_to(original)
    _link_all(original.parent / "rehearsal", charts.parent, leave_out=("charts",))
    _link_all(original.parent / _CHARTS, charts, leave_out=(CHART,))
    _put_chart(own, charts / CHART)
    return str(folder / "include")


def _link_all(source: Path, target: Path, leave_out: tuple[str, ...]) -> None:
    for entry in source.iterdir() if source.is_dir() else ():
        if entry.name not in leave_out:
            (target / entry.name).symlink_to(entry)


def _put_chart(own: OwnOperator, target: Path) -> None:
    """The chart as a copy: what is changed in it, or in the original meanwhile, is no matter of the other."""
    source = Path(own.chart) if own.chart else ROOT / _CHARTS / CHART
    if _is_archive(source):
        unpacked = target.with_name("unpacked")
        with tarfile.open(source) as archive:
            archive.extractall(unpacked, filter="data")
        [top] = unpacked.iterdir()
        top.rename(target)
        unpacked.rmdir()
    else:
        shutil.copytree(source, target)
    if own.crds:
        shutil.rmtree(target / "crds", ignore_errors=True)
        (target / "crds").mkdir()
        for file in _definitions(Path(own.crds)):
            shutil.copy(file, target / "crds")
