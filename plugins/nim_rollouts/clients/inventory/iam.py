"""Roles, policies, instance profiles and identity providers. They are of the account, not of a region, and their lists
do not show tags: names come first, and tags are asked for where a name begins like the environment's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nim_rollouts.clients.inventory.aws import Look, is_gone, pages, tags_of
from nim_rollouts.clients.inventory.cluster import ROLE
from nim_rollouts.clients.inventory.compute import PROFILE
from nim_rollouts.clients.inventory.network import refs
from nim_rollouts.core.inventory import ENVIRONMENT_TAG, Scope, Thing

POLICY, PROVIDER = "IAM policy", "IAM identity provider"


def _tags(iam: Any, operation: str, **arguments: Any) -> dict[str, str] | None:
    """None: it has gone since it was listed."""
    try:
        if operation == "get_instance_profile":
            return tags_of(iam.get_instance_profile(**arguments)["InstanceProfile"])
        return tags_of({"Tags": list(pages(iam, operation, "Tags", **arguments))})
    except iam.exceptions.ClientError as error:
        if is_gone(error):
            return None
        raise


def _like(scope: Scope, name: str) -> bool:
    return name.startswith((f"{scope.cluster}-", f"{scope.cluster}_", f"Karpenter-{scope.cluster}"))


def _roles(iam: Any, scope: Scope) -> Iterator[Thing]:
    for item in pages(iam, "list_roles", "Roles"):
        name = item["RoleName"]
        if not _like(scope, name):
            continue
        tags = _tags(iam, "list_role_tags", RoleName=name)
        if tags is not None:
            yield Thing(ROLE, name, tags=tags)


def _policies(iam: Any, scope: Scope) -> Iterator[Thing]:
    for item in pages(iam, "list_policies", "Policies", Scope="Local"):
        name = item["PolicyName"]
        if not _like(scope, name):
            continue
        tags = _tags(iam, "list_policy_tags", PolicyArn=item["Arn"])
        if tags is not None:
            attached = item.get("AttachmentCount", 0)
            yield Thing(POLICY, name, tags=tags, held_by=(f"{attached} attachments",) if attached else ())


def _profiles(iam: Any, scope: Scope) -> Iterator[Thing]:
    """Karpenter's are named after the cluster or lie under its path, and hold the role for its nodes; EKS's hold the
    role of their node group."""
    for item in pages(iam, "list_instance_profiles", "InstanceProfiles"):
        name = item["InstanceProfileName"]
        roles = [role["RoleName"] for role in item.get("Roles", ())]
        ours = [role for role in roles if role in scope.names()[ROLE]]
        if not (_like(scope, name) or ours or f"/{scope.cluster}/" in item.get("Path", "")):
            continue
        tags = _tags(iam, "get_instance_profile", InstanceProfileName=name)
        if tags is None or tags.get(ENVIRONMENT_TAG, scope.environment) != scope.environment:
            continue
        by = tuple(f"its {ROLE} {role}" for role in ours)
        yield Thing(PROFILE, name, tags=tags, by=by, holds=refs(ROLE, *roles))


def _providers(iam: Any, scope: Scope) -> Iterator[Thing]:
    for item in iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]:
        arn = item["Arn"]
        # EKS's alone: others have nothing to do with a cluster, and may not be ours to ask about.
        if "oidc.eks." not in arn:
            continue
        tags = _tags(iam, "list_open_id_connect_provider_tags", OpenIDConnectProviderArn=arn)
        if tags is not None:
            yield Thing(PROVIDER, arn.partition("oidc-provider/")[2], tags=tags)


_SEE: tuple[tuple[str, Callable[[Any, Scope], Iterator[Thing]]], ...] = (
    (ROLE, _roles),
    (POLICY, _policies),
    (PROFILE, _profiles),
    (PROVIDER, _providers),
)
LOOKS = tuple(Look((kind,), ("iam",), see) for kind, see in _SEE)
