"""Where moto answers otherwise than AWS in a way that our terraform meets. Each patch says what and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def close() -> None:
    """Patch moto's models. Safe to call again."""
    from moto.ec2.models.nat_gateways import NatGatewayBackend
    from moto.ec2.models.security_groups import SecurityGroupRule
    from moto.s3.models import FakeBucket

    FakeBucket.get_permission = _bucket_permission
    SecurityGroupRule.description = property(_rule_description)
    if not hasattr(NatGatewayBackend.delete_nat_gateway, "_also_interface"):
        NatGatewayBackend.delete_nat_gateway = _also_interface(NatGatewayBackend.delete_nat_gateway)


def _also_interface(delete: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """AWS removes the network interface of a NAT gateway with it; moto leaves it, and a teardown would not be clean."""

    def delete_nat_gateway(backend: Any, nat_gateway_id: str) -> Any:
        gateway = delete(backend, nat_gateway_id)
        backend.enis.pop(gateway._eni.id, None)
        return gateway

    delete_nat_gateway._also_interface = True  # type: ignore[attr-defined]
    return delete_nat_gateway


def _rule_description(rule: Any) -> str | None:
    """moto forgets the description of a rule whose source is a group, so that terraform would set it for ever."""
    description = rule.ip_range.get("Description") or rule.source_group.get("Description")
    return str(description) if description else None


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
