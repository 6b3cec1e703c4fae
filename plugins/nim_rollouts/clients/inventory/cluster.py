"""The EKS cluster and the file system, each with its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nim_rollouts.clients.inventory.aws import Look, is_gone, pages, tags_of
from nim_rollouts.clients.inventory.compute import TEMPLATE
from nim_rollouts.clients.inventory.network import GROUP, INTERFACE, SUBNET, VPC, refs
from nim_rollouts.core.inventory import ENVIRONMENT_TAG, Scope, Thing, ref

CLUSTER, NODES, ADDON, FARGATE = "EKS cluster", "EKS node group", "EKS add-on", "EKS Fargate profile"
FILES, TARGET, POINT = "EFS file system", "EFS mount target", "EFS access point"
ROLE = "IAM role"


def _cluster(eks: Any, scope: Scope) -> Iterator[Thing]:
    name = scope.cluster
    try:
        item = eks.describe_cluster(name=name)["cluster"]
    except eks.exceptions.ResourceNotFoundException:
        return
    network = item.get("resourcesVpcConfig", {})
    yield Thing(
        CLUSTER,
        name,
        tags=tags_of(item),
        holds=(
            *refs(SUBNET, *network.get("subnetIds", ())),
            *refs(GROUP, network.get("clusterSecurityGroupId"), *network.get("securityGroupIds", ())),
            *refs(VPC, network.get("vpcId")),
            *refs(ROLE, item.get("roleArn", "").rpartition("/")[2]),
        ),
        state=item.get("status", ""),
        going=item.get("status") == "DELETING",
    )
    if item.get("tags", {}).get(ENVIRONMENT_TAG, scope.environment) != scope.environment:
        return
    part = (f"its {CLUSTER} {name}",)
    for group in pages(eks, "list_nodegroups", "nodegroups", clusterName=name):
        yield from _nodes(eks, name, group, part)
    for profile in pages(eks, "list_fargate_profiles", "fargateProfileNames", clusterName=name):
        yield Thing(FARGATE, f"{name}/{profile}", by=part, holds=refs(CLUSTER, name))
    for addon in pages(eks, "list_addons", "addons", clusterName=name):
        yield Thing(ADDON, f"{name}/{addon}", by=part)


def _nodes(eks: Any, cluster: str, name: str, part: tuple[str, ...]) -> Iterator[Thing]:
    try:
        item = eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
    except eks.exceptions.ResourceNotFoundException:
        return
    yield Thing(
        NODES,
        f"{cluster}/{name}",
        tags=tags_of(item),
        by=part,
        holds=(
            *refs(CLUSTER, cluster),
            *refs(ROLE, item.get("nodeRole", "").rpartition("/")[2]),
            *refs(TEMPLATE, (item.get("launchTemplate") or {}).get("id")),
        ),
        state=item.get("status", ""),
        going=item.get("status") == "DELETING",
    )


def _files(efs: Any, scope: Scope) -> Iterator[Thing]:
    for item in pages(efs, "describe_file_systems", "FileSystems"):
        tags = tags_of(item)
        # Its creation token is the cluster's name, and that is given once in an account and region.
        named = item.get("CreationToken") == scope.cluster
        wanted = tags.get(ENVIRONMENT_TAG, scope.environment if named else None) == scope.environment
        if not wanted or item.get("LifeCycleState") == "deleted":
            continue
        identifier = item["FileSystemId"]
        yield Thing(
            FILES,
            identifier,
            item.get("Name") or "",
            tags,
            by=("creation token",) if named else (),
            state=item.get("LifeCycleState", ""),
            going=item.get("LifeCycleState") == "deleting",
        )
        try:
            yield from _parts(efs, identifier)
        except efs.exceptions.ClientError as error:
            if not is_gone(error):
                raise


def _parts(efs: Any, identifier: str) -> Iterator[Thing]:
    part = (f"its {FILES} {identifier}",)
    for target in pages(efs, "describe_mount_targets", "MountTargets", FileSystemId=identifier):
        yield Thing(
            TARGET,
            target["MountTargetId"],
            by=part,
            vpc=target.get("VpcId"),
            holds=(
                ref(FILES, identifier),
                *refs(SUBNET, target.get("SubnetId")),
                *refs(INTERFACE, target.get("NetworkInterfaceId")),
            ),
            state=target.get("LifeCycleState", ""),
            going=target.get("LifeCycleState") == "deleting",
        )
    for point in pages(efs, "describe_access_points", "AccessPoints", FileSystemId=identifier):
        yield Thing(POINT, point["AccessPointId"], point.get("Name") or "", tags_of(point), by=part)


LOOKS = (
    Look((CLUSTER, NODES, ADDON, FARGATE), ("eks",), _cluster),
    Look((FILES, TARGET, POINT), ("efs",), _files),
)
