"""terraform of an environment: its root, work folder, state, variables, and AWS credentials of its connection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nim_rollouts.clients.include import Include
from nim_rollouts.clients.terraform import Terraform
from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import AccessDenied

WORK_VARIABLE = "NIM_ROLLOUTS_WORK"
#: botocore's words for the role of an EC2 instance, of an ECS task or a pod with pod identity, of a pod with IRSA.
_SURROUNDINGS = ("iam-role", "container-role", "assume-role-with-web-identity")


def open_terraform(
    environment: Environment,
    include: Include,
    progress: Callable[[str], None],
    *,
    purpose: str = "terraform",
) -> Terraform:
    """terraform, not yet initialised.

    :param progress: takes one line at a time
    :param purpose: name of the work folder in the environment's; two that may run beside each other have two
    """
    return Terraform(
        include.path(environment.terraform.root),
        work_folder() / environment.name / purpose,
        lambda: aws_variables(environment),
        progress=progress,
    )


def work_folder() -> Path:
    """Where a worker keeps what it may lose: the variable NIM_ROLLOUTS_WORK, else a folder in AIRFLOW_HOME."""
    chosen = os.environ.get(WORK_VARIABLE)
    return Path(chosen) if chosen else Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "nim-rollouts"


def backend(environment: Environment) -> dict[str, Any]:
    """Where the state lies."""
    state = environment.terraform.state
    return {"bucket": state.bucket, "key": state.key, "region": environment.region}


def variables(environment: Environment) -> dict[str, Any]:
    """The root's variables: what the environment's file says, and what it already says elsewhere.

    Without named administrators it is the identity that runs terraform: it must be able to use what it makes.
    """
    given = environment.terraform.variables
    known: dict[str, Any] = {
        "environment": environment.name,
        "region": environment.region,
        "cluster_name": environment.cluster.name,
    }
    if "admin_principal_arns" not in given:
        known["admin_principal_arns"] = [_administrator(environment)]
    return known | given


def principal(arn: str, role: Callable[[str], str]) -> str:
    """The IAM principal of an identity: EKS access entries name a role, not the session that uses it.

    :param role: gives the ARN of a role by its name. A session's does not have the role's path, without which EKS knows
        no such principal
    """
    session = re.fullmatch(r"arn:(aws[a-z-]*):sts::(\d{12}):(assumed-role|user)/([^/]+)(?:/.*)?", arn)
    if not session:
        return arn
    return role(session[4]) if session[3] == "assumed-role" else f"arn:{session[1]}:iam::{session[2]}:user/{session[4]}"


def aws_variables(environment: Environment) -> dict[str, str]:
    """AWS_* variables for a child process, from the environment's connection. Never logged or recorded.

    :raises AccessDenied: the connection gives no credentials
    """
    return aws_credentials(environment.aws_conn_id, environment.region)


def aws_credentials(aws_conn_id: str, region: str | None) -> dict[str, str]:
    """AWS_* variables for a child process, from an Airflow connection, fetched now. Never logged or recorded.

    Without keys where the connection means the role that the worker runs with: a child finds and renews these as the
    worker does, while keys that it is given end in the middle of what it does.

    :raises AccessDenied: the connection gives no credentials
    """
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from botocore.exceptions import BotoCoreError

    hook = AwsBaseHook(aws_conn_id=aws_conn_id, client_type="sts", region_name=region)
    try:
        result = {} if _renewed(hook) else _keys(hook.get_credentials(region_name=region))
    except (BotoCoreError, AttributeError) as error:
        # boto3 hands out None instead of credentials, which the hook then asks for its parts.
        raise AccessDenied(
            f"the connection {aws_conn_id} gives no AWS credentials",
            layer="aws",
            hint="Give it keys or a role, or run the worker with a role of its own",
        ) from error
    if region := hook.region_name:
        result |= {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
    endpoint = hook.conn_config.endpoint_url
    return result | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})


def _keys(credentials: Any) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": credentials.access_key, "AWS_SECRET_ACCESS_KEY": credentials.secret_key}
    return keys | ({"AWS_SESSION_TOKEN": credentials.token} if credentials.token else {})


def _renewed(hook: Any) -> bool:
    """Whether the connection adds nothing to credentials that the worker's surroundings give and renew."""
    own = hook.conn_config
    if own.role_arn or own.profile_name or own.aws_access_key_id:
        return False
    found = hook.get_session().get_credentials()
    return found is not None and found.method in _SURROUNDINGS


def _administrator(environment: Environment) -> str:
    from airflow.providers.amazon.aws.hooks.sts import StsHook
    from botocore.exceptions import ClientError

    hook = StsHook(aws_conn_id=environment.aws_conn_id, region_name=environment.region)

    def role(name: str) -> str:
        try:
            return hook.expand_role(name, region_name=environment.region)
        except ClientError as error:
            raise AccessDenied(
                f"AWS does not tell the ARN of the role {name}, who is to administer the cluster: {error}",
                layer="aws",
                hint="Grant it iam:GetRole on itself, or name terraform.variables.admin_principal_arns",
            ) from error

    return principal(str(hook.conn.get_caller_identity()["Arn"]), role)
