"""Networks and what lies in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nim_rollouts.clients.inventory.aws import Look, pages, tags_of
from nim_rollouts.core.inventory import Scope, Thing, ref

VPC, SUBNET, GROUP, INTERFACE = "VPC", "subnet", "security group", "network interface"
TABLE, INTERNET, NAT, ADDRESS, ENDPOINT = (
    "route table", "internet gateway", "NAT gateway", "elastic address", "VPC endpoint",
)  # fmt: skip

Item = Mapping[str, Any]


def of_ec2(
    ec2: Any, operation: str, items: str, scope: Scope, vpc_filter: str | None = "vpc-id", **arguments: Any
) -> Iterator[Any]:
    """Items that carry one of the tags in question, whatever its value, and items in our networks; some twice."""
    yield from pages(ec2, operation, items, Filters=[{"Name": "tag-key", "Values": sorted(scope.marks)}], **arguments)
    if vpc_filter and scope.vpcs:
        yield from pages(
            ec2, operation, items, Filters=[{"Name": vpc_filter, "Values": sorted(scope.vpcs)}], **arguments
        )


def _looking(
    operation: str, items: str, read: Callable[[Item], Thing | None], vpc_filter: str | None = "vpc-id"
) -> Callable[[Any, Scope], Iterator[Thing]]:
    def see(ec2: Any, scope: Scope) -> Iterator[Thing]:
        for item in of_ec2(ec2, operation, items, scope, vpc_filter):
            thing = read(item)
            if thing is not None:
                yield thing

    return see


def refs(kind: str, *identifiers: str | None) -> tuple[str, ...]:
    """References of those that are there."""
    return tuple(ref(kind, one) for one in identifiers if one)


def _vpc(item: Item) -> Thing:
    return Thing(VPC, item["VpcId"], _named(item), tags_of(item), item["VpcId"])


def _subnet(item: Item) -> Thing:
    return Thing(
        SUBNET, item["SubnetId"], _named(item), tags_of(item), item["VpcId"], holds=refs(VPC, item["VpcId"])
    )  # fmt: skip


def _group(item: Item) -> Thing | None:
    # Every VPC has a group `default`, which goes with it.
    if item["GroupName"] == "default":
        return None
    rules = [*item.get("IpPermissions", ()), *item.get("IpPermissionsEgress", ())]
    others = {pair.get("GroupId") for rule in rules for pair in rule.get("UserIdGroupPairs", ())} - {item["GroupId"]}
    return Thing(
        GROUP,
        item["GroupId"],
        item["GroupName"],
        tags_of(item),
        item.get("VpcId"),
        holds=(*refs(VPC, item.get("VpcId")), *refs(GROUP, *sorted(one for one in others if one))),
        description=item.get("Description", ""),
    )


def _interface(item: Item) -> Thing:
    attachment = item.get("Attachment") or {}
    description = item.get("Description", "")
    held_by = refs("instance", attachment.get("InstanceId"))
    if not held_by and attachment:
        held_by = (_service_behind(description, attachment.get("InstanceOwnerId", "")),)
    return Thing(
        INTERFACE,
        item["NetworkInterfaceId"],
        tags=tags_of(item),
        vpc=item.get("VpcId"),
        holds=(
            *refs(SUBNET, item.get("SubnetId")),
            *refs(GROUP, *(group["GroupId"] for group in item.get("Groups", ()))),
            *refs(VPC, item.get("VpcId")),
            *refs(ADDRESS, (item.get("Association") or {}).get("AllocationId")),
        ),
        held_by=held_by,
        description=description,
        state=item.get("Status", ""),
        going=item.get("Status") == "detaching",
    )


def _service_behind(description: str, owner: str) -> str:
    """AWS writes into an interface's description which of its services it is for."""
    if description.startswith("ELB "):
        return f"load balancer {description.removeprefix('ELB ')}"
    if description.startswith("Interface for NAT Gateway "):
        return ref(NAT, description.rpartition(" ")[2])
    if description.startswith("EFS mount target for "):
        return description
    if description.startswith("Amazon EKS "):
        return f"the control plane of EKS cluster {description.removeprefix('Amazon EKS ')}"
    return f"a service of AWS ({owner or 'unnamed'}: {description or 'no description'})"


def _table(item: Item) -> Thing | None:
    # The main table goes with its VPC.
    if any(one.get("Main") for one in item.get("Associations", ())):
        return None
    subnets = [one.get("SubnetId") for one in item.get("Associations", ())]
    return Thing(
        TABLE,
        item["RouteTableId"],
        _named(item),
        tags_of(item),
        item["VpcId"],
        holds=refs(VPC, item["VpcId"]),
        held_by=refs(SUBNET, *subnets),
    )


def _internet(item: Item) -> Thing:
    vpcs = [one.get("VpcId") for one in item.get("Attachments", ())]
    return Thing(
        INTERNET,
        item["InternetGatewayId"],
        _named(item),
        tags_of(item),
        next(iter(vpcs), None),
        holds=refs(VPC, *vpcs),
    )


def _nat(item: Item) -> Thing | None:
    # AWS shows a deleted one for about an hour.
    if item["State"] == "deleted":
        return None
    addresses = item.get("NatGatewayAddresses", ())
    return Thing(
        NAT,
        item["NatGatewayId"],
        _named(item),
        tags_of(item),
        item.get("VpcId"),
        holds=(
            *refs(SUBNET, item.get("SubnetId")),
            *refs(VPC, item.get("VpcId")),
            *refs(ADDRESS, *(one.get("AllocationId") for one in addresses)),
            *refs(INTERFACE, *(one.get("NetworkInterfaceId") for one in addresses)),
        ),
        state=item["State"],
        going=item["State"] == "deleting",
    )


def _address(item: Item) -> Thing:
    held = refs("instance", item.get("InstanceId")) or refs(INTERFACE, item.get("NetworkInterfaceId"))
    identifier = item.get("AllocationId") or item["PublicIp"]
    return Thing(ADDRESS, identifier, item.get("PublicIp", ""), tags_of(item), held_by=held)


def _endpoint(item: Item) -> Thing | None:
    if str(item.get("State")).lower() == "deleted":
        return None
    return Thing(
        ENDPOINT,
        item["VpcEndpointId"],
        item.get("ServiceName", ""),
        tags_of(item),
        item.get("VpcId"),
        holds=(
            *refs(VPC, item.get("VpcId")),
            *refs(INTERFACE, *item.get("NetworkInterfaceIds", ())),
            *refs(GROUP, *(group["GroupId"] for group in item.get("Groups", ()))),
        ),
        state=str(item.get("State", "")),
        going=str(item.get("State")).lower() == "deleting",
    )


def _named(item: Item) -> str:
    return tags_of(item).get("Name", "")


#: First of all: what it finds tells the other looks where to look.
NETWORKS = Look((VPC,), ("ec2",), _looking("describe_vpcs", "Vpcs", _vpc))

LOOKS = (
    Look((SUBNET,), ("ec2",), _looking("describe_subnets", "Subnets", _subnet)),
    Look((GROUP,), ("ec2",), _looking("describe_security_groups", "SecurityGroups", _group)),
    Look((INTERFACE,), ("ec2",), _looking("describe_network_interfaces", "NetworkInterfaces", _interface)),
    Look((TABLE,), ("ec2",), _looking("describe_route_tables", "RouteTables", _table)),
    Look((INTERNET,), ("ec2",), _looking("describe_internet_gateways", "InternetGateways", _internet,
                                      "attachment.vpc-id")),
    Look((NAT,), ("ec2",), _looking("describe_nat_gateways", "NatGateways", _nat)),
    Look((ADDRESS,), ("ec2",), _looking("describe_addresses", "Addresses", _address, None)),
    Look((ENDPOINT,), ("ec2",), _looking("describe_vpc_endpoints", "VpcEndpoints", _endpoint)),
)  # fmt: skip
