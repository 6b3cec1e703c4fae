"""The instances of managed node groups. moto keeps a group as a record alone; here it launches what EKS would, and ends
it with the group. They join the cluster by themselves (``rehearsal.nodes``)."""

from __future__ import annotations

import uuid
from typing import Any

from rehearsal.aws.eks_state import ClusterState, Json
from rehearsal.nodes import userdata

GROUP_TAG = "eks:nodegroup-name"


def scale(cluster: ClusterState, group: Any) -> None:
    """As many instances as the group's desired size, spread over its subnets: missing ones start, surplus ones end."""
    wanted = int((group.scaling_config or {}).get("desiredSize", 1))
    standing = _instances(cluster, group.nodegroup_name)
    for instance in standing[wanted:]:
        _ec2(cluster).terminate_instances([instance.id])
    subnets = list(group.subnets)
    for number in range(len(standing), wanted):
        _launch(cluster, group, subnets[number % len(subnets)])


def end(cluster: ClusterState, group_name: str) -> None:
    """Every instance of a group."""
    identifiers = [instance.id for instance in _instances(cluster, group_name)]
    if identifiers:
        _ec2(cluster).terminate_instances(identifiers)


def _ec2(cluster: ClusterState) -> Any:
    from moto.ec2.models import ec2_backends

    return ec2_backends[cluster.caller.account][cluster.caller.region]


def _instances(cluster: ClusterState, group_name: str) -> list[Any]:
    owned = {"tag:eks:cluster-name": [cluster.name], f"tag:{GROUP_TAG}": [group_name]}
    found = [
        instance
        for reservation in _ec2(cluster).describe_instances(filters=owned)
        for instance in reservation.instances
        if instance.state != "terminated"
    ]
    return sorted(found, key=lambda instance: str(instance.launch_time))


def _launch(cluster: ClusterState, group: Any, subnet: str) -> None:
    from moto.core.types import Base64EncodedString

    tags = {
        "eks:cluster-name": cluster.name,
        GROUP_TAG: group.nodegroup_name,
        f"kubernetes.io/cluster/{cluster.name}": "owned",
    }
    template, of_template = _template(cluster, group)
    labels = {
        **(group.labels or {}),
        "eks.amazonaws.com/nodegroup": group.nodegroup_name,
        "eks.amazonaws.com/capacityType": group.capacity_type or "ON_DEMAND",
    }
    taints = [
        {"key": one["key"], "value": one.get("value") or "", "effect": _effect(one["effect"])}
        for one in group.taints or []
    ]
    _ec2(cluster).run_instances(
        f"ami-{uuid.uuid5(uuid.NAMESPACE_URL, f'{group.ami_type}/{group.release_version}').hex[:17]}",
        1,
        Base64EncodedString.from_raw_bytes(userdata.render(cluster.name, labels, taints).encode()),
        [],
        instance_type=(group.instance_types or ["t3.medium"])[0],
        is_instance_type_default=False,
        region_name=cluster.caller.region,
        subnet_id=subnet,
        security_group_ids=[cluster.security_group_id],
        launch_template=template,
        # moto would make a customer's key for an encrypted disk, where AWS has one of its own.
        block_device_mappings=[{"DeviceName": "/dev/xvdb", "Ebs": {"VolumeSize": 50, "DeleteOnTermination": True}}],
        tags={kind: {**of_template.get(kind, {}), **tags} for kind in ("instance", "volume", "network-interface")},
        client_token=str(uuid.uuid4()),
    )


def _template(cluster: ClusterState, group: Any) -> tuple[Json, dict[str, dict[str, str]]]:
    """The group's launch template as RunInstances takes it, and the tags that it gives by kind of resource."""
    named = group.launch_template or {}
    chosen = {}
    if named.get("id"):
        chosen["LaunchTemplateId"] = named["id"]
    elif named.get("name"):
        chosen["LaunchTemplateName"] = named["name"]
    else:
        return {}, {}
    if named.get("version"):
        chosen["Version"] = str(named["version"])
    data = _ec2(cluster)._get_template_from_args(chosen).data
    tags: dict[str, dict[str, str]] = {}
    for one in data.get("TagSpecifications") or []:
        tags[one["ResourceType"]] = {tag["Key"]: tag["Value"] for tag in one.get("Tags") or one.get("Tag") or []}
    return chosen, tags


def _effect(of_eks: str) -> str:
    """NO_SCHEDULE -> NoSchedule."""
    return "".join(part.capitalize() for part in of_eks.split("_"))
