"""What an inventory's answer means to a task, the networks that are remembered, and who holds what terraform cannot
delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.inventory.rest import LOGS
from nim_rollouts.clients.store import FolderStore
from nim_rollouts.core.environment import Environment, load_environment
from nim_rollouts.core.errors import (
    AccessDenied,
    InventoryUnknown,
    LeftoversFound,
    TerraformUnavailable,
    as_facts,
    is_retryable,
)
from nim_rollouts.core.inventory import Finding, Inventory, Scope, Thing, Unseen, found_by, judge, owner
from nim_rollouts.hooks import inventory

PROD = Scope("prod", "prod", frozenset(["vpc-1"]))
GOING = Finding("NAT gateway", "nat-1", "", ("tag",), "us (terraform)", (), "deleting", going=True)
LEFT = Finding("instance", "i-1", "", ("vpc vpc-1",), "Karpenter", ("Auto Scaling group a",), "running", going=False)
DENIED = Unseen("volume", "AWS refuses ec2:DescribeVolumes (UnauthorizedOperation)", "ec2:DescribeVolumes")
SILENT = Unseen("SQS queue", "AWS throttles sqs:ListQueues (Throttling), also after retries")


def test_log_groups_under_the_clusters_own_prefixes_are_its_whatever_their_end() -> None:
    """Agents choose it: Prometheus' metrics, Fluent Bit's logs."""
    names = [
        "/aws/eks/prod/cluster",
        "/aws/eks/prod/fluent-bit",
        "/aws/containerinsights/prod/prometheus",
        "/aws/eks/prod-2/cluster",
        "/aws/eks/prod",
        "/team/aws/eks/prod/cluster",
    ]
    assert [name for name in names if found_by(Thing(LOGS, name), PROD) == ("name",)] == names[:3]
    neighbour = {"nim-rollouts/environment": "prod-2"}
    assert [name for name in names if found_by(Thing(LOGS, name, tags=neighbour), PROD)] == []


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (Thing("IAM role", "prod-node"), ("name",)),
        (Thing("IAM role", "prod-node", tags={"nim-rollouts/environment": "prod-2"}), ()),
        (Thing("IAM role", "prod-2-node"), ()),
        (Thing("security group", "sg-1", "prod"), ()),
        (Thing("instance", "i-1", tags={"kubernetes.io/cluster/prod": "shared"}), ()),
        (Thing("instance", "i-1", tags={"eks:eks-cluster-name": "prod"}), ("tag eks:eks-cluster-name",)),
        (
            Thing("volume", "vol-1", tags={"ebs.csi.aws.com/cluster-name": "prod"}),
            ("tag ebs.csi.aws.com/cluster-name",),
        ),
        (Thing("instance", "i-1", vpc="vpc-2"), ()),
        (Thing("instance", "i-1", vpc="vpc-1", tags={"nim-rollouts/environment": "b"}), ("vpc vpc-1",)),
    ],
)
def test_what_is_the_environments(thing: Thing, found: tuple[str, ...]) -> None:
    """By its tag, by a name that exists once, by the network; a neighbour's tag says whose a thing is."""
    assert found_by(thing, PROD) == found


@pytest.mark.parametrize(
    ("thing", "who"),
    [
        (Thing("instance", "i", tags={"karpenter.sh/nodepool": "g5", "nim-rollouts/environment": "e"}), "Karpenter"),
        (Thing("security group", "g", tags={"aws:eks:cluster-name": "e"}), "EKS"),
        (Thing("network interface", "n", description="Amazon EKS prod"), "EKS"),
        (Thing("network interface", "n", description="ELB app/a/1"), "a load balancer"),
        (Thing("network interface", "n", tags={"node.k8s.amazonaws.com/instance_id": "i-1"}), "the VPC CNI"),
        (Thing("EFS access point", "p", tags={"efs.csi.aws.com/cluster": "true"}), "the EFS CSI driver"),
        (Thing("VPC", "v", tags={"nim-rollouts/environment": "e"}), "us (terraform)"),
        (Thing("VPC", "v", tags={"Name": "mine"}), "unknown"),
    ],
)
def test_whose_a_thing_is(thing: Thing, who: str) -> None:
    assert owner(thing) == who


def test_two_things_that_hold_each_other_are_told() -> None:
    """Groups that name one another in their rules: each must lose the rule first."""
    one = Thing("security group", "sg-1", vpc="vpc-1", holds=("security group sg-2",))
    other = Thing("security group", "sg-2", vpc="vpc-1", holds=("security group sg-1",))
    left = judge([one, other], [], [], PROD).leftovers
    assert [finding.held_by[0].split(" of ")[0] for finding in left] == ["security group sg-2", "security group sg-1"]


@pytest.mark.parametrize(
    ("left", "unseen", "error", "reason", "says"),
    [
        ((LEFT,), (), LeftoversFound, "leftovers", "instance i-1: found by vpc vpc-1, made by Karpenter"),
        ((LEFT, GOING), (DENIED,), LeftoversFound, "leftovers", "grant ec2:DescribeVolumes"),
        ((GOING,), (), InventoryUnknown, "leftovers-going", "still deleting .* NAT gateway nat-1"),
        ((GOING,), (DENIED,), LeftoversFound, "leftovers", "nat-1"),
        ((), (DENIED,), AccessDenied, "inventory-denied", "ec2:DescribeVolumes"),
        ((), (DENIED, SILENT), InventoryUnknown, "inventory-unknown", "throttles sqs:ListQueues"),
    ],
)
def test_only_empty_is_success(
    left: tuple[Finding, ...], unseen: tuple[Unseen, ...], error: type[Exception], reason: str, says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        inventory.require_empty(Inventory(left, unseen, ("VPC",)))
    facts = as_facts(caught.value)
    assert facts["reason"] == reason and len(facts["evidence"]["leftovers"]) == len(left)
    assert is_retryable(caught.value) == (error is InventoryUnknown)
    inventory.require_empty(Inventory((), (), ("VPC",)))


def test_a_disk_of_an_instance_that_is_ending_is_looked_at_again() -> None:
    ending = Thing("instance", "i-1", vpc="vpc-1", holds=("volume vol-1",), state="shutting-down", going=True)
    disk = Thing("volume", "vol-1", tags={"nim-rollouts/environment": "prod"}, state="50 GiB in-use")
    with pytest.raises(InventoryUnknown, match="instance i-1, volume vol-1") as caught:
        inventory.require_empty(judge([ending, disk], [], [], PROD))
    assert caught.value.reason == "leftovers-going" and is_retryable(caught.value)
    with pytest.raises(LeftoversFound, match="vol-1"):
        inventory.require_empty(judge([disk], [], [], PROD))


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(root: Path) -> Environment:
    path = root / "include" / "environments" / "rehearsal.yaml"
    return load_environment("rehearsal", path.read_text(), path.name)


def test_networks_are_remembered_until_nothing_is_left(environment: Environment, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert inventory.networks(environment, store) == []
    asked: list[str] = []

    def addresses(identifier: str) -> list[str]:
        asked.append(identifier)
        return ["aws_vpc.this"]

    for outputs in ({"vpc_id": "vpc-2"}, {}, {"vpc_id": "vpc-1"}, {"vpc_id": "vpc-2"}, {"vpc_id": None}):
        inventory.remember_networks(environment, store, outputs, addresses)
    assert inventory.networks(environment, store) == ["vpc-1", "vpc-2"]
    assert asked == ["vpc-2", "vpc-1"], "terraform is started for what is new alone"
    inventory.forget_networks(environment, store)
    inventory.forget_networks(environment, store)
    assert inventory.networks(environment, store) == []


@pytest.mark.parametrize(
    ("addresses", "remembered"),
    [
        (["aws_vpc.this"], True),
        (["aws_vpc.this[0]"], True),
        (['module.network["a"].module.vpc.aws_vpc.this[0]'], True),
        ([], False),
        (["aws_default_vpc.default"], False),
        (["aws_vpc_dhcp_options_association.this"], False),
        (["module.aws_vpc.aws_route53_zone.this"], False),
    ],
)
def test_a_network_that_terraform_only_reads_is_not_the_environments(
    environment: Environment, tmp_path: Path, addresses: list[str], remembered: bool
) -> None:
    """Else a root in a VPC of others, with all that they have in it, would never end empty."""
    store = FolderStore(tmp_path)
    inventory.remember_networks(environment, store, {"vpc_id": "vpc-1"}, lambda _: addresses)
    assert inventory.networks(environment, store) == (["vpc-1"] if remembered else [])


SAID = "deleting EC2 VPC (vpc-0123456789abcdef0): DependencyViolation: has dependencies"


def test_who_holds_what_terraform_cannot_delete_stands_in_the_error(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def held(clients: Any, scope: Scope, identifiers: Any) -> dict[str, tuple[str, ...]]:
        asked.append((scope.vpcs, set(identifiers)))
        return {"vpc-0123456789abcdef0": ("network interface eni-1 of load balancer app/a/1",)}

    monkeypatch.setattr("nim_rollouts.clients.inventory.look.held", held)
    error = TerraformUnavailable(SAID, reason="dependency-violation", retry_after_s=60, hint="Remove it")
    told = inventory.naming_holders(environment, FolderStore(tmp_path), error)
    assert asked == [(frozenset(["vpc-0123456789abcdef0"]), {"vpc-0123456789abcdef0"})]
    assert "vpc-0123456789abcdef0 is held by network interface eni-1 of load balancer app/a/1" in told.message
    assert isinstance(told, TerraformUnavailable) and (told.reason, told.retry_after_s) == (error.reason, 60)


def test_terraforms_own_error_is_never_lost(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> dict[str, tuple[str, ...]]:
        raise RuntimeError("no answer")

    monkeypatch.setattr("nim_rollouts.clients.inventory.look.held", broken)
    for message in (SAID, "nothing is named"):
        error = TerraformUnavailable(message, reason="dependency-violation")
        assert inventory.naming_holders(environment, FolderStore(tmp_path), error) is error
