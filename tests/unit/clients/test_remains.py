"""What AWS still has of a step of a teardown, asked of moto: ours and nobody else's, and what is on its way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from nim_rollouts.clients import remains

CLUSTER = "test-cluster"
REGION = "us-west-2"


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    # Some hundred images that nobody here launches: seconds.
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        yield


def client(service: str) -> Any:
    return boto3.client(service, region_name=REGION)


def file_system(environment: str) -> str:
    tags = [{"Key": "nim-rollouts/environment", "Value": environment}]
    return str(client("efs").create_file_system(CreationToken=environment, Tags=tags)["FileSystemId"])


def access_point(of: str, token: str) -> str:
    return str(client("efs").create_access_point(FileSystemId=of, ClientToken=token)["AccessPointId"])


def test_of_an_environment_every_access_point_and_of_a_volume_its_own() -> None:
    efs, ours, theirs = client("efs"), file_system("ours"), file_system("theirs")
    mine, orphan, other = access_point(ours, "a"), access_point(ours, "b"), access_point(theirs, "c")
    assert remains.file_systems(efs, "nim-rollouts/environment", "ours") == [ours]
    assert {one.id for one in remains.access_points(efs, [ours])} == {mine, orphan}
    assert [one.id for one in remains.access_points(efs, [], [f"{ours}::{mine}"])] == [mine]
    assert other in remains.access_points(efs, [], [f"{theirs}::{other}"])[0].text
    efs.delete_access_point(AccessPointId=mine)
    assert remains.access_points(efs, [], [f"{ours}::{mine}"]) == []


def test_a_file_system_that_is_gone_has_no_access_points() -> None:
    assert remains.access_points(client("efs"), [], ["fs-0123456789abcdef0::fsap-0123456789abcdef0"]) == []


def launch(**tags: str) -> str:
    ec2 = client("ec2")
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    made = ec2.run_instances(
        ImageId="ami-0123456789abcdef0", MinCount=1, MaxCount=1, InstanceType="m5.large",
        TagSpecifications=[{"ResourceType": "instance", "Tags": pairs}],
    )  # fmt: skip
    return str(made["Instances"][0]["InstanceId"])


def test_instances_of_this_clusters_karpenter_until_they_are_terminated() -> None:
    owned = {f"kubernetes.io/cluster/{CLUSTER}": "owned"}
    launched = launch(**owned, **{"karpenter.sh/nodepool": "gpu"})
    launch(**owned)  # a managed node group's: terraform's
    launch(**{"kubernetes.io/cluster/other": "owned", "karpenter.sh/nodepool": "gpu"})
    (found,) = remains.instances(client("ec2"), CLUSTER)
    assert (found.id, found.going) == (launched, False)
    assert found.detail == "m5.large, node pool gpu, running"
    client("ec2").terminate_instances(InstanceIds=[launched])
    assert remains.instances(client("ec2"), CLUSTER) == []


def test_load_balancers_of_either_controller_and_their_interfaces() -> None:
    ec2, elbv2, elb = client("ec2"), client("elbv2"), client("elb")
    tags = [{"Key": "nim-rollouts/environment", "Value": "ours"}]
    specification = [{"ResourceType": "vpc", "Tags": tags}]
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=specification)["Vpc"]["VpcId"]
    subnets = []
    for n, zone in enumerate("ab"):
        made = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{REGION}{zone}")
        subnets.append(made["Subnet"]["SubnetId"])
    for name, tag in (
        ("alb", {"Key": "elbv2.k8s.aws/cluster", "Value": CLUSTER}),
        ("foreign", {"Key": "elbv2.k8s.aws/cluster", "Value": "other"}),
        # Somebody else's, which the cluster may use: it goes with no object of ours.
        ("shared", {"Key": f"kubernetes.io/cluster/{CLUSTER}", "Value": "shared"}),
    ):
        stack = {"Key": "ingress.k8s.aws/stack", "Value": "models/public"}
        elbv2.create_load_balancer(Name=name, Subnets=subnets, Tags=[tag, stack], Type="application")
    listener = {"Protocol": "tcp", "LoadBalancerPort": 80, "InstancePort": 80}
    for name, cluster in (("old", CLUSTER), ("foreign", "other")):
        elb.create_load_balancer(LoadBalancerName=name, Listeners=[listener], Subnets=subnets[:1])
        marks = [{"Key": f"kubernetes.io/cluster/{cluster}", "Value": "owned"}]
        elb.add_tags(LoadBalancerNames=[name], Tags=marks)
    found = remains.balancers(elbv2, elb, CLUSTER)
    assert [one.text for one in found] == [
        "load balancer alb (application, of models/public)",
        "load balancer old (classic, of nobody named)",
    ]
    for one in ec2.describe_network_interfaces()["NetworkInterfaces"]:
        ec2.delete_network_interface(NetworkInterfaceId=one["NetworkInterfaceId"])
    ec2.create_network_interface(SubnetId=subnets[0], Description="aws-K8S-i-1")
    left = ec2.create_network_interface(SubnetId=subnets[0], Description="ELB app/alb/1")["NetworkInterface"]
    assert remains.vpcs(ec2, "nim-rollouts/environment", "ours") == [vpc]
    (interface,) = remains.balancer_interfaces(ec2, [vpc])
    assert (interface.id, interface.going) == (left["NetworkInterfaceId"], True)
    assert remains.balancer_interfaces(ec2, []) == []


def test_a_balancer_of_the_account_that_goes_between_the_list_and_its_tags_hides_no_other() -> None:
    """AWS refuses the tags of all that were asked for together; moto leaves the missing one out."""
    ec2, elbv2 = client("ec2"), client("elbv2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"][
            "SubnetId"
        ]
        for n, zone in enumerate("ab")
    ]
    made = {
        name: elbv2.create_load_balancer(
            Name=name, Subnets=subnets, Tags=[{"Key": "elbv2.k8s.aws/cluster", "Value": CLUSTER}]
        )["LoadBalancers"][0]["LoadBalancerArn"]
        for name in ("first", "going", "last")
    }
    asked: list[int] = []

    def refuse(params: dict[str, Any], **_: Any) -> None:
        asked.append(len(params["body"]) - 2)  # besides action and version
        if made["going"] in params["body"].values():
            raise ClientError({"Error": {"Code": "LoadBalancerNotFound", "Message": "no"}}, "DescribeTags")

    elbv2.meta.events.register("before-call.elastic-load-balancing-v2.DescribeTags", refuse)
    found = remains.balancers(elbv2, client("elb"), CLUSTER)
    assert [one.id for one in found] == ["first", "last"] and asked == [3, 1, 1, 1]
