"""What an interrupted apply may have made without its state knowing: which planned creations to look for. Pure.

terraform writes a remote state at most every 20 seconds, and only when a resource is done: while an EKS cluster comes
up for ten minutes, nothing. A terraform that is killed forgets all it made since. The next plan would make it again:
what has a name fails as existing, what has none (a VPC, an address, a NAT gateway) is then there twice, and paid for
twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Creating one of these over itself changes nothing: AWS's call sets, attaches or associates what is given.
AGAIN = frozenset({
    "aws_cloudwatch_event_target",
    "aws_ec2_tag",
    "aws_efs_file_system_policy",
    "aws_eks_access_policy_association",
    "aws_iam_role_policy",
    "aws_iam_role_policy_attachment",
    "aws_secretsmanager_secret_version",  # the new version takes the old one's place, which goes with the secret
})  # fmt: skip


LOG_GROUP = "aws_cloudwatch_log_group"


def control_plane_logs(cluster: str) -> str:
    """Name of the log group that EKS writes a cluster's control plane logs to, and makes where there is none."""
    return f"/aws/eks/{cluster}/cluster"


@dataclass(frozen=True)
class Creation:
    """A planned creation. `values`: what the plan knows of its arguments; unknown ones are not in it."""

    address: str
    type: str
    values: Mapping[str, Any]

    @property
    def tags(self) -> dict[str, str]:
        """All tags it will carry, the provider's default ones too."""
        return dict(self.values.get("tags_all") or self.values.get("tags") or {})


def creations(shown: Mapping[str, Any]) -> list[Creation]:
    """What a plan (`terraform show -json`) creates and AWS may have already, in the plan's order."""
    return [
        Creation(change["address"], change["type"], _known(change["change"].get("after")))
        for change in shown.get("resource_changes", [])
        if change.get("mode") == "managed"
        and change["change"]["actions"] == ["create"]
        and change["type"] not in AGAIN
        and "deposed" not in change
    ]


def in_state(shown: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(type, id) of everything that the state holds, or that the plan already imports: never to be taken twice."""
    root = (shown.get("prior_state") or {}).get("values", {}).get("root_module", {})
    held = {(one["type"], str(one["values"].get("id", ""))) for one in _resources(root) if one.get("mode") == "managed"}
    changes = (one for one in shown.get("resource_changes", []) if one["change"].get("importing"))
    return held | {(one["type"], str(one["change"]["importing"].get("id", ""))) for one in changes}


def replaced(shown: Mapping[str, Any]) -> list[Creation]:
    """What is created before its predecessor goes: of these a second one may stand there that cannot be taken in."""
    return [
        Creation(change["address"], change["type"], _known(change["change"].get("after")))
        for change in shown.get("resource_changes", [])
        if change["change"]["actions"] == ["create", "delete"] and change["type"] not in AGAIN
    ]


def made(lines: Iterable[str]) -> dict[str, str]:
    """address -> id of what a `terraform apply -json` said it had created, from its output."""
    found: dict[str, str] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of one that was killed may be cut off
        if not isinstance(event, dict) or event.get("type") != "apply_complete":
            continue
        hook = event.get("hook", {})
        if hook.get("action") == "create" and hook.get("id_value"):
            found[hook["resource"]["addr"]] = str(hook["id_value"])
    return found


def import_blocks(ids: Mapping[str, str]) -> str:
    """terraform configuration that takes these over: address -> the id that the resource type is imported by."""
    return "".join(
        f"import {{\n  to = {address}\n  id = {_quoted(identifier)}\n}}\n"
        for address, identifier in sorted(ids.items())
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


def _known(after: Any) -> Mapping[str, Any]:
    return {name: value for name, value in (after or {}).items() if value is not None}


def _resources(module: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from module.get("resources", [])
    for child in module.get("child_modules", []):
        yield from _resources(child)
