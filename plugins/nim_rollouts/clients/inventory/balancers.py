"""Load balancers, which controllers in the cluster make, and which outlive it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nim_rollouts.clients.inventory.aws import Look, is_gone, pages, tags_of
from nim_rollouts.clients.inventory.network import GROUP, SUBNET, VPC, refs
from nim_rollouts.core.inventory import Scope, Thing

BALANCER, CLASSIC, TARGETS = "load balancer", "classic load balancer", "target group"
#: As many as one DescribeTags takes.
_AT_ONCE = 20
#: A load balancer or target group, and its tags.
Tagged = tuple[Mapping[str, Any], dict[str, str]]


def newer(elbv2: Any) -> Iterator[Tagged]:
    """The account's load balancers of the newer kinds: application, network, gateway."""
    found = list(pages(elbv2, "describe_load_balancers", "LoadBalancers"))
    yield from _with_tags(elbv2, found, "LoadBalancerArn", "ResourceArns", "ResourceArn")


def classic(elb: Any) -> Iterator[Tagged]:
    """Its classic ones."""
    found = list(pages(elb, "describe_load_balancers", "LoadBalancerDescriptions"))
    yield from _with_tags(elb, found, "LoadBalancerName", "LoadBalancerNames", "LoadBalancerName")


def _with_tags(client: Any, items: list[Any], key: str, asked: str, answered: str) -> Iterator[Tagged]:
    """What has gone in between is left out. Tags cannot be asked for in the list itself."""
    for start in range(0, len(items), _AT_ONCE):
        batch = items[start : start + _AT_ONCE]
        try:
            told = client.describe_tags(**{asked: [one[key] for one in batch]})["TagDescriptions"]
        except client.exceptions.ClientError as error:
            if not is_gone(error):
                raise
            # One of them has gone: each by itself.
            for one in batch if len(batch) > 1 else ():
                yield from _with_tags(client, [one], key, asked, answered)
            continue
        tags = {one[answered]: tags_of(one) for one in told}
        yield from ((one, tags.get(one[key], {})) for one in batch)


def _balancers(elbv2: Any, scope: Scope) -> Iterator[Thing]:
    for item, tags in newer(elbv2):
        yield Thing(
            BALANCER,
            _short(item["LoadBalancerArn"]),
            item["LoadBalancerName"],
            tags,
            item.get("VpcId"),
            holds=(
                *refs(GROUP, *item.get("SecurityGroups", ())),
                *refs(SUBNET, *(zone.get("SubnetId") for zone in item.get("AvailabilityZones", ()))),
                *refs(VPC, item.get("VpcId")),
            ),
            held_by=_service(tags),
            state=str(item.get("Type", "")),
        )


def _service(tags: dict[str, str]) -> tuple[str, ...]:
    named = tags.get("service.k8s.aws/stack") or tags.get("kubernetes.io/service-name")
    ingress = tags.get("ingress.k8s.aws/stack")
    return tuple(f"{kind} {name}" for kind, name in (("Service", named), ("Ingress", ingress)) if name)


def _classic(elb: Any, scope: Scope) -> Iterator[Thing]:
    for item, tags in classic(elb):
        yield Thing(
            CLASSIC,
            item["LoadBalancerName"],
            tags=tags,
            vpc=item.get("VPCId"),
            holds=(
                *refs(GROUP, *item.get("SecurityGroups", ())),
                *refs(SUBNET, *item.get("Subnets", ())),
                *refs(VPC, item.get("VPCId")),
            ),
            held_by=_service(tags),
        )


def _targets(elbv2: Any, scope: Scope) -> Iterator[Thing]:
    found = list(pages(elbv2, "describe_target_groups", "TargetGroups"))
    for item, tags in _with_tags(elbv2, found, "TargetGroupArn", "ResourceArns", "ResourceArn"):
        yield Thing(
            TARGETS,
            _short(item["TargetGroupArn"]),
            item["TargetGroupName"],
            tags,
            item.get("VpcId"),
            held_by=refs(BALANCER, *(_short(arn) for arn in item.get("LoadBalancerArns", ()))),
        )


def _short(arn: str) -> str:
    """`app/name/0123` of a balancer's ARN, as AWS writes it into its interfaces; `name/0123` of a target group's."""
    return arn.rpartition(":")[2].partition("/")[2]


LOOKS = (
    Look((BALANCER,), ("elbv2",), _balancers),
    Look((TARGETS,), ("elbv2",), _targets),
    Look((CLASSIC,), ("elb",), _classic),
)
