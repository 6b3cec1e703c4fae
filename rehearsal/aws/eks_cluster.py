"""EKS clusters: moto keeps them, this module completes them.

What moto's cluster lacks is added here: the answer's endpoint and CA (the rehearsal's real API server), access, upgrade
and network settings, the cluster security group that EKS makes and removes, and updates with their DescribeUpdate.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehearsal.aws import eks_access
from rehearsal.aws.eks_state import Call, Clusters, ClusterState, EksError, Json, invalid, not_found, now

#: Cluster versions with the end of their standard support, as EKS published them by November 2026.
VERSIONS = {"1.34": "2026-12-02", "1.35": "2027-03-27", "1.36": "2027-08-02"}
DEFAULT_VERSION = "1.35"

#: Settings of CreateCluster and UpdateClusterConfig that moto drops -> the type of the update that changes them.
KEPT = {
    "accessConfig": "AccessConfigUpdate",
    "upgradePolicy": "UpgradePolicyUpdate",
    "zonalShiftConfig": "ZonalShiftConfigUpdate",
    "deletionProtection": "DeletionProtectionUpdate",
}

#: Passes the request on to moto: (status, JSON body).
Forward = Callable[[Json | None], tuple[int, Json]]


@dataclass(frozen=True)
class ApiServer:
    """The control plane that every cluster of the stand-in turns out to be."""

    endpoint: str
    ca_file: Path
    service_cidr: str

    def certificate_authority(self) -> str:
        """The CA as DescribeCluster carries it; read anew each time, as it is made while the rehearsal comes up."""
        return base64.b64encode(self.ca_file.read_bytes()).decode()


def create(clusters: Clusters, call: Call, forward: Forward, api: ApiServer) -> tuple[int, Json]:
    name = call.body.get("name", "")
    version = call.body.get("version") or DEFAULT_VERSION
    if version not in VERSIONS:
        raise invalid(f"unsupported Kubernetes version {version}", clusterName=name)
    subnet_ids = (call.body.get("resourcesVpcConfig") or {}).get("subnetIds") or []
    vpc_id = None if clusters.find(call.caller, name) else _vpc_of(call, subnet_ids)
    status, answer = forward(call.body | {"version": version})
    if status != 200 or vpc_id is None:
        return status, answer
    settings = {key: call.body[key] for key in KEPT if key in call.body}
    settings["accessConfig"] = {
        "authenticationMode": "CONFIG_MAP",
        "bootstrapClusterCreatorAdminPermissions": True,
    } | (call.body.get("accessConfig") or {})
    settings.setdefault("upgradePolicy", {"supportType": "EXTENDED"})
    settings["resourcesVpcConfig"] = {
        "endpointPublicAccess": True,
        "endpointPrivateAccess": False,
        "publicAccessCidrs": ["0.0.0.0/0"],
        "securityGroupIds": [],
        **call.body["resourcesVpcConfig"],
        "vpcId": vpc_id,
    }
    cluster = ClusterState(name, call.caller, settings, _create_security_group(call, name, vpc_id))
    clusters.add(cluster)
    if settings["accessConfig"]["bootstrapClusterCreatorAdminPermissions"]:
        _enter_creator(cluster)
    return status, {"cluster": _complete(answer["cluster"], cluster, api)}


def describe(clusters: Clusters, call: Call, forward: Forward, api: ApiServer) -> tuple[int, Json]:
    status, answer = forward(None)
    cluster = clusters.find(call.caller, call.segments[1])
    if status == 200 and cluster is not None:
        answer = {"cluster": _complete(answer["cluster"], cluster, api)}
    return status, answer


def delete(clusters: Clusters, call: Call, forward: Forward, api: ApiServer) -> tuple[int, Json]:
    cluster = clusters.find(call.caller, call.segments[1])
    if cluster is not None and cluster.settings.get("deletionProtection"):
        raise EksError(
            400, "InvalidRequestException", "Cluster has deletion protection enabled.", clusterName=cluster.name
        )
    status, answer = forward(None)
    if status == 200 and cluster is not None:
        answer = {"cluster": _complete(answer["cluster"], cluster, api) | {"status": "DELETING"}}
        clusters.remove(call.caller, cluster.name)
        _delete_security_group(cluster)
    return status, answer


def update_config(clusters: Clusters, call: Call) -> Json:
    cluster = clusters.get(call.caller, call.segments[1])
    kept = [key for key in KEPT if key in call.body]
    for key in kept:
        value = call.body[key]
        cluster.settings[key] = cluster.settings.get(key, {}) | value if isinstance(value, dict) else value
    if network := call.body.get("resourcesVpcConfig"):
        _check_zones(cluster, network.get("subnetIds"))
        cluster.settings["resourcesVpcConfig"] |= network
        return cluster.record_update("VpcConfigUpdate" if "subnetIds" in network else "EndpointAccessUpdate")
    if logging := call.body.get("logging"):
        moto_cluster(cluster).logging = logging
        return cluster.record_update("LoggingUpdate")
    if not kept:
        raise invalid("No changes needed for the cluster config provided", clusterName=cluster.name)
    return cluster.record_update(KEPT[kept[0]])


def update_version(clusters: Clusters, call: Call) -> Json:
    cluster = clusters.get(call.caller, call.segments[1])
    version = call.body.get("version", "")
    if version not in VERSIONS:
        raise invalid(f"unsupported Kubernetes version {version}", clusterName=cluster.name)
    moto_cluster(cluster).version = version
    return cluster.record_update("VersionUpdate")


def describe_update(clusters: Clusters, call: Call) -> Json:
    update = clusters.get(call.caller, call.segments[1]).updates.get(call.segments[3])
    if update is None:
        raise not_found(f"No update found for ID: {call.segments[3]}", clusterName=call.segments[1])
    return {"update": update}


def list_updates(clusters: Clusters, call: Call) -> Json:
    return call.page("updateIds", list(clusters.get(call.caller, call.segments[1]).updates))


def versions(clusters: Clusters, call: Call) -> Json:
    """DescribeClusterVersions, without the fields that only matter for a release calendar."""
    wanted = call.query.get("clusterVersions") or list(VERSIONS)
    return call.page(
        "clusterVersions",
        [
            {
                "clusterVersion": version,
                "clusterType": "eks",
                "defaultPlatformVersion": "eks.4",
                "defaultVersion": version == DEFAULT_VERSION,
                "kubernetesPatchVersion": f"{version}.0",
                "status": "STANDARD_SUPPORT",
                "versionStatus": "STANDARD_SUPPORT",
            }
            for version in sorted(VERSIONS, reverse=True)
            if version in wanted
        ],
    )


def _complete(described: Json, cluster: ClusterState, api: ApiServer) -> Json:
    settings = cluster.settings
    network: Json = dict(described.get("kubernetesNetworkConfig") or {})
    network.update({"serviceIpv4Cidr": api.service_cidr, "ipFamily": "ipv4"})
    return described | {
        "endpoint": api.endpoint,
        "certificateAuthority": {"data": api.certificate_authority()},
        "kubernetesNetworkConfig": network,
        "resourcesVpcConfig": settings["resourcesVpcConfig"] | {"clusterSecurityGroupId": cluster.security_group_id},
        "health": {"issues": []},
        **{key: settings[key] for key in KEPT if key in settings},
    }


def moto_cluster(cluster: ClusterState) -> Any:
    from moto.eks.models import eks_backends

    return eks_backends[cluster.caller.account][cluster.caller.region].clusters[cluster.name]


def _ec2(call_or_cluster: Call | ClusterState) -> Any:
    from moto.ec2.models import ec2_backends

    caller = call_or_cluster.caller
    return ec2_backends[caller.account][caller.region]


def _vpc_of(call: Call, subnet_ids: list[str]) -> str:
    """The VPC of the cluster's subnets. EKS wants at least two zones of one VPC."""
    if not subnet_ids:
        raise invalid("Subnets specified must be in at least two different AZs")
    from moto.ec2.exceptions import InvalidSubnetIdError

    try:
        subnets = [_ec2(call).get_subnet(subnet_id) for subnet_id in subnet_ids]
    except InvalidSubnetIdError as error:
        raise invalid(f"The subnet ID is invalid or does not exist: {error}") from error
    if len({subnet.availability_zone for subnet in subnets}) < 2:
        raise invalid("Subnets specified must be in at least two different AZs")
    if len({subnet.vpc_id for subnet in subnets}) != 1:
        raise invalid("Subnets specified must belong to the same VPC")
    return str(subnets[0].vpc_id)


def _check_zones(cluster: ClusterState, subnet_ids: list[str] | None) -> None:
    """Other subnets must lie in exactly the zones of those that the cluster was made with."""
    if subnet_ids is None:
        return
    known, wanted = (
        {_ec2(cluster).get_subnet(subnet_id).availability_zone for subnet_id in ids}
        for ids in (cluster.settings["resourcesVpcConfig"]["subnetIds"], subnet_ids)
    )
    if wanted != known:
        raise invalid(
            f"Provided subnets belong to the AZs '{','.join(sorted(wanted))}'. But they should belong to the exact set"
            f" of AZs '{','.join(sorted(known))}' in which subnets were provided during cluster creation.",
            clusterName=cluster.name,
        )


def _create_security_group(call: Call, name: str, vpc_id: str) -> str:
    group = _ec2(call).create_security_group(
        f"eks-cluster-sg-{name}-{secrets.randbelow(10**9):09d}",
        "EKS created security group applied to ENI that is attached to EKS Control Plane master nodes",
        vpc_id=vpc_id,
        tags={"aws:eks:cluster-name": name, f"kubernetes.io/cluster/{name}": "owned"},
    )
    return str(group.id)


def _delete_security_group(cluster: ClusterState) -> None:
    """As on EKS, a group that something still refers to is left behind."""
    from moto.ec2.exceptions import DependencyViolationError, InvalidSecurityGroupNotFoundError

    try:
        _ec2(cluster).delete_security_group(group_id=cluster.security_group_id)
    except (DependencyViolationError, InvalidSecurityGroupNotFoundError):
        return


def _enter_creator(cluster: ClusterState) -> None:
    from rehearsal.aws import ADMIN_PRINCIPAL_ARN

    entry = eks_access.add(cluster, ADMIN_PRINCIPAL_ARN, "STANDARD")
    entry.policies[eks_access.CLUSTER_ADMIN_POLICY] = {
        "policyArn": eks_access.CLUSTER_ADMIN_POLICY,
        "accessScope": {"type": "cluster", "namespaces": []},
        "associatedAt": now(),
        "modifiedAt": now(),
    }
