"""Down in order, the platform's part: namespaces, load balancers, storage class, infrastructure; and proof that it is
gone. What is somebody else's is named, and never deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nim_rollouts.core.errors import LeftoversFound, NimRolloutsError
from nim_rollouts.core.teardown import Scope
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.inventory import InventoryOperator
from nim_rollouts.operators.teardown import DeletingOperator
from nim_rollouts.operators.teardown_addons import is_released
from nim_rollouts.operators.teardown_nodes import launched_nodes
from nim_rollouts.operators.terraform import TerraformStage

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object

INGRESS_API = "networking.k8s.io/v1"
_ALB = "ingress.k8s.aws/alb"


class DeleteNamespacesOperator(DeletingOperator):
    """The namespaces that deployments of this environment lived in, if nothing else lives there."""

    def run(self, stage: Stage) -> Facts:
        """Delete and wait; skipped, with all that follows, when one deployment alone was to go."""
        from airflow.sdk.exceptions import AirflowSkipException

        from nim_rollouts.operators.model import subject_of, wait_gone

        if stage.session.facts("validate")["scope"] == Scope.DEPLOYMENT:
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


class DeleteStorageClassOperator(DeletingOperator):
    """The storage class, if it is ours."""

    def run(self, stage: Stage) -> Facts:
        """Order the deletion."""
        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        found = cluster.list("storage.k8s.io/v1", "StorageClass", label_selector=self.selector(stage))
        return {"removed": self.delete(stage, cluster, found)}


class FreeNetworkOperator(DeletingOperator):
    """What holds the network and is not terraform's: Services and Ingresses that make load balancers, with their
    network interfaces, and GPU nodes of somebody else. Ours go; before a destruction those of others are refused."""

    def run(self, stage: Stage) -> Facts:
        """Order the deletions. What goes when an add-on is uninstalled is only named: objects of its release, and nodes
        that its pods alone may still hold."""
        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        found = [*self._services(cluster), *self._ingresses(cluster)]
        wanted = dict(one.split("=") for one in self.selector(stage).split(","))
        ours = [one for one in found if wanted.items() <= (one["metadata"].get("labels") or {}).items()]
        addons = stage.session.environment.addons
        released = [one for one in found if one not in ours and any(is_released(one, addon) for addon in addons)]
        others = [one for one in found if one not in ours and one not in released]
        names = [f"{one['kind']}/{one['metadata']['name']} in {one['metadata']['namespace']}" for one in others]
        destroying = stage.session.facts("validate")["scope"] == Scope.EVERYTHING
        if names and destroying:
            raise LeftoversFound(
                f"these load balancers are not ours, and would hold the network: {', '.join(names[:10])}",
                hint="Delete those objects while their controller runs, then clear this task",
            )
        for name in names:
            stage.log.info("%s is not ours: it stays, as the network does", name)
        nodes = launched_nodes(cluster) if destroying else []
        return {"removed": self.delete(stage, cluster, ours, [*released, *nodes])}

    @staticmethod
    def _services(cluster: Cluster) -> list[Object]:
        return [one for one in cluster.list("v1", "Service") if (one.get("spec") or {}).get("type") == "LoadBalancer"]

    @staticmethod
    def _ingresses(cluster: Cluster) -> list[Object]:
        """Those for which the AWS Load Balancer Controller makes a load balancer: by their class, or by its mark."""
        classes = {
            one["metadata"]["name"]
            for one in cluster.list(INGRESS_API, "IngressClass")
            if (one.get("spec") or {}).get("controller") == _ALB
        }

        def is_concerned(ingress: Object) -> bool:
            metadata = ingress["metadata"]
            named = (ingress.get("spec") or {}).get("ingressClassName")
            named = named or (metadata.get("annotations") or {}).get("kubernetes.io/ingress.class")
            return named in {*classes, "alb"} or any(
                "ingress.k8s.aws/" in one for one in metadata.get("finalizers") or ()
            )

        return [one for one in cluster.list(INGRESS_API, "Ingress") if is_concerned(one)]


class TerraformDestroyOperator(TerraformStage):
    """Everything in the state, planned and destroyed. Nothing in it is no error."""

    def run(self, stage: Stage) -> Facts:
        """Refused while a launched node is left: its instance would outlive the cluster. Skipped, with the proof after
        it, when the infrastructure is to stay."""
        from airflow.sdk.exceptions import AirflowSkipException

        from nim_rollouts.hooks import interrupted
        from nim_rollouts.hooks.infrastructure import variables
        from nim_rollouts.hooks.inventory import naming_holders, remember_networks

        if stage.session.facts("validate")["scope"] != Scope.EVERYTHING:
            raise AirflowSkipException("the platform alone was to go: the infrastructure stays")

        cluster = stage.session.cluster_if_any()
        nodes = launched_nodes(cluster) if cluster else []
        if nodes:
            raise LeftoversFound(
                f"launched nodes have come back: {', '.join(one['metadata']['name'] for one in nodes)}",
                hint="See who asks for them, then clear free_network and the tasks after it",
            )
        environment, terraform = stage.session.environment, self.terraform(stage)
        interrupted.settle(terraform, stage.session, stage.log.info)
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
