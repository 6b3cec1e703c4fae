"""Secrets that charts expect in their namespaces, copied from Secrets Manager within this process.

A value goes from AWS into the cluster's Secret and nowhere else: no file, no argument, no record. Airflow masks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nim_rollouts.core.addons import ADDON_LABEL, Addon, AddonSecret, output
from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import AccessDenied, PlatformNotReady
from nim_rollouts.core.manifests import ENVIRONMENT_LABEL, MANAGED_BY, MANAGER

_DENIED = ("AccessDeniedException", "AccessDenied", "UnrecognizedClientException", "ExpiredTokenException")


def secret_objects(environment: Environment, addon: Addon, outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The add-on's Secrets, filled.

    :param outputs: terraform's: they name the secrets in Secrets Manager
    :raises PlatformNotReady: an output or the secret is missing
    :raises AccessDenied: the connection may not read it
    """
    return [_filled(environment, addon, one, str(output(addon, outputs, one.from_output))) for one in addon.secrets]


def _filled(environment: Environment, addon: Addon, secret: AddonSecret, name: str) -> dict[str, Any]:
    labels = {MANAGED_BY: MANAGER, ENVIRONMENT_LABEL: environment.name, ADDON_LABEL: addon.label}
    held = {**secret.literals, secret.key: _value(environment, name)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": secret.name, "namespace": addon.namespace, "labels": labels},
        "data": {key: _base64(text) for key, text in held.items()},
    }


def _value(environment: Environment, name: str) -> str:
    from airflow.providers.amazon.aws.hooks.secrets_manager import SecretsManagerHook
    from airflow.sdk.log import mask_secret
    from botocore.exceptions import ClientError

    hook = SecretsManagerHook(aws_conn_id=environment.aws_conn_id, region_name=environment.region)
    try:
        found = hook.get_secret(name)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _DENIED:
            raise AccessDenied(
                f"the connection {environment.aws_conn_id} may not read the secret {name} ({code})",
                layer="aws",
                hint="Grant it secretsmanager:GetSecretValue on this secret",
            ) from None
        if code == "ResourceNotFoundException":
            raise PlatformNotReady(
                f"Secrets Manager has no secret {name}, or it has no value yet",
                hint="Clear terraform_plan and what follows: terraform makes it",
                reason="secret-missing",
            ) from None
        raise
    value = found.decode() if isinstance(found, bytes) else str(found)
    if not value:
        raise PlatformNotReady(f"the secret {name} in Secrets Manager is empty", reason="secret-missing")
    mask_secret(value)
    mask_secret(_base64(value))
    return value


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()
