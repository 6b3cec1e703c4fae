"""Everything that exists in the AWS stand-in, to prove what a teardown left. Looks through the API, as a user would.

What every AWS account is born with is left out: the default VPC with its parts, AWS's own policies and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rehearsal.aws.environment import environment

if TYPE_CHECKING:
    from rehearsal.config import Rehearsal

Clients = Callable[[str], Any]


def inventory(r: Rehearsal, region: str = "us-west-2") -> dict[str, list[str]]:
    """Kind -> identifiers, for every kind of which something exists.

    An AWS call that fails raises: unknown is not empty.
    """
    return inventory_at(r.url("aws"), region)


def inventory_at(endpoint_url: str, region: str = "us-west-2") -> dict[str, list[str]]:
    """The same for a stand-in by its address."""
    import boto3

    variables = environment(endpoint_url, region)
    session = boto3.Session(
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=region,
    )
    clients: dict[str, Any] = {}

    def client(service: str) -> Any:
        if service not in clients:
            clients[service] = session.client(service, endpoint_url=endpoint_url)
        return clients[service]

    found: dict[str, list[str]] = {}
    for look in (_eks, _network, _compute, _efs, _iam, _rest):
        for kind, identifier in look(client):
            found.setdefault(kind, []).append(identifier)
    return {kind: sorted(found[kind]) for kind in sorted(found)}


def _pages(client: Any, operation: str, key: str, **arguments: Any) -> Iterator[Any]:
    if client.can_paginate(operation):
        for page in client.get_paginator(operation).paginate(**arguments):
            yield from page.get(key, [])
    else:
        yield from getattr(client, operation)(**arguments).get(key, [])


def _eks(client: Clients) -> Iterator[tuple[str, str]]:
    eks = client("eks")
    for name in _pages(eks, "list_clusters", "clusters"):
        yield "eks-cluster", name
        for group in _pages(eks, "list_nodegroups", "nodegroups", clusterName=name):
            yield "eks-nodegroup", f"{name}/{group}"
        for addon in _pages(eks, "list_addons", "addons", clusterName=name):
            yield "eks-addon", f"{name}/{addon}"
        for entry in _pages(eks, "list_access_entries", "accessEntries", clusterName=name):
            yield "eks-access-entry", f"{name}/{entry}"
        for association in _pages(eks, "list_pod_identity_associations", "associations", clusterName=name):
            yield "eks-pod-identity", f"{name}/{association['namespace']}/{association['serviceAccount']}"


def _network(client: Clients) -> Iterator[tuple[str, str]]:
    ec2 = client("ec2")
    default = {vpc["VpcId"] for vpc in _pages(ec2, "describe_vpcs", "Vpcs") if vpc["IsDefault"]}
    in_vpc = (
        ("ec2-vpc", "describe_vpcs", "Vpcs", "VpcId"),
        ("ec2-subnet", "describe_subnets", "Subnets", "SubnetId"),
        ("ec2-security-group", "describe_security_groups", "SecurityGroups", "GroupId"),
        ("ec2-network-interface", "describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
        ("ec2-route-table", "describe_route_tables", "RouteTables", "RouteTableId"),
        ("ec2-nat-gateway", "describe_nat_gateways", "NatGateways", "NatGatewayId"),
        ("ec2-vpc-endpoint", "describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
    )
    for kind, operation, key, identifier in in_vpc:
        for item in _pages(ec2, operation, key):
            # AWS shows a deleted NAT gateway for about an hour.
            if item.get("VpcId") not in default and item.get("State") != "deleted":
                yield kind, item[identifier]
    for gateway in _pages(ec2, "describe_internet_gateways", "InternetGateways"):
        if not {a["VpcId"] for a in gateway["Attachments"]} & default:
            yield "ec2-internet-gateway", gateway["InternetGatewayId"]
    for address in _pages(ec2, "describe_addresses", "Addresses"):
        yield "ec2-address", address.get("AllocationId", address["PublicIp"])


def _compute(client: Clients) -> Iterator[tuple[str, str]]:
    ec2 = client("ec2")
    for reservation in _pages(ec2, "describe_instances", "Reservations"):
        for instance in reservation["Instances"]:
            if instance["State"]["Name"] != "terminated":
                yield "ec2-instance", instance["InstanceId"]
    for volume in _pages(ec2, "describe_volumes", "Volumes"):
        yield "ec2-volume", volume["VolumeId"]
    for template in _pages(ec2, "describe_launch_templates", "LaunchTemplates"):
        yield "ec2-launch-template", template["LaunchTemplateName"]
    for balancer in _pages(client("elbv2"), "describe_load_balancers", "LoadBalancers"):
        yield "load-balancer", balancer["LoadBalancerName"]


def _efs(client: Clients) -> Iterator[tuple[str, str]]:
    efs = client("efs")
    for system in _pages(efs, "describe_file_systems", "FileSystems"):
        identifier = system["FileSystemId"]
        yield "efs-file-system", identifier
        for target in _pages(efs, "describe_mount_targets", "MountTargets", FileSystemId=identifier):
            yield "efs-mount-target", target["MountTargetId"]
        for point in _pages(efs, "describe_access_points", "AccessPoints", FileSystemId=identifier):
            yield "efs-access-point", point["AccessPointId"]


def _iam(client: Clients) -> Iterator[tuple[str, str]]:
    iam = client("iam")
    for role in _pages(iam, "list_roles", "Roles"):
        if not role["Path"].startswith("/aws-service-role/"):
            yield "iam-role", role["RoleName"]
    for policy in _pages(iam, "list_policies", "Policies", Scope="Local"):
        yield "iam-policy", policy["PolicyName"]
    for profile in _pages(iam, "list_instance_profiles", "InstanceProfiles"):
        yield "iam-instance-profile", profile["InstanceProfileName"]
    for provider in iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]:
        yield "iam-oidc-provider", provider["Arn"]


def _rest(client: Clients) -> Iterator[tuple[str, str]]:
    for bucket in client("s3").list_buckets()["Buckets"]:
        yield "s3-bucket", bucket["Name"]
    for secret in _pages(client("secretsmanager"), "list_secrets", "SecretList"):
        yield "secret", secret["Name"]
    for group in _pages(client("logs"), "describe_log_groups", "logGroups"):
        yield "log-group", group["logGroupName"]
    for url in _pages(client("sqs"), "list_queues", "QueueUrls"):
        yield "sqs-queue", url.rpartition("/")[2]
    for rule in client("events").list_rules()["Rules"]:
        yield "event-rule", rule["Name"]
    kms = client("kms")
    for key in _pages(kms, "list_keys", "Keys"):
        metadata = kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]
        if metadata["KeyManager"] == "CUSTOMER" and metadata["KeyState"] != "PendingDeletion":
            yield "kms-key", key["KeyId"]
