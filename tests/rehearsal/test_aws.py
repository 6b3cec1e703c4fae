"""The AWS stand-in as its users meet it: boto3 and the amazon provider's token (terraform: test_aws_life.py)."""

from __future__ import annotations

import base64
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from rehearsal.aws import ADMIN_PRINCIPAL_ARN
from rehearsal.aws.inventory import inventory
from rehearsal.aws.token import BadToken, parse
from rehearsal.aws.webhook import canonical_arn
from rehearsal.config import Rehearsal
from tests.rehearsal.aws_standin import CA, client, eks_token, review, start

ADMIN_POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
VIEW_POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSViewPolicy"


@pytest.fixture(scope="module")
def r(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    rehearsal, process = start(tmp_path_factory.mktemp("aws"))
    yield rehearsal
    process.terminate()
    assert process.wait(5) == 0


def error(caught: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


@pytest.fixture
def role(r: Rehearsal) -> Iterator[str]:
    iam = client(r, "iam")
    arn = iam.create_role(RoleName="cluster", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    yield arn
    iam.delete_role(RoleName="cluster")


@pytest.fixture
def cluster(r: Rehearsal, role: str) -> Iterator[str]:
    """A cluster `lab` in subnets of two zones, with the API authentication mode and no entries."""
    ec2, eks = client(r, "ec2"), client(r, "eks")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{n}.0/24", AvailabilityZone=f"us-west-2{zone}")["Subnet"][
            "SubnetId"
        ]
        for n, zone in enumerate("ab")
    ]
    eks.create_cluster(
        name="lab",
        version="1.35",
        roleArn=role,
        resourcesVpcConfig={"subnetIds": subnets, "endpointPrivateAccess": True},
        accessConfig={"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": False},
        upgradePolicy={"supportType": "STANDARD"},
    )
    yield "lab"
    if "lab" in eks.list_clusters()["clusters"]:
        eks.delete_cluster(name="lab")
    for subnet in subnets:
        ec2.delete_subnet(SubnetId=subnet)
    ec2.delete_vpc(VpcId=vpc)


def test_describe_cluster_leads_to_the_rehearsals_api_server(r: Rehearsal, cluster: str) -> None:
    described = client(r, "eks").describe_cluster(name=cluster)["cluster"]
    assert described["endpoint"] == r.url("gateway"), "where it can be cut and clogged"
    assert base64.b64decode(described["certificateAuthority"]["data"]).decode() == CA
    assert described["status"] == "ACTIVE" and described["version"] == "1.35"
    assert described["accessConfig"] == {
        "authenticationMode": "API",
        "bootstrapClusterCreatorAdminPermissions": False,
    }
    assert described["upgradePolicy"] == {"supportType": "STANDARD"}
    network = described["resourcesVpcConfig"]
    assert network["endpointPrivateAccess"] and network["endpointPublicAccess"]
    groups = client(r, "ec2").describe_security_groups(GroupIds=[network["clusterSecurityGroupId"]])["SecurityGroups"]
    assert groups[0]["VpcId"] == network["vpcId"]
    assert described["kubernetesNetworkConfig"]["serviceIpv4Cidr"] == r.service_cidr


def test_what_eks_refuses(r: Rehearsal, cluster: str, role: str) -> None:
    eks = client(r, "eks")
    subnets = eks.describe_cluster(name=cluster)["cluster"]["resourcesVpcConfig"]["subnetIds"]
    with pytest.raises(ClientError) as caught:
        eks.create_cluster(name=cluster, roleArn=role, resourcesVpcConfig={"subnetIds": subnets})
    assert error(caught) == (409, "ResourceInUseException")
    for arguments in ({"subnetIds": subnets[:1]}, {"subnetIds": ["subnet-none"]}):
        with pytest.raises(ClientError) as caught:
            eks.create_cluster(name="other", roleArn=role, resourcesVpcConfig=arguments)
        assert error(caught) == (400, "InvalidParameterException")
    with pytest.raises(ClientError) as caught:
        eks.create_cluster(name="other", version="1.19", roleArn=role, resourcesVpcConfig={"subnetIds": subnets})
    assert error(caught) == (400, "InvalidParameterException")
    with pytest.raises(ClientError) as caught:
        eks.describe_cluster(name="other")
    assert error(caught) == (404, "ResourceNotFoundException")
    with pytest.raises(ClientError, match="exact set of AZs") as caught:
        eks.update_cluster_config(name=cluster, resourcesVpcConfig={"subnetIds": subnets[:1]})
    assert error(caught) == (400, "InvalidParameterException")


def test_updates_take_effect_and_can_be_described(r: Rehearsal, cluster: str) -> None:
    eks = client(r, "eks")
    update = eks.update_cluster_config(name=cluster, resourcesVpcConfig={"publicAccessCidrs": ["203.0.113.0/24"]})[
        "update"
    ]
    assert eks.describe_update(name=cluster, updateId=update["id"])["update"]["status"] == "Successful"
    eks.update_cluster_version(name=cluster, version="1.36")
    described = eks.describe_cluster(name=cluster)["cluster"]
    assert described["resourcesVpcConfig"]["publicAccessCidrs"] == ["203.0.113.0/24"]
    assert described["resourcesVpcConfig"]["endpointPrivateAccess"]
    assert described["version"] == "1.36"


def test_access_entries(r: Rehearsal, cluster: str, role: str) -> None:
    eks = client(r, "eks")
    entry = eks.create_access_entry(clusterName=cluster, principalArn=role, tags={"a": "b"})["accessEntry"]
    assert entry["username"] == "arn:aws:sts::123456789012:assumed-role/cluster/{{SessionName}}"
    with pytest.raises(ClientError) as caught:
        eks.create_access_entry(clusterName=cluster, principalArn=role)
    assert error(caught) == (409, "ResourceInUseException")
    with pytest.raises(ClientError) as caught:
        eks.create_access_entry(clusterName=cluster, principalArn=role + "-that-does-not-exist")
    assert error(caught) == (400, "InvalidParameterException")
    eks.associate_access_policy(
        clusterName=cluster,
        principalArn=role,
        policyArn=VIEW_POLICY,
        accessScope={"type": "namespace", "namespaces": ["x"]},
    )
    associated = eks.list_associated_access_policies(clusterName=cluster, principalArn=role)["associatedAccessPolicies"]
    assert [policy["policyArn"] for policy in associated] == [VIEW_POLICY]
    eks.tag_resource(resourceArn=entry["accessEntryArn"], tags={"c": "d"})
    eks.untag_resource(resourceArn=entry["accessEntryArn"], tagKeys=["a"])
    assert eks.list_tags_for_resource(resourceArn=entry["accessEntryArn"])["tags"] == {"c": "d"}
    eks.update_access_entry(clusterName=cluster, principalArn=role, kubernetesGroups=["team"])
    assert eks.describe_access_entry(clusterName=cluster, principalArn=role)["accessEntry"]["kubernetesGroups"] == [
        "team"
    ]
    eks.disassociate_access_policy(clusterName=cluster, principalArn=role, policyArn=VIEW_POLICY)
    eks.delete_access_entry(clusterName=cluster, principalArn=role)
    assert eks.list_access_entries(clusterName=cluster)["accessEntries"] == []
    with pytest.raises(ClientError) as caught:
        eks.describe_access_entry(clusterName=cluster, principalArn=role)
    assert error(caught) == (404, "ResourceNotFoundException")


def test_addons_bring_and_take_their_pod_identity(r: Rehearsal, cluster: str, role: str) -> None:
    eks = client(r, "eks")
    identity = {"serviceAccount": "efs-csi-controller-sa", "roleArn": role}
    addon = eks.create_addon(clusterName=cluster, addonName="aws-efs-csi-driver", podIdentityAssociations=[identity])[
        "addon"
    ]
    assert addon["status"] == "ACTIVE" and addon["addonVersion"] in str(
        eks.describe_addon_versions(addonName="aws-efs-csi-driver")["addons"]
    )
    [association] = eks.list_pod_identity_associations(clusterName=cluster)["associations"]
    assert association["associationArn"] in addon["podIdentityAssociations"]
    described = eks.describe_pod_identity_association(clusterName=cluster, associationId=association["associationId"])
    assert described["association"]["roleArn"] == role
    with pytest.raises(ClientError) as caught:
        eks.create_addon(clusterName=cluster, addonName="aws-efs-csi-driver")
    assert error(caught) == (409, "ResourceInUseException")
    with pytest.raises(ClientError) as caught:
        eks.create_addon(clusterName=cluster, addonName="no-such-addon")
    assert error(caught) == (400, "InvalidParameterException")
    update = eks.update_addon(clusterName=cluster, addonName="aws-efs-csi-driver", addonVersion="v9.9.9-eksbuild.1")[
        "update"
    ]
    assert eks.describe_update(name=cluster, updateId=update["id"], addonName="aws-efs-csi-driver")["update"]
    assert (
        eks.describe_addon(clusterName=cluster, addonName="aws-efs-csi-driver")["addon"]["addonVersion"][:4] == "v9.9"
    )
    eks.delete_addon(clusterName=cluster, addonName="aws-efs-csi-driver")
    assert eks.list_addons(clusterName=cluster)["addons"] == []
    assert eks.list_pod_identity_associations(clusterName=cluster)["associations"] == []


def test_a_call_repeated_with_its_token_gets_its_answer(r: Rehearsal, cluster: str) -> None:
    eks = client(r, "eks")
    coredns = {"clusterName": cluster, "addonName": "coredns"}
    first = eks.create_addon(**coredns, clientRequestToken="once")["addon"]
    assert eks.create_addon(**coredns, clientRequestToken="once")["addon"]["addonArn"] == first["addonArn"]
    with pytest.raises(ClientError) as caught:
        eks.create_addon(**coredns, clientRequestToken="twice")
    assert error(caught) == (409, "ResourceInUseException")
    eks.delete_addon(**coredns)


def test_everything_of_a_cluster_goes_with_it(r: Rehearsal, cluster: str, role: str) -> None:
    eks = client(r, "eks")
    eks.create_access_entry(clusterName=cluster, principalArn=role)
    eks.create_addon(clusterName=cluster, addonName="coredns")
    group = eks.describe_cluster(name=cluster)["cluster"]["resourcesVpcConfig"]["clusterSecurityGroupId"]
    eks.delete_cluster(name=cluster)
    with pytest.raises(ClientError) as caught:
        eks.list_addons(clusterName=cluster)
    assert error(caught) == (404, "ResourceNotFoundException")
    with pytest.raises(ClientError) as caught:
        client(r, "ec2").describe_security_groups(GroupIds=[group])
    assert error(caught)[1] == "InvalidGroup.NotFound"


def test_an_administrator_by_access_entry(r: Rehearsal, cluster: str) -> None:
    eks = client(r, "eks")
    assert "no access entry" in review(r, eks_token(r, cluster))["error"]
    eks.create_access_entry(clusterName=cluster, principalArn=ADMIN_PRINCIPAL_ARN, kubernetesGroups=["team"])
    assert review(r, eks_token(r, cluster))["user"]["groups"] == ["team"]
    eks.associate_access_policy(
        clusterName=cluster, principalArn=ADMIN_PRINCIPAL_ARN, policyArn=ADMIN_POLICY, accessScope={"type": "cluster"}
    )
    for sts in (None, "https://sts.us-west-2.amazonaws.com"):
        user = review(r, eks_token(r, cluster, sts))["user"]
        assert user["username"] == ADMIN_PRINCIPAL_ARN and user["groups"] == ["team", "system:masters"]
    # A token for another cluster, from another host, with another secret, after the cluster's end.
    assert "signature" in review(r, eks_token(r, "another"))["error"]
    assert "hostname" in review(r, eks_token(r, cluster, "http://127.0.0.2:80"))["error"]
    assert "signature" in review(r, eks_token(r, cluster, aws_secret_access_key="guessed"))["error"]
    assert "does not begin with" in review(r, "something else")["error"]
    token = eks_token(r, cluster)
    eks.delete_cluster(name=cluster)
    assert review(r, token)["authenticated"] is False


def test_an_assumed_role_is_its_roles_entry(r: Rehearsal, cluster: str) -> None:
    iam, eks = client(r, "iam"), client(r, "eks")
    role = iam.create_role(RoleName="airflow", Path="/teams/ml/", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    eks.create_access_entry(clusterName=cluster, principalArn=role)
    assumed = client(r, "sts").assume_role(RoleArn=role, RoleSessionName="worker@1")["Credentials"]
    token = eks_token(
        r,
        cluster,
        aws_access_key_id=assumed["AccessKeyId"],
        aws_secret_access_key=assumed["SecretAccessKey"],
        aws_session_token=assumed["SessionToken"],
    )
    answer = review(r, token)
    iam.delete_role(RoleName="airflow")
    # The entry's role has a path, which the assumed role's ARN has lost.
    assert answer["user"]["username"] == "arn:aws:sts::123456789012:assumed-role/airflow/worker-1"


def test_token_rules(r: Rehearsal) -> None:
    token = eks_token(r, "lab")
    hosts = {f"127.0.0.1:{r.ports['aws']}"}
    now = datetime.now(UTC)
    assert parse(token, hosts, now + timedelta(minutes=14)).region == "us-west-2"
    with pytest.raises(BadToken, match="15 minutes"):
        parse(token, hosts, now + timedelta(minutes=16))
    with pytest.raises(BadToken, match="future"):
        parse(token, hosts, now - timedelta(minutes=6))

    def changed(old: str, new: str) -> str:
        url = base64.urlsafe_b64decode(token[11:] + "==").decode()
        assert old in url
        return "k8s-aws-v1." + base64.urlsafe_b64encode(url.replace(old, new).encode()).decode().rstrip("=")

    for old, new, why in (
        ("GetCallerIdentity", "AssumeRole", "action"),
        ("%3Bx-k8s-aws-id", "", "did not sign"),
        ("X-Amz-Expires=60", "X-Amz-Expires=86400", "Expires"),
        ("Version=2011-06-15", "Version=2011-06-15&RoleArn=x", "non-whitelisted"),
        ("/?Action", "/path?Action", "path"),
    ):
        with pytest.raises(BadToken, match=why):
            parse(changed(old, new), hosts, now)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("arn:aws:sts::1:assumed-role/r/s", "arn:aws:iam::1:role/r"),
        ("arn:aws:sts::1:user/moto", "arn:aws:iam::1:user/moto"),
        ("arn:aws:iam::1:user/x", "arn:aws:iam::1:user/x"),
    ],
)
def test_canonical_arns(given: str, canonical: str) -> None:
    assert canonical_arn(given) == canonical


def test_a_node_group_changes_and_its_updates_can_be_described(r: Rehearsal, cluster: str, role: str) -> None:
    eks, ec2 = client(r, "eks"), client(r, "ec2")
    tags = [{"Key": "a", "Value": "b"}]
    template = ec2.create_launch_template(
        LaunchTemplateName="lab",
        LaunchTemplateData={"TagSpecifications": [{"ResourceType": "instance", "Tags": tags}]},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
    )["LaunchTemplate"]["LaunchTemplateId"]
    data = ec2.describe_launch_template_versions(LaunchTemplateId=template)["LaunchTemplateVersions"][0]
    assert [one["ResourceType"] for one in data["LaunchTemplateData"]["TagSpecifications"]] == ["instance"]
    ec2.create_tags(Resources=[template], Tags=[{"Key": "c", "Value": "d"}])
    shown = ec2.describe_launch_templates(LaunchTemplateIds=[template])["LaunchTemplates"][0]["Tags"]
    assert {one["Key"] for one in shown} == {"a", "c"}
    subnets = eks.describe_cluster(name=cluster)["cluster"]["resourcesVpcConfig"]["subnetIds"]
    eks.create_nodegroup(
        clusterName=cluster,
        nodegroupName="system",
        nodeRole=role,
        subnets=subnets,
        launchTemplate={"id": template, "version": "1"},
    )
    scaling = {"minSize": 1, "desiredSize": 2, "maxSize": 6}
    group = {"clusterName": cluster, "nodegroupName": "system"}
    for update in (
        eks.update_nodegroup_config(**group, scalingConfig=scaling),
        eks.update_nodegroup_version(**group, version="1.36", launchTemplate={"id": template, "version": "2"}),
    ):
        described = eks.describe_update(name=cluster, updateId=update["update"]["id"], nodegroupName="system")
        assert described["update"]["status"] == "Successful"
    described = eks.describe_nodegroup(**group)["nodegroup"]
    assert described["scalingConfig"] == scaling and described["version"] == "1.36"
    assert described["launchTemplate"]["version"] == "2"
    with pytest.raises(ClientError) as caught:
        eks.update_nodegroup_version(clusterName=cluster, nodegroupName="other", version="1.36")
    assert error(caught) == (404, "ResourceNotFoundException")
    eks.delete_nodegroup(**group)
    ec2.delete_launch_template(LaunchTemplateId=template)


def test_a_file_system_changes_and_loses_its_policy(r: Rehearsal) -> None:
    efs = client(r, "efs")
    system = efs.create_file_system(CreationToken="policy", ThroughputMode="elastic")["FileSystemId"]
    assert efs.update_file_system(FileSystemId=system, ThroughputMode="bursting")["ThroughputMode"] == "bursting"
    efs.put_file_system_policy(FileSystemId=system, Policy="{}")
    assert efs.describe_file_system_policy(FileSystemId=system)["Policy"] == "{}"
    efs.delete_file_system_policy(FileSystemId=system)
    with pytest.raises(ClientError) as caught:
        efs.describe_file_system_policy(FileSystemId=system)
    assert error(caught) == (404, "PolicyNotFound")
    efs.delete_file_system(FileSystemId=system)
    for call in (efs.delete_file_system_policy, efs.update_file_system):
        with pytest.raises(ClientError) as caught:
            call(FileSystemId=system)
        assert error(caught) == (404, "FileSystemNotFound")


def test_what_the_csi_stand_in_needs_of_efs(r: Rehearsal) -> None:
    efs = client(r, "efs")
    system = efs.create_file_system(CreationToken="t", Encrypted=True)["FileSystemId"]
    made = efs.create_access_point(
        FileSystemId=system,
        ClientToken="pvc-1",
        PosixUser={"Uid": 1000, "Gid": 2000},
        RootDirectory={"Path": "/pvc-1", "CreationInfo": {"OwnerUid": 1000, "OwnerGid": 2000, "Permissions": "770"}},
    )
    assert inventory(r)["efs-access-point"] == [made["AccessPointId"]]
    efs.delete_access_point(AccessPointId=made["AccessPointId"])
    efs.delete_file_system(FileSystemId=system)


def test_a_new_account_is_empty_and_sigterm_ends_it(tmp_path: Path) -> None:
    fresh, process = start(tmp_path)
    try:
        assert inventory(fresh) == {}
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(fresh.url("aws") + "/healthz", timeout=1)
