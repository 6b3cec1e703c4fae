"""Down in order, the add-ons' part: Helm releases in reverse order, each followed by its definitions.

An operator leaves only when none of its custom resources is left that needs it; finalizers are never stripped here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nim_rollouts.core.errors import LeftoversFound
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.teardown import DeletingOperator
from nim_rollouts.operators.teardown_nodes import refuse_launched

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object
    from nim_rollouts.core.environment import Addon

#: Who brings this definition launches nodes, and goes last of all add-ons.
NODEPOOLS = "nodepools.karpenter.sh"
# Helm marks every object of a release with both.
_RELEASE, _RELEASE_NAMESPACE = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"


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
            self._refuse_in_use(cluster, addon, definitions)
            stage.check_claims()
            if helm.uninstall(addon, wait_s=stage.session.environment.budgets.delete_s):
                uninstalled.append(addon.name)
                stage.log.info("release %s uninstalled", addon.name)
            helm_crds.remove_secrets(cluster, addon)
            gone += [one["metadata"]["name"] for one in definitions]
            self._delete_definitions(stage, cluster, addon, definitions)
        return {"uninstalled": uninstalled, "crds": gone}

    def before(self, cluster: Cluster) -> None:
        """What must hold before anything is uninstalled."""

    @staticmethod
    def _refuse_in_use(cluster: Cluster, addon: Addon, definitions: list[Object]) -> None:
        left = [_text(one) for one in _resources(cluster, definitions) if not _goes_with(one, addon)]
        if left:
            raise LeftoversFound(
                f"the operator stays, it is still needed by {', '.join(left[:10])}",
                hint="Delete them while the operator runs (it has to let go of its finalizers), then clear this task",
            )

    @staticmethod
    def _delete_definitions(stage: Stage, cluster: Cluster, addon: Addon, definitions: list[Object]) -> None:
        from nim_rollouts.operators.model import subject_of, wait_gone

        budget = stage.session.environment.budgets.delete_s
        # What went with the release; a definition takes all that is left of its kind with it, whosever it is.
        going = [one for one in _resources(cluster, definitions) if _goes_with(one, addon)]
        wait_gone(stage, [subject_of(one) for one in going], budget)
        UninstallAddonsOperator._refuse_in_use(cluster, addon, definitions)
        for one in definitions:
            cluster.delete(one, uid=one["metadata"]["uid"])
        wait_gone(stage, [subject_of(one) for one in definitions], budget)


class UninstallKarpenterOperator(UninstallAddonsOperator):
    """What launches nodes: the last add-on to go, when nothing that it has launched is left."""

    launches_nodes = True

    def before(self, cluster: Cluster) -> None:
        """No NodeClaim and no launched node."""
        refuse_launched(cluster)


def is_released(obj: Object, addon: Addon) -> bool:
    """True for an object that Helm made as a part of this release, and takes away with it."""
    marks = obj["metadata"].get("annotations") or {}
    return (marks.get(_RELEASE), marks.get(_RELEASE_NAMESPACE)) == (addon.name, addon.namespace)


def _launches(addon: Addon) -> bool:
    return NODEPOOLS in addon.requires.crds


def _resources(cluster: Cluster, definitions: list[Object]) -> list[Object]:
    found: list[Object] = []
    for definition in definitions:
        spec = definition["spec"]
        version = next((one["name"] for one in spec["versions"] if one.get("served")), None)
        if version is None:
            continue  # nobody can see what is stored under it
        found += cluster.list(f"{spec['group']}/{version}", spec["names"]["kind"])
    return found


def _goes_with(obj: Object, addon: Addon) -> bool:
    """True for what the release brings along, and for what its programs have made and nobody has to let go of."""
    metadata = obj["metadata"]
    return is_released(obj, addon) or bool(metadata.get("ownerReferences") and not metadata.get("finalizers"))


def _text(obj: Object) -> str:
    metadata = obj["metadata"]
    return f"{obj['kind']}/{metadata['name']} in {metadata.get('namespace')}"
