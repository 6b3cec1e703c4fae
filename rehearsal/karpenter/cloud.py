"""What the controller asks of EC2 and IAM: subnets, groups and images for a node class, instances for a NodeClaim.

Instances are launched one by one by RunInstances, where the real Karpenter sends a CreateFleet with a launch template;
an image's id is made of its alias, where the real one asks SSM. Tags are Karpenter's own. The methods block: they are
called in threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from rehearsal import faults
from rehearsal.aws.environment import session
from rehearsal.config import Rehearsal
from rehearsal.karpenter.catalogue import SPOT
from rehearsal.kube import Obj
from rehearsal.nodes import userdata

Offering = tuple[str, str, str]
"""Instance type, zone, capacity type."""

CLAIM_TAG, POOL_TAG, CLASS_TAG = "karpenter.sh/nodeclaim", "karpenter.sh/nodepool", "karpenter.k8s.aws/ec2nodeclass"
UNREGISTERED = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
_TAGGED = ("instance", "volume", "network-interface")
_LIVE = ["pending", "running", "stopping", "stopped"]


class InsufficientCapacity(Exception):
    """No offering is to be had; `refused` are those that were asked for."""

    def __init__(self, refused: Sequence[Offering]):
        self.refused = list(refused)
        said = {
            f"InsufficientInstanceCapacity: We currently do not have sufficient {type_} capacity in the Availability "
            f"Zone you requested ({zone}). Our system will be working on provisioning additional capacity."
            for type_, zone, _ in refused
        }
        super().__init__(f"creating instance, insufficient capacity, with fleet error(s), {'; '.join(sorted(said))}")


@dataclass(frozen=True)
class Launched:
    """An instance of a NodeClaim."""

    instance_id: str
    offering: Offering
    image: str

    @property
    def provider_id(self) -> str:
        return f"aws:///{self.offering[1]}/{self.instance_id}"


class Cloud:
    """EC2 and IAM of one region, for one cluster."""

    def __init__(self, r: Rehearsal, cluster: str, region: str):
        self._r, self.cluster, self.region = r, cluster, region
        aws = session(r.url("aws"), region)
        self._ec2 = aws.client("ec2", endpoint_url=r.url("aws"))
        self._iam = aws.client("iam", endpoint_url=r.url("aws"))

    # Node classes

    def subnets(self, terms: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
        found = {
            one["SubnetId"]: one
            for term in terms
            for one in self._ec2.describe_subnets(**_asked(term, "subnet-id"))["Subnets"]
        }
        return [
            {"id": id_, "zone": one["AvailabilityZone"], "zoneID": one["AvailabilityZoneId"]}
            for id_, one in sorted(found.items())
        ]

    def security_groups(self, terms: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
        found = {
            one["GroupId"]: one["GroupName"]
            for term in terms
            for one in self._ec2.describe_security_groups(**_asked(term, "group-id"))["SecurityGroups"]
        }
        return [{"id": id_, "name": name} for id_, name in sorted(found.items())]

    def ensure_profile(self, name: str, role: str, node_class: str) -> None:
        """The instance profile of a node class. Raises ClientError (NoSuchEntity) when there is no such role."""
        tags = {
            f"kubernetes.io/cluster/{self.cluster}": "owned", "eks:eks-cluster-name": self.cluster,
            "topology.kubernetes.io/region": self.region, CLASS_TAG: node_class,
        }  # fmt: skip
        self._iam.get_role(RoleName=role)
        try:
            profile = self._iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        except self._iam.exceptions.NoSuchEntityException:
            made = self._iam.create_instance_profile(InstanceProfileName=name, Tags=_tags(tags))
            profile = made["InstanceProfile"]
        held = [one["RoleName"] for one in profile["Roles"]]
        for other in set(held) - {role}:
            self._iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=other)
        if role not in held:
            self._iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=role)

    def delete_profile(self, name: str) -> None:
        """Nothing where there is none."""
        try:
            profile = self._iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        except self._iam.exceptions.NoSuchEntityException:
            return
        for one in profile["Roles"]:
            self._iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=one["RoleName"])
        self._iam.delete_instance_profile(InstanceProfileName=name)

    # Instances

    def launch(self, claim: Obj, node_class: Obj, offerings: Sequence[Offering], labels: Mapping[str, str]) -> Launched:
        """An instance of the first offering that is to be had; the one that this claim has already, if it has.

        :param offerings: the cheapest first
        :raises InsufficientCapacity: of none there is any
        """
        name = claim["metadata"]["name"]
        there = self.instances({CLAIM_TAG: name})
        if there:
            return _launched(there[0])
        refused = [one for one in offerings if self.is_short(one)]
        offered = [one for one in offerings if one not in refused]
        if not offered:
            raise InsufficientCapacity(refused)
        type_, zone, capacity_type = offered[0]
        status, spec = node_class["status"], node_class["spec"]
        subnet = next(one["id"] for one in status["subnets"] if one["zone"] == zone)
        image = status["amis"][0]["id"]
        taints = [*(claim["spec"].get("taints") or ()), *(claim["spec"].get("startupTaints") or ()), UNREGISTERED]
        tags = _tags({
            **(spec.get("tags") or {}),
            "Name": f"{POOL_TAG}/{claim['metadata']['labels'][POOL_TAG]}",
            f"kubernetes.io/cluster/{self.cluster}": "owned",
            "eks:eks-cluster-name": self.cluster,
            POOL_TAG: claim["metadata"]["labels"][POOL_TAG],
            CLASS_TAG: node_class["metadata"]["name"],
            CLAIM_TAG: name,
        })  # fmt: skip
        more: dict[str, Any] = {}
        if capacity_type == SPOT:
            more["InstanceMarketOptions"] = {"MarketType": "spot"}
        mappings = [_mapping(one) for one in spec.get("blockDeviceMappings") or () if one.get("ebs")]
        made = self._ec2.run_instances(
            ImageId=image, InstanceType=type_, MinCount=1, MaxCount=1, SubnetId=subnet,
            SecurityGroupIds=[one["id"] for one in status["securityGroups"]],
            UserData=userdata.render(self.cluster, labels, taints),
            IamInstanceProfile={"Name": status["instanceProfile"]},
            TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in _TAGGED],
            ClientToken=claim["metadata"]["uid"], **({"BlockDeviceMappings": mappings} if mappings else {}), **more,
        )  # fmt: skip
        return Launched(made["Instances"][0]["InstanceId"], offered[0], image)

    def is_short(self, offering: Offering) -> bool:
        """Whether the cloud would refuse it: the ordered fault."""
        fault = faults.get(self._r, "no-capacity")
        return bool(fault and fnmatch(offering[0], fault["instance_type"]))

    def instances(self, tags: Mapping[str, str]) -> list[dict[str, Any]]:
        """Those of this cluster that live and carry these tags (an empty value: any)."""
        wanted = {f"kubernetes.io/cluster/{self.cluster}": "owned", **tags}
        filters = [
            {"Name": f"tag:{key}", "Values": [value]} if value else {"Name": "tag-key", "Values": [key]}
            for key, value in wanted.items()
        ]
        filters.append({"Name": "instance-state-name", "Values": _LIVE})
        pages = self._ec2.get_paginator("describe_instances").paginate(Filters=filters)
        return [one for page in pages for group in page["Reservations"] for one in group["Instances"]]

    def name(self, instance_id: str, node: str) -> None:
        """The name of its node as the instance's."""
        self._ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "Name", "Value": node}])

    def terminate(self, instance_id: str) -> None:
        """Nothing where it is gone already."""
        from botocore.exceptions import ClientError

        try:
            self._ec2.terminate_instances(InstanceIds=[instance_id])
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidInstanceID.NotFound":
                raise


def image_of(alias: str) -> str:
    """The image that an alias stands for; always the same one."""
    return f"ami-{hashlib.sha256(alias.encode()).hexdigest()[:17]}"


def _launched(instance: Mapping[str, Any]) -> Launched:
    capacity_type = instance.get("InstanceLifecycle", "on-demand")
    offering = (instance["InstanceType"], instance["Placement"]["AvailabilityZone"], capacity_type)
    return Launched(instance["InstanceId"], offering, instance["ImageId"])


def _asked(term: Mapping[str, Any], id_filter: str) -> dict[str, Any]:
    """A selector term as a describe call takes it: all of it must hold; `*` is any value of a tag."""
    filters = []
    if term.get("id"):
        filters.append({"Name": id_filter, "Values": [term["id"]]})
    if term.get("name"):
        filters.append({"Name": "group-name", "Values": [term["name"]]})
    for key, value in (term.get("tags") or {}).items():
        any_value = value == "*"
        filters.append({"Name": "tag-key", "Values": [key]} if any_value else {"Name": f"tag:{key}", "Values": [value]})
    return {"Filters": filters}


def _mapping(one: Mapping[str, Any]) -> dict[str, Any]:
    ebs = one["ebs"]
    size = str(ebs.get("volumeSize", "20Gi"))
    wanted: dict[str, Any] = {
        "VolumeSize": int(size.rstrip("GTi")) * (1024 if size.rstrip("i").endswith("T") else 1),
        "VolumeType": ebs.get("volumeType", "gp3"),
        "DeleteOnTermination": ebs.get("deleteOnTermination", True),
    }
    return {"DeviceName": one["deviceName"], "Ebs": wanted}


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
