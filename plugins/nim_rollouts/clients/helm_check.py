"""Would this chart install with these values? Told without installing it.

Three questions: does the chart know every key of the values; does it render; does an API server accept each object.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from nim_rollouts.clients import helm_charts
from nim_rollouts.clients.cluster import CRD_MANAGERS, Cluster, Object
from nim_rollouts.clients.helm_process import HelmEnded, HelmProcess
from nim_rollouts.clients.rest import ApiRefusal, meaning
from nim_rollouts.core import chartvalues
from nim_rollouts.core.errors import NimRolloutsError, SpecError
from nim_rollouts.core.yamlsource import parse

CRD = "CustomResourceDefinition"
_TIMEOUT_S = 120
_SERVED_S = 10.0


@dataclass
class Findings:
    """`problems`: a sentence each; none: it would install. `objects`: what it renders to, `Kind/name`, CRDs first."""

    problems: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)


def check(
    process: HelmProcess,
    chart: Path,
    values: Path | None,
    *,
    release: str,
    cluster: Cluster | None = None,
    allowed: Collection[str] = (),
) -> Findings:
    """All three questions; without a cluster the third is left out.

    :param chart: a folder or a .tgz
    :param cluster: a namespace, and those CRDs that it lacks, are made for the time of the check
    :param allowed: dotted values that are right although the chart's defaults do not show them
    """
    findings = Findings()
    namespace = f"check-chart-{secrets.token_hex(4)}"  # its own: one that was just removed is in the way for a while
    try:
        given = parse(values.read_text(), values.name).data if values else None
    except SpecError as error:
        return Findings([error.message])
    findings.problems += chartvalues.unknown(given or {}, helm_charts.defaults(chart), allowed)
    try:
        crds, objects = _rendered(process, chart, values, release, namespace)
    except HelmEnded as ended:
        findings.problems.append(f"the chart does not render: {ended.text}")
        return findings
    findings.objects = [_name(one) for one in (*crds, *objects)]
    if cluster is not None:
        _accepted(cluster, crds, objects, namespace, findings)
    return findings


def _rendered(
    process: HelmProcess, chart: Path, values: Path | None, release: str, namespace: str
) -> tuple[list[Object], list[Object]]:
    arguments = ["template", release, str(chart), "--skip-tests", "--include-crds", "--namespace", namespace]
    arguments += ["--values", str(values)] if values else []
    text = process.run(arguments, about=chart.name, timeout_s=_TIMEOUT_S).stdout
    documents = [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]
    return (
        [one for one in documents if one.get("kind") == CRD],
        [one for one in documents if one.get("kind") != CRD],
    )


def _accepted(cluster: Cluster, crds: list[Object], objects: list[Object], namespace: str, findings: Findings) -> None:
    made: list[Object] = []
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    try:
        for one in (space, *crds):
            if cluster.get(one["apiVersion"], one["kind"], None, one["metadata"]["name"]) is None:
                made.append(cluster.apply(one).obj)
            elif one is not space:
                cluster.apply(one, dry_run=True, force_managers=CRD_MANAGERS)
        served = _Served(cluster, {one["spec"]["group"] for one in crds})
        for obj in objects:
            _ask(cluster, served, obj, namespace, findings)
    except NimRolloutsError as error:
        findings.problems.append(error.message)
    finally:
        for one in reversed(made):
            cluster.delete(one, uid=one["metadata"]["uid"])


class _Served:
    """What the API server serves, by API version and kind. Kinds whose CRD was just made may take a moment."""

    def __init__(self, cluster: Cluster, just_made: Collection[str]) -> None:
        self._cluster, self._just_made = cluster, just_made
        self._known: dict[str, dict[str, Mapping[str, Any]]] = {}

    def find(self, api_version: str, kind: str) -> Mapping[str, Any] | None:
        """The resource as discovery has it (`name`, `namespaced`), or None."""
        patience = _SERVED_S if api_version.rpartition("/")[0] in self._just_made else 0.0
        deadline = time.monotonic() + patience
        while (found := self._kinds(api_version).get(kind)) is None and time.monotonic() < deadline:
            self._known.pop(api_version, None)
            time.sleep(0.2)
        return found

    def _kinds(self, api_version: str) -> dict[str, Mapping[str, Any]]:
        if api_version not in self._known:
            try:
                answer = self._cluster.rest.json("GET", _root(api_version))
            except ApiRefusal as refusal:
                if refusal.status != 404:
                    raise meaning(refusal, f"discover {api_version}") from refusal
                answer = {}
            resources = [one for one in answer.get("resources") or () if "/" not in one["name"]]
            self._known[api_version] = {one["kind"]: one for one in resources}
        return self._known[api_version]


def _ask(cluster: Cluster, served: _Served, obj: Object, namespace: str, findings: Findings) -> None:
    """A dry run of one object under a name of its own: nothing that is installed is touched, or owned by others."""
    resource = served.find(obj["apiVersion"], obj["kind"])
    if resource is None:
        findings.problems.append(
            f"{_name(obj)}: the API server does not serve {obj['apiVersion']}: turn it off in the values, "
            "or install first what brings this kind"
        )
        return
    place = ""
    asked = {**obj, "metadata": {**obj["metadata"], "name": _other_name(obj)}}
    if resource["namespaced"]:
        place = f"/namespaces/{asked['metadata'].setdefault('namespace', namespace)}"
    query = {"dryRun": "All", "fieldManager": "nim-rollouts-check", "fieldValidation": "Strict", "force": "true"}
    path = f"{_root(obj['apiVersion'])}{place}/{resource['name']}/{quote(asked['metadata']['name'], safe='')}"
    try:
        cluster.rest.json("PATCH", path, query=query, body=asked, content_type="application/apply-patch+yaml")
    except ApiRefusal as refusal:
        findings.problems.append(f"{_name(obj)}: {meaning(refusal, 'the API server').message}")


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _other_name(obj: Object) -> str:
    name = str(obj["metadata"]["name"])
    return f"{name[:50].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _name(obj: Mapping[str, Any]) -> str:
    return f"{obj['kind']}/{obj['metadata']['name']}"
