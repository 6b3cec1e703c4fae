"""Down in order, the add-ons' part: Helm releases in reverse order, each followed by its definitions.

An operator leaves only when none of its custom resources is left that needs it; finalizers are never stripped here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.teardown import DeletingOperator
from nim_rollouts.operators.teardown_nodes import refuse_launched

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object
    from nim_rollouts.core.environment import Addon

#: Who brings this definition launches nodes, and goes last of all add-ons.
NODEPOOLS = "nodepools.karpenter.sh"


class UninstallAddonsOperator(DeletingOperator):
    """Helm releases in reverse order, then their CRDs; refused while a custom resource of theirs is left."""

    #: Whether this is the step for what launches nodes, or for all the others.
    launches_nodes: ClassVar[bool] = False

    def run(self, stage: Stage) -> Facts:
        """The operator goes last of all that its custom resources need, and only once none of them is left."""
        from nim_rollouts.clients import helm_crds
        from nim_rollouts.clients.helm import Helm

        cluster = self.cluster(stage)
        if cluster is None:
            return {"uninstalled": [], "crds": []}
        concerned = [one for one in stage.session.environment.addons if _launches(one) == self.launches_nodes]
        self.before(cluster)
        helm = Helm(cluster, stage.session.include)
        uninstalled, gone = [], []
        for addon in reversed(concerned):
            definitions = helm_crds.definitions(cluster, addon)
            helm_crds.refuse_in_use(cluster, addon, definitions)
            stage.check_claims()
            if was_there := helm.uninstall(addon, wait_s=stage.session.environment.budgets.delete_s):
                uninstalled.append(addon.name)
                stage.log.info("release %s uninstalled", addon.name)
            helm_crds.remove_secrets(cluster, addon)
            definitions = helm_crds.ours_to_remove(definitions, addon, uninstalled=was_there)
            gone += [one["metadata"]["name"] for one in definitions]
            self._delete_definitions(stage, cluster, addon, definitions)
        return {"uninstalled": uninstalled, "crds": gone}

    def before(self, cluster: Cluster) -> None:
        """What must hold before anything is uninstalled."""

    @staticmethod
    def _delete_definitions(stage: Stage, cluster: Cluster, addon: Addon, definitions: list[Object]) -> None:
        from nim_rollouts.clients import helm_crds
        from nim_rollouts.operators.model import subject_of, wait_gone

        budget = stage.session.environment.budgets.delete_s
        # What went with the release; a definition takes all that is left of its kind with it, whosever it is.
        going = [one for one in helm_crds.resources(cluster, definitions) if helm_crds.goes_with(one, addon)]
        wait_gone(stage, [subject_of(one) for one in going], budget)
        helm_crds.refuse_in_use(cluster, addon, definitions)
        for one in definitions:
            cluster.delete(one, uid=one["metadata"]["uid"])
        wait_gone(stage, [subject_of(one) for one in definitions], budget)


class UninstallKarpenterOperator(UninstallAddonsOperator):
    """What launches nodes: the last add-on to go, when nothing that it has launched is left."""

    launches_nodes = True

    def before(self, cluster: Cluster) -> None:
        """No NodeClaim and no launched node."""
        refuse_launched(cluster)


def _launches(addon: Addon) -> bool:
    return NODEPOOLS in addon.requires.crds
