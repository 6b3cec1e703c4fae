"""The kubelet's events, written in the order in which they happened, without the pods waiting for them."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import aiohttp

from rehearsal.kube import ApiError, Kube, Obj, now_rfc3339, path_of

log = logging.getLogger(__name__)


class Events:
    """A recorder. Equal events count up on one object, as client-go's correlator makes them."""

    def __init__(self, kube: Kube):
        self._kube = kube
        self._queue: asyncio.Queue[tuple[tuple[str, ...], Obj]] = asyncio.Queue()
        self._written: dict[tuple[str, ...], tuple[str, int]] = {}

    def record(self, pod: Obj, type_: str, reason: str, message: str, container: str = "", init: bool = False) -> None:
        """Queue an event about a pod or one of its containers."""
        meta, host = pod["metadata"], pod["spec"].get("nodeName", "")
        moment = now_rfc3339()
        involved: Obj = {
            "kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"],
            "apiVersion": "v1", "resourceVersion": meta.get("resourceVersion"),
        }  # fmt: skip
        if container:
            group = "initContainers" if init else "containers"
            involved["fieldPath"] = f"spec.{group}{{{container}}}"
        body: dict[str, Any] = {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"namespace": meta["namespace"], "name": f"{meta['name']}.{random.getrandbits(60):015x}"},
            "involvedObject": involved, "type": type_, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": moment, "lastTimestamp": moment, "source": {"component": "kubelet", "host": host},
            "reportingComponent": "kubelet", "reportingInstance": host,
        }  # fmt: skip
        self._queue.put_nowait(((meta["uid"], container, type_, reason, message), body))

    def forget(self, uid: str) -> None:
        """No more events about this pod are expected."""
        for key in [key for key in self._written if key[0] == uid]:
            del self._written[key]

    async def run(self) -> None:
        while True:
            key, body = await self._queue.get()
            try:
                await self._write(key, body)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                # Best effort, as a kubelet's: a namespace on its way out refuses new events.
                self._written.pop(key, None)
                log.debug("event %s not written: %s", body["reason"], error)

    async def _write(self, key: tuple[str, ...], body: Obj) -> None:
        namespace = body["metadata"]["namespace"]
        if key in self._written:
            name, count = self._written[key]
            self._written[key] = (name, count + 1)
            news = {"count": count + 1, "lastTimestamp": body["lastTimestamp"]}
            await self._kube.patch(path_of("v1", "Event", namespace, name), news)
        else:
            await self._kube.create(path_of("v1", "Event", namespace), body)
            self._written[key] = (body["metadata"]["name"], 1)
