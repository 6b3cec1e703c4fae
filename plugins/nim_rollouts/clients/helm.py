"""Add-ons by Helm, so that a second run makes no new revision, and one that fails leaves what was there before.

What was installed is remembered in labels of the release: digests of the chart and of the values, and where the chart
came from. Helm keeps a release in Secrets; reading their labels answers whether there is anything to do.

Decisions:

* CRDs of a chart's crds/ folder: Helm installs them once and never upgrades them. Here they are applied server-side
  before each install or upgrade (`helm show crds`), and Helm is told to skip them.
* No waiting: installing is a short step that writes; a later step waits, deferred, and says which layer is stuck.
  With `wait_s` Helm waits for readiness too.
* Whatever fails half-way is taken back here, not by Helm's own flag for it, which would wait, and would not tell to
  which revision it went: an upgrade to the last good revision, a first install away. CRDs stay as the newer chart has
  them: an older one would lose fields of objects.
* A release left `pending` by a Helm that was killed blocks every later one. If its labels say that it was ours, its
  newest revision's Secret is removed, and the release goes on from the one before. The environment's claim excludes
  another run's Helm, and an earlier try's has ended with its task; somebody else's pending release is left alone.
* A release that somebody else has installed is left alone: taken over in silence, it would go with the next teardown as
  if it were ours. `adopt` of the add-on takes it over, and from then on it is ours.
* Values that come from terraform's outputs are data in a file of mode 0600 that lives as long as the call.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from nim_rollouts.clients import helm_charts, helm_revisions
from nim_rollouts.clients.addon_files import values_of
from nim_rollouts.clients.cluster import CRD_MANAGERS, Cluster
from nim_rollouts.clients.helm_charts import Chart
from nim_rollouts.clients.helm_process import BINARY_VARIABLE as BINARY_VARIABLE
from nim_rollouts.clients.helm_process import HelmEnded, HelmProcess, write_private
from nim_rollouts.clients.helm_process import find_binary as find_binary
from nim_rollouts.clients.helm_revisions import HelmStatus as HelmStatus
from nim_rollouts.clients.include import Include
from nim_rollouts.clients.resources import Ref
from nim_rollouts.clients.scratch import scratch
from nim_rollouts.core import chartvalues
from nim_rollouts.core.addons import ADDON_LABEL, Addon, overlay
from nim_rollouts.core.errors import HelmFailed, HelmUnavailable, NeedsHumanError, NimRolloutsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HelmResult:
    """`changed`: a new revision was made. `chart_digest`: whole, `sha256:` first."""

    changed: bool
    revision: int
    status: str
    chart_digest: str
    chart_version: str | None = None


class Helm:
    """Helm on one cluster."""

    def __init__(
        self, cluster: Cluster, include: Include, *, binary: str | None = None, timeout_s: float = 300
    ) -> None:
        self.cluster, self.include, self.timeout_s = cluster, include, timeout_s
        self.process = HelmProcess(binary or find_binary(), cluster.access)

    def status(self, addon: Addon) -> HelmStatus | None:
        """The newest revision, or None when the release is not installed."""
        known = self.history(addon)
        return known[-1] if known else None

    def history(self, addon: Addon) -> list[HelmStatus]:
        """The revisions that are kept, oldest first."""
        return helm_revisions.history(self.cluster, addon.namespace, addon.name)

    def own(self, addon: Addon) -> HelmStatus | None:
        """The newest revision of a release that is ours, or that the add-on adopts; None when there is none.

        :raises NeedsHumanError: somebody else has installed it
        """
        known = self.history(addon)
        if known and not helm_revisions.are_ours(known):
            found = f"release {addon.name} in {addon.namespace} was installed by somebody else"
            if not addon.adopt:
                raise NeedsHumanError(
                    f"{found}, and is left alone",
                    hint="Uninstall it, give the add-on another name, or say adopt: true on it in the environment's "
                    "file: then it is upgraded, and goes with a teardown",
                    reason="release-foreign",
                    layer="helm",
                )
            log.warning("%s: it is taken over, since the add-on says so (adopt)", found)
        return known[-1] if known else None

    def upgrade_install(
        self, addon: Addon, *, outputs: Mapping[str, Any] | None = None, wait_s: float | None = None
    ) -> HelmResult:
        """Install or upgrade, unless the release is deployed with this chart and these values already, and all that it
        must bring is there. What fails half-way is taken back.

        :param outputs: terraform's, for the add-on's `values_from`
        :param wait_s: how long to wait for the objects to be ready; None: the add-on's own `wait_s`, or not at all
        :raises NeedsHumanError: see `own`
        :raises HelmFailed: the chart or the values are refused, or what was applied failed; it says what became of it
        :raises HelmUnavailable: cluster or repository do not answer, or somebody else's operation is in progress
        """
        values, extra = self._values(addon), overlay(addon, outputs or {})
        values_digest = _values_digest(values, extra)
        before = self.own(addon)
        missing = self._missing(addon) if before else []
        pinned = None if addon.is_local else addon.digest  # a folder is at hand: it is looked at
        if before and pinned and not missing and helm_revisions.holds(before, pinned, values_digest):
            return HelmResult(False, before.revision, before.status, pinned, addon.version)
        with scratch("chart") as work:
            chart = helm_charts.fetch(self.process, addon, self.include, work, self.timeout_s)
            if before and not missing and helm_revisions.holds(before, chart.digest, values_digest):
                return HelmResult(False, before.revision, before.status, chart.digest, chart.version)
            _refuse_changed(addon, before, chart)
            for problem in chartvalues.unknown(chartvalues.merged(values, extra), helm_charts.defaults(chart.path)):
                log.warning("add-on %s: %s", addon.name, problem)
            before = self._make_free(addon, before)
            for definition in self._crds(addon, chart):
                self.cluster.apply(_labelled(definition, addon), force_managers=CRD_MANAGERS)
            labels = helm_revisions.labels(addon, chart.digest, values_digest, self.cluster.access.name)
            arguments = ["upgrade", "--install", addon.name, str(chart.path), "--create-namespace", "--skip-crds"]
            arguments += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
            arguments += ["--description", f"chart {chart.digest}", "--history-max", "5", "--server-side", "true"]
            arguments += self._value_files(addon, extra, work)
            try:
                self._on_cluster(addon, [*arguments, *self._waiting(addon, wait_s)], self._patience(addon, wait_s))
            except HelmEnded as ended:
                self._take_back(addon, before, ended)
        after = self.status(addon)
        if after is None:
            raise HelmFailed(f"release {addon.name} is not there after helm upgrade --install")
        return HelmResult(True, after.revision, after.status, chart.digest, chart.version)

    def rollback(self, addon: Addon, *, to: int | None = None, wait_s: float | None = None) -> HelmStatus:
        """Make a new revision of what an earlier one was.

        :param to: its number; None: see `helm_revisions.earlier`
        :returns: the new revision
        :raises NeedsHumanError: see `own`
        :raises HelmFailed: there is no such revision, or the objects are refused
        """
        self._make_free(addon, self.own(addon))
        known = self.history(addon)
        wanted = helm_revisions.earlier(known, to)
        if wanted is None:
            raise HelmFailed(
                f"release {addon.name} has no {'earlier good revision' if to is None else f'good revision {to}'} "
                f"to go back to; known: {', '.join(f'{one.revision} {one.status}' for one in known) or 'none'}",
                reason="no-earlier-revision",
            )
        return self._go_back(addon, wanted.revision, wait_s)

    def uninstall(self, addon: Addon, *, wait_s: float = 120) -> bool:
        """Remove the release and wait until its objects are gone; False when it was not installed, or when none of its
        revisions is ours: then somebody else's release has the name, and stays. CRDs stay."""
        known = self.history(addon)
        if not helm_revisions.are_ours(known):
            if known:
                log.warning("release %s in %s is somebody else's: it stays", addon.name, addon.namespace)
            return False
        if addon.adopt:
            log.warning("release %s in %s is uninstalled as ours: whatever it was before it was adopted goes with it",
                        addon.name, addon.namespace)  # fmt: skip
        arguments = ["uninstall", addon.name, "--ignore-not-found", "--wait", "--timeout", f"{int(wait_s)}s"]
        try:
            self._on_cluster(addon, arguments, wait_s + self.timeout_s)
        except HelmEnded as ended:
            raise ended.as_error() from ended
        return True

    def crds(self, addon: Addon) -> list[dict[str, Any]]:
        """The CustomResourceDefinitions of the chart's crds/ folder."""
        with scratch("chart") as work:
            chart = helm_charts.fetch(self.process, addon, self.include, work, self.timeout_s)
            return self._crds(addon, chart)

    def _crds(self, addon: Addon, chart: Chart) -> list[dict[str, Any]]:
        try:
            done = self.process.run(["show", "crds", str(chart.path)], about=addon.name, timeout_s=self.timeout_s)
        except HelmEnded as ended:
            raise ended.as_error() from ended
        documents = [one for one in yaml.safe_load_all(done.stdout) if isinstance(one, dict)]
        return [one for one in documents if one.get("kind") == "CustomResourceDefinition"]

    def _missing(self, addon: Addon) -> list[Ref]:
        """What the release must bring, and somebody has taken away: Helm's own Secret knows nothing of that, but its
        upgrade makes anew what it does not find, also from the chart that is installed."""
        wanted = [Ref("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) for name in addon.requires.crds]
        wanted += [Ref("apps/v1", "Deployment", name, addon.namespace) for name in addon.requires.deployments]
        missing = [one for one in wanted if self._is_gone(one)]
        if missing:
            log.warning("add-on %s is installed, but lacks %s", addon.name, ", ".join(map(str, missing)))
        return missing

    def _is_gone(self, ref: Ref) -> bool:
        live = self.cluster.get(ref.api_version, ref.kind, ref.namespace, ref.name)
        return live is None or "deletionTimestamp" in live["metadata"]

    # What fails

    def _take_back(self, addon: Addon, before: HelmStatus | None, ended: HelmEnded) -> NoReturn:
        """Undo what a failed install or upgrade left, and say so.

        :raises HelmFailed, HelmUnavailable: always
        """
        known = self._history_or_none(addon)
        failed = known[-1] if known else None
        if not known or failed is None or (before is not None and failed.revision <= before.revision):
            raise ended.as_error() from ended  # nothing was begun, or nobody can tell
        good = helm_revisions.good(known[:-1])
        told = f"add-on {addon.name}: revision {failed.revision} failed ({ended.why}): {ended.text}"
        try:
            if good is not None:
                now = self._go_back(addon, good.revision, None)
                became = f"gone back to what revision {good.revision} was, as revision {now.revision}"
                reason = "upgrade-rolled-back"
            elif all(one.chart_digest for one in known):
                self.uninstall(addon)
                became, reason = "it was the first, and was taken away", "install-taken-away"
            else:
                became, reason = "it is left as it is: what was there before is not ours", "helm-failed"
        except NimRolloutsError as second:
            raise HelmFailed(
                f"{told}; and it could not be taken back: {second.message}",
                hint="Remove the cause and clear this task: it goes on from what is there",
                reason="roll-back-failed",
            ) from ended
        if ended.is_transient:
            raise HelmUnavailable(f"{told}; {became}") from ended
        raise HelmFailed(
            f"{told}; {became}",
            hint="Correct version or values in the environment's file, and clear this task; "
            "CRDs stay as the newer chart has them",
            reason=reason,
        ) from ended

    def _go_back(self, addon: Addon, revision: int, wait_s: float | None) -> HelmStatus:
        arguments = ["rollback", addon.name, str(revision), "--history-max", "5", *self._waiting(addon, wait_s)]
        try:
            self._on_cluster(addon, arguments, self._patience(addon, wait_s))
        except HelmEnded as ended:
            raise ended.as_error() from ended
        now = self.status(addon)
        if now is None:
            raise HelmFailed(f"release {addon.name} is not there after helm rollback")
        return now

    def _history_or_none(self, addon: Addon) -> list[HelmStatus] | None:
        try:
            return self.history(addon)
        except NimRolloutsError:
            return None

    def _make_free(self, addon: Addon, newest: HelmStatus | None) -> HelmStatus | None:
        """The newest revision, once no Helm that was killed stands in the way of the next one."""
        if newest is None or not newest.status.startswith(("pending", "uninstall")):
            return newest
        if newest.chart_digest is None:
            raise HelmUnavailable(
                f"release {addon.name} is {newest.status} by somebody else's Helm",
                hint="Let it end; if it was killed, roll it back by hand",
                retry_after_s=60,
            )
        if newest.status.startswith("uninstall"):
            self.uninstall(addon)
        else:
            name = f"sh.helm.release.v1.{addon.name}.v{newest.revision}"
            self.cluster.delete(Ref("v1", "Secret", name, addon.namespace))
        return self.status(addon)

    # What Helm is given

    def _values(self, addon: Addon) -> dict[str, Any]:
        if addon.values and not self.include.path(addon.values).is_file():
            raise HelmFailed(
                f"include/{addon.values}, the values of add-on {addon.name}, is missing", reason="values-missing"
            )
        return values_of(addon, self.include)

    def _value_files(self, addon: Addon, extra: Mapping[str, Any], work: Path) -> list[str]:
        arguments = ["--values", str(self.include.path(addon.values))] if addon.values else []
        if extra:
            write_private(work / "outputs.json", json.dumps(extra))
            arguments += ["--values", str(work / "outputs.json")]
        return arguments

    def _waiting(self, addon: Addon, wait_s: float | None) -> list[str]:
        wait_s = wait_s if wait_s is not None else addon.wait_s
        return ["--timeout", f"{int(wait_s or self.timeout_s)}s", *(["--wait"] if wait_s is not None else [])]

    def _patience(self, addon: Addon, wait_s: float | None) -> float:
        """Seconds until a Helm that says nothing is given up: after its own patience with the cluster."""
        return (wait_s or addon.wait_s or self.timeout_s) + self.timeout_s

    def _on_cluster(self, addon: Addon, arguments: Sequence[str], timeout_s: float) -> None:
        self.process.run(arguments, about=addon.name, timeout_s=timeout_s, namespace=addon.namespace)


def _labelled(definition: Mapping[str, Any], addon: Addon) -> dict[str, Any]:
    metadata = definition["metadata"]
    labels = {**(metadata.get("labels") or {}), ADDON_LABEL: addon.label}
    return {**definition, "metadata": {**metadata, "labels": labels}}


def _refuse_changed(addon: Addon, newest: HelmStatus | None, chart: Chart) -> None:
    """A published version that holds something else than when it was installed is told, never installed in silence."""
    if newest is None or addon.is_local or addon.digest or newest.source != helm_revisions.source(addon):
        return
    if newest.chart_digest not in (None, helm_revisions.short(chart.digest)):
        raise HelmFailed(
            f"the chart of add-on {addon.name} has changed under the same version {addon.version}: installed is "
            f"sha256:{newest.chart_digest}..., the repository has {chart.digest}",
            hint="Find out who changed it; to take the new one, pin it with digest in the environment's file",
            reason="chart-changed",
        )


def _values_digest(*values: Mapping[str, Any]) -> str:
    """Of what the values say; neither comments nor order count."""
    texts = [json.dumps(one, sort_keys=True, default=str).encode() for one in values]
    return helm_revisions.short(helm_charts.framed(texts))
