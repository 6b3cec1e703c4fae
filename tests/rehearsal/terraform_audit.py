"""AWS's side against the state's: what an environment has in the stand-in, by its tag and names, and what its state
says. Looks by itself, not through the product's code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rehearsal.config import Rehearsal
from tests.rehearsal.aws_standin import client

TAG = "nim-rollouts/environment"

#: Resource type -> call, key of the list, key of the id: everything in EC2 that carries tags.
_EC2 = {
    "aws_vpc": ("describe_vpcs", "Vpcs", "VpcId"),
    "aws_subnet": ("describe_subnets", "Subnets", "SubnetId"),
    "aws_internet_gateway": ("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
    "aws_eip": ("describe_addresses", "Addresses", "AllocationId"),
    "aws_nat_gateway": ("describe_nat_gateways", "NatGateways", "NatGatewayId"),
    "aws_route_table": ("describe_route_tables", "RouteTables", "RouteTableId"),
    "aws_security_group": ("describe_security_groups", "SecurityGroups", "GroupId"),
    "aws_vpc_security_group_ingress_rule": (
        "describe_security_group_rules",
        "SecurityGroupRules",
        "SecurityGroupRuleId",
    ),
    "aws_launch_template": ("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
}


def in_aws(r: Rehearsal, name: str) -> Counter[tuple[str, str]]:
    """(resource type, id) of everything of the environment `name`, whose cluster has its name too."""
    return Counter(_all(r, name))


def in_state(r: Rehearsal, bucket: str, key: str) -> Counter[tuple[str, str]]:
    """The same of its state, for the types that `in_aws` looks for."""
    state = json.loads(client(r, "s3").get_object(Bucket=bucket, Key=key)["Body"].read())
    managed = [one for one in state["resources"] if one["mode"] == "managed"]
    return Counter(
        (one["type"], _id(one["type"], instance["attributes"]))
        for one in managed
        for instance in one["instances"]
        if one["type"] not in ("aws_ec2_tag", "aws_efs_file_system_policy", "aws_secretsmanager_secret_version")
    )


def locks(r: Rehearsal, bucket: str) -> list[str]:
    """The lock files in the state's bucket."""
    found = client(r, "s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return [one["Key"] for one in found if one["Key"].endswith(".tflock")]


def _id(type_: str, values: dict[str, Any]) -> str:
    if type_ == "aws_eks_pod_identity_association":
        return str(values["association_id"])
    if type_ == "aws_iam_role_policy_attachment":
        return f"{values['role']}:{values['policy_arn']}"
    if type_ == "aws_eks_access_policy_association":
        return f"{values['cluster_name']}:{values['principal_arn']}:{values['policy_arn']}"
    return str(values["id"])


def _all(r: Rehearsal, name: str) -> Iterator[tuple[str, str]]:
    yield from _ec2(client(r, "ec2"), name)
    yield from _eks(client(r, "eks"), name)
    yield from _iam(client(r, "iam"), name)
    yield from _efs(client(r, "efs"), name)
    for one in client(r, "logs").describe_log_groups()["logGroups"]:
        if name in one["logGroupName"].split("/"):
            yield "aws_cloudwatch_log_group", one["logGroupName"]
    for one in client(r, "secretsmanager").list_secrets()["SecretList"]:
        if one["Name"].startswith(f"{name}/"):
            yield "aws_secretsmanager_secret", one["ARN"]


def _ec2(ec2: Any, name: str) -> Iterator[tuple[str, str]]:
    for type_, (call, items, key) in _EC2.items():
        for one in getattr(ec2, call)()[items]:
            if not _tagged(one.get("Tags", ()), name) or one.get("State") == "deleted":
                continue
            yield type_, one[key]
            for association in one.get("Associations", ()) if type_ == "aws_route_table" else ():
                if not association["Main"]:
                    yield "aws_route_table_association", association["RouteTableAssociationId"]


def _efs(efs: Any, name: str) -> Iterator[tuple[str, str]]:
    for one in efs.describe_file_systems()["FileSystems"]:
        if _tagged(one["Tags"], name):
            yield "aws_efs_file_system", one["FileSystemId"]
            for target in efs.describe_mount_targets(FileSystemId=one["FileSystemId"])["MountTargets"]:
                yield "aws_efs_mount_target", target["MountTargetId"]


def _eks(eks: Any, name: str) -> Iterator[tuple[str, str]]:
    if name not in eks.list_clusters()["clusters"]:
        return
    yield "aws_eks_cluster", name
    for one in eks.list_nodegroups(clusterName=name)["nodegroups"]:
        yield "aws_eks_node_group", f"{name}:{one}"
    for one in eks.list_addons(clusterName=name)["addons"]:
        yield "aws_eks_addon", f"{name}:{one}"
    for one in eks.list_pod_identity_associations(clusterName=name)["associations"]:
        # An add-on's own ones are part of it.
        if not one.get("ownerArn"):
            yield "aws_eks_pod_identity_association", one["associationId"]
    for one in eks.list_access_entries(clusterName=name)["accessEntries"]:
        entry = eks.describe_access_entry(clusterName=name, principalArn=one)["accessEntry"]
        if _tagged([{"Key": key, "Value": value} for key, value in entry["tags"].items()], name):
            yield "aws_eks_access_entry", f"{name}:{one}"
        for policy in eks.list_associated_access_policies(clusterName=name, principalArn=one)[
            "associatedAccessPolicies"
        ]:
            yield "aws_eks_access_policy_association", f"{name}:{one}:{policy['policyArn']}"


def _iam(iam: Any, name: str) -> Iterator[tuple[str, str]]:
    for page in iam.get_paginator("list_roles").paginate():
        for role in page["Roles"]:
            try:
                tags = iam.list_role_tags(RoleName=role["RoleName"])["Tags"]
            except iam.exceptions.NoSuchEntityException:  # another environment's, which is destroyed meanwhile
                continue
            if not _tagged(tags, name):
                continue
            yield "aws_iam_role", role["RoleName"]
            for policy in iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]:
                yield "aws_iam_role_policy_attachment", f"{role['RoleName']}:{policy['PolicyArn']}"
            for inline in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]:
                yield "aws_iam_role_policy", f"{role['RoleName']}:{inline}"


def _tagged(tags: Any, name: str) -> bool:
    return any(one["Key"] == TAG and one["Value"] == name for one in tags)
