"""`cluster.py create NAME SUBNETS ROLE ADMIN OWNER`, `cluster.py delete NAME`: an EKS cluster with one node group."""

from __future__ import annotations

import sys
import time

import boto3

GROUP = "system"


def create(name: str, subnets: str, role: str, admin: str, owner: str) -> None:
    eks, tags = boto3.client("eks"), {"nim-rollouts/environment": owner}
    eks.create_cluster(
        name=name,
        version="1.35",
        roleArn=role,
        resourcesVpcConfig={"subnetIds": subnets.split(",")},
        accessConfig={"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": True},
        tags=tags,
    )
    while eks.describe_cluster(name=name)["cluster"]["status"] != "ACTIVE":
        time.sleep(0.1)
    eks.create_nodegroup(
        clusterName=name,
        nodegroupName=GROUP,
        subnets=subnets.split(","),
        nodeRole=role,
        scalingConfig={"minSize": 1, "maxSize": 1, "desiredSize": 1},
        instanceTypes=["m5.xlarge"],
        amiType="BOTTLEROCKET_x86_64",
        tags=tags,
    )
    print(f"{name} is there, for {admin}")


def delete(name: str) -> None:
    eks = boto3.client("eks")
    missing = eks.exceptions.ResourceNotFoundException
    for order, look in (
        (lambda: eks.delete_nodegroup(clusterName=name, nodegroupName=GROUP),
         lambda: eks.describe_nodegroup(clusterName=name, nodegroupName=GROUP)),
        (lambda: eks.delete_cluster(name=name), lambda: eks.describe_cluster(name=name)),
    ):  # fmt: skip
        try:
            order()
            while True:
                look()
                time.sleep(0.1)
        except missing:
            pass


if __name__ == "__main__":
    {"create": create, "delete": delete}[sys.argv[1]](*sys.argv[2:])
