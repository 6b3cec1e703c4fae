"""Down in order, the add-ons' part: Helm releases in reverse order, each followed by its definitions.

An operator leaves only when none of its custom resources is left that needs it; finalizers are never stripped here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.helm import remove
from nim_rollouts.operators.teardown import DeletingOperator
from nim_rollouts.operators.teardown_nodes import refuse_launched
from nim_rollouts.operators.teardown_others import refusal_of_forgotten

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster
    from nim_rollouts.core.environment import Addon

#: Who brings this definition launches nodes, and goes last of all add-ons.
NODEPOOLS = "nodepools.karpenter.sh"


class UninstallAddonsOperator(DeletingOperator):
    """Helm releases in reverse order, then their CRDs; refused while a custom resource of theirs is left."""

    #: Whether this is the step for what launches nodes, or for all the others.
    launches_nodes: ClassVar[bool] = False

    def run(self, stage: Stage) -> Facts:
        """The operator goes last of all that its custom resources need, and only once none of them is left."""
        from nim_rollouts.clients.helm import Helm

        cluster = self.cluster(stage)
        if cluster is None:
            return {"uninstalled": [], "crds": []}
        concerned = [one for one in stage.session.environment.addons if _launches(one) == self.launches_nodes]
        self.before(cluster)
        if forgotten := refusal_of_forgotten(cluster, stage.session.environment):
            raise forgotten
        helm = Helm(cluster, stage.session.include)
        uninstalled, gone = [], []
        for addon in reversed(concerned):
            removed = remove(stage, cluster, helm, addon)
            uninstalled += [addon.name] if removed["uninstalled"] else []
            gone += removed["crds"]
        return {"uninstalled": uninstalled, "crds": gone}

    def before(self, cluster: Cluster) -> None:
        """What must hold before anything is uninstalled."""


class UninstallKarpenterOperator(UninstallAddonsOperator):
    """What launches nodes: the last add-on to go, when nothing that it has launched is left."""

    launches_nodes = True

    def before(self, cluster: Cluster) -> None:
        """No NodeClaim and no launched node."""
        refuse_launched(cluster)


def _launches(addon: Addon) -> bool:
    return NODEPOOLS in addon.requires.crds
