"""docs/worker-rights.json is what the product asks of AWS besides terraform: no call is missing from it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import boto3
import botocore.session
from moto import mock_aws

from nim_rollouts.clients.inventory import look
from nim_rollouts.core.inventory import Scope
from rehearsal.aws import moto_gaps

ROOT = Path(__file__).resolve().parents[2]
#: boto3's service -> the prefix of its actions.
PREFIX = {
    **{name: name for name in ("autoscaling", "ec2", "eks", "events", "iam", "kms", "logs", "s3", "secretsmanager")},
    **{"sqs": "sqs", "sts": "sts", "efs": "elasticfilesystem", "elb": "elasticloadbalancing"},
    **{"elbv2": "elasticloadbalancing", "resourcegroupstaggingapi": "tag", "service-quotas": "servicequotas"},
}
#: Where an action has another name than its call: S3's, and what a provider's hook does under a name of its own.
OTHER_WORDS = {
    "list_objects_v2": "s3:ListBucket",
    "get_secret": "secretsmanager:GetSecretValue",
    "expand_role": "iam:GetRole",
}

#: Words of other libraries that happen to be calls of AWS too: socket's.
NOT_AWS = {"create_connection"}


def policy() -> dict[str, set[str]]:
    """Statement -> its actions."""
    document = json.loads((ROOT / "docs" / "worker-rights.json").read_text())
    return {one["Sid"]: set(one["Action"]) for one in document["Statement"]}


@cache
def operations() -> dict[str, set[str]]:
    """Method of a client -> the actions that it may be, over all services."""
    session = botocore.session.get_session()
    found: dict[str, set[str]] = {}
    for service, prefix in PREFIX.items():
        for name in session.get_service_model(service).operation_names:
            found.setdefault(botocore.xform_name(name), set()).add(f"{prefix}:{name}")
    return found | {word: {action} for word, action in OTHER_WORDS.items()}


def called_in_the_source() -> dict[str, set[str]]:
    """Method -> the actions it may be, for every method of a client that the product's sources name: in a call, or in
    quotes for a paginator."""
    text = "\n".join(path.read_text() for path in (ROOT / "plugins").rglob("*.py"))
    words = set(re.findall(r"\.([a-z]+(?:_[a-z0-9]+)+)\(", text)) | set(re.findall(r'"([a-z]+(?:_[a-z0-9]+)+)"', text))
    return {word: actions for word, actions in operations().items() if word in words - NOT_AWS}


def test_every_call_in_the_source_is_allowed() -> None:
    allowed = set().union(*policy().values())
    called = called_in_the_source()
    assert {word: actions for word, actions in called.items() if not actions & allowed} == {}
    assert {"describe_vpcs", "put_object", "describe_cluster", "get_caller_identity"} <= set(called)


def test_an_inventorys_calls_are_exactly_those_of_its_statement() -> None:
    """Recorded, in an account that has one of each of what leads to further calls."""
    called: set[str] = set()
    moto_gaps.close()
    with mock_aws():
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        of = cache(lambda service: boto3.client(service, "us-west-2", **keys))
        _populate(of)

        @cache
        def watched(service: str):  # type: ignore[no-untyped-def]
            client = boto3.client(service, "us-west-2", **keys)
            client.meta.events.register(
                "before-call.*.*", lambda model, **_: called.add(f"{PREFIX[service]}:{model.name}")
            )
            return client

        look.take(watched, Scope("rights", "rights"))
    assert called - {"eks:DescribeCluster"} == policy()["Inventory"]


def _populate(of) -> None:  # type: ignore[no-untyped-def]
    vpc = of("ec2").create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
    tag = [{"Key": "nim-rollouts/environment", "Value": "rights"}]
    of("ec2").create_tags(Resources=[vpc], Tags=tag)
    subnets = [
        of("ec2").create_subnet(VpcId=vpc, CidrBlock=f"10.8.{n}.0/24", AvailabilityZone=f"us-west-2{zone}")["Subnet"][
            "SubnetId"
        ]
        for n, zone in enumerate("ab")
    ]
    of("elb").create_load_balancer(
        LoadBalancerName="a",
        Listeners=[{"Protocol": "tcp", "LoadBalancerPort": 80, "InstancePort": 80}],
        Subnets=subnets[:1],
    )
    of("elbv2").create_load_balancer(Name="b", Subnets=subnets)
    of("elbv2").create_target_group(Name="t", Protocol="HTTP", Port=80, VpcId=vpc)
    role = of("iam").create_role(RoleName="rights-node", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    statement = {"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    of("iam").create_policy(PolicyName="rights-a", PolicyDocument=document)
    of("iam").create_instance_profile(InstanceProfileName="rights_1")
    of("iam").create_open_id_connect_provider(
        Url="https://oidc.eks.us-west-2.amazonaws.com/id/0", ThumbprintList=["0" * 40], ClientIDList=["sts"]
    )
    of("eks").create_cluster(name="rights", roleArn=role, resourcesVpcConfig={"subnetIds": subnets})
    of("eks").create_nodegroup(clusterName="rights", nodegroupName="system", subnets=subnets, nodeRole=role)
    files = of("efs").create_file_system(CreationToken="rights")["FileSystemId"]
    of("efs").create_mount_target(FileSystemId=files, SubnetId=subnets[0])
    of("sqs").create_queue(QueueName="rights-karpenter")
    of("events").put_rule(Name="rights-spot", EventPattern='{"source": ["aws.ec2"]}')
    of("logs").create_log_group(logGroupName="/aws/eks/rights/cluster")
    of("secretsmanager").create_secret(Name="rights/grafana", SecretString="not one")
    of("s3").create_bucket(Bucket="rights", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    of("s3").put_bucket_tagging(Bucket="rights", Tagging={"TagSet": tag})
    key = of("kms").create_key()["KeyMetadata"]["KeyId"]
    of("kms").create_alias(AliasName="alias/eks/rights", TargetKeyId=key)


def test_it_reads_but_for_the_ledger() -> None:
    writing = {
        action
        for name, actions in policy().items()
        for action in actions
        if not action.partition(":")[2].startswith(("Describe", "List", "Get")) and not name.startswith("Ledger")
    }
    assert writing == set()


def test_no_right_is_asked_for_that_no_call_needs() -> None:
    """Besides the inventory's, whose calls are recorded above."""
    needed = set().union(*called_in_the_source().values())
    unused = {action for name, actions in policy().items() if name != "Inventory" for action in actions} - needed
    assert unused == set()
