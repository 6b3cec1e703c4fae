"""The whole root module against the AWS stand-in: apply, upgrade, a change of everything, destroy, nothing left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.inventory import look
from nim_rollouts.clients.terraform import Terraform
from nim_rollouts.core.inventory import Answer, Inventory, Scope
from rehearsal.aws import ADMIN_PRINCIPAL_ARN
from rehearsal.aws.environment import environment
from rehearsal.aws.inventory import inventory
from rehearsal.config import Rehearsal
from scripts.terraform_docs import blocks
from tests.rehearsal.aws_calls import actions
from tests.rehearsal.aws_standin import ROOT, client, eks_token, review, start
from tests.rehearsal.secrets_watch import forms, in_bytes, in_files

#: Near to what the rehearsal's environment has: switched off is what only costs time. (A cluster's zones are for ever.)
LITTLE: dict[str, Any] = {
    "environment": "lab",
    "cluster_name": "lab",
    "admin_principal_arns": [ADMIN_PRINCIPAL_ARN],
    "secondary_cidr": None,
    "karpenter": {"interruption_queue": False},
}
#: Everything that the module can make, and a change of what can be changed in place.
EVERYTHING: dict[str, Any] = {
    "environment": "lab",
    "cluster_name": "lab",
    "admin_principal_arns": [ADMIN_PRINCIPAL_ARN],
    "nat_gateways": "per-zone",
    "cloudwatch_observability": True,
    "tags": {"team": "ml"},
    "system_nodes": {"max_size": 6, "disk_gb": 80},
    "control_plane_logs": ["api"],
    "log_retention_days": 14,
    "efs_throughput_mode": "bursting",
    "cluster_version": "1.36",
    "grafana": {"password_version": 2},
}

#: EKS's log does not tell who called: these are the two inventories', the product's and the stand-in's.
OF_INVENTORIES = {
    f"eks:List{what}"
    for what in ("Clusters", "Nodegroups", "Addons", "FargateProfiles", "AccessEntries", "PodIdentityAssociations")
}


def grafana_password(r: Rehearsal, outputs: dict[str, Any]) -> str:
    answer = client(r, "secretsmanager").get_secret_value(SecretId=outputs["grafana_secret_name"])
    password: str = answer["SecretString"]
    assert len(password) == 32 and password.isalnum()
    return password


def versions(r: Rehearsal) -> set[str]:
    """Kubernetes versions of the control plane, the system nodes and the add-on that has one."""
    eks, name = client(r, "eks"), "lab"
    proxy = eks.describe_addon(clusterName=name, addonName="kube-proxy")["addon"]["addonVersion"]
    return {
        eks.describe_cluster(name=name)["cluster"]["version"],
        eks.describe_nodegroup(clusterName=name, nodegroupName="system")["nodegroup"]["version"],
        proxy.removeprefix("v").partition(".0-")[0],
    }


def states(r: Rehearsal, bucket: str) -> list[bytes]:
    """Every version of every state."""
    s3 = client(r, "s3")
    versions = s3.list_object_versions(Bucket=bucket)["Versions"]
    return [s3.get_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])["Body"].read() for one in versions]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
def test_the_whole_life_of_an_environment(tmp_path: Path) -> None:
    """bootstrap, apply, no change, everything switched on and changed, no change, destroy, nothing left.

    The provider's own waits make up most of its minutes: a minute for the cluster's end, half of one for a queue.
    """
    recording = tmp_path / "recording.jsonl"
    fresh, process = start(tmp_path, MOTO_ENABLE_RECORDING="true", MOTO_RECORDER_FILEPATH=str(recording))
    variables = {
        **os.environ,
        **environment(fresh.url("aws")),
        "REHEARSAL_STATE": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    try:
        subprocess.run(
            [sys.executable, "-m", "rehearsal.aws.bootstrap"], cwd=ROOT, env=variables, check=True, timeout=120
        )
        buckets = inventory(fresh)
        assert list(buckets) == ["s3-bucket"] and len(buckets["s3-bucket"]) == 2
        lines: list[str] = []
        terraform = Terraform(
            ROOT / "include/terraform/eks", tmp_path / "work", environment(fresh.url("aws")), progress=lines.append
        )
        state = next(name for name in buckets["s3-bucket"] if "state" in name)
        terraform.init({"bucket": state, "key": "lab/terraform.tfstate", "region": "us-west-2"})
        plan = terraform.plan(LITTLE)
        applied = terraform.apply(expect_checksum=plan.checksum)
        assert applied.add == plan.add == len(terraform.state_list()) and f"[{plan.steps} of {plan.steps}]" in str(
            lines
        )
        outputs = terraform.output()
        assert outputs["configure_kubectl"] == "aws eks update-kubeconfig --region us-west-2 --name lab"
        assert outputs["cluster_endpoint"] == fresh.url("gateway")
        assert outputs["node_subnet_ids"] == outputs["private_subnet_ids"] and len(outputs["nat_addresses"]) == 1
        assert outputs["interruption_queue_name"] == ""
        assert review(fresh, eks_token(fresh, "lab"))["user"]["groups"] == ["system:masters"]
        passwords = [grafana_password(fresh, outputs)]
        serial = terraform.state_serial()
        again = terraform.plan(LITTLE)
        assert not again.has_changes and again.drift == []
        assert terraform.state_serial() == serial

        plan = terraform.plan(LITTLE | {"cluster_version": "1.36"})
        # The control plane first, then what runs on it: in place, and nothing else.
        assert sorted(plan.changes) == [
            ('aws_eks_addon.before_nodes["kube-proxy"]', "update"),
            ("aws_eks_cluster.this", "update"),
            ("aws_eks_node_group.system[0]", "update"),
        ]
        applied = terraform.apply(expect_checksum=plan.checksum)
        assert applied.applied[0][0] == "aws_eks_cluster.this" and versions(fresh) == {"1.36"}

        plan = terraform.plan(EVERYTHING)
        assert plan.destroy == 0
        # Other subnets, another group; and a version of a secret is another object.
        assert {address for address, action in plan.changes if action == "replace"} == {
            "aws_eks_node_group.system[0]",
            "aws_secretsmanager_secret_version.grafana[0]",
        }
        terraform.apply(expect_checksum=plan.checksum)
        assert not terraform.plan(EVERYTHING).has_changes
        made = {re.sub(r"\[.*", "", address) for address in terraform.state_list()}
        files = (ROOT / "include" / "terraform" / "eks").glob("*.tf")
        resources = [block for path in files for block in blocks(path.read_text()) if block.kind == "resource"]
        assert made == {f"{block.type}.{block.name}" for block in resources}
        outputs = terraform.output()
        assert len(outputs["nat_addresses"]) == len(outputs["node_subnet_ids"]) == 3
        assert not set(outputs["node_subnet_ids"]) & set(outputs["private_subnet_ids"])
        assert outputs["interruption_queue_name"] == "lab-karpenter" and outputs["cluster_version"] == "1.36"
        assert [name for name, value in outputs.items() if value in (None, "", [], {})] == []
        assert untagged(fresh) == []
        assert unseen_by_the_product(fresh) == []

        passwords.append(grafana_password(fresh, outputs))
        assert passwords[0] != passwords[1]
        wanted = [form for password in passwords for form in forms(password)]
        assert len(kept := states(fresh, state)) > 2 and any(b"lab/grafana" in one for one in kept)
        assert not any(in_bytes(one, wanted) for one in [*kept, "\n".join(lines).encode()])
        # Plans, summaries, what terraform wrote to its standard streams; the provider's program lies beside.
        assert terraform.plan_file.is_file() and in_files(terraform.work_dir, [b"lab/grafana"], skip=["data"]) != []
        assert in_files(terraform.work_dir, wanted, skip=["data"]) == []
        terraform.destroy(EVERYTHING)
        rights = json.loads((ROOT / "docs" / "terraform-eks-rights.json").read_text())["Statement"]
        allowed = {action for statement in rights for action in statement["Action"]}
        called = actions(recording.read_text().splitlines(), (tmp_path / "log").read_text().splitlines())
        assert len(called) > 100 and called - OF_INVENTORIES - allowed == set()
        assert terraform.state_list() == [] and inventory(fresh) == buckets
        assert take(fresh).answer is Answer.EMPTY
    finally:
        process.terminate()
        process.wait(30)


def take(r: Rehearsal) -> Inventory:
    """The product's inventory of the environment: nothing of it is hidden."""
    taken = look.take(cache(lambda service: client(r, service)), Scope("lab", "lab"))
    assert taken.unseen == ()
    return taken


def unseen_by_the_product(r: Rehearsal) -> list[str]:
    """What the stand-in holds and the product's inventory does not name. Looked at in another way: all there is."""
    named = {text for one in take(r).leftovers for text in (one.id, one.name)}
    ec2 = client(r, "ec2")
    # These go with their network or cluster; nobody can delete them by themselves, or has to.
    main = [{"Name": "association.main", "Values": ["true"]}]
    parts = {one["RouteTableId"] for one in ec2.describe_route_tables(Filters=main)["RouteTables"]}
    default = [{"Name": "group-name", "Values": ["default"]}]
    parts |= {one["GroupId"] for one in ec2.describe_security_groups(Filters=default)["SecurityGroups"]}
    with_the_cluster = {"s3-bucket", "eks-access-entry", "eks-pod-identity"}
    return [
        f"{kind} {one}"
        for kind, ones in inventory(r).items()
        for one in ones
        if kind not in with_the_cluster and one not in parts | named
    ]


def untagged(r: Rehearsal) -> list[str]:
    """What EC2 holds of an environment that does not carry its name. Interfaces are AWS's own, as is EKS's group."""
    ec2 = client(r, "ec2")
    default = next(vpc["VpcId"] for vpc in ec2.describe_vpcs()["Vpcs"] if vpc["IsDefault"])
    looks = (
        ("describe_vpcs", "Vpcs", "VpcId"),
        ("describe_subnets", "Subnets", "SubnetId"),
        ("describe_nat_gateways", "NatGateways", "NatGatewayId"),
        ("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
        ("describe_addresses", "Addresses", "AllocationId"),
        ("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
    )
    return [
        item[key]
        for call, items, key in looks
        for item in getattr(ec2, call)()[items]
        if item.get("VpcId") != default and {"Key": "nim-rollouts/environment", "Value": "lab"} not in item["Tags"]
    ]
