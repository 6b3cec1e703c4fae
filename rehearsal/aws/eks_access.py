"""Access entries and access policies: who may use a cluster, and as whom."""

from __future__ import annotations

import re
import uuid

from rehearsal.aws.eks_state import (
    AccessEntry,
    Call,
    Clusters,
    ClusterState,
    EksError,
    Json,
    in_use,
    invalid,
    not_found,
    now,
)

POLICY_PREFIX = "arn:aws:eks::aws:cluster-access-policy/"
CLUSTER_ADMIN_POLICY = POLICY_PREFIX + "AmazonEKSClusterAdminPolicy"
POLICIES = (
    "AmazonEKSAdminPolicy",
    "AmazonEKSAdminViewPolicy",
    "AmazonEKSClusterAdminPolicy",
    "AmazonEKSEditPolicy",
    "AmazonEKSViewPolicy",
)

#: Entry types of nodes, whose user name and groups EKS sets by itself.
NODE_TYPES = {
    "EC2_LINUX": ["system:nodes"],
    "EC2_WINDOWS": ["eks:kube-proxy-windows", "system:nodes"],
    "FARGATE_LINUX": ["system:node-proxier", "system:nodes"],
}
_PRINCIPAL = re.compile(r"^arn:aws[a-z-]*:iam::(?P<account>\d{12}):(?P<kind>user|role)/(?:[^/]+/)*(?P<name>[^/]+)$")


def create(clusters: Clusters, call: Call) -> Json:
    cluster = clusters.get(call.caller, call.segments[1])
    principal = call.body.get("principalArn", "")
    match = _PRINCIPAL.match(principal)
    if match is None or (match["kind"] == "role" and not _role_exists(match["account"], principal)):
        # EKS's wording; SDKs and terraform repeat the call on it, since a new role takes time to be seen everywhere.
        raise invalid("The specified principalArn is invalid: invalid principal.")
    kind = call.body.get("type") or "STANDARD"
    groups = call.body.get("kubernetesGroups") or []
    if kind in NODE_TYPES:
        if groups or call.body.get("username"):
            raise invalid(f"kubernetesGroups and username cannot be set for an access entry of type {kind}.")
    elif kind != "STANDARD":
        raise invalid(f"The access entry type {kind} is not supported.")
    _check_groups(groups)
    entry = add(cluster, principal, kind, groups, call.body.get("username"), call.body.get("tags") or {})
    return {"accessEntry": entry.description}


def add(
    cluster: ClusterState,
    principal: str,
    kind: str,
    groups: list[str] | None = None,
    username: str | None = None,
    tags: dict[str, str] | None = None,
) -> AccessEntry:
    """Enter a principal that was checked before. Raises ResourceInUseException if it has an entry."""
    if principal in cluster.access_entries:
        raise in_use("The specified access entry resource is already in use on this cluster.", clusterName=cluster.name)
    match = _PRINCIPAL.match(principal)
    if match is None:
        raise invalid("The specified principalArn is invalid: invalid principal.")
    entry = AccessEntry(
        {
            "clusterName": cluster.name,
            "principalArn": principal,
            "kubernetesGroups": list(NODE_TYPES.get(kind) or groups or []),
            "accessEntryArn": cluster.arn(
                "access-entry", match["kind"], match["account"], match["name"], str(uuid.uuid4())
            ),
            "createdAt": now(),
            "modifiedAt": now(),
            "tags": dict(tags or {}),
            "username": username or _default_username(kind, match),
            "type": kind,
        }
    )
    cluster.access_entries[principal] = entry
    return entry


def describe(clusters: Clusters, call: Call) -> Json:
    return {"accessEntry": _entry(clusters, call).description}


def list_entries(clusters: Clusters, call: Call) -> Json:
    cluster = clusters.get(call.caller, call.segments[1])
    policy = call.query.get("associatedPolicyArn", [None])[0]
    return call.page(
        "accessEntries",
        sorted(arn for arn, entry in cluster.access_entries.items() if policy is None or policy in entry.policies),
    )


def update(clusters: Clusters, call: Call) -> Json:
    description = _entry(clusters, call).description
    if description["type"] in NODE_TYPES:
        raise invalid(f"An access entry of type {description['type']} cannot be updated.")
    if "kubernetesGroups" in call.body:
        _check_groups(call.body["kubernetesGroups"] or [])
        description["kubernetesGroups"] = list(call.body["kubernetesGroups"] or [])
    if call.body.get("username"):
        description["username"] = call.body["username"]
    description["modifiedAt"] = now()
    return {"accessEntry": description}


def delete(clusters: Clusters, call: Call) -> Json:
    entry = _entry(clusters, call)
    del clusters.get(call.caller, call.segments[1]).access_entries[entry.description["principalArn"]]
    return {}


def associate_policy(clusters: Clusters, call: Call) -> Json:
    entry = _entry(clusters, call)
    policy_arn = call.body.get("policyArn", "")
    scope = call.body.get("accessScope") or {}
    if policy_arn not in {POLICY_PREFIX + name for name in POLICIES}:
        raise invalid(f"The policyArn parameter format is not valid or the policy does not exist: {policy_arn}.")
    if entry.description["type"] != "STANDARD":
        raise EksError(
            400, "InvalidRequestException", "Access policies can only be associated with entries of type STANDARD."
        )
    if scope.get("type") not in ("cluster", "namespace") or (scope["type"] == "namespace") != bool(
        scope.get("namespaces")
    ):
        raise invalid("accessScope must be of type cluster, or of type namespace with at least one namespace.")
    known = entry.policies.get(policy_arn)
    entry.policies[policy_arn] = {
        "policyArn": policy_arn,
        "accessScope": {"type": scope["type"], "namespaces": scope.get("namespaces") or []},
        "associatedAt": known["associatedAt"] if known else now(),
        "modifiedAt": now(),
    }
    return _with_entry(entry, {"associatedAccessPolicy": entry.policies[policy_arn]})


def list_associated_policies(clusters: Clusters, call: Call) -> Json:
    entry = _entry(clusters, call)
    return _with_entry(
        entry, call.page("associatedAccessPolicies", [entry.policies[arn] for arn in sorted(entry.policies)])
    )


def disassociate_policy(clusters: Clusters, call: Call) -> Json:
    entry = _entry(clusters, call)
    if entry.policies.pop(call.segments[5], None) is None:
        raise not_found("The specified associatedAccessPolicy could not be found.")
    return {}


def list_policies(clusters: Clusters, call: Call) -> Json:
    return call.page("accessPolicies", [{"name": name, "arn": POLICY_PREFIX + name} for name in POLICIES])


def _entry(clusters: Clusters, call: Call) -> AccessEntry:
    entry = clusters.get(call.caller, call.segments[1]).access_entries.get(call.segments[3])
    if entry is None:
        raise not_found(
            "The specified principalArn could not be found. "
            "You can view your available access entries with 'list-access-entries'."
        )
    return entry


def _with_entry(entry: AccessEntry, answer: Json) -> Json:
    return {key: entry.description[key] for key in ("clusterName", "principalArn")} | answer


def _check_groups(groups: list[str]) -> None:
    if any(group.startswith(("system:", "eks:", "aws:", "amazon:", "iam:")) for group in groups):
        raise invalid("The kubernetes group name must not begin with a prefix that EKS keeps for itself.")


def _default_username(kind: str, match: re.Match[str]) -> str:
    if kind in NODE_TYPES:
        return "system:node:{{SessionName}}" if kind == "FARGATE_LINUX" else "system:node:{{EC2PrivateDNSName}}"
    if match["kind"] == "role":
        return f"arn:aws:sts::{match['account']}:assumed-role/{match['name']}/{{{{SessionName}}}}"
    return match.string


def _role_exists(account: str, arn: str) -> bool:
    from moto.iam.models import iam_backends

    return any(role.arn == arn for role in iam_backends[account]["aws"].roles.values())
