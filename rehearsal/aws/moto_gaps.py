"""Where moto answers otherwise than AWS in a way that our terraform meets. Each patch says what and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def close() -> None:
    """Patch moto's models. Safe to call again."""
    from moto.ec2 import utils
    from moto.ec2.models.instances import Instance
    from moto.ec2.models.launch_templates import LaunchTemplate
    from moto.ec2.models.nat_gateways import NatGatewayBackend
    from moto.ec2.models.security_groups import SecurityGroupRule
    from moto.efs.responses import EFSResponse
    from moto.s3.models import FakeBucket

    EFSResponse.update_file_system = _update_file_system
    EFSResponse.delete_file_system_policy = _delete_file_system_policy
    FakeBucket.get_permission = _bucket_permission
    SecurityGroupRule.description = property(_rule_description)
    # moto keeps a template's tags as they were when it was made; what CreateTags adds later does not show.
    LaunchTemplate.tags = property(lambda template: template.get_tags(), lambda template, tags: None)
    if not hasattr(LaunchTemplate.create_version, "_own_tags_apart"):
        LaunchTemplate.create_version = _own_tags_apart(LaunchTemplate.create_version)
    if not hasattr(utils.is_filter_matching, "_any_of"):
        utils.is_filter_matching = _any_of(utils.is_filter_matching)
    if not hasattr(NatGatewayBackend.delete_nat_gateway, "_also_interface"):
        NatGatewayBackend.delete_nat_gateway = _also_interface(NatGatewayBackend.delete_nat_gateway)
    if not hasattr(Instance.terminate, "_own_interface_too"):
        Instance.terminate = _own_interface_too(Instance.terminate)


def _own_interface_too(terminate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """AWS removes the interface that it made for an instance with it; moto keeps every one, and no subnet gets free."""

    def terminate_instance(instance: Any) -> Any:
        for nic in instance.nics.values():
            if nic.device_index == 0:
                nic.delete_on_termination = True
        return terminate(instance)

    terminate_instance._own_interface_too = True  # type: ignore[attr-defined]
    return terminate_instance


def _any_of(matches: Callable[[Any, str, Any], bool]) -> Callable[[Any, str, Any], bool]:
    """Of several values of a filter AWS wants one to match; of a thing with several tags moto wants all of them to."""

    def is_filter_matching(thing: Any, name: str, values: Any) -> bool:
        if name == "tag-key" and isinstance(values, list):
            return any(matches(thing, name, [value]) for value in values)
        return bool(matches(thing, name, values))

    is_filter_matching._any_of = True  # type: ignore[attr-defined]
    return is_filter_matching


def _also_interface(delete: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """AWS removes the network interface of a NAT gateway with it; moto leaves it, and a teardown would not be clean."""

    def delete_nat_gateway(backend: Any, nat_gateway_id: str) -> Any:
        gateway = delete(backend, nat_gateway_id)
        backend.enis.pop(gateway._eni.id, None)
        return gateway

    delete_nat_gateway._also_interface = True  # type: ignore[attr-defined]
    return delete_nat_gateway


def _update_file_system(response: Any) -> tuple[str, dict[str, Any]]:
    """EFS UpdateFileSystem, which moto lacks: another throughput mode, at once."""
    file_system = _file_system(response)
    file_system.throughput_mode = response._get_param("ThroughputMode") or file_system.throughput_mode
    file_system.provisioned_throughput_in_mibps = response._get_param("ProvisionedThroughputInMibps")
    return json.dumps(file_system.info_json()), {"status": 202, "Content-Type": "application/json"}


def _delete_file_system_policy(response: Any) -> tuple[str, dict[str, Any]]:
    """EFS DeleteFileSystemPolicy, which moto lacks; a file system without a policy is no error there."""
    _file_system(response).file_system_policy = None
    return "{}", {"Content-Type": "application/json"}


def _file_system(response: Any) -> Any:
    from moto.efs.exceptions import FileSystemNotFound

    file_system_id = response._get_param("FileSystemId")
    if file_system_id not in response.efs_backend.file_systems_by_id:
        raise FileSystemNotFound(file_system_id)
    return response.efs_backend.file_systems_by_id[file_system_id]


def _own_tags_apart(create: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """moto takes a launch template's own tags for tags of what it launches; terraform would remove them for ever."""

    def create_version(template: Any, data: dict[str, Any], description: str) -> Any:
        if specifications := data.get("TagSpecifications"):
            data["TagSpecifications"] = [one for one in specifications if one["ResourceType"] != "launch-template"]
        return create(template, data, description)

    create_version._own_tags_apart = True  # type: ignore[attr-defined]
    return create_version


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
