"""The loop: looks at EC2's instances every second, registers those that have booted, removes Nodes of those that ended.

Everything is derived from EC2 and the API, so a restart loses nothing. ``node_start`` of ``timing.json``: seconds from
an instance's launch to its Node.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from rehearsal.aws.environment import session
from rehearsal.config import Rehearsal
from rehearsal.karpenter import catalogue
from rehearsal.kube import ApiError, Conflict, Kube, Obj, path
from rehearsal.nodes import userdata
from rehearsal.nodes.node import node_object, provider_id

log = logging.getLogger(__name__)

LOOK_S = 1.0
CLUSTER_TAG = "kubernetes.io/cluster/"


class Machines:
    """The instances of every cluster of the stand-in; there is one API server, whatever the cluster's name."""

    def __init__(self, r: Rehearsal, kube: Kube):
        self._r, self._kube = r, kube
        self._ec2 = session(r.url("aws")).client("ec2", endpoint_url=r.url("aws"))
        self._nodes = kube.cache("/api/v1/nodes")
        self._catalogue = catalogue.load()
        self._joined: set[str] = set()
        """Instances whose kubelet has registered: it does not do so again when somebody deletes its Node."""

    async def run(self, on_synced: Callable[[], None] = lambda: None) -> None:
        """Work until cancelled."""
        from botocore.exceptions import BotoCoreError, ClientError

        self._nodes.start()
        await self._nodes.synced()
        on_synced()
        try:
            while True:
                pause = LOOK_S
                try:
                    pause = await self._look()
                except (ApiError, aiohttp.ClientError, OSError, TimeoutError, BotoCoreError, ClientError) as error:
                    # Either server restarts, or an object changed meanwhile: the next look sees things as they are.
                    log.warning("look broken off: %s", error)
                await asyncio.sleep(pause)
        finally:
            await self._nodes.stop()

    async def _look(self) -> float:
        """One look at everything; returns seconds until the next."""
        instances = await asyncio.to_thread(self._instances)
        running = {provider_id(one): one for one in instances if one["State"]["Name"] == "running"}
        present = {
            node["spec"]["providerID"]: node
            for node in self._nodes.items.values()
            if node["spec"].get("providerID", "").startswith("aws:///")
        }
        self._joined |= {one["InstanceId"] for id_, one in running.items() if id_ in present}
        for id_, node in present.items():
            if id_ not in running and not node["metadata"].get("deletionTimestamp"):
                log.info("node %s goes: its instance has ended", node["metadata"]["name"])
                await self._kube.delete(path(node))
        pause = LOOK_S
        start = self._r.timing("node_start", 2.0)
        for one in running.values():
            if one["InstanceId"] in self._joined:
                continue
            booting = start - (datetime.now(UTC) - one["LaunchTime"]).total_seconds()
            if booting <= 0:
                await self._join(one)
            else:
                pause = min(pause, booting)
        return max(0.05, pause)

    def _instances(self) -> list[dict[str, Any]]:
        pages = self._ec2.get_paginator("describe_instances").paginate()
        return [
            one
            for page in pages
            for reservation in page["Reservations"]
            for one in reservation["Instances"]
            if any(tag["Key"].startswith(CLUSTER_TAG) and tag["Value"] == "owned" for tag in one.get("Tags", ()))
        ]

    async def _join(self, instance: dict[str, Any]) -> None:
        identifier = instance["InstanceId"]
        self._joined.add(identifier)
        try:
            bootstrap, disk = await asyncio.to_thread(self._told, instance)
        except ValueError as error:
            log.warning("instance %s does not join: its user data are %s", identifier, error)
            return
        node = node_object(instance, bootstrap, self._catalogue, disk_gib=disk, port=self._r.ports["kwok"])
        try:
            created: Obj = await self._kube.create("/api/v1/nodes", node)
        except Conflict:
            return
        except BaseException:
            self._joined.discard(identifier)
            raise
        self._nodes.items.setdefault(("", created["metadata"]["name"]), created)
        log.info("instance %s (%s) has joined as %s", identifier, instance["InstanceType"], node["metadata"]["name"])

    def _told(self, instance: dict[str, Any]) -> tuple[userdata.Bootstrap, int]:
        identifier = instance["InstanceId"]
        answer = self._ec2.describe_instance_attribute(InstanceId=identifier, Attribute="userData")
        text = base64.b64decode(answer.get("UserData", {}).get("Value", "")).decode()
        volumes = [one["Ebs"]["VolumeId"] for one in instance.get("BlockDeviceMappings", ()) if "Ebs" in one]
        sizes = [one["Size"] for one in self._ec2.describe_volumes(VolumeIds=volumes)["Volumes"]] if volumes else []
        return userdata.parse(text), max(sizes, default=50)
