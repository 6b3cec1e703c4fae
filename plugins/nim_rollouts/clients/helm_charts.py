"""Charts: fetched, and known by what they hold, not by what they are called.

A version in a repository is a promise. Helm keeps a classic repository's index and takes whatever file it names, with
or without the digest that the index gives; so the digest is taken here, of what came.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from nim_rollouts.clients.helm_process import HelmEnded, HelmProcess
from nim_rollouts.clients.include import Include
from nim_rollouts.core import chartvalues
from nim_rollouts.core.addons import Addon
from nim_rollouts.core.errors import HelmFailed, HelmUnavailable

_OCI_DIGEST = re.compile(r"^Digest:\s*(sha256:[0-9a-f]{64})\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Chart:
    """A chart on this machine. `path`: a folder or a .tgz; `digest`: `sha256:` and 64 hex digits."""

    path: Path
    digest: str
    version: str


def folder_of(addon: Addon, include: Include) -> Path:
    """The folder of a chart of the checkout.

    :raises HelmFailed: it is none
    """
    path = (include.repository / addon.chart).resolve()
    if not (path / "Chart.yaml").is_file():
        raise HelmFailed(
            f"the chart {addon.chart} of add-on {addon.name} is not a folder with a Chart.yaml",
            hint="Correct addons in the environment's file",
            reason="chart-missing",
        )
    return path


def fetch(process: HelmProcess, addon: Addon, include: Include, work: Path, timeout_s: float) -> Chart:
    """The add-on's chart, and its digest: of an OCI chart that of its manifest, of a classic one that of its .tgz, of
    a folder that of its files with their names.

    :param work: a folder to put a fetched chart in
    :raises HelmFailed: it does not exist, or is another than the environment's `digest` or, of a folder, `version` says
    :raises HelmUnavailable: registry or repository do not answer
    """
    chart = _local(addon, include) if addon.is_local else _pulled(process, addon, work, timeout_s)
    if addon.digest and addon.digest != chart.digest:
        raise HelmFailed(
            f"the chart of add-on {addon.name}, version {chart.version}, has the digest {chart.digest}, "
            f"but the environment pins {addon.digest}",
            hint="Find out who changed it; only then correct digest in the environment's file",
            reason="chart-digest-differs",
        )
    return chart


def _local(addon: Addon, include: Include) -> Chart:
    path = folder_of(addon, include)
    version = str(_yaml((path / "Chart.yaml").read_bytes()).get("version", ""))
    if addon.version not in (None, version):
        raise HelmFailed(
            f"the add-on {addon.name} asks for version {addon.version}, but the chart in {addon.chart} is {version}",
            hint="Correct version in the environment's file, or put that version of the chart into the folder",
            reason="chart-version-differs",
        )
    return Chart(path, f"sha256:{_digest_of(path)}", version)


def _pulled(process: HelmProcess, addon: Addon, work: Path, timeout_s: float) -> Chart:
    source = [addon.chart, *(["--repo", addon.repository] if addon.repository else [])]
    arguments = ["pull", *source, "--version", str(addon.version), "--destination", str(work)]
    try:
        done = process.run(arguments, about=addon.name, timeout_s=timeout_s)
    except HelmEnded as ended:
        raise _not_fetched(addon, ended) from ended
    found = sorted(work.glob("*.tgz"))
    if len(found) != 1:
        raise HelmFailed(f"helm pull of {addon.name} left {len(found)} charts instead of one", reason="chart-missing")
    if addon.is_oci:
        match = _OCI_DIGEST.search(done.stdout) or _OCI_DIGEST.search(done.stderr)
        if match is None:
            raise HelmFailed(f"helm pull of {addon.name} told no digest", reason="chart-missing")
        digest = match.group(1)
    else:
        digest = f"sha256:{hashlib.sha256(found[0].read_bytes()).hexdigest()}"
    return Chart(found[0], digest, str(addon.version))


def _not_fetched(addon: Addon, ended: HelmEnded) -> HelmFailed | HelmUnavailable:
    where = addon.chart if addon.is_oci else f"{addon.chart} in {addon.repository}"
    message = f"the chart of add-on {addon.name} ({where}, version {addon.version}) cannot be fetched: {ended.text}"
    if ended.is_transient:
        return HelmUnavailable(message)
    return HelmFailed(message, hint="Correct chart, repository or version in the environment's file",
                      reason="chart-missing")  # fmt: skip


def _digest_of(root: Path) -> str:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return framed(part for path in files for part in (path.relative_to(root).as_posix().encode(), path.read_bytes()))


def framed(parts: Iterable[bytes]) -> str:
    """SHA-256 (hex) of parts whose borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def defaults(chart: Path) -> dict[str, Any]:
    """All values that a chart knows, those of its subcharts under their names.

    :param chart: a folder or a .tgz
    """
    return _defaults(_files(chart))


def _defaults(files: Mapping[PurePosixPath, bytes]) -> dict[str, Any]:
    own = _yaml(files.get(PurePosixPath("values.yaml"), b""))
    aliases: dict[str, list[str]] = {}
    conditions: list[str] = []
    for dependency in _yaml(files.get(PurePosixPath("Chart.yaml"), b"")).get("dependencies") or ():
        name = str(dependency["name"])
        aliases.setdefault(name, []).append(str(dependency.get("alias") or name))
        conditions += [path.strip() for path in str(dependency.get("condition") or "").split(",") if path.strip()]
    result: dict[str, Any] = {}
    for name, below in _subcharts(files).items():
        for alias in aliases.get(name, [name]):
            result[alias] = _defaults(below)
    for path in conditions:
        result = chartvalues.merged(result, chartvalues.nested({path: True}))
    # What a chart sets of its subchart's values stands beside what the subchart knows.
    return {**result, **{key: _known(result.get(key), value) for key, value in own.items()}}


def _known(below: Any, own: Any) -> Any:
    """Two levels of defaults as one list of keys: nothing that either knows is lost."""
    if not isinstance(below, Mapping):
        return own
    if not isinstance(own, Mapping):
        return below
    return {**below, **{key: _known(below.get(key), value) if key in below else value for key, value in own.items()}}


def _subcharts(files: Mapping[PurePosixPath, bytes]) -> dict[str, dict[PurePosixPath, bytes]]:
    found: dict[str, dict[PurePosixPath, bytes]] = {}
    for path, content in files.items():
        if path.parts[0] != "charts" or len(path.parts) < 2:
            continue
        if len(path.parts) == 2 and path.suffix == ".tgz":
            below = _unpacked(content)
            name = str(_yaml(below.get(PurePosixPath("Chart.yaml"), b"")).get("name") or path.stem)
            found[name] = below
        elif len(path.parts) > 2:
            found.setdefault(path.parts[1], {})[PurePosixPath(*path.parts[2:])] = content
    return found


def _files(chart: Path) -> dict[PurePosixPath, bytes]:
    if chart.is_file():
        return _unpacked(chart.read_bytes())
    return {
        PurePosixPath(path.relative_to(chart).as_posix()): path.read_bytes()
        for path in sorted(chart.rglob("*"))
        if path.is_file()
    }


def _unpacked(content: bytes) -> dict[PurePosixPath, bytes]:
    import io

    files: dict[PurePosixPath, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts[1:]  # the chart's own folder
            handle = archive.extractfile(member) if member.isfile() and parts else None
            if handle is not None:
                files[PurePosixPath(*parts)] = handle.read()
    return files


def _yaml(content: bytes) -> dict[str, Any]:
    loaded = yaml.safe_load(content)
    return loaded if isinstance(loaded, dict) else {}
