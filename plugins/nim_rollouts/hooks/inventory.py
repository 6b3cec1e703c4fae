"""What AWS still has of an environment. Three answers: nothing, these things, or unknown; only the first is success."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import InventoryUnknown

TAG = "nim-rollouts/environment"


def leftovers(environment: Environment) -> list[str]:
    """`kind id` of everything that is still there.

    :raises InventoryUnknown: a place could not be looked at
    """
    from botocore.exceptions import BotoCoreError, ClientError

    found: list[str] = []
    for what, look in _places(environment).items():
        try:
            found += [f"{what} {one}" for one in look()]
        except (BotoCoreError, ClientError) as error:
            raise InventoryUnknown(
                f"AWS does not tell about {what} in {environment.region}: {error}",
                hint="Grant the worker's role the reading call, or wait for AWS, and clear this task",
            ) from error
    return found


def _places(environment: Environment) -> dict[str, Callable[[], Iterable[str]]]:
    ec2, eks, efs, iam, logs = (_client(environment, service) for service in ("ec2", "eks", "efs", "iam", "logs"))
    ours = [{"Name": f"tag:{TAG}", "Values": [environment.name]}]

    def of_ec2(call: str, items: str, key: str) -> Callable[[], Iterable[str]]:
        return lambda: [one[key] for page in ec2.get_paginator(call).paginate(Filters=ours) for one in page[items]]

    return {
        "EKS cluster": lambda: _cluster(eks, environment.cluster.name),
        "EFS file system": lambda: _file_systems(efs, environment.name),
        "VPC": of_ec2("describe_vpcs", "Vpcs", "VpcId"),
        "subnet": of_ec2("describe_subnets", "Subnets", "SubnetId"),
        "security group": of_ec2("describe_security_groups", "SecurityGroups", "GroupId"),
        "internet gateway": of_ec2("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
        "network interface": of_ec2("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
        "volume": of_ec2("describe_volumes", "Volumes", "VolumeId"),
        "NAT gateway": lambda: _nat_gateways(ec2, ours),
        "elastic address": lambda: [one["AllocationId"] for one in ec2.describe_addresses(Filters=ours)["Addresses"]],
        "instance": lambda: _instances(ec2, ours),
        "IAM role": lambda: _roles(iam, environment),
        # The dying control plane may write once more and so make it again, unknown to terraform: the next apply fails.
        "log group": lambda: _log_groups(logs, f"/aws/eks/{environment.cluster.name}/cluster"),
    }


def _client(environment: Environment, service: str) -> Any:
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

    return AwsBaseHook(
        aws_conn_id=environment.aws_conn_id, client_type=service, region_name=environment.region
    ).get_conn()


def _cluster(eks: Any, name: str) -> list[str]:
    try:
        eks.describe_cluster(name=name)
    except eks.exceptions.ResourceNotFoundException:
        return []
    return [name]


def _file_systems(efs: Any, environment: str) -> list[str]:
    wanted = {"Key": TAG, "Value": environment}
    pages = efs.get_paginator("describe_file_systems").paginate()
    return [one["FileSystemId"] for page in pages for one in page["FileSystems"] if wanted in one.get("Tags", ())]


def _nat_gateways(ec2: Any, ours: list[dict[str, Any]]) -> list[str]:
    pages = ec2.get_paginator("describe_nat_gateways").paginate(Filters=ours)
    # AWS shows a deleted one for about an hour.
    return [one["NatGatewayId"] for page in pages for one in page["NatGateways"] if one["State"] != "deleted"]


def _instances(ec2: Any, ours: list[dict[str, Any]]) -> list[str]:
    pages = ec2.get_paginator("describe_instances").paginate(Filters=ours)
    instances = [one for page in pages for group in page["Reservations"] for one in group["Instances"]]
    return [one["InstanceId"] for one in instances if one["State"]["Name"] != "terminated"]


def _log_groups(logs: Any, name: str) -> list[str]:
    pages = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=name)
    return [one["logGroupName"] for page in pages for one in page["logGroups"] if one["logGroupName"] == name]


def _roles(iam: Any, environment: Environment) -> list[str]:
    """Roles are of the account, not the region: our names first, then our tag, which a list does not show."""
    prefix = f"{environment.cluster.name}-"
    names = [
        role["RoleName"]
        for page in iam.get_paginator("list_roles").paginate()
        for role in page["Roles"]
        if role["RoleName"].startswith(prefix)
    ]
    wanted = {"Key": TAG, "Value": environment.name}
    return [name for name in names if wanted in iam.list_role_tags(RoleName=name)["Tags"]]
