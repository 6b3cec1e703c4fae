"""Add-ons of the environment as Helm releases: install or upgrade, roll back, uninstall, tell their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nim_rollouts.core.errors import PlatformNotReady
from nim_rollouts.operators.base import Facts, Stage, StageOperator

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object
    from nim_rollouts.clients.helm import Helm
    from nim_rollouts.core.addons import Addon

OUTPUTS_STAGE = "terraform_outputs"


class HelmOperator(StageOperator):
    """Base: one add-on of the environment.

    :param addon: its name in the environment's file
    """

    template_fields: Sequence[str] = (*StageOperator.template_fields, "addon")
    claim_scopes: ClassVar[tuple[str, ...]] = ("environment",)

    def __init__(self, *, addon: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.addon = addon

    @property
    def stage_name(self) -> str:
        """One stage an add-on."""
        return f"{self.task_id}-{self.addon}"

    def find(self, stage: Stage) -> Addon:
        """The add-on of that name.

        :raises PlatformNotReady: there is none any more
        """
        for addon in stage.session.environment.addons:
            if addon.name == self.addon:
                return addon
        raise PlatformNotReady(
            f"the environment {stage.session.environment.name} has no add-on {self.addon} any more",
            hint="Trigger a new run: the environment's file has changed since this one began",
        )

    def helm(self, stage: Stage) -> Helm:
        """Helm on the environment's cluster."""
        from nim_rollouts.clients.helm import Helm

        return Helm(stage.session.cluster, stage.session.include)


class HelmReleaseOperator(HelmOperator):
    """Installs or upgrades it; untouched when chart and values are what is installed. The Secrets that its chart
    expects are filled first. What fails half-way is taken back, and the error says to what."""

    def run(self, stage: Stage) -> Facts:
        """Install or upgrade."""
        addon = self.find(stage)
        outputs = stage.session.facts(OUTPUTS_STAGE)["outputs"] if addon.outputs else {}
        helm = self.helm(stage)
        helm.own(addon)  # else the Secrets of somebody else's release would be ours already when it is refused
        secrets = self._secrets(stage, addon, outputs)
        result = helm.upgrade_install(addon, outputs=outputs)
        stage.log.info("release %s: revision %s, %s%s, chart %s", addon.name, result.revision, result.status,
                       "" if result.changed else ", unchanged", result.chart_digest)  # fmt: skip
        return {
            "addon": addon.name,
            "namespace": addon.namespace,
            "changed": result.changed,
            "revision": result.revision,
            "status": result.status,
            "chart_digest": result.chart_digest,
            "chart_version": result.chart_version,
            **({"secrets": secrets} if secrets else {}),
        }

    @staticmethod
    def _secrets(stage: Stage, addon: Addon, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Applied, before the pods that need them. What the ledger gets are their names."""
        from nim_rollouts.hooks.addon_secrets import secret_objects
        from nim_rollouts.operators.platform import apply_and_say

        objects = secret_objects(stage.session.environment, addon, outputs)
        if objects and stage.session.cluster.get("v1", "Namespace", None, addon.namespace) is None:
            # Bare, as Helm would make it: our labels would let a teardown take it for a deployment's.
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": addon.namespace}}
            stage.session.cluster.apply(namespace)
        return [apply_and_say(stage, one) for one in objects]


class HelmRollbackOperator(HelmOperator):
    """Goes back to an earlier revision. The next `HelmReleaseOperator` puts the environment's file into force again.

    :param revision: its number (templated); empty: the newest good one that holds something else, or what stood before
        the newest, if that has failed
    """

    template_fields: Sequence[str] = (*HelmOperator.template_fields, "revision")

    def __init__(self, *, revision: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.revision = revision

    def run(self, stage: Stage) -> Facts:
        """Roll back."""
        addon = self.find(stage)
        now = self.helm(stage).rollback(addon, to=int(self.revision) if str(self.revision).strip() else None)
        stage.log.info("release %s: gone back, as revision %s", addon.name, now.revision)
        return {"addon": addon.name, "revision": now.revision, "status": now.status, "chart_digest": now.chart_digest}


class HelmUninstallOperator(HelmOperator):
    """Removes it: refused while custom resources of its CRDs are left, then the release, then the CRDs."""

    def run(self, stage: Stage) -> Facts:
        """Uninstall; nothing to do is no error."""
        addon = self.find(stage)
        return {"addon": addon.name, **remove(stage, stage.session.cluster, self.helm(stage), addon)}


def remove(stage: Stage, cluster: Cluster, helm: Helm, addon: Addon) -> Facts:
    """End an add-on within the environment's `delete_s`, while the claims hold. Facts: `uninstalled`, `crds`."""
    from nim_rollouts.clients import helm_crds
    from nim_rollouts.operators.model import subject_of, wait_gone

    budget = stage.session.environment.budgets.delete_s

    def gone(objects: list[Object]) -> None:
        wait_gone(stage, [subject_of(one) for one in objects], budget)

    removed = helm_crds.remove(cluster, helm, addon, wait_s=budget, gone=gone, check=stage.check_claims)
    stage.log.info("release %s: %s", addon.name, "uninstalled" if removed["uninstalled"] else "none of ours is there")
    return removed


class HelmStatusOperator(HelmOperator):
    """Tells what is installed, without changing anything."""

    claim_scopes: ClassVar[tuple[str, ...]] = ()

    def run(self, stage: Stage) -> Facts:
        """Reads only."""
        addon = self.find(stage)
        known = self.helm(stage).history(addon)
        newest = known[-1] if known else None
        stage.log.info("release %s: %s", addon.name, f"revision {newest.revision}, {newest.status}" if newest else
                       "not installed")  # fmt: skip
        return {
            "addon": addon.name,
            "installed": newest is not None,
            "status": newest.status if newest else None,
            "revisions": [
                {"revision": one.revision, "status": one.status, "chart_digest": one.chart_digest} for one in known
            ],
        }
