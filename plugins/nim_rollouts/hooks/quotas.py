"""What AWS says of an account's vCPU quotas and of what counts against them now. Reads only.

Needs servicequotas:GetServiceQuota (and servicequotas:GetAWSDefaultServiceQuota), ec2:DescribeInstances and
ec2:DescribeInstanceTypes. An answer that AWS does not give is told as such, never taken for a yes or a no.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import redact
from nim_rollouts.core.instances import INSTANCES
from nim_rollouts.core.pools import ON_DEMAND, SPOT
from nim_rollouts.core.quota import SERVICE, Running

# What a validation waits for AWS at most, in seconds: connect, read.
_PATIENCE = (5, 20)
_NODE_POOL = "karpenter.sh/nodepool"


def limits(environment: Environment, codes: Iterable[str]) -> dict[str, float | str]:
    """Quota code -> vCPUs, or why AWS does not tell."""
    from botocore.exceptions import BotoCoreError, ClientError

    found: dict[str, float | str] = {}
    client: Any = None
    for code in sorted(set(codes)):
        try:
            client = client or _client(environment, "service-quotas")
            found[code] = _limit(client, code)
        except (BotoCoreError, ClientError) as error:
            found[code] = _why(error, "servicequotas:GetServiceQuota")
    return found


def running(environment: Environment) -> list[Running] | str:
    """Every instance of the region that is pending or running, or why AWS does not tell."""
    from botocore.exceptions import BotoCoreError, ClientError

    right = "ec2:DescribeInstances"
    try:
        ec2 = _client(environment, "ec2")
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        pages = ec2.get_paginator("describe_instances").paginate(Filters=states)
        found = [one for page in pages for group in page["Reservations"] for one in group["Instances"]]
        right = "ec2:DescribeInstanceTypes"
        vcpus = _vcpus(ec2, {one["InstanceType"] for one in found})
    except (BotoCoreError, ClientError) as error:
        return _why(error, right)
    return [
        Running(
            one["InstanceType"],
            SPOT if one.get("InstanceLifecycle") == "spot" else ON_DEMAND,
            vcpus[one["InstanceType"]],
            _is_ours(environment, one),
            one["InstanceId"],
        )
        for one in found
    ]


def _client(environment: Environment, service: str) -> Any:
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from botocore.config import Config

    connect, read = _PATIENCE
    return AwsBaseHook(
        aws_conn_id=environment.aws_conn_id,
        client_type=service,
        region_name=environment.region,
        config=Config(connect_timeout=connect, read_timeout=read, retries={"mode": "standard", "max_attempts": 3}),
    ).get_conn()


def _limit(client: Any, code: str) -> float:
    try:
        return float(client.get_service_quota(ServiceCode=SERVICE, QuotaCode=code)["Quota"]["Value"])
    except client.exceptions.NoSuchResourceException:
        # Never moved in this account: AWS's default holds.
        default = client.get_aws_default_service_quota(ServiceCode=SERVICE, QuotaCode=code)
        return float(default["Quota"]["Value"])


def _vcpus(ec2: Any, types: set[str]) -> dict[str, int]:
    """Type -> its default vCPUs, which is what counts, whatever an instance's CPU options say."""
    known = {name: INSTANCES[name].cpus for name in types if name in INSTANCES}
    asked = sorted(types - set(known))
    # The call takes at most a hundred names.
    for first in range(0, len(asked), 100):
        answer = ec2.describe_instance_types(InstanceTypes=asked[first : first + 100])
        known |= {one["InstanceType"]: int(one["VCpuInfo"]["DefaultVCpus"]) for one in answer["InstanceTypes"]}
    return known


def _is_ours(environment: Environment, instance: dict[str, Any]) -> bool:
    """A node that Karpenter started for the environment's cluster."""
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags") or ()}
    return _NODE_POOL in tags and (
        f"kubernetes.io/cluster/{environment.cluster.name}" in tags
        or tags.get("eks:eks-cluster-name") == environment.cluster.name
    )


def _why(error: Exception, right: str) -> str:
    code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code", "")
    if code in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedException"):
        return f"the worker's role lacks {right}"
    return redact(f"{right}: {error}")
