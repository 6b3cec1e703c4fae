"""Where moto answers otherwise than AWS in a way that our terraform meets. Each patch says what and why."""

from __future__ import annotations

import json
from typing import Any


def close() -> None:
    """Patch moto's models. Safe to call again."""
    from moto.s3.models import FakeBucket

    FakeBucket.get_permission = _bucket_permission  # type: ignore[method-assign]


def _bucket_permission(bucket: Any, action: str, resource: str) -> Any:
    """Bucket policy without its TLS-only statements.

    moto takes a statement whose Condition it cannot look up for a refusal, so that the usual "deny without TLS" would
    deny everything. The stand-in's plain HTTP on loopback plays the part of TLS.
    """
    from moto.iam.access_control import IAMPolicy, PermissionResult

    if bucket.policy is None:
        return PermissionResult.NEUTRAL
    policy = json.loads(bucket.policy)
    statements = policy.get("Statement", [])
    policy["Statement"] = [
        statement
        for statement in (statements if isinstance(statements, list) else [statements])
        if str(statement.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport")).lower() != "false"
    ]
    if not policy["Statement"]:
        return PermissionResult.NEUTRAL
    return IAMPolicy(json.dumps(policy)).is_action_permitted(action, resource)
