"""What Helm remembers of a release: its revisions, each in a Secret whose labels answer most of what is asked."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nim_rollouts.clients import helm_charts
from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.core.addons import Addon
from nim_rollouts.core.manifests import ENVIRONMENT_LABEL

CHART_LABEL, VALUES_LABEL, SOURCE_LABEL = "nim-rollouts/chart", "nim-rollouts/values", "nim-rollouts/source"
_LABEL_DIGITS = 40  # a label's value ends at 63 characters, a whole digest at 64
# Helm's words on a revision that did not get to its end.
_UNDONE = re.compile(r'(Upgrade|Rollback|Release) ".*" failed: |Preparing upgrade$|Initial install underway$')
# What one of our revisions is described with: our own words, or those of a way back to one.
_AS_MADE = re.compile(r"chart sha256:|Rollback to \d|$")


@dataclass(frozen=True)
class HelmStatus:
    """One revision of a release. Digests (of the chart, 40 hex digits): None when it was not ours."""

    revision: int
    status: str
    chart_digest: str | None
    values_digest: str | None
    source: str | None = None
    environment: str | None = None
    packed: str = field(default="", repr=False, compare=False)

    @property
    def is_good(self) -> bool:
        """It stood once. `superseded` alone does not say so: Helm calls a failed upgrade that, too, when the way back
        from it fails, or when the next one succeeds with nothing deployed before it."""
        return self.status == "deployed" or (self.status == "superseded" and not _UNDONE.match(self.description))

    @property
    def description(self) -> str:
        """Helm's own words on how it went; empty where they cannot be read."""
        try:
            release = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(self.packed))))
            return str(release["info"]["description"])
        except (ValueError, OSError, EOFError, zlib.error, KeyError, TypeError):
            return ""

    @property
    def content(self) -> tuple[str | None, str | None]:
        """What tells it from another revision."""
        return self.chart_digest, self.values_digest


def history(cluster: Cluster, namespace: str, name: str) -> list[HelmStatus]:
    """The revisions of a release that are kept, oldest first."""
    secrets = cluster.list("v1", "Secret", namespace, label_selector=f"owner=helm,name={name}")
    return sorted((_revision(secret) for secret in secrets), key=lambda one: one.revision)


def _revision(secret: Mapping[str, Any]) -> HelmStatus:
    labels = secret["metadata"]["labels"]
    return HelmStatus(
        int(labels["version"]),
        str(labels["status"]),
        labels.get(CHART_LABEL),
        labels.get(VALUES_LABEL),
        labels.get(SOURCE_LABEL),
        labels.get(ENVIRONMENT_LABEL),
        (secret.get("data") or {}).get("release", ""),
    )


def installed_by(cluster: Cluster, environment: str) -> list[tuple[str, str]]:
    """Namespace and name of each release that stands as this environment has made it. One that another environment has
    taken over since, or that was given back, is not among them."""
    secrets = cluster.list("v1", "Secret", label_selector=f"owner=helm,{ENVIRONMENT_LABEL}={environment}")
    places = sorted({(one["metadata"]["namespace"], one["metadata"]["labels"]["name"]) for one in secrets})

    def stands(place: tuple[str, str]) -> bool:
        newest = history(cluster, *place)[-1:]
        return any(one.environment == environment and one.status != "uninstalled" for one in newest)

    return [place for place in places if stands(place)]


def are_ours(known: Sequence[HelmStatus]) -> bool:
    """Whether the release is ours: every version of ours has marked the chart, and Helm hands its marks on, also to an
    upgrade by hand. One that we failed to take over, and gave back, is not."""
    return any(one.chart_digest for one in known if one is known[-1] or one.is_good)


def good(known: Sequence[HelmStatus]) -> HelmStatus | None:
    """What stands, for all that Helm knows: the newest that is deployed; where none is, the newest good one."""
    found = [one for one in reversed(known) if one.is_good]
    return next((one for one in found if one.status == "deployed"), found[0] if found else None)


def earlier(known: Sequence[HelmStatus], to: int | None) -> HelmStatus | None:
    """The revision to go back to: `to`; None: the newest good one that holds something else than the present one, and
    where the present one has failed, what stood before it."""
    if to is not None:
        return next((one for one in known if one.revision == to and one.is_good), None)
    if known and known[-1].status != "deployed":
        return good(known)
    return next((one for one in reversed(known) if one.is_good and one.content != known[-1].content), None)


def holds(newest: HelmStatus | None, chart_digest: str, values_digest: str) -> bool:
    """Whether the newest revision is deployed with this chart and these values. An upgrade by hand inherits our labels,
    whatever it has changed: its description alone tells."""
    if newest is None or newest.status != "deployed" or newest.content != (short(chart_digest), values_digest):
        return False
    return bool(_AS_MADE.match(newest.description))


def labels(addon: Addon, chart_digest: str, values_digest: str, environment: str) -> dict[str, str]:
    """What a release of ours is marked with. Two environments may share a cluster: whose it is stands there too."""
    marks = {CHART_LABEL: short(chart_digest), VALUES_LABEL: values_digest, SOURCE_LABEL: source(addon)}
    return marks | ({ENVIRONMENT_LABEL: environment} if environment else {})


def source(addon: Addon) -> str:
    """Where the chart comes from, and in which version, as a label can hold it."""
    return short(helm_charts.framed([f"{addon.repository or ''} {addon.chart} {addon.version}".encode()]))


def short(digest: str) -> str:
    """A digest as a label can hold it."""
    return digest.removeprefix("sha256:")[:_LABEL_DIGITS]
