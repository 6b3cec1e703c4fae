"""Down in order, the platform's part: namespaces, what holds the network, storage class. What is somebody else's is
named, and never deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nim_rollouts.core.addons import ADDON_LABEL
from nim_rollouts.core.errors import LeftoversFound
from nim_rollouts.core.teardown import Scope
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.teardown import DeletingOperator
from nim_rollouts.operators.teardown_nodes import launched_nodes
from nim_rollouts.operators.teardown_volumes import refuse_volumes

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object

INGRESS_API = "networking.k8s.io/v1"
_ALB = "ingress.k8s.aws/alb"


class DeleteNamespacesOperator(DeletingOperator):
    """The namespaces that deployments of this environment lived in, if nothing else lives there; and the Secrets with
    the NGC key, also those in a namespace that was there before us, and stays."""

    #: What tells that somebody lives there, though nothing of it may run now.
    _INHABITANTS = ("Deployment", "StatefulSet", "DaemonSet", "CronJob", "Service")

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
            self._refuse_inhabited(cluster, namespace["metadata"]["name"], wanted(self.selector(stage)))
        # An add-on's Secrets go after it.
        secrets = [
            one
            for one in cluster.list("v1", "Secret", label_selector=self.selector(stage))
            if ADDON_LABEL not in one["metadata"]["labels"]
        ]
        removed = self.delete(stage, cluster, [*secrets, *found])
        wait_gone(stage, [subject_of(one) for one in found], stage.session.environment.budgets.delete_s)
        return {"removed": removed}

    @classmethod
    def _refuse_inhabited(cls, cluster: Cluster, namespace: str, ours: dict[str, str]) -> None:
        from nim_rollouts.clients.resources import api_version_of

        there = [one for kind in ("Pod", "PersistentVolumeClaim") for one in cluster.list("v1", kind, namespace)]
        # What has an owner goes or stays with it.
        there += [
            one
            for kind in cls._INHABITANTS
            for one in cluster.list(api_version_of(kind), kind, namespace)
            if not one["metadata"].get("ownerReferences") and not has(one, ours)
        ]
        left = [
            f"{one['kind']}/{one['metadata']['name']}" for one in there if not one["metadata"].get("deletionTimestamp")
        ]
        if left:
            raise LeftoversFound(
                f"namespace {namespace} is not deleted, others live there: {', '.join(sorted(left)[:10])}",
                hint="Move or delete them, then clear this task",
            )


class DeleteStorageClassOperator(DeletingOperator):
    """The storage class, if it is ours."""

    def run(self, stage: Stage) -> Facts:
        """Order the deletion. Refused before a destruction while a volume is left: here nobody's release holds one any
        more, and its driver still runs."""
        refuse_volumes(stage)
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
        from nim_rollouts.clients.helm_crds import is_released

        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        found = [*self._services(cluster), *self._ingresses(cluster)]
        labels = wanted(self.selector(stage))
        ours = [one for one in found if has(one, labels)]
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


def wanted(selector: str) -> dict[str, str]:
    """The labels of a selector of equalities."""
    return dict(one.split("=") for one in selector.split(","))


def has(obj: Object, labels: dict[str, str]) -> bool:
    """True when the object carries all of them."""
    return labels.items() <= (obj["metadata"].get("labels") or {}).items()
