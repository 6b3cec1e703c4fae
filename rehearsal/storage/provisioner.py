"""The loop that gives claims their volumes and takes released ones away.

Level-triggered: what is to be done follows from claims, volumes and classes as they are, under names and tokens that
follow from a claim's uid. So it may be stopped at any point and goes on where it was, and never makes two of one.
Durations (seconds, ``timing.json``): ``volume_provision`` before an access point is made, ``volume_retry_max`` as the
longest pause between attempts (they start at 1 s and double, as external-provisioner's).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from rehearsal import faults
from rehearsal.config import Rehearsal
from rehearsal.kube import ApiError, Conflict, Kube, NotFound, Obj, path_of
from rehearsal.storage.access_points import AccessPoints, DriverError, refusal, wanted
from rehearsal.storage.volumes import (
    DRIVER,
    FINALIZER,
    access_point,
    is_ours,
    may_go,
    volume,
    volume_name,
    wants_volume,
)

log = logging.getLogger(__name__)

COMPONENT = f"{DRIVER}_efs-csi-controller"


@dataclass
class Pause:
    """An object that failed: not again before ``due`` (loop time, seconds)."""

    delay: float
    due: float


class Provisioner:
    """Plays the EFS CSI controller for all claims of one API server. One object at a time."""

    def __init__(self, r: Rehearsal, kube: Kube, points: AccessPoints):
        self._r, self._kube, self._points = r, kube, points
        self._claims = kube.cache("/api/v1/persistentvolumeclaims")
        self._volumes = kube.cache("/api/v1/persistentvolumes")
        self._classes = kube.cache("/apis/storage.k8s.io/v1/storageclasses")
        self._wake = asyncio.Event()
        self._pauses: dict[str, Pause] = {}
        self._sweep = True

    async def run(self, on_synced: Callable[[], None] = lambda: None) -> None:
        """Work until cancelled."""
        caches = (self._claims, self._volumes, self._classes)
        for cache in caches:
            cache.subscribe(lambda *_: self._wake.set())
            cache.start()
            await cache.synced()
        self._claims.subscribe(self._on_claim)
        await self._register_driver()
        on_synced()
        try:
            while True:
                self._wake.clear()
                wait = await self._round()
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: Python 3.11's may lose a cancellation that meets a change.
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
        finally:
            for cache in caches:
                await cache.stop()

    def _on_claim(self, type_: str, _: Obj) -> None:
        if type_ == "DELETED":  # perhaps between its access point and its volume
            self._sweep = True

    async def _register_driver(self) -> None:
        """The CSIDriver object of the driver's chart: EFS needs no attaching."""
        driver = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            "metadata": {"name": DRIVER},
            "spec": {"attachRequired": False},
        }
        while True:
            try:
                await self._kube.create("/apis/storage.k8s.io/v1/csidrivers", driver)
                return
            except Conflict:
                return
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("CSIDriver not registered yet: %s", error)
                await asyncio.sleep(1)

    async def _round(self) -> float | None:
        """Everything that is due, once. Returns seconds until the next paused object is due."""
        loop = asyncio.get_running_loop()
        jobs: list[tuple[Obj, Callable[[Obj], Any]]] = []
        for claim in list(self._claims.items.values()):
            if volume_name(claim) not in self._volume_names() and wants_volume(claim, self._class_of(claim)):
                jobs.append((claim, self._provision))
        jobs += [(pv, self._remove) for pv in list(self._volumes.items.values()) if may_go(pv)]
        live = {obj["metadata"]["uid"] for obj, _ in jobs}
        self._pauses = {uid: pause for uid, pause in self._pauses.items() if uid in live}
        for obj, work in jobs:
            uid = obj["metadata"]["uid"]
            pause = self._pauses.get(uid)
            if pause and pause.due > loop.time():
                continue
            try:
                await work(obj)
                self._pauses.pop(uid, None)
            except (DriverError, ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                log.warning("%s %s: %s", obj["kind"], obj["metadata"]["name"], error)
                delay = min(pause.delay * 2, self._r.timing("volume_retry_max", 60.0)) if pause else 1.0
                self._pauses[uid] = Pause(delay, loop.time() + delay)
        if self._sweep:
            await self._remove_orphans()
        dues = [pause.due for pause in self._pauses.values()] + ([loop.time() + 2] if self._sweep else [])
        return max(0.05, min(dues) - loop.time()) if dues else None

    def _volume_names(self) -> set[str]:
        return {name for _, name in self._volumes.items}

    def _class_of(self, claim: Obj) -> Obj | None:
        return self._classes.items.get(("", claim["spec"].get("storageClassName") or ""))

    def _gone(self, claim: Obj) -> bool:
        live = self._claims.items.get((claim["metadata"]["namespace"], claim["metadata"]["name"]))
        return live is None or live["metadata"]["uid"] != claim["metadata"]["uid"]

    async def _provision(self, claim: Obj) -> None:
        meta = claim["metadata"]
        storage_class = self._class_of(claim)
        if storage_class is None or self._gone(claim):
            return  # deleted while this round worked on another object
        name = volume_name(claim)
        about = f'"{meta["namespace"]}/{meta["name"]}"'
        await self._say(claim, "Provisioning", f"External provisioner is provisioning volume for claim {about}")
        await asyncio.sleep(self._r.timing("volume_provision", 0.3))
        try:
            if fault := faults.get(self._r, "claim-unbound"):
                raise refusal(fault["code"])
            want = wanted(storage_class.get("parameters") or {}, name, meta["name"])
            point = await asyncio.to_thread(self._points.create, want)
        except DriverError as error:
            class_name = storage_class["metadata"]["name"]
            told = f'failed to provision volume with StorageClass "{class_name}": {error}'
            await self._say(claim, "ProvisioningFailed", told, type_="Warning")
            raise
        folder = self._r.path("volumes") / name
        folder.mkdir(exist_ok=True)
        # The owner is always let in: whoever runs the pods' processes here is the owner, whatever the class says.
        folder.chmod(int(want.permissions, 8) | 0o700)
        if fault := faults.get(self._r, "volume-not-writable"):
            folder.chmod(int(fault["mode"], 8))
        pv = volume(claim, storage_class, file_system=want.file_system, access_point=point)
        with contextlib.suppress(Conflict):  # made before a restart
            created = await self._kube.create("/api/v1/persistentvolumes", pv)
            # Known at once, not first when the watch brings it: else the next round would provision again.
            self._volumes.items.setdefault(("", name), created)
        log.info("volume %s for claim %s, access point %s", name, about, point)
        await self._say(claim, "ProvisioningSucceeded", f"Successfully provisioned volume {name}")

    async def _remove(self, pv: Obj) -> None:
        name = pv["metadata"]["name"]
        point = access_point(pv)
        handle = pv["spec"]["csi"]["volumeHandle"]
        shared = any(
            other["metadata"]["name"] != name and other["spec"].get("csi", {}).get("volumeHandle") == handle
            for other in self._volumes.items.values()
        )
        try:
            if point and not shared:
                await asyncio.to_thread(self._points.delete, point)
        except DriverError as error:
            await self._say(pv, "VolumeFailedDelete", str(error), type_="Warning")
            raise
        await asyncio.to_thread(shutil.rmtree, self._r.path("volumes") / name, True)
        path = path_of("v1", "PersistentVolume", None, name)
        with contextlib.suppress(NotFound):
            uid = pv["metadata"]["uid"]
            await self._kube.delete(path, {"preconditions": {"uid": uid}})
            live = await self._kube.get(path)
            if live["metadata"]["uid"] == uid:
                rest = [each for each in live["metadata"].get("finalizers") or [] if each != FINALIZER]
                version = live["metadata"]["resourceVersion"]
                await self._kube.patch(path, {"metadata": {"resourceVersion": version, "finalizers": rest}})
        log.info("volume %s and access point %s are gone", name, point)

    async def _remove_orphans(self) -> None:
        """Remove access points whose claim went before they had a volume; the real driver leaves them behind, and
        would charge for nothing, but a rehearsal's teardown is to be seen clean."""
        try:
            points = await asyncio.to_thread(self._points.ours)
            used = {access_point(pv) for pv in self._volumes.items.values() if is_ours(pv)}
            claimed = {volume_name(claim) for claim in self._claims.items.values()}
            for point, token in points.items():
                if point not in used and token.startswith("pvc-") and token not in claimed:
                    await asyncio.to_thread(self._points.delete, point)
                    await asyncio.to_thread(shutil.rmtree, self._r.path("volumes") / token, True)
                    log.info("access point %s of %s had no claim left, gone", point, token)
        except DriverError as error:
            log.warning("access points not looked through yet: %s", error)
            return
        self._sweep = False

    async def _say(self, obj: Obj, reason: str, message: str, *, type_: str = "Normal") -> None:
        await self._kube.event(obj, type_=type_, reason=reason, message=message, component=COMPONENT)
