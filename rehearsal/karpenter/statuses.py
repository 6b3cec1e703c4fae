"""What EC2NodeClasses and NodePools say of themselves."""

from __future__ import annotations

import asyncio
import hashlib

from rehearsal.karpenter import cloud
from rehearsal.karpenter.offers import POOL_LABEL
from rehearsal.karpenter.resources import ZERO, Resources, as_quantities, quantities, total
from rehearsal.karpenter.world import World, conditions, good, is_true, merged, ready
from rehearsal.kube import Obj

CLASS_FINALIZER = "karpenter.k8s.aws/termination"


async def node_classes(world: World, *, look_again: bool) -> None:
    """Every EC2NodeClass: found subnets, groups, images, its instance profile; let go of when nothing uses it.

    :param look_again: also those that were found in order before
    """
    for node_class in world.all("EC2NodeClass"):
        if node_class["metadata"].get("deletionTimestamp"):
            await _let_go(world, node_class)
        elif look_again or not is_true(node_class, "Ready") or _is_stale(node_class):
            await world.add_finalizer(node_class, CLASS_FINALIZER)
            await _look(world, world.get("EC2NodeClass", node_class["metadata"]["name"]) or node_class)


def profile_name(world: World, node_class: Obj) -> str:
    """As Karpenter names the profile that it makes: the cluster's name and a hash of region and class."""
    text = f"{world.cloud.region}{node_class['metadata']['name']}"
    return f"{world.cloud.cluster}_{int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)}"


def _is_stale(node_class: Obj) -> bool:
    seen = conditions(node_class).get("Ready", {}).get("observedGeneration")
    return bool(seen != node_class["metadata"].get("generation"))


async def _look(world: World, node_class: Obj) -> None:
    from botocore.exceptions import ClientError

    spec = node_class["spec"]
    subnets = await asyncio.to_thread(world.cloud.subnets, spec["subnetSelectorTerms"])
    groups = await asyncio.to_thread(world.cloud.security_groups, spec["securityGroupSelectorTerms"])
    found: Obj = {"subnets": subnets or None, "securityGroups": groups or None}
    parts = [
        good("SubnetsReady") if subnets
        else ("SubnetsReady", "False", "SubnetsNotFound", "SubnetSelector did not match any Subnets"),
        good("SecurityGroupsReady") if groups
        else ("SecurityGroupsReady", "False", "SecurityGroupsNotFound",
              "SecurityGroupSelector did not match any SecurityGroups"),
    ]  # fmt: skip
    aliases = [one.get("alias") or one.get("ssmParameter") or one.get("name") for one in spec["amiSelectorTerms"]]
    images = [one["id"] for one in spec["amiSelectorTerms"] if one.get("id")]
    images += [cloud.image_of(alias) for alias in aliases if alias]
    amd64 = {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}
    found["amis"] = [
        {"id": id_, "name": alias, "requirements": [amd64]} for id_, alias in zip(images, aliases, strict=False)
    ]
    parts.append(good("AMIsReady"))
    profile = spec.get("instanceProfile") or profile_name(world, node_class)
    try:
        if spec.get("role"):
            await asyncio.to_thread(world.cloud.ensure_profile, profile, spec["role"], node_class["metadata"]["name"])
        found["instanceProfile"] = profile
        parts.append(good("InstanceProfileReady"))
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchEntity":
            raise
        found["instanceProfile"] = None
        why = f"Role {spec['role']} does not exist: {error.response['Error']['Message']}"
        parts.append(("InstanceProfileReady", "False", "InstanceProfileRoleNotFound", why))
    parts.append(good("ValidationSucceeded"))
    changed = merged(node_class, [*parts, ready(parts)])
    before = node_class.get("status") or {}
    if changed or any(before.get(key) != value for key, value in found.items()):
        await world.patch(
            node_class, {"status": {**found, **({"conditions": changed} if changed else {})}}, status=True
        )


async def _let_go(world: World, node_class: Obj) -> None:
    name = node_class["metadata"]["name"]
    users = [one["metadata"]["name"] for one in world.all("NodeClaim") if one["spec"]["nodeClassRef"]["name"] == name]
    if users:
        await world.event(
            node_class,
            "WaitingOnNodeClaimTermination",
            f"Waiting on NodeClaim termination for {', '.join(sorted(users))}",
        )
        return
    if node_class["spec"].get("role"):
        await asyncio.to_thread(world.cloud.delete_profile, profile_name(world, node_class))
    await world.remove_finalizer(node_class, CLASS_FINALIZER)


def used(world: World, pool: str) -> Resources:
    """What the pool's NodeClaims hold, as its status tells it."""
    whole: Resources = {"nodes": ZERO}
    for claim in world.all("NodeClaim"):
        if (claim["metadata"].get("labels") or {}).get(POOL_LABEL) == pool:
            whole = total(whole, quantities((claim.get("status") or {}).get("capacity")))
            whole["nodes"] += 1
    return whole


async def node_pools(world: World) -> None:
    """Every NodePool: whether it can be used, and what it holds."""
    for pool in world.all("NodePool"):
        name = pool["spec"]["template"]["spec"]["nodeClassRef"]["name"]
        node_class = world.get("EC2NodeClass", name)
        if node_class is None:
            of_class = ("NodeClassReady", "False", "NodeClassNotFound", "NodeClass not found on cluster")
        elif node_class["metadata"].get("deletionTimestamp"):
            of_class = ("NodeClassReady", "False", "NodeClassTerminating", "NodeClass is Terminating")
        elif is_true(node_class, "Ready"):
            of_class = good("NodeClassReady")
        else:
            said = conditions(node_class).get("Ready")
            status = said["status"] if said else "Unknown"
            why = said["message"] if said else "Node Class Readiness Unknown"
            of_class = ("NodeClassReady", status, said["reason"] if said else "NodeClassReadinessUnknown", why)
        parts = [good("ValidationSucceeded"), of_class]
        changed = merged(pool, [*parts, ready(parts)])
        resources = as_quantities(used(world, pool["metadata"]["name"]))
        status_patch: Obj = {}
        before = (pool.get("status") or {}).get("resources") or {}
        if before != resources:
            status_patch["resources"] = {**dict.fromkeys(before, None), **resources}
        if changed:
            status_patch["conditions"] = changed
        if status_patch:
            await world.patch(pool, {"status": status_patch}, status=True)
