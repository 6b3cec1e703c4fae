"""``python -m rehearsal.karpenter.local``: nodes for a rehearsal in which no environment was applied.

Does by hand what terraform, Helm and the pipeline's platform step do there: a network and a role in the AWS stand-in,
Karpenter's definitions, the node pools of ``include/manifests/node-pools``; then it is the controller, outside the
cluster, until SIGTERM. For tests and for a look around: with a real environment applied, two controllers would fight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path

import yaml

from rehearsal import cluster_setup, config
from rehearsal.aws.environment import session
from rehearsal.config import Rehearsal
from rehearsal.karpenter import catalogue
from rehearsal.karpenter.cloud import Cloud
from rehearsal.karpenter.controller import Controller
from rehearsal.karpenter.world import World
from rehearsal.kube import Kube, Obj, path
from rehearsal.stopping import until_stopped

NAME, REGION, ROLE = "local", "us-west-2", "local-node"
ZONES = ("us-west-2a", "us-west-2b")
POOLS = ("g5-gpu-karpenter", "x86-cpu-karpenter")
TAG = {"karpenter.sh/discovery": NAME}


def network(r: Rehearsal) -> None:
    """A VPC with a subnet a zone, a security group and a role, once."""
    aws = session(r.url("aws"), REGION)
    ec2, iam = (aws.client(service, endpoint_url=r.url("aws")) for service in ("ec2", "iam"))
    tags = [{"Key": key, "Value": value} for key, value in TAG.items()]
    if ec2.describe_subnets(Filters=[{"Name": "tag-key", "Values": list(TAG)}])["Subnets"]:
        return
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    group = ec2.create_security_group(GroupName=NAME, Description="nodes", VpcId=vpc)["GroupId"]
    trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
                                                     "Principal": {"Service": "ec2.amazonaws.com"}}]}  # fmt: skip
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for number, zone in enumerate(ZONES)
    ]
    ec2.create_tags(Resources=[group, *subnets], Tags=tags)


def pools(root: Path, names: tuple[str, ...]) -> list[Obj]:
    """The node pools' objects, for that network."""
    objects: list[Obj] = []
    for name in names:
        text = (root / "include" / "manifests" / "node-pools" / f"{name}.yaml").read_text()
        node_class, pool = yaml.safe_load_all(text)
        node_class["spec"] |= {
            "role": ROLE, "subnetSelectorTerms": [{"tags": TAG}], "securityGroupSelectorTerms": [{"tags": TAG}],
        }  # fmt: skip
        objects += [node_class, pool]
    return objects


def definitions(root: Path) -> list[Obj]:
    """Karpenter's CRDs, as its chart has them."""
    folder = root / "rehearsal" / "charts" / "karpenter" / "crds"
    return [yaml.safe_load(file.read_text()) for file in sorted(folder.glob("*.yaml"))]


async def apply(kube: Kube, objects: list[Obj]) -> None:
    for obj in objects:
        await kube.patch(path(obj), obj, kind="apply", field_manager="local", force=True)


async def run(r: Rehearsal, names: tuple[str, ...]) -> None:
    """Prepare everything, then be the controller until a signal."""
    network(r)
    await cluster_setup.apply(r, definitions(r.root))
    async with Kube.from_rehearsal(r) as kube:
        await apply(kube, pools(r.root, names))
        world = World(r, kube, Cloud(r, NAME, REGION), catalogue.load())
        await until_stopped(Controller(world).run(on_synced=lambda: config.mark_ready("karpenter")))


def main() -> int:
    parser = argparse.ArgumentParser(prog="rehearsal.karpenter.local", description=__doc__)
    parser.add_argument("pools", nargs="*", default=POOLS, help="files of include/manifests/node-pools, without .yaml")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    asyncio.run(run(config.load(), tuple(arguments.pools)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
