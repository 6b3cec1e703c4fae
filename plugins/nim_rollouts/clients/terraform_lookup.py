"""Whether AWS has already what a plan would create: one look-up a resource type, by name or by tags.

A thing is ours only if it carries every tag that the plan would give it, the environment's among them, or, where AWS
keeps no tags, if it hangs on a thing of ours. Names alone prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from nim_rollouts.core.adoption import LOG_GROUP, Creation, control_plane_logs
from nim_rollouts.core.inventory import ENVIRONMENT_TAG as TAG

Client = Callable[[str], Any]
_Told = TypeVar("_Told")


@dataclass(frozen=True)
class Found:
    """A thing in AWS. `id`: what its type is imported by; `state`: AWS's word for where it is in its life."""

    id: str
    state: str = ""

    @property
    def coming_up(self) -> bool:
        """It cannot be used yet: whoever needs it must wait."""
        return self.state.lower() in ("creating", "pending", "associating")

    @property
    def broken(self) -> bool:
        """It will never be usable."""
        return self.state.lower().replace("_", "-") in ("failed", "create-failed", "error")


class Absent(Exception):
    """AWS has no such thing."""


class Undetermined(Exception):
    """What it hangs on is not known yet: ask again once that is found."""


def look(creation: Creation, client: Client) -> list[Found]:
    """Everything in AWS that is this planned thing: none, one, or several.

    :raises Undetermined: see there
    :raises KeyError: nobody knows how to look for this type (`known`)
    """
    try:
        return _answer(lambda: list(_LOOKS[creation.type](creation, client))) or []
    except Absent:
        return []


def _answer(ask: Callable[[], _Told]) -> _Told | None:
    """What AWS answers; None where it says that there is no such thing."""
    from botocore.exceptions import ClientError

    try:
        return ask()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT or code.endswith((".NotFound", "NotFoundException")):
            return None
        raise


def written_again(cluster: str, environment: str, client: Client) -> str | None:
    """The log group of a control plane that has gone, which EKS made again for the last of its logs after terraform had
    deleted it. None where there is none, while the cluster stands, and where the group carries tags of others.

    Its name alone has to prove that it is ours: EKS tags nothing, and no other cluster of the account can have had it.
    """
    name = control_plane_logs(cluster)
    wanted = Creation("", LOG_GROUP, {"name": name})
    if _answer(lambda: client("eks").describe_cluster(name=cluster)) is not None:
        return None
    tags = next((tags for _, tags in _log_groups(wanted, client)), None)
    return name if tags is not None and (not tags or tags.get(TAG) == environment) else None


def known(type_: str) -> bool:
    """Whether `look` knows the type."""
    return type_ in _LOOKS


_ABSENT = ("NoSuchEntity", "ResourceNotFound", "ResourceNotFoundException", "FileSystemNotFound",
           "AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")  # fmt: skip
#: States of what has gone or is going.
_GOING = ("deleting", "deleted", "disassociating", "disassociated", "delete_failed")


def _need(creation: Creation, *names: str) -> list[Any]:
    missing = [name for name in names if creation.values.get(name) in (None, "")]
    if missing:
        raise Undetermined(f"{creation.address}: {', '.join(missing)}")
    return [creation.values[name] for name in names]


def _ours(creation: Creation, tags: Mapping[str, str] | Iterable[Mapping[str, str]] | None) -> bool:
    """Every tag of the plan is on it. `tags`: a mapping, or AWS's lists of Key and Value."""
    pairs = tags if isinstance(tags, Mapping) else {
        one.get("Key", one.get("key", "")): one.get("Value", one.get("value", "")) for one in tags or ()
    }  # fmt: skip
    wanted = creation.tags
    return TAG in wanted and all(pairs.get(key) == value for key, value in wanted.items())


def _by_tags(
    call: str, items: str, key: str, state: str = "", **fields: str
) -> Callable[[Creation, Client], Iterator[Found]]:
    """Of EC2: everything with all the tags. `fields`: arguments that tell two of the same tags apart, and what AWS
    calls them; what the plan does not know yet is not compared."""

    def find(creation: Creation, client: Client) -> Iterator[Found]:
        if TAG not in creation.tags:
            return
        filters = [{"Name": f"tag:{TAG}", "Values": [creation.tags[TAG]]}]
        ec2 = client("ec2")
        pages = ec2.get_paginator(call).paginate(Filters=filters) if ec2.can_paginate(call) else [
            getattr(ec2, call)(Filters=filters)
        ]  # fmt: skip
        for page in pages:
            for one in page[items]:
                same = all(creation.values.get(name) in (None, one.get(field)) for name, field in fields.items())
                if same and _ours(creation, one.get("Tags")) and str(one.get(state, "")).lower() not in _GOING:
                    yield Found(one[key], one.get(state, ""))

    return find


def _ingress_rule(creation: Creation, client: Client) -> Iterator[Found]:
    (group,) = _need(creation, "security_group_id")
    filters = [{"Name": "group-id", "Values": [group]}]
    for page in client("ec2").get_paginator("describe_security_group_rules").paginate(Filters=filters):
        for rule in page["SecurityGroupRules"]:
            values = (rule.get("IpProtocol"), rule.get("FromPort"), rule.get("ToPort"))
            wanted = tuple(creation.values.get(name) for name in ("ip_protocol", "from_port", "to_port"))
            if not rule.get("IsEgress") and values == wanted and _ours(creation, rule.get("Tags")):
                yield Found(rule["SecurityGroupRuleId"])


def _cidr(creation: Creation, client: Client) -> Iterator[Found]:
    vpc, block = _need(creation, "vpc_id", "cidr_block")
    for one in client("ec2").describe_vpcs(VpcIds=[vpc])["Vpcs"]:
        for association in one.get("CidrBlockAssociationSet", ()):
            state = association.get("CidrBlockState", {}).get("State", "")
            if association["CidrBlock"] == block and state not in _GOING:
                yield Found(association["AssociationId"], state)


def _route_table_association(creation: Creation, client: Client) -> Iterator[Found]:
    subnet, table = _need(creation, "subnet_id", "route_table_id")
    for one in client("ec2").describe_route_tables(RouteTableIds=[table])["RouteTables"]:
        for association in one.get("Associations", ()):
            if association.get("SubnetId") == subnet:
                yield Found(f"{subnet}/{table}")


def _role(creation: Creation, client: Client) -> Iterator[Found]:
    (name,) = _need(creation, "name")
    role = client("iam").get_role(RoleName=name)["Role"]
    if _ours(creation, role.get("Tags")):
        yield Found(name)


def _cluster(creation: Creation, client: Client) -> Iterator[Found]:
    (name,) = _need(creation, "name")
    yield from _eks(creation, name, client("eks").describe_cluster(name=name)["cluster"])


def _node_group(creation: Creation, client: Client) -> Iterator[Found]:
    cluster, name = _need(creation, "cluster_name", "node_group_name")
    answer = client("eks").describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
    yield from _eks(creation, f"{cluster}:{name}", answer)


def _addon(creation: Creation, client: Client) -> Iterator[Found]:
    cluster, name = _need(creation, "cluster_name", "addon_name")
    yield from _eks(
        creation, f"{cluster}:{name}", client("eks").describe_addon(clusterName=cluster, addonName=name)["addon"]
    )


def _access_entry(creation: Creation, client: Client) -> Iterator[Found]:
    cluster, principal = _need(creation, "cluster_name", "principal_arn")
    answer = client("eks").describe_access_entry(clusterName=cluster, principalArn=principal)["accessEntry"]
    yield from _eks(creation, f"{cluster}:{principal}", answer)


def _pod_identity(creation: Creation, client: Client) -> Iterator[Found]:
    cluster, namespace, account = _need(creation, "cluster_name", "namespace", "service_account")
    eks = client("eks")
    listed = eks.list_pod_identity_associations(clusterName=cluster, namespace=namespace, serviceAccount=account)
    for one in listed["associations"]:
        identifier = one["associationId"]
        answer = eks.describe_pod_identity_association(clusterName=cluster, associationId=identifier)["association"]
        yield from _eks(creation, f"{cluster},{identifier}", answer)


def _eks(creation: Creation, identifier: str, answer: Mapping[str, Any]) -> Iterator[Found]:
    state = str(answer.get("status", ""))
    if state.lower() not in _GOING and _ours(creation, answer.get("tags")):
        yield Found(identifier, state)


def _file_system(creation: Creation, client: Client) -> Iterator[Found]:
    (token,) = _need(creation, "creation_token")
    for one in client("efs").describe_file_systems(CreationToken=token)["FileSystems"]:
        if one["LifeCycleState"] not in _GOING and _ours(creation, one.get("Tags")):
            yield Found(one["FileSystemId"], one["LifeCycleState"])


def _mount_target(creation: Creation, client: Client) -> Iterator[Found]:
    system, subnet = _need(creation, "file_system_id", "subnet_id")
    for one in client("efs").describe_mount_targets(FileSystemId=system)["MountTargets"]:
        if one["SubnetId"] == subnet and one["LifeCycleState"] not in _GOING:
            yield Found(one["MountTargetId"], one["LifeCycleState"])


def _log_groups(creation: Creation, client: Client) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(name, tags) of the group of exactly this name."""
    (name,) = _need(creation, "name")
    logs = client("logs")
    for page in logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=name):
        for one in page["logGroups"]:
            if one["logGroupName"] == name:
                arn = one.get("logGroupArn") or one["arn"].removesuffix(":*")
                yield name, logs.list_tags_for_resource(resourceArn=arn)["tags"]


def _log_group(creation: Creation, client: Client) -> Iterator[Found]:
    for name, tags in _log_groups(creation, client):
        if _ours(creation, tags):
            yield Found(name)


def _secret(creation: Creation, client: Client) -> Iterator[Found]:
    (name,) = _need(creation, "name")
    answer = client("secretsmanager").describe_secret(SecretId=name)
    if "DeletedDate" not in answer and _ours(creation, answer.get("Tags")):
        yield Found(answer["ARN"])


def _queue(creation: Creation, client: Client) -> Iterator[Found]:
    (name,) = _need(creation, "name")
    sqs = client("sqs")
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    if _ours(creation, sqs.list_queue_tags(QueueUrl=url).get("Tags", {})):
        yield Found(url)


def _event_rule(creation: Creation, client: Client) -> Iterator[Found]:
    (name,) = _need(creation, "name")
    events = client("events")
    arn = events.describe_rule(Name=name)["Arn"]
    if _ours(creation, events.list_tags_for_resource(ResourceARN=arn).get("Tags")):
        yield Found(name)


_LOOKS: dict[str, Callable[[Creation, Client], Iterator[Found]]] = {
    "aws_cloudwatch_event_rule": _event_rule,
    "aws_cloudwatch_log_group": _log_group,
    "aws_efs_file_system": _file_system,
    "aws_efs_mount_target": _mount_target,
    "aws_eip": _by_tags("describe_addresses", "Addresses", "AllocationId"),
    "aws_eks_access_entry": _access_entry,
    "aws_eks_addon": _addon,
    "aws_eks_cluster": _cluster,
    "aws_eks_node_group": _node_group,
    "aws_eks_pod_identity_association": _pod_identity,
    "aws_iam_role": _role,
    "aws_internet_gateway": _by_tags("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
    "aws_launch_template": _by_tags("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId",
                                    name="LaunchTemplateName"),
    "aws_nat_gateway": _by_tags("describe_nat_gateways", "NatGateways", "NatGatewayId", "State", subnet_id="SubnetId"),
    "aws_route_table": _by_tags("describe_route_tables", "RouteTables", "RouteTableId", vpc_id="VpcId"),
    "aws_route_table_association": _route_table_association,
    "aws_secretsmanager_secret": _secret,
    "aws_security_group": _by_tags("describe_security_groups", "SecurityGroups", "GroupId",
                                   name="GroupName", vpc_id="VpcId"),
    "aws_sqs_queue": _queue,
    "aws_subnet": _by_tags("describe_subnets", "Subnets", "SubnetId", "State", cidr_block="CidrBlock", vpc_id="VpcId"),
    "aws_vpc": _by_tags("describe_vpcs", "Vpcs", "VpcId", "State", cidr_block="CidrBlock"),
    "aws_vpc_ipv4_cidr_block_association": _cidr,
    "aws_vpc_security_group_ingress_rule": _ingress_rule,
}  # fmt: skip
