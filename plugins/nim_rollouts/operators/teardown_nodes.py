"""Down in order, the nodes' part: node pools with their claims and nodes while Karpenter runs, then the node classes.

Karpenter alone ends the instances that it began: uninstalled before the last NodeClaim is gone, it leaves them on the
bill. So whatever stands in the way is told here, and nothing is deleted before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nim_rollouts.core.errors import LeftoversFound
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.teardown import DeletingOperator
from nim_rollouts.operators.teardown_others import KARPENTER_API, refusal_of_pools, strange_pools, wanted

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object

NODE_CLASS_API = "karpenter.k8s.aws/v1"
#: Karpenter marks the nodes and NodeClaims that it makes with the name of their NodePool.
NODEPOOL_LABEL = "karpenter.sh/nodepool"


class DeleteNodePoolsOperator(DeletingOperator):
    """Our NodePools; their NodeClaims, nodes and instances go with them."""

    def run(self, stage: Stage) -> Facts:
        """Order the deletions, and name every node that must go with them."""
        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        pools = cluster.list(KARPENTER_API, "NodePool", label_selector=self.selector(stage))
        if refusal := refusal_of_pools(strange_pools(cluster, wanted(self.selector(stage)))):
            raise refusal
        # A NodeClaim has no mark of ours, but that of its pool.
        self.delete(stage, cluster, pools, launched_by_karpenter(cluster))
        # Looked at again: until its deletion a pool may have begun one more.
        launched = launched_by_karpenter(cluster)
        names = [f"{one['kind']} {one['metadata']['name']}" for one in launched]
        stage.log.info("still to go: %s", ", ".join(names) or "nothing")
        return {"removed": self.named_all([*pools, *launched])}


class DeleteNodeClassesOperator(DeletingOperator):
    """Our EC2NodeClasses, once no NodeClaim is left. Karpenter removes their instance profiles before it lets go."""

    def run(self, stage: Stage) -> Facts:
        """Delete and wait: it takes seconds."""
        from nim_rollouts.operators.model import subject_of, wait_gone

        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        refuse_launched(cluster)
        found = cluster.list(NODE_CLASS_API, "EC2NodeClass", label_selector=self.selector(stage))
        removed = self.delete(stage, cluster, found)
        wait_gone(stage, [subject_of(one) for one in found], stage.session.environment.budgets.delete_s)
        return {"removed": removed}


def refuse_launched(cluster: Cluster) -> None:
    """Nothing, if no NodeClaim and no node of Karpenter's is left.

    :raises LeftoversFound: their instances would outlive whatever is taken away next
    """
    left = launched_by_karpenter(cluster)
    if left:
        names = ", ".join(f"{one['kind']}/{one['metadata']['name']}" for one in left[:10])
        raise LeftoversFound(
            f"launched nodes have come back: {names}",
            hint="See who asks for them, then clear delete_node_pools and the tasks after it",
        )


def launched_by_karpenter(cluster: Cluster) -> list[Object]:
    """NodeClaims, and the nodes that they have become. A node without a claim is nobody's to drain any more."""
    claims = cluster.list(KARPENTER_API, "NodeClaim")
    names = {(one.get("status") or {}).get("nodeName") for one in claims}
    return [*claims, *(one for one in cluster.list("v1", "Node") if one["metadata"]["name"] in names)]


def launched_nodes(cluster: Cluster) -> list[Object]:
    """Nodes that were started for pods: Karpenter's, and any with a GPU. terraform knows none of them, so one that
    stands when the cluster goes stays on the bill. The managed system nodes go with terraform."""

    def is_launched(node: Object) -> bool:
        capacity = (node.get("status") or {}).get("capacity") or {}
        return capacity.get("nvidia.com/gpu", "0") != "0" or NODEPOOL_LABEL in (node["metadata"].get("labels") or {})

    return [one for one in cluster.list("v1", "Node") if is_launched(one)]
