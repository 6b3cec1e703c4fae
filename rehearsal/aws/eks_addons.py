"""EKS add-ons and pod identity associations. An add-on is active at once: nothing is installed into the cluster."""

from __future__ import annotations

import json
import secrets
import uuid
from typing import Any

from rehearsal.aws.eks_cluster import DEFAULT_VERSION, moto_cluster
from rehearsal.aws.eks_state import Call, Clusters, ClusterState, Json, in_use, invalid, not_found, now

#: Add-ons of the stand-in's catalogue: default version (of the one whose version is Kubernetes's own, for a cluster's)
#: and type. The version strings have EKS's form; which ones AWS offers for a cluster version only AWS can say.
CATALOGUE: dict[str, tuple[str, str]] = {
    "vpc-cni": ("v1.21.1-eksbuild.1", "networking"),
    "kube-proxy": ("v{kubernetes}.0-eksbuild.2", "networking"),
    "coredns": ("v1.13.1-eksbuild.1", "networking"),
    "eks-pod-identity-agent": ("v1.3.10-eksbuild.1", "security"),
    "aws-ebs-csi-driver": ("v1.54.0-eksbuild.1", "storage"),
    "aws-efs-csi-driver": ("v2.2.0-eksbuild.1", "storage"),
    "aws-mountpoint-s3-csi-driver": ("v2.2.1-eksbuild.1", "storage"),
    "metrics-server": ("v0.8.0-eksbuild.5", "observability"),
    "eks-node-monitoring-agent": ("v1.4.2-eksbuild.1", "observability"),
    "amazon-cloudwatch-observability": ("v4.7.0-eksbuild.1", "observability"),
}
ADDON_NAMESPACE = "kube-system"
#: Where an add-on's service accounts live, if not there.
_NAMESPACES = {"amazon-cloudwatch-observability": "amazon-cloudwatch"}


def create(clusters: Clusters, call: Call) -> Json:
    cluster = clusters.get(call.caller, call.segments[1])
    name = call.body.get("addonName", "")
    if name not in CATALOGUE:
        raise invalid(f"Addon {name} specified is not supported", clusterName=cluster.name, addonName=name)
    if name in cluster.addons:
        raise in_use("Addon already exists.", clusterName=cluster.name, addonName=name)
    _check_configuration(call)
    addon: Json = {
        "addonName": name,
        "clusterName": cluster.name,
        "status": "ACTIVE",
        "addonVersion": call.body.get("addonVersion") or default_version(name, moto_cluster(cluster).version),
        "health": {"issues": []},
        "addonArn": cluster.arn("addon", name, str(uuid.uuid4())),
        "createdAt": now(),
        "modifiedAt": now(),
        "tags": call.body.get("tags") or {},
        "publisher": "eks",
        "owner": "aws",
        "podIdentityAssociations": [],
    }
    for key in ("serviceAccountRoleArn", "configurationValues"):
        if call.body.get(key):
            addon[key] = call.body[key]
    cluster.addons[name] = addon
    _set_identities(cluster, addon, call.body.get("podIdentityAssociations") or [])
    return {"addon": addon}


def describe(clusters: Clusters, call: Call) -> Json:
    return {"addon": _addon(clusters, call)}


def list_addons(clusters: Clusters, call: Call) -> Json:
    return call.page("addons", sorted(clusters.get(call.caller, call.segments[1]).addons))


def update(clusters: Clusters, call: Call) -> Json:
    addon = _addon(clusters, call)
    cluster = clusters.get(call.caller, call.segments[1])
    _check_configuration(call)
    for key in ("addonVersion", "serviceAccountRoleArn", "configurationValues"):
        if call.body.get(key):
            addon[key] = call.body[key]
    if "podIdentityAssociations" in call.body:
        _set_identities(cluster, addon, call.body["podIdentityAssociations"] or [])
    addon["modifiedAt"] = now()
    return cluster.record_update("AddonUpdate")


def delete(clusters: Clusters, call: Call) -> Json:
    addon = _addon(clusters, call)
    cluster = clusters.get(call.caller, call.segments[1])
    _set_identities(cluster, addon, [])
    del cluster.addons[addon["addonName"]]
    return {"addon": addon | {"status": "DELETING"}}


def default_version(name: str, kubernetes: str) -> str:
    """The version that EKS installs into a cluster of this version where none is asked for."""
    return CATALOGUE[name][0].format(kubernetes=kubernetes)


def versions(clusters: Clusters, call: Call) -> Json:
    """DescribeAddonVersions: one version an add-on, the default for the cluster version that is asked for."""
    wanted = call.query.get("addonName", [None])[0]
    kubernetes = call.query.get("kubernetesVersion", [DEFAULT_VERSION])[0]
    if wanted is not None and wanted not in CATALOGUE:
        raise invalid(f"Addon {wanted} specified is not supported", addonName=wanted)
    addons = [
        {
            "addonName": name,
            "type": kind,
            "publisher": "eks",
            "owner": "aws",
            "defaultNamespace": _NAMESPACES.get(name, ADDON_NAMESPACE),
            "addonVersions": [
                {
                    "addonVersion": default_version(name, kubernetes),
                    "architecture": ["amd64", "arm64"],
                    "compatibilities": [
                        {"clusterVersion": kubernetes, "platformVersions": ["*"], "defaultVersion": True}
                    ],
                    "requiresConfiguration": False,
                    "requiresIamPermissions": False,
                }
            ],
        }
        for name, (_, kind) in sorted(CATALOGUE.items())
        if wanted in (None, name)
    ]
    return call.page("addons", addons)


def create_identity(clusters: Clusters, call: Call) -> Json:
    cluster = clusters.get(call.caller, call.segments[1])
    return {
        "association": _add_identity(
            cluster,
            namespace=call.body.get("namespace", ""),
            service_account=call.body.get("serviceAccount", ""),
            role_arn=call.body.get("roleArn", ""),
            tags=call.body.get("tags") or {},
            disableSessionTags=call.body.get("disableSessionTags", False),
            **{key: call.body[key] for key in ("targetRoleArn", "policy") if call.body.get(key)},
        )
    }


def describe_identity(clusters: Clusters, call: Call) -> Json:
    return {"association": _identity(clusters, call)}


def list_identities(clusters: Clusters, call: Call) -> Json:
    cluster = clusters.get(call.caller, call.segments[1])
    summary = ("clusterName", "namespace", "serviceAccount", "associationArn", "associationId", "ownerArn")
    found = [
        {key: association[key] for key in summary if key in association}
        for association in cluster.pod_identities.values()
        if all(
            association[key] == call.query.get(key, [association[key]])[0] for key in ("namespace", "serviceAccount")
        )
    ]
    return call.page("associations", found)


def update_identity(clusters: Clusters, call: Call) -> Json:
    association = _identity(clusters, call)
    for key in ("roleArn", "targetRoleArn", "disableSessionTags", "policy"):
        if key in call.body:
            association[key] = call.body[key]
    association["modifiedAt"] = now()
    return {"association": association}


def delete_identity(clusters: Clusters, call: Call) -> Json:
    association = _identity(clusters, call)
    return {"association": clusters.get(call.caller, call.segments[1]).pod_identities.pop(association["associationId"])}


def _addon(clusters: Clusters, call: Call) -> Json:
    cluster, name = clusters.get(call.caller, call.segments[1]), call.segments[3]
    if name not in cluster.addons:
        raise not_found(f"No addon: {name} found in cluster: {cluster.name}", clusterName=cluster.name, addonName=name)
    return cluster.addons[name]


def _identity(clusters: Clusters, call: Call) -> Json:
    association = clusters.get(call.caller, call.segments[1]).pod_identities.get(call.segments[3])
    if association is None:
        raise not_found(f"No association: {call.segments[3]} found in cluster: {call.segments[1]}")
    return association


def _check_configuration(call: Call) -> None:
    try:
        json.loads(call.body.get("configurationValues") or "{}")
    except ValueError:
        raise invalid("ConfigurationValue is not in valid JSON or YAML format") from None


def _add_identity(
    cluster: ClusterState, *, namespace: str, service_account: str, role_arn: str, tags: dict[str, str], **more: Any
) -> Json:
    if not (namespace and service_account and role_arn):
        raise invalid("namespace, serviceAccount and roleArn are required.")
    for other in cluster.pod_identities.values():
        if (other["namespace"], other["serviceAccount"]) == (namespace, service_account):
            raise in_use(f"Association already exists: {other['associationId']}", clusterName=cluster.name)
    association_id = "a-" + secrets.token_hex(9)[:17]
    association: Json = {
        "clusterName": cluster.name,
        "namespace": namespace,
        "serviceAccount": service_account,
        "roleArn": role_arn,
        "associationArn": cluster.arn("podidentityassociation", association_id),
        "associationId": association_id,
        "tags": dict(tags),
        "createdAt": now(),
        "modifiedAt": now(),
        **more,
    }
    cluster.pod_identities[association_id] = association
    return association


def _set_identities(cluster: ClusterState, addon: Json, wanted: list[dict[str, str]]) -> None:
    """Make the add-on own exactly these associations; one that only changes its role keeps its id."""
    owned = {
        association["serviceAccount"]: association
        for association in cluster.pod_identities.values()
        if association.get("ownerArn") == addon["addonArn"]
    }
    for association in wanted:
        account = association["serviceAccount"]
        if account in owned:
            owned.pop(account)["roleArn"] = association["roleArn"]
        else:
            _add_identity(
                cluster,
                namespace=_NAMESPACES.get(addon["addonName"], ADDON_NAMESPACE),
                service_account=account,
                role_arn=association["roleArn"],
                tags=addon["tags"],
                ownerArn=addon["addonArn"],
            )
    for association in owned.values():
        del cluster.pod_identities[association["associationId"]]
    addon["podIdentityAssociations"] = [
        a["associationArn"] for a in cluster.pod_identities.values() if a.get("ownerArn") == addon["addonArn"]
    ]
