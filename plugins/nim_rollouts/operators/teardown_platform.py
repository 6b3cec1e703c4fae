"""Down in order, the platform's part: namespaces, what holds the network, storage class. What is somebody else's is
named, and never deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nim_rollouts.core.addons import ADDON_LABEL
from nim_rollouts.core.teardown import Scope
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.teardown import DeletingOperator
from nim_rollouts.operators.teardown_nodes import launched_nodes
from nim_rollouts.operators.teardown_others import (
    balancer_makers,
    has,
    inhabitants,
    refusal_of_balancers,
    refusal_of_namespace,
    strange_balancers,
    wanted,
)
from nim_rollouts.operators.teardown_volumes import refuse_volumes

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster


class DeleteNamespacesOperator(DeletingOperator):
    """The namespaces that deployments of this environment lived in, if nothing else lives there; and the Secrets with
    the NGC key, also those in a namespace that was there before us, and stays."""

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
            _refuse_inhabited(cluster, namespace["metadata"]["name"], wanted(self.selector(stage)))
        # An add-on's Secrets go after it.
        secrets = [
            one
            for one in cluster.list("v1", "Secret", label_selector=self.selector(stage))
            if ADDON_LABEL not in one["metadata"]["labels"]
        ]
        removed = self.delete(stage, cluster, [*secrets, *found])
        wait_gone(stage, [subject_of(one) for one in found], stage.session.environment.budgets.delete_s)
        return {"removed": removed}


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
        """Order the deletions. Ours are waited for: their controller may be an add-on, and would be uninstalled next.
        What goes when an add-on is uninstalled is only named: objects of its release, and nodes that its pods alone may
        still hold."""
        from nim_rollouts.clients.resources import Ref
        from nim_rollouts.operators.model import subject_of, wait_gone

        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        addons, labels = stage.session.environment.addons, wanted(self.selector(stage))
        makers, others = balancer_makers(cluster), strange_balancers(cluster, addons, labels)
        destroying = stage.session.facts("validate")["scope"] == Scope.EVERYTHING
        if destroying and (refusal := refusal_of_balancers(others)):
            raise refusal
        for one in others:
            stage.log.info("%s is not ours: it stays, as the network does", Ref.of(one))
        ours = [one for one in makers if has(one, labels)]
        released = [one for one in makers if one not in ours and one not in others]
        nodes = launched_nodes(cluster) if destroying else []
        removed = self.delete(stage, cluster, ours, [*released, *nodes])
        wait_gone(stage, [subject_of(one) for one in ours], stage.session.environment.budgets.delete_s)
        return {"removed": removed}


def _refuse_inhabited(cluster: Cluster, namespace: str, ours: dict[str, str]) -> None:
    """Nothing, if nobody but us lives there. A pod or claim whose owner is not known counts as somebody else's; what
    else has such an owner goes or stays with it."""
    there = [
        root or one
        for one, root in inhabitants(cluster, namespace)
        if (not has(root, ours) if root is not None else one["kind"] in ("Pod", "PersistentVolumeClaim"))
    ]
    if refusal := refusal_of_namespace(namespace, there):
        raise refusal
