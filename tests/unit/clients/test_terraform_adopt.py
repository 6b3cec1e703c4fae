"""What an interrupted apply made is found by its tags or its parent, taken over once, and never by its name alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from nim_rollouts.clients.terraform_adopt import BLOCKS, Adoption
from nim_rollouts.clients.terraform_lookup import Undetermined, known, look, written_again
from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary
from nim_rollouts.core.adoption import AGAIN, Creation
from nim_rollouts.core.errors import AccessDenied, NeedsHumanError, TerraformUnavailable
from nim_rollouts.core.inventory import ENVIRONMENT_TAG as TAG
from scripts.terraform_docs import blocks

ROOT = Path(__file__).resolve().parents[3]
TAGS = {TAG: "lab", "Name": "lab"}
PAIRS = [{"Key": key, "Value": value} for key, value in TAGS.items()]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    clients: dict[str, Any] = {}
    with mock_aws():
        yield lambda name: clients.setdefault(name, boto3.client(name, region_name="us-west-2"))


def creation(type_: str, **values: Any) -> Creation:
    return Creation(f"{type_}.this", type_, {"tags_all": TAGS} | values)


def specification(kind: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": PAIRS}]


def test_every_type_of_the_root_is_looked_for_or_may_be_made_again() -> None:
    files = (ROOT / "include" / "terraform" / "eks").glob("*.tf")
    types = {block.type for path in files for block in blocks(path.read_text()) if block.kind == "resource"}
    assert [one for one in sorted(types) if not known(one) and one not in AGAIN] == []
    assert [one for one in AGAIN if known(one)] == []


def make_network(aws: Callable[[str], Any]) -> dict[str, str]:
    ec2 = aws("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=specification("vpc"))["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24", TagSpecifications=specification("subnet"))
    table = ec2.create_route_table(VpcId=vpc, TagSpecifications=specification("route-table"))
    group = ec2.create_security_group(
        GroupName="lab", Description="d", VpcId=vpc, TagSpecifications=specification("security-group")
    )
    return {
        "aws_vpc": vpc,
        "aws_subnet": subnet["Subnet"]["SubnetId"],
        "aws_route_table": table["RouteTable"]["RouteTableId"],
        "aws_security_group": group["GroupId"],
    }


def test_what_has_no_name_is_found_by_all_of_its_tags(aws: Callable[[str], Any]) -> None:
    ec2 = aws("ec2")
    made = make_network(aws)
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=specification("elastic-ip"))["AllocationId"]
    gateway = ec2.create_nat_gateway(
        AllocationId=address, SubnetId=made["aws_subnet"], TagSpecifications=specification("natgateway")
    )
    made |= {"aws_eip": address, "aws_nat_gateway": gateway["NatGateway"]["NatGatewayId"]}
    way_out = ec2.create_internet_gateway(TagSpecifications=specification("internet-gateway"))["InternetGateway"]
    made |= {"aws_internet_gateway": way_out["InternetGatewayId"]}
    template = ec2.create_launch_template(
        LaunchTemplateName="lab-system", LaunchTemplateData={"InstanceType": "m6i.large"},
        TagSpecifications=specification("launch-template"),
    )  # fmt: skip
    made |= {"aws_launch_template": template["LaunchTemplate"]["LaunchTemplateId"]}
    for type_, identifier in made.items():
        assert [one.id for one in look(creation(type_), aws)] == [identifier], type_
        # Of another environment, of another name, or of a root that does not mark what it makes.
        for tags in (TAGS | {TAG: "other"}, TAGS | {"Name": "other"}, {"Name": "lab"}, {}):
            assert look(Creation(f"{type_}.this", type_, {"tags_all": tags}), aws) == [], (type_, tags)


def test_of_two_with_the_same_tags_the_one_that_is_meant(aws: Callable[[str], Any]) -> None:
    network = make_network(aws)
    other = aws("ec2").create_subnet(
        VpcId=network["aws_vpc"], CidrBlock="10.0.1.0/24", TagSpecifications=specification("subnet")
    )["Subnet"]["SubnetId"]
    found = look(creation("aws_subnet", cidr_block="10.0.1.0/24", vpc_id=network["aws_vpc"]), aws)
    assert [one.id for one in found] == [other]
    assert len(look(creation("aws_subnet"), aws)) == 2, "what is not known is not compared"
    assert look(creation("aws_security_group", name="another"), aws) == []


def test_what_has_a_name_must_carry_our_tags_too(aws: Callable[[str], Any]) -> None:
    aws("iam").create_role(RoleName="lab-node", AssumeRolePolicyDocument="{}", Tags=PAIRS)
    aws("iam").create_role(RoleName="theirs", AssumeRolePolicyDocument="{}")
    aws("logs").create_log_group(logGroupName="/aws/eks/lab/cluster", tags=TAGS)
    aws("logs").create_log_group(logGroupName="/aws/eks/theirs/cluster")
    arn = aws("secretsmanager").create_secret(Name="lab/grafana", SecretString="x", Tags=PAIRS)["ARN"]
    url = aws("sqs").create_queue(QueueName="lab-karpenter", tags=TAGS)["QueueUrl"]
    aws("events").put_rule(Name="lab-spot", EventPattern="{}", Tags=PAIRS)
    system = aws("efs").create_file_system(CreationToken="lab", Tags=PAIRS)["FileSystemId"]

    def ids(type_: str, **values: str) -> list[str]:
        return [one.id for one in look(creation(type_, **values), aws)]

    assert ids("aws_iam_role", name="lab-node") == ["lab-node"]
    assert ids("aws_iam_role", name="theirs") == ids("aws_iam_role", name="nobodys") == []
    assert ids("aws_cloudwatch_log_group", name="/aws/eks/lab/cluster") == ["/aws/eks/lab/cluster"]
    assert ids("aws_cloudwatch_log_group", name="/aws/eks/theirs/cluster") == []
    assert ids("aws_cloudwatch_log_group", name="/aws/eks/lab") == []
    assert ids("aws_secretsmanager_secret", name="lab/grafana") == [arn]
    assert ids("aws_secretsmanager_secret", name="lab/other") == []
    assert ids("aws_sqs_queue", name="lab-karpenter") == [url] and ids("aws_sqs_queue", name="other") == []
    assert ids("aws_cloudwatch_event_rule", name="lab-spot") == ["lab-spot"]
    assert ids("aws_cloudwatch_event_rule", name="other") == []
    assert ids("aws_efs_file_system", creation_token="lab") == [system]
    assert ids("aws_efs_file_system", creation_token="other") == []
    aws("secretsmanager").delete_secret(SecretId="lab/grafana", RecoveryWindowInDays=7)
    assert ids("aws_secretsmanager_secret", name="lab/grafana") == []


def test_what_hangs_on_something_is_found_once_that_is_known(aws: Callable[[str], Any]) -> None:
    ec2, network = aws("ec2"), make_network(aws)
    ec2.associate_route_table(SubnetId=network["aws_subnet"], RouteTableId=network["aws_route_table"])
    block = ec2.associate_vpc_cidr_block(VpcId=network["aws_vpc"], CidrBlock="100.64.0.0/16")["CidrBlockAssociation"]
    rule = ec2.authorize_security_group_ingress(
        GroupId=network["aws_security_group"],
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 2049, "ToPort": 2049, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}],
        TagSpecifications=specification("security-group-rule"),
    )["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    system = aws("efs").create_file_system(CreationToken="lab", Tags=PAIRS)["FileSystemId"]
    target = aws("efs").create_mount_target(FileSystemId=system, SubnetId=network["aws_subnet"])["MountTargetId"]
    subnet, table = network["aws_subnet"], network["aws_route_table"]
    ports = {"ip_protocol": "tcp", "from_port": 2049, "to_port": 2049}
    wanted = [
        ("aws_route_table_association", {"subnet_id": subnet, "route_table_id": table}, f"{subnet}/{table}"),
        ("aws_vpc_ipv4_cidr_block_association", {"vpc_id": network["aws_vpc"], "cidr_block": "100.64.0.0/16"},
         block["AssociationId"]),
        ("aws_vpc_security_group_ingress_rule", {"security_group_id": network["aws_security_group"], **ports}, rule),
        ("aws_efs_mount_target", {"file_system_id": system, "subnet_id": subnet}, target),
    ]  # fmt: skip
    for type_, values, identifier in wanted:
        assert [one.id for one in look(creation(type_, **values), aws)] == [identifier], type_
        with pytest.raises(Undetermined):
            look(creation(type_), aws)
    other = {"security_group_id": network["aws_security_group"], **ports, "to_port": 22}
    assert look(creation("aws_vpc_security_group_ingress_rule", **other), aws) == []


class FakeEks:
    """The answers of EKS of one cluster `lab`, in the given state."""

    def __init__(self, status: str = "ACTIVE", tags: dict[str, str] = TAGS) -> None:
        self.answer = {"status": status, "tags": tags}

    def __getattr__(self, call: str) -> Callable[..., Any]:
        def ask(**arguments: str) -> Any:
            if call == "list_pod_identity_associations":
                return {"associations": [{"associationId": "a-1"}]}
            if "lab" not in arguments.values():
                raise ClientError({"Error": {"Code": "ResourceNotFoundException"}}, call)
            kinds = {"describe_pod_identity_association": "association", "describe_access_entry": "accessEntry"}
            return {kinds.get(call, call.removeprefix("describe_")): self.answer}

        return ask


EKS = [
    ("aws_eks_cluster", {"name": "lab"}, "lab"),
    ("aws_eks_node_group", {"cluster_name": "lab", "node_group_name": "system"}, "lab:system"),
    ("aws_eks_addon", {"cluster_name": "lab", "addon_name": "coredns"}, "lab:coredns"),
    ("aws_eks_access_entry", {"cluster_name": "lab", "principal_arn": "arn:x"}, "lab:arn:x"),
    ("aws_eks_pod_identity_association", {"cluster_name": "lab", "namespace": "n", "service_account": "s"}, "lab,a-1"),
]


@pytest.mark.parametrize(("type_", "values", "identifier"), EKS)
def test_of_eks(type_: str, values: dict[str, str], identifier: str) -> None:
    def found(eks: FakeEks, **more: str) -> list[str]:
        return [one.id for one in look(creation(type_, **values | more), lambda _: eks)]

    assert found(FakeEks()) == [identifier]
    assert found(FakeEks(tags={TAG: "other"})) == found(FakeEks("DELETING")) == []
    if type_ != "aws_eks_pod_identity_association":
        assert found(FakeEks(), **{"name" if type_ == "aws_eks_cluster" else "cluster_name": "other"}) == []


@pytest.mark.parametrize(
    ("tags", "ours"), [({}, True), ({TAG: "lab"}, True), ({TAG: "other"}, False), ({"team": "audit"}, False)]
)
def test_the_log_group_that_eks_made_again_is_ours_by_its_name(
    tags: dict[str, str], ours: bool, aws: Callable[[str], Any]
) -> None:
    assert written_again("lab", "lab", aws) is None
    aws("logs").create_log_group(logGroupName="/aws/eks/lab/cluster", **({"tags": tags} if tags else {}))
    aws("logs").create_log_group(logGroupName="/aws/eks/lab-2/cluster")
    assert written_again("lab", "lab", aws) == ("/aws/eks/lab/cluster" if ours else None)
    # While a cluster of that name stands, whoever's it is, its group is its own.
    role = aws("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    aws("eks").create_cluster(name="lab", roleArn=role, resourcesVpcConfig={"subnetIds": []})
    assert written_again("lab", "lab", aws) is None


class FakeTerraform:
    """Shows plans one after the other, and notes the import blocks that stood there for each."""

    def __init__(self, folder: Path, *shown: dict[str, Any]) -> None:
        self.work_dir, self.copy, self.shown, self.plans = folder, folder / "root", dict[str, Any](), list(shown)
        self.copy.mkdir(parents=True)
        self.seen: list[str] = []
        self.targets: list[list[str]] = []
        self.applied: list[str | None] = []

    def plan(self, variables: Any, destroy: bool = False, *, explain: Any = None, targets: Any = ()) -> PlanSummary:
        file = self.copy / BLOCKS
        self.seen.append(file.read_text() if file.exists() else "")
        self.targets.append(list(targets))
        self.shown = self.plans.pop(0)
        changes = [(one["address"], one["change"]["actions"][0]) for one in self.shown["resource_changes"]]
        taken = [one["address"] for one in self.shown["resource_changes"] if "importing" in one["change"]]
        left = [one for one in changes if one[1] != "no-op"]
        return PlanSummary(left, 0, 0, 0, 0, f"sum{len(self.seen)}", True, imports=taken)

    def apply(self, *, expect_checksum: str | None = None) -> ApplySummary:
        self.applied.append(expect_checksum)
        return ApplySummary([], 0, 0, 0, 0.0)


def planned(type_: str, action: str = "create", importing: str = "", **values: Any) -> dict[str, Any]:
    change: dict[str, Any] = {"actions": [action], "after": {"tags_all": TAGS} | values}
    if importing:
        change["importing"] = {"id": importing}
    return {"address": f"{type_}.this", "type": type_, "mode": "managed", "change": change}


def plan(*changes: dict[str, Any]) -> dict[str, Any]:
    return {"resource_changes": list(changes)}


def adoption(terraform: FakeTerraform, client: Callable[[str], Any], said: list[str] | None = None) -> Adoption:
    say = (said if said is not None else []).append
    return Adoption(terraform, {}, client, say, patience_s=0.0)  # type: ignore[arg-type]


def test_each_round_finds_what_the_last_one_made_known(aws: Callable[[str], Any], tmp_path: Path) -> None:
    network = make_network(aws)
    subnet, table = network["aws_subnet"], network["aws_route_table"]
    aws("ec2").associate_route_table(SubnetId=subnet, RouteTableId=table)
    rest = planned("aws_eip")
    taken = [planned("aws_subnet", "no-op", subnet), planned("aws_route_table", "no-op", table)]
    linked = planned("aws_route_table_association", subnet_id=subnet, route_table_id=table)
    terraform = FakeTerraform(
        tmp_path,
        plan(planned("aws_subnet"), planned("aws_route_table"), planned("aws_route_table_association"), rest),
        plan(*taken, linked, rest),
        plan(*taken, planned("aws_route_table_association", "no-op", f"{subnet}/{table}"), rest),
    )
    said: list[str] = []
    found = adoption(terraform, aws, said).plan()
    assert found.checksum == "sum3" and found.changes == [("aws_eip.this", "create")]
    assert terraform.seen[0] == "" and terraform.seen[1].count("import {") == 2
    assert f'"{subnet}/{table}"' in terraform.seen[2] and terraform.seen[2].count("import {") == 3
    assert len(said) == 3 and subnet in said[1]


def test_nothing_there_is_one_plan_and_no_blocks_of_an_earlier_try(aws: Callable[[str], Any], tmp_path: Path) -> None:
    terraform = FakeTerraform(tmp_path, plan(planned("aws_vpc")))
    (terraform.copy / BLOCKS).write_text("import {}")
    assert adoption(terraform, aws).plan().imports == [] and terraform.seen == [""]


def test_the_log_group_of_before_is_taken_over_and_nothing_else_looked_for(
    aws: Callable[[str], Any], tmp_path: Path
) -> None:
    """No apply was interrupted: what else stands there with the environment's tag is not this plan's to take."""
    make_network(aws)
    logs, vpc = planned("aws_cloudwatch_log_group", name="/aws/eks/lab/cluster"), planned("aws_vpc")
    other = planned("aws_cloudwatch_log_group", name="/aws/eks/lab/other") | {"address": "aws_cloudwatch_log_group.b"}
    taken = planned("aws_cloudwatch_log_group", "update", "/aws/eks/lab/cluster", name="/aws/eks/lab/cluster")
    terraform, said = FakeTerraform(tmp_path, plan(logs, other, vpc), plan(taken, other, vpc)), list[str]()
    found = Adoption(terraform, {}, aws, said.append, interrupted=False, logs="/aws/eks/lab/cluster").plan()  # type: ignore[arg-type]
    assert found.imports == ["aws_cloudwatch_log_group.this"] and len(terraform.seen) == 2
    assert terraform.seen[1].count("import {") == 1 and '"/aws/eks/lab/cluster"' in terraform.seen[1]
    assert len(said) == 1 and said[0].startswith("made again by EKS for its last logs, unknown to the state: aws_cl")


def test_two_of_a_kind_are_a_persons_business_unless_terraform_told_which(
    aws: Callable[[str], Any], tmp_path: Path
) -> None:
    ids = [aws("ec2").create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=specification("vpc"))["Vpc"]["VpcId"]
           for _ in range(2)]  # fmt: skip
    with pytest.raises(NeedsHumanError, match="several of aws_vpc.this") as refused:
        adoption(FakeTerraform(tmp_path / "a", plan(planned("aws_vpc"))), aws).plan()
    assert refused.value.reason == "adoption-ambiguous" and all(one in refused.value.message for one in ids)
    event = {"type": "apply_complete", "hook": {"resource": {"addr": "aws_vpc.this"}, "action": "create",
             "id_key": "id", "id_value": ids[1]}}  # fmt: skip
    (tmp_path / "b" / "logs").mkdir(parents=True)
    (tmp_path / "b" / "logs" / "apply.out").write_text(json.dumps(event) + "\n")
    terraform = FakeTerraform(tmp_path / "b", plan(planned("aws_vpc")), plan(planned("aws_vpc", "no-op", ids[1])))
    assert adoption(terraform, aws).plan().imports == ["aws_vpc.this"] and ids[1] in terraform.seen[1]


def test_what_the_state_holds_under_another_address_is_not_taken(aws: Callable[[str], Any], tmp_path: Path) -> None:
    vpc = make_network(aws)["aws_vpc"]
    held = {"mode": "managed", "type": "aws_vpc", "values": {"id": vpc}}
    shown = plan(planned("aws_vpc")) | {"prior_state": {"values": {"root_module": {"resources": [held]}}}}
    assert adoption(FakeTerraform(tmp_path, shown), aws).plan().imports == []


def test_a_type_that_nobody_knows_is_taken_by_the_id_that_terraform_told(tmp_path: Path) -> None:
    event = {"type": "apply_complete", "hook": {"resource": {"addr": "aws_kms_key.this"}, "action": "create",
             "id_key": "id", "id_value": "k-1"}}  # fmt: skip
    (tmp_path / "logs").mkdir(parents=True)
    (tmp_path / "logs" / "apply.out").write_text(json.dumps(event))
    terraform = FakeTerraform(
        tmp_path, plan(planned("aws_kms_key"), planned("aws_kms_alias")), plan(planned("aws_kms_key", "no-op", "k-1"))
    )
    assert adoption(terraform, lambda _: None).plan().imports == ["aws_kms_key.this"]
    assert terraform.seen[1] == 'import {\n  to = aws_kms_key.this\n  id = "k-1"\n}\n'


def test_what_comes_up_is_waited_for_and_what_failed_is_a_persons_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eks, said = FakeEks("CREATING"), list[str]()
    cluster = planned("aws_eks_cluster", name="lab")
    with pytest.raises(TerraformUnavailable) as late:
        terraform = FakeTerraform(tmp_path / "a", plan(cluster))
        monkeypatch.setattr(time, "monotonic", iter([0.0, 0.0, 1.0]).__next__)
        monkeypatch.setattr(time, "sleep", lambda _: None)
        adoption(terraform, lambda _: eks, said).plan()
    assert late.value.reason == "adoption-coming-up" and len(said) == 1 and "CREATING" in said[0]
    monkeypatch.undo()
    eks.answer["status"] = "CREATE_FAILED"
    with pytest.raises(NeedsHumanError, match="CREATE_FAILED") as broken:
        adoption(FakeTerraform(tmp_path / "b", plan(cluster)), lambda _: eks).plan()
    assert broken.value.reason == "adoption-broken"


@pytest.mark.parametrize(
    ("code", "error"), [("AccessDeniedException", AccessDenied), ("Throttling", TerraformUnavailable)]
)
def test_not_being_able_to_look_is_not_an_absence(code: str, error: type[Exception], tmp_path: Path) -> None:
    def client(_: str) -> Any:
        raise ClientError({"Error": {"Code": code}}, "DescribeCluster")

    with pytest.raises(error, match="aws_eks_cluster.this"):
        adoption(FakeTerraform(tmp_path, plan(planned("aws_eks_cluster", name="lab"))), client).plan()


def test_the_second_of_a_replacement_that_was_cut_off_is_told(aws: Callable[[str], Any], tmp_path: Path) -> None:
    group = make_network(aws)["aws_security_group"]
    change = planned("aws_security_group")
    change["change"]["actions"] = ["create", "delete"]
    with pytest.raises(NeedsHumanError, match=group) as refused:
        adoption(FakeTerraform(tmp_path, plan(change)), aws).plan()
    assert refused.value.reason == "adoption-second"


def test_before_a_destruction_only_the_taking_over_is_applied(aws: Callable[[str], Any], tmp_path: Path) -> None:
    vpc = make_network(aws)["aws_vpc"]
    taken, attachment = planned("aws_vpc", "update", vpc), planned("aws_iam_role_policy_attachment")
    first, rest = plan(planned("aws_vpc"), planned("aws_eip")), plan(taken, planned("aws_eip"))
    terraform = FakeTerraform(tmp_path / "a", first, rest, plan(taken, attachment))
    adoption(terraform, aws).settle()
    assert terraform.targets[-1] == ["aws_vpc.this"] and terraform.applied == ["sum3"]
    terraform = FakeTerraform(tmp_path / "b", first, rest, plan(taken, planned("aws_eip")))
    with pytest.raises(NeedsHumanError, match="create aws_eip.this"):
        adoption(terraform, aws).settle()
    assert terraform.applied == []
    terraform = FakeTerraform(tmp_path / "c", plan(planned("aws_eip")))
    adoption(terraform, aws).settle()
    assert terraform.applied == [] and len(terraform.seen) == 1
