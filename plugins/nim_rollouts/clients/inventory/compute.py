"""Instances, what they are made from, and their disks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nim_rollouts.clients.inventory.aws import Look, pages, tags_of
from nim_rollouts.clients.inventory.network import GROUP, INTERFACE, SUBNET, VPC, of_ec2, refs
from nim_rollouts.core.inventory import Scope, Thing, ref

INSTANCE, VOLUME, SNAPSHOT, TEMPLATE, SCALING = (
    "instance", "volume", "snapshot", "launch template", "Auto Scaling group",
)  # fmt: skip
PROFILE = "IAM instance profile"


def _instances(ec2: Any, scope: Scope) -> Iterator[Thing]:
    for reservation in of_ec2(ec2, "describe_instances", "Reservations", scope):
        for item in reservation["Instances"]:
            # AWS shows a terminated one for about an hour.
            if item["State"]["Name"] != "terminated":
                yield _instance(item)


def _instance(item: Mapping[str, Any]) -> Thing:
    tags = tags_of(item)
    profile = (item.get("IamInstanceProfile") or {}).get("Arn", "").rpartition("/")[2]
    volumes = [one.get("Ebs", {}).get("VolumeId") for one in item.get("BlockDeviceMappings", ())]
    interfaces = [one["NetworkInterfaceId"] for one in item.get("NetworkInterfaces", ())]
    return Thing(
        INSTANCE,
        item["InstanceId"],
        tags.get("Name", ""),
        tags,
        item.get("VpcId"),
        holds=(
            *refs(INTERFACE, *interfaces),
            *refs(VOLUME, *volumes),
            *refs(SUBNET, item.get("SubnetId")),
            *refs(GROUP, *(group["GroupId"] for group in item.get("SecurityGroups", ()))),
            *refs(VPC, item.get("VpcId")),
            *refs(PROFILE, profile),
        ),
        # An instance that a group or a fleet wants comes back when it is ended.
        held_by=refs(SCALING, tags.get("aws:autoscaling:groupName")),
        state=f"{item.get('InstanceType', '')} {item['State']['Name']}".strip(),
        going=item["State"]["Name"] == "shutting-down",
    )


def _volumes(ec2: Any, scope: Scope) -> Iterator[Thing]:
    for item in of_ec2(ec2, "describe_volumes", "Volumes", scope, vpc_filter=None):
        tags = tags_of(item)
        claim = tags.get("kubernetes.io/created-for/pvc/name")
        namespace = tags.get("kubernetes.io/created-for/pvc/namespace")
        yield Thing(
            VOLUME,
            item["VolumeId"],
            tags.get("Name", ""),
            tags,
            held_by=(
                *refs(INSTANCE, *(one.get("InstanceId") for one in item.get("Attachments", ()))),
                # The claim went with the cluster: it says whose data this is.
                *([f"claim {namespace}/{claim}"] if claim else []),
            ),
            state=f"{item.get('Size', '?')} GiB {item['State']}",
            going=item["State"] == "deleting",
        )


def _snapshots(ec2: Any, scope: Scope) -> Iterator[Thing]:
    for item in of_ec2(ec2, "describe_snapshots", "Snapshots", scope, vpc_filter=None, OwnerIds=["self"]):
        yield Thing(SNAPSHOT, item["SnapshotId"], tags_of(item).get("Name", ""), tags_of(item))


def _templates(ec2: Any, scope: Scope) -> Iterator[Thing]:
    by_tag = of_ec2(ec2, "describe_launch_templates", "LaunchTemplates", scope, vpc_filter=None)
    names = [{"Name": "launch-template-name", "Values": sorted(scope.names()[TEMPLATE])}]
    by_name = pages(ec2, "describe_launch_templates", "LaunchTemplates", Filters=names)
    for found in (by_tag, by_name):
        for item in found:
            yield Thing(TEMPLATE, item["LaunchTemplateId"], item["LaunchTemplateName"], tags_of(item))


def _scaling(autoscaling: Any, scope: Scope) -> Iterator[Thing]:
    keys = [{"Name": "tag-key", "Values": sorted(scope.marks)}]
    for item in pages(autoscaling, "describe_auto_scaling_groups", "AutoScalingGroups", Filters=keys):
        template = item.get("LaunchTemplate") or (item.get("MixedInstancesPolicy") or {}).get("LaunchTemplate", {}).get(
            "LaunchTemplateSpecification", {}
        )
        yield Thing(
            SCALING,
            item["AutoScalingGroupName"],
            tags=tags_of(item),
            holds=(
                *refs(TEMPLATE, template.get("LaunchTemplateId")),
                *refs(SUBNET, *filter(None, item.get("VPCZoneIdentifier", "").split(","))),
            ),
            held_by=_node_group(tags_of(item)),
            state=item.get("Status", ""),
            going=bool(item.get("Status")),
        )


def _node_group(tags: Mapping[str, str]) -> tuple[str, ...]:
    name = tags.get("eks:nodegroup-name")
    return (ref("EKS node group", f"{tags.get('eks:cluster-name', '')}/{name}"),) if name else ()


LOOKS = (
    Look((INSTANCE,), ("ec2",), _instances),
    Look((VOLUME,), ("ec2",), _volumes),
    Look((SNAPSHOT,), ("ec2",), _snapshots),
    Look((TEMPLATE,), ("ec2",), _templates),
    Look((SCALING,), ("autoscaling",), _scaling),
)
