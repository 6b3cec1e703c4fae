"""What AWS still has of something that went in Kubernetes, seen by boto3: access points, instances, load balancers.

No Kubernetes object tells of these once their own object is gone; a driver or controller that died half-way, or that
was not there at all, leaves them on the bill. Blocking; reads only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from nim_rollouts.clients.inventory import balancers as tagged
from nim_rollouts.clients.inventory.aws import pages, tags_of

_CLASSIC, _CONTROLLER = "kubernetes.io/cluster/{}", "elbv2.k8s.aws/cluster"


@dataclass(frozen=True)
class Remain:
    """One thing that is still there. `going`: AWS is already removing it, without anybody's help."""

    kind: str
    id: str
    detail: str = ""
    going: bool = False

    @property
    def text(self) -> str:
        """For a person."""
        return f"{self.kind} {self.id}" + (f" ({self.detail})" if self.detail else "")


def file_systems(efs: Any, tag: str, value: str) -> list[str]:
    """Ids of the file systems that carry the tag."""
    found = pages(efs, "describe_file_systems", "FileSystems")
    return [one["FileSystemId"] for one in found if tags_of(one).get(tag) == value]


def access_points(efs: Any, on: Collection[str], known: Collection[str] = ()) -> list[Remain]:
    """Access points on these file systems, and those of the known ids that are left.

    :param on: file system ids
    :param known: `fs-...::fsap-...`, as a volume's handle names file system and access point
    """
    found: dict[str, Remain] = {}
    wanted = {point for _, _, point in (handle.partition("::") for handle in known) if point}
    holders = {handle.partition("::")[0] for handle in known} | set(on)
    for file_system in sorted(holders):
        for one in _points_of(efs, file_system):
            point, state = one["AccessPointId"], str(one.get("LifeCycleState"))
            if state != "deleted" and (file_system in on or point in wanted):
                detail = f"on {file_system}, {state}"
                found[point] = Remain("EFS access point", point, detail, going=state == "deleting")
    return sorted(found.values(), key=lambda one: one.id)


def instances(ec2: Any, cluster: str) -> list[Remain]:
    """Instances that Karpenter launched for this cluster and that are not terminated."""
    filters = [
        {"Name": f"tag:{_CLASSIC.format(cluster)}", "Values": ["owned"]},
        {"Name": "tag-key", "Values": ["karpenter.sh/nodepool"]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down", "stopping", "stopped"]},
    ]
    found = []
    reservations = pages(ec2, "describe_instances", "Reservations", Filters=filters)
    for one in (one for group in reservations for one in group["Instances"]):
        state = one["State"]["Name"]
        detail = f"{one.get('InstanceType')}, node pool {tags_of(one).get('karpenter.sh/nodepool')}, {state}"
        found.append(Remain("instance", one["InstanceId"], detail, going=state == "shutting-down"))
    return found


def balancers(elbv2: Any, elb: Any, cluster: str) -> list[Remain]:
    """Load balancers that a controller made for this cluster: by the tags of either of the two that there are."""
    found = [(one["LoadBalancerName"], one.get("Type"), tags) for one, tags in tagged.newer(elbv2)]
    found += [(one["LoadBalancerName"], "classic", tags) for one, tags in tagged.classic(elb)]
    ours = [one for one in found if _is_of(cluster, one[2])]
    return [Remain("load balancer", name, f"{kind}, {_for(tags)}") for name, kind, tags in ours]


def balancer_interfaces(ec2: Any, vpcs: Collection[str]) -> list[Remain]:
    """Network interfaces of load balancers in these VPCs. AWS removes them itself, some time after the balancer."""
    if not vpcs:
        return []
    filters = [{"Name": "vpc-id", "Values": sorted(vpcs)}]
    return [
        Remain("network interface", one["NetworkInterfaceId"], str(one["Description"]), going=True)
        for one in pages(ec2, "describe_network_interfaces", "NetworkInterfaces", Filters=filters)
        if str(one.get("Description") or "").startswith("ELB ")
    ]


def vpcs(ec2: Any, tag: str, value: str) -> list[str]:
    """Ids of the VPCs that carry the tag."""
    filters = [{"Name": f"tag:{tag}", "Values": [value]}]
    return [one["VpcId"] for one in pages(ec2, "describe_vpcs", "Vpcs", Filters=filters)]


def _points_of(efs: Any, file_system: str) -> Iterator[dict[str, Any]]:
    try:
        yield from pages(efs, "describe_access_points", "AccessPoints", FileSystemId=file_system)
    except efs.exceptions.FileSystemNotFound:
        return


def _is_of(cluster: str, tags: dict[str, str]) -> bool:
    return tags.get(_CONTROLLER) == cluster or tags.get(_CLASSIC.format(cluster)) == "owned"


def _for(tags: dict[str, str]) -> str:
    """Which object asked for it: both controllers write it down."""
    names = ("kubernetes.io/service-name", "service.k8s.aws/stack", "ingress.k8s.aws/stack")
    return f"of {next((tags[name] for name in names if name in tags), 'nobody named')}"
