"""docs/terraform-eks-rights.json and what AWS asks of a caller besides the action that is called.

The rehearsed life of an environment (test_aws_life) shows which calls terraform makes. Which further rights a call
needs it cannot show: moto checks none. AWS writes them into its documentation, by the sentence.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import botocore.session
import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Action -> what its caller needs besides, and who says so.
NEEDS: dict[str, tuple[set[str], str]] = {
    "elasticfilesystem:CreateMountTarget": (
        {"ec2:DescribeSubnets", "ec2:DescribeNetworkInterfaces", "ec2:CreateNetworkInterface"},
        "EFS API reference, CreateMountTarget",
    ),
    "elasticfilesystem:DeleteMountTarget": (
        {"ec2:DeleteNetworkInterface"},
        "EFS API reference, DeleteMountTarget",
    ),
    "elasticfilesystem:DescribeMountTargetSecurityGroups": (
        {"ec2:DescribeNetworkInterfaceAttribute"},
        "EFS API reference, DescribeMountTargetSecurityGroups",
    ),
    "elasticfilesystem:ModifyMountTargetSecurityGroups": (
        {"ec2:ModifyNetworkInterfaceAttribute"},
        "EFS API reference, ModifyMountTargetSecurityGroups",
    ),
    "elasticfilesystem:CreateFileSystem": (
        {"elasticfilesystem:TagResource", "iam:CreateServiceLinkedRole"},
        "EFS API reference, CreateFileSystem; EFS user guide, Using service-linked roles",
    ),
    "events:PutRule": ({"events:TagResource"}, "EventBridge API reference, PutRule"),
    "logs:CreateLogGroup": ({"logs:TagResource"}, "CloudWatch Logs API reference, CreateLogGroup"),
    "secretsmanager:CreateSecret": ({"secretsmanager:TagResource"}, "Secrets Manager API reference, CreateSecret"),
    "sqs:CreateQueue": ({"sqs:TagQueue"}, "SQS API reference, CreateQueue"),
    "ec2:CreateLaunchTemplate": ({"ec2:CreateTags"}, "EC2 user guide, Grant permission to tag at creation"),
    "iam:CreateRole": ({"iam:TagRole"}, "IAM user guide, Tag IAM roles"),
    # Whatever profile holds the role: EKS's own while it takes its time, Karpenter's that was left behind.
    "iam:DeleteRole": (
        {"iam:ListInstanceProfilesForRole", "iam:RemoveRoleFromInstanceProfile"},
        "terraform's AWS provider, deletion of aws_iam_role; IAM API reference, DeleteRole",
    ),
    "eks:CreateCluster": (
        {"iam:PassRole", "iam:CreateServiceLinkedRole", "eks:TagResource"},
        "EKS user guide, Using roles for Amazon EKS clusters",
    ),
    "eks:CreateNodegroup": (
        {"iam:PassRole", "iam:GetRole", "iam:CreateServiceLinkedRole", "ec2:RunInstances", "ec2:CreateTags"},
        "EKS user guide, Customize managed nodes with launch templates; Using roles for Amazon EKS node groups",
    ),
    "eks:UpdateNodegroupVersion": (
        {"ec2:RunInstances", "ec2:CreateTags"},
        "EKS user guide, Customize managed nodes with launch templates",
    ),
    "eks:CreatePodIdentityAssociation": ({"iam:PassRole"}, "EKS user guide, Assign an IAM role to a service account"),
    "eks:CreateAddon": (
        {"iam:PassRole", "eks:CreatePodIdentityAssociation"},
        "EKS user guide, IAM roles for add-ons",
    ),
}  # fmt: skip

#: Named in AWS's documentation of a call, and not needed: what for.
NOT_NEEDED = {
    "kms:Decrypt": "keys of the customer's own; ours are AWS's",
    "kms:Encrypt": "as kms:Decrypt",
    "kms:GenerateDataKey": "as kms:Decrypt",
    "logs:TagLogGroup": "the older name of logs:TagResource, either is enough",
    "secretsmanager:PutResourcePolicy": "the secret has no policy",
    "secretsmanager:ReplicateSecretToRegions": "nor replicas",
}

_ACTION = re.compile(r"\b(?:ec2|eks|elasticfilesystem|events|iam|kms|logs|secretsmanager|sqs):[A-Z]\w+")
_SERVICE = {"elasticfilesystem": "efs"}


@cache
def policy() -> dict[str, tuple[set[str], list[str]]]:
    """Statement -> its actions and resources."""
    document = json.loads((ROOT / "docs" / "terraform-eks-rights.json").read_text())
    return {
        one["Sid"]: (set(one["Action"]), one["Resource"] if isinstance(one["Resource"], list) else [one["Resource"]])
        for one in document["Statement"]
    }


def allowed() -> set[str]:
    return set().union(*(actions for actions, _ in policy().values()))


@pytest.mark.parametrize("action", NEEDS)
def test_what_an_action_needs_besides_is_allowed_too(action: str) -> None:
    needed, source = NEEDS[action]
    assert action in allowed() and needed - allowed() == set(), source


def test_what_awss_documentation_names_is_in_the_table_or_not_needed() -> None:
    """The documentation that botocore carries, of every action of the policy: a call that terraform makes from now on,
    or a right that AWS asks for from now on, does not pass unseen."""
    session = botocore.session.get_session()
    named: dict[str, set[str]] = {}
    for action in sorted(allowed()):
        prefix, _, name = action.partition(":")
        if prefix in ("s3", "sts") or name == "PassRole":
            continue
        operation = session.get_service_model(_SERVICE.get(prefix, prefix)).operation_model(name)
        fields = operation.input_shape.members.values() if operation.input_shape else ()
        text = " ".join([operation.documentation, *(field.documentation for field in fields)])
        named[action] = set(_ACTION.findall(text)) - {action}
    assert named["elasticfilesystem:DeleteMountTarget"] == {"ec2:DeleteNetworkInterface"}
    missing = {
        action: left
        for action, words in named.items()
        if (left := words - NOT_NEEDED.keys() - NEEDS.get(action, (set(), ""))[0])
    }
    assert missing == {}


def test_a_role_leaves_the_profiles_that_may_hold_it_and_no_others() -> None:
    """EKS names them `eks-<id>`; Karpenter after the cluster, or puts them below a path with its name."""
    (resources,) = (
        resources for actions, resources in policy().values() if "iam:RemoveRoleFromInstanceProfile" in actions
    )
    patterns = [
        re.compile(re.escape(one.rpartition(":instance-profile/")[2]).replace(r"\*", ".*")) for one in resources
    ]
    held = ("eks-24c2", "nvidia-nim-eks_7", "karpenter/us-west-2/nvidia-nim-eks/u-1/nvidia-nim-eks_7")
    assert all(any(one.fullmatch(name) for one in patterns) for name in held)
    assert not any(one.fullmatch(name) for one in patterns for name in ("web-server", "other-cluster_7"))
