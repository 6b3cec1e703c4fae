"""What Helm remembers of a release: its revisions, each in a Secret whose labels answer most of what is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nim_rollouts.clients import helm_charts
from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.core.addons import Addon

CHART_LABEL, VALUES_LABEL, SOURCE_LABEL = "nim-rollouts/chart", "nim-rollouts/values", "nim-rollouts/source"
_LABEL_DIGITS = 40  # a label's value ends at 63 characters, a whole digest at 64
_GOOD = ("deployed", "superseded")


@dataclass(frozen=True)
class HelmStatus:
    """One revision of a release. Digests (of the chart, 40 hex digits): None when it was not ours."""

    revision: int
    status: str
    chart_digest: str | None
    values_digest: str | None
    source: str | None = None

    @property
    def content(self) -> tuple[str | None, str | None]:
        """What tells it from another revision."""
        return self.chart_digest, self.values_digest


def history(cluster: Cluster, addon: Addon) -> list[HelmStatus]:
    """The revisions that are kept, oldest first."""
    secrets = cluster.list("v1", "Secret", addon.namespace, label_selector=f"owner=helm,name={addon.name}")
    revisions = [_revision(secret["metadata"]["labels"]) for secret in secrets]
    return sorted(revisions, key=lambda one: one.revision)


def _revision(labels: Mapping[str, str]) -> HelmStatus:
    return HelmStatus(
        int(labels["version"]),
        str(labels["status"]),
        labels.get(CHART_LABEL),
        labels.get(VALUES_LABEL),
        labels.get(SOURCE_LABEL),
    )


def good(known: Sequence[HelmStatus]) -> HelmStatus | None:
    """The newest good one."""
    return next((one for one in reversed(known) if one.status in _GOOD), None)


def earlier(known: Sequence[HelmStatus], to: int | None) -> HelmStatus | None:
    """The revision to go back to: `to`; None: the newest good one that holds something else than the present one."""
    good = [one for one in known if one.status in _GOOD]
    if to is not None:
        return next((one for one in good if one.revision == to), None)
    return next((one for one in reversed(good) if one.content != known[-1].content), None)


def holds(newest: HelmStatus | None, chart_digest: str, values_digest: str) -> bool:
    """Whether the newest revision is deployed with this chart and these values."""
    if newest is None or newest.status != "deployed":
        return False
    return newest.content == (short(chart_digest), values_digest)


def labels(addon: Addon, chart_digest: str, values_digest: str) -> dict[str, str]:
    """What a release of ours is marked with."""
    return {CHART_LABEL: short(chart_digest), VALUES_LABEL: values_digest, SOURCE_LABEL: source(addon)}


def source(addon: Addon) -> str:
    """Where the chart comes from, and in which version, as a label can hold it."""
    return short(helm_charts.framed([f"{addon.repository or ''} {addon.chart} {addon.version}".encode()]))


def short(digest: str) -> str:
    """A digest as a label can hold it."""
    return digest.removeprefix("sha256:")[:_LABEL_DIGITS]
