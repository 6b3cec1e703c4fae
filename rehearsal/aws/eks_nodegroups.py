"""Managed node groups: moto keeps them, this module completes what it drops and answers the updates it lacks."""

from __future__ import annotations

from rehearsal.aws import eks_access, eks_machines
from rehearsal.aws.eks_cluster import VERSIONS, ApiServer, Forward, moto_cluster
from rehearsal.aws.eks_state import Call, Clusters, Json, invalid, not_found


def create(clusters: Clusters, call: Call, forward: Forward, api: ApiServer) -> tuple[int, Json]:
    """moto's node group, with the settings that moto drops and without those that it invents."""
    status, answer = forward(None)
    cluster = clusters.get(call.caller, call.segments[1])
    version = call.body.get("version") or moto_cluster(cluster).version
    group = moto_cluster(cluster).nodegroups[call.body["nodegroupName"]]
    group.version = version
    group.release_version = call.body.get("releaseVersion") or f"{version}.0-20261101"
    group.remote_access = call.body.get("remoteAccess")
    group.resources = {"autoScalingGroups": group.resources["autoScalingGroups"]}
    group.update_config = call.body.get("updateConfig") or {"maxUnavailable": 1}
    group.node_repair_config = call.body.get("nodeRepairConfig")
    role = call.body["nodeRole"]
    # EKS itself enters the role of a managed node group, unless it has an entry.
    if role not in cluster.access_entries:
        eks_access.add(cluster, role, "EC2_LINUX")
    answer["nodegroup"] |= {"version": version, "releaseVersion": group.release_version}
    eks_machines.scale(cluster, group)
    return status, answer


def delete(clusters: Clusters, call: Call, forward: Forward, api: ApiServer) -> tuple[int, Json]:
    """moto's answer; the group's instances end with it."""
    status, answer = forward(None)
    eks_machines.end(clusters.get(call.caller, call.segments[1]), call.segments[3])
    return status, answer


def update_config(clusters: Clusters, call: Call, forward: Forward, api: ApiServer) -> tuple[int, Json]:
    """moto changes the group, but DescribeUpdate would not know the update that it answers with."""
    status, _ = forward(None)
    cluster = clusters.get(call.caller, call.segments[1])
    eks_machines.scale(cluster, moto_cluster(cluster).nodegroups[call.segments[3]])
    return status, cluster.record_update("ConfigUpdate")


def update_version(clusters: Clusters, call: Call) -> Json:
    """UpdateNodegroupVersion: another launch template version, Kubernetes version or release, at once."""
    cluster = clusters.get(call.caller, call.segments[1])
    group = moto_cluster(cluster).nodegroups.get(call.segments[3])
    if group is None:
        raise not_found(f"No node group found for name: {call.segments[3]}.", nodegroupName=call.segments[3])
    version = call.body.get("version")
    if version is not None and version not in VERSIONS:
        raise invalid(f"unsupported Kubernetes version {version}", clusterName=cluster.name)
    if template := call.body.get("launchTemplate"):
        group.launch_template = {**(group.launch_template or {}), **template}
    if version is not None:
        group.version, group.release_version = version, f"{version}.0-20261101"
    if release := call.body.get("releaseVersion"):
        group.release_version = release
    return cluster.record_update("VersionUpdate")
