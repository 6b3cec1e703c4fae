"""REST paths of Kubernetes kinds, without discovery: the kinds that are used are few and known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

_CLUSTER_SCOPED = frozenset(
    {
        "Namespace", "Node", "PersistentVolume", "StorageClass", "CustomResourceDefinition", "ClusterRole",
        "ClusterRoleBinding", "NodePool", "NodeClaim", "EC2NodeClass", "IngressClass",
    }
)  # fmt: skip
_API_VERSIONS = {
    **dict.fromkeys(("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"), "apps/v1"),
    **dict.fromkeys(("Job", "CronJob"), "batch/v1"),
    **dict.fromkeys(("NIMCache", "NIMService", "NIMPipeline", "NIMBuild"), "apps.nvidia.com/v1alpha1"),
    **dict.fromkeys(("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"), "rbac.authorization.k8s.io/v1"),
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "StorageClass": "storage.k8s.io/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    **dict.fromkeys(("Ingress", "IngressClass"), "networking.k8s.io/v1"),
    "NodePool": "karpenter.sh/v1",
    "NodeClaim": "karpenter.sh/v1",
    "EC2NodeClass": "karpenter.k8s.aws/v1",
}
_PLURALS = {"StorageClass": "storageclasses", "Endpoints": "endpoints", "EC2NodeClass": "ec2nodeclasses"}


@dataclass(frozen=True)
class Ref:
    """An object's place. `namespace`: None for cluster-scoped kinds."""

    api_version: str
    kind: str
    name: str
    namespace: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" + (f" in {self.namespace}" if self.namespace else "")

    @property
    def path(self) -> str:
        """REST path."""
        return path_of(self.api_version, self.kind, self.namespace, self.name)

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Ref:
        """Of an object."""
        metadata = obj["metadata"]
        return cls(obj["apiVersion"], obj["kind"], metadata["name"], metadata.get("namespace"))


def api_version_of(kind: str) -> str:
    """The version that we speak of a kind."""
    return _API_VERSIONS.get(kind, "v1")


def is_namespaced(kind: str) -> bool:
    """False for the cluster-scoped kinds that we use."""
    return kind not in _CLUSTER_SCOPED


def plural_of(kind: str) -> str:
    """The resource's name in paths."""
    lower = kind.lower()
    if kind in _PLURALS:
        return _PLURALS[kind]
    if lower.endswith("y"):
        return f"{lower[:-1]}ies"
    return f"{lower}es" if lower.endswith(("s", "x")) else f"{lower}s"


def path_of(api_version: str, kind: str, namespace: str | None, name: str | None = None) -> str:
    """REST path of an object, or of the collection; of all namespaces when none is given."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace and is_namespaced(kind) else ""
    tail = f"/{quote(name, safe='')}" if name else ""
    return f"{root}{scope}/{plural_of(kind)}{tail}"
