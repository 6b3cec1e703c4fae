"""Down in order, the platform's part: namespaces, add-ons, storage class, nodes, infrastructure; and proof that it is
gone. An operator leaves only when none of its custom resources is left; finalizers are never stripped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from nim_rollouts.core.errors import LeftoversFound, NimRolloutsError
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.inventory import InventoryOperator
from nim_rollouts.operators.teardown import DEPLOYMENT, DeletingOperator, named
from nim_rollouts.operators.terraform import TerraformStage

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object
    from nim_rollouts.core.environment import Addon

CRD_API = "apiextensions.k8s.io/v1"
#: Karpenter marks the nodes it launches with it.
NODEPOOL_LABEL = "karpenter.sh/nodepool"


class DeleteNamespacesOperator(DeletingOperator):
    """The namespaces that deployments of this environment lived in, if nothing else lives there."""

    def run(self, stage: Stage) -> Facts:
        """Delete and wait; skipped, with all that follows, when one deployment alone was to go."""
        from airflow.sdk.exceptions import AirflowSkipException

        from nim_rollouts.operators.model import subject_of, wait_gone

        if stage.session.facts("validate")["scope"] == DEPLOYMENT:
            raise AirflowSkipException("one deployment alone was to go: the platform stays")
        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        found = cluster.list("v1", "Namespace", label_selector=self.selector(stage))
        for namespace in found:
            self._refuse_inhabited(cluster, namespace["metadata"]["name"])
        removed = self.delete(stage, cluster, found)
        wait_gone(stage, [subject_of(one) for one in found], stage.session.environment.budgets.delete_s)
        return {"removed": removed}

    @staticmethod
    def _refuse_inhabited(cluster: Cluster, namespace: str) -> None:
        left = [
            f"{kind}/{one['metadata']['name']}"
            for kind in ("Pod", "PersistentVolumeClaim")
            for one in cluster.list("v1", kind, namespace)
            if not one["metadata"].get("deletionTimestamp")
        ]
        if left:
            raise LeftoversFound(
                f"namespace {namespace} is not deleted, others live there: {', '.join(sorted(left)[:10])}",
                hint="Move or delete them, then clear this task",
            )


class UninstallAddonsOperator(DeletingOperator):
    """Helm releases in reverse order, then their CRDs; refused while a custom resource of theirs is left."""

    def run(self, stage: Stage) -> Facts:
        """The operator goes last of all that its custom resources need, and only once none of them is left."""
        from nim_rollouts.clients.helm import Helm

        cluster = self.cluster(stage)
        if cluster is None:
            return {"uninstalled": [], "crds": []}
        helm = Helm(cluster, stage.session.include)
        uninstalled, gone = [], []
        for addon in reversed(stage.session.environment.addons):
            definitions = self._definitions(cluster, helm, addon)
            self._refuse_in_use(cluster, definitions)
            stage.check_claims()
            if helm.uninstall(addon, wait_s=stage.session.environment.budgets.delete_s):
                uninstalled.append(addon.name)
                stage.log.info("release %s uninstalled", addon.name)
            gone += [one["metadata"]["name"] for one in definitions]
            self._delete_definitions(stage, cluster, definitions)
        return {"uninstalled": uninstalled, "crds": gone}

    @staticmethod
    def _definitions(cluster: Cluster, helm: Any, addon: Addon) -> list[Object]:
        names = {*addon.requires.crds, *(one["metadata"]["name"] for one in helm.crds(addon))}
        found = (cluster.get(CRD_API, "CustomResourceDefinition", None, name) for name in sorted(names))
        return [one for one in found if one is not None]

    @staticmethod
    def _refuse_in_use(cluster: Cluster, definitions: list[Object]) -> None:
        left = []
        for definition in definitions:
            spec = definition["spec"]
            version = next(one["name"] for one in spec["versions"] if one.get("served"))
            for one in cluster.list(f"{spec['group']}/{version}", spec["names"]["kind"]):
                left.append(f"{one['kind']}/{one['metadata']['name']} in {one['metadata'].get('namespace')}")
        if left:
            raise LeftoversFound(
                f"the operator stays, it is still needed by {', '.join(left[:10])}",
                hint="Delete them while the operator runs (it has to let go of its finalizers), then clear this task",
            )

    @staticmethod
    def _delete_definitions(stage: Stage, cluster: Cluster, definitions: list[Object]) -> None:
        from nim_rollouts.operators.model import subject_of, wait_gone

        for one in definitions:
            cluster.delete(one, uid=one["metadata"]["uid"])
        wait_gone(stage, [subject_of(one) for one in definitions], stage.session.environment.budgets.delete_s)


class DeleteStorageClassOperator(DeletingOperator):
    """The storage class, if it is ours."""

    def run(self, stage: Stage) -> Facts:
        """Order the deletion."""
        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        found = cluster.list("storage.k8s.io/v1", "StorageClass", label_selector=self.selector(stage))
        return {"removed": self.delete(stage, cluster, found)}


class ListNodesOperator(DeletingOperator):
    """Names the launched nodes that must go, now that nothing asks for one. Whoever made them takes them."""

    def run(self, stage: Stage) -> Facts:
        """Reads only."""
        cluster = self.cluster(stage)
        nodes = launched_nodes(cluster) if cluster else []
        stage.log.info("launched nodes still there: %s", ", ".join(one["metadata"]["name"] for one in nodes) or "none")
        return {"removed": [named(one) for one in nodes]}


class TerraformDestroyOperator(TerraformStage):
    """Everything in the state, planned and destroyed. Nothing in it is no error."""

    def run(self, stage: Stage) -> Facts:
        """Refused while a launched node is left: its instance would outlive the cluster."""
        from nim_rollouts.hooks.infrastructure import variables
        from nim_rollouts.hooks.inventory import naming_holders, remember_networks

        cluster = stage.session.cluster_if_any()
        nodes = launched_nodes(cluster) if cluster else []
        if nodes:
            raise LeftoversFound(
                f"launched nodes have come back: {', '.join(one['metadata']['name'] for one in nodes)}",
                hint="See who asks for them, then clear list_nodes and the tasks after it",
            )
        environment, terraform = stage.session.environment, self.terraform(stage)
        # Once the state is empty, nothing else says in which network an untagged thing would lie.
        remember_networks(environment, stage.session.store, terraform.output())
        try:
            destroyed = terraform.destroy(variables(environment))
        except NimRolloutsError as error:
            if error.reason != "dependency-violation":
                raise
            raise naming_holders(environment, stage.session.store, error) from error
        return destroyed.as_facts()


class VerifyGoneOperator(InventoryOperator):
    """Looks again everywhere: the state, and AWS itself."""

    claim_scopes: ClassVar[tuple[str, ...]] = ("environment",)
    reads_only: ClassVar[bool] = False

    def run(self, stage: Stage) -> Facts:
        """Empty is success; leftovers are listed; not being able to look is neither."""
        facts = super().run(stage)
        stage.log.info("nothing is left: the state is empty, AWS has nothing of the environment")
        return {"state": "empty", "aws": "empty"} | facts


def launched_nodes(cluster: Cluster) -> list[Object]:
    """Nodes that were started for pods: Karpenter's, and any with a GPU. terraform knows none of them, so one that
    stands when the cluster goes stays on the bill. The managed system nodes go with terraform."""

    def is_launched(node: Object) -> bool:
        capacity = (node.get("status") or {}).get("capacity") or {}
        labels = node["metadata"].get("labels") or {}
        return capacity.get("nvidia.com/gpu", "0") != "0" or NODEPOOL_LABEL in labels

    return [one for one in cluster.list("v1", "Node") if is_launched(one)]
