"""The NIMCache controller."""

from __future__ import annotations

import json
import logging

from rehearsal.kube import ApiError, Conflict, path_of
from rehearsal.operator import conditions, goform, selection
from rehearsal.operator import render_cache as render
from rehearsal.operator.api import CACHE_FINALIZER, SELECTED_PROFILES, Obj, ReconcileError
from rehearsal.operator.controller import Result
from rehearsal.operator.recorder import Recorder
from rehearsal.operator.sync import Client, message_of

log = logging.getLogger(__name__)

PVC_CREATED = "NIM_CACHE_PVC_CREATED"
JOB_CREATED = "NIM_CACHE_JOB_CREATED"
JOB_PENDING = "NIM_CACHE_JOB_PENDING"
JOB_COMPLETED = "NIM_CACHE_JOB_COMPLETED"
RECONCILE_FAILED = "NIM_CACHE_RECONCILE_FAILED"

SELECTION_POLL_S = 30.0
"""While the selection pod is not running. The wait is not taken back when the pod's own event comes first, so one more
reconcile comes 30 s after the cache's creation: harmless but for a cache whose Job had to try again."""


class NimCacheReconciler:
    kind = "NIMCache"
    lead_s = 0.008
    owns: tuple[str, ...] = ("Job", "Pod", "PersistentVolumeClaim")

    def __init__(self, client: Client, recorder: Recorder):
        self._client, self._recorder = client, recorder

    async def settle(self) -> None:
        await self._client.settle()

    async def reconcile(self, namespace: str, name: str) -> Result:
        cache = self._client.get(self.kind, namespace, name)
        if cache is None:
            return Result()
        if cache["metadata"].get("deletionTimestamp"):
            await self._finalize(cache)
            return Result()
        finalizers = cache["metadata"].setdefault("finalizers", [])
        if CACHE_FINALIZER not in finalizers:
            finalizers.append(CACHE_FINALIZER)
            cache["spec"] = goform.nimcache_spec(cache["spec"])
            cache = await self._client.update(cache)
        status = cache.setdefault("status", {})
        before = status.get("state", "")
        try:
            result = await self._steps(cache)
        except (ReconcileError, ApiError) as error:
            message = message_of(error)
            status["state"] = "NotReady"
            conditions.update(status, RECONCILE_FAILED, "True", "ReconcileFailed", message)
            await self._client.update_status(cache)
            text = f"NIMCache {name} reconcile failed, msg: {message}"
            self._recorder.event(cache, "Warning", "ReconcileFailed", text)
            raise
        if status.get("state", "") != before:
            state = status["state"]
            self._recorder.event(cache, "Normal", state, f"NIMCache {name} reconcile success, new state: {state}")
        return result

    async def _finalize(self, cache: Obj) -> None:
        """Remove the Job's pods, then let go. What the cache owns is left to garbage collection, the claim included."""
        meta = cache["metadata"]
        if CACHE_FINALIZER not in meta.get("finalizers", []):
            return
        for pod in list(self._client.all("Pod")):
            labels = pod["metadata"].get("labels", {})
            if pod["metadata"]["namespace"] == meta["namespace"] and labels.get("job-name") == render.job_name(cache):
                await self._client.delete("Pod", meta["namespace"], pod["metadata"]["name"])
        meta["finalizers"].remove(CACHE_FINALIZER)
        await self._client.update(cache)

    async def _steps(self, cache: Obj) -> Result:
        if "certConfig" in cache["spec"]:
            raise ReconcileError("spec.certConfig is no longer supported, migrate to spec.proxy")
        for obj in render.account(cache["metadata"]["namespace"]):
            await self._client.create_missing(obj)
        await self._claim(cache)
        # The real operator now asks the registry for the image's download protocol. No registry can be asked from here,
        # and on any error it goes on as if the image had no such label: with the manifest.
        manifest = await self._manifest(cache)
        if manifest is None:
            return Result(requeue_after=SELECTION_POLL_S)
        await self._job(cache, manifest)
        conditions.update_if_present(cache["status"], RECONCILE_FAILED, "False", "Reconciled", "")
        await self._client.update_status(cache)
        return Result()

    async def _claim(self, cache: Obj) -> None:
        namespace, pvc = cache["metadata"]["namespace"], cache["spec"]["storage"].get("pvc", {})
        name = render.claim_name(cache)
        if self._client.get("PersistentVolumeClaim", namespace, name) is not None:
            # Used as it is: neither adopted nor checked, not even for being on its way out.
            return
        if not pvc.get("create"):
            raise ReconcileError(f"PersistentVolumeClaim {name} does not exist and create is not set")
        await self._client.create(render.claim(cache))
        conditions.update(
            cache["status"], PVC_CREATED, "True", "PVCCreated", "The PVC has been created for caching NIM model"
        )
        cache["status"]["state"] = "PVC-Created"

    async def _manifest(self, cache: Obj) -> str | None:
        """The image's manifest as text; None while the pod that prints it is not running."""
        namespace, name = cache["metadata"]["namespace"], render.selection_pod_name(cache)
        kept = self._client.get("ConfigMap", namespace, render.config_map_name(cache))
        if kept is not None:
            return str(kept.get("data", {}).get(render.MANIFEST_KEY, ""))
        if self._client.get("Pod", namespace, name) is None:
            try:
                await self._client.create(render.selection_pod(cache))
            except Conflict:
                log.info("pod %s/%s is there already", namespace, name)
        # Read back from the cache, which may not have seen it yet: that is the error right after a creation.
        pod = self._client.get("Pod", namespace, name)
        if pod is None:
            raise ReconcileError(f'Pod "{name}" not found')
        if pod.get("status", {}).get("phase") != "Running":
            return None
        where = path_of("v1", "Pod", namespace, name, "log")
        log_text = await self._client.kube.text(where, container=render.CONTAINER)
        text = render.NO_MANIFEST if render.NO_MANIFEST in log_text else selection.parse(log_text).dump()
        try:
            await self._client.create(render.config_map(cache, text))
        except Conflict:
            log.info("the manifest of %s/%s is kept already", namespace, cache["metadata"]["name"])
        await self._client.delete("Pod", namespace, name)
        return text

    def _selected(self, cache: Obj, manifest: str) -> list[str]:
        """The profiles to download; nothing for a source that has none. Raises ReconcileError when none fits."""
        kind, origin = render.source(cache)
        if kind != "ngc" or origin.get("modelEndpoint"):
            return []
        noted = (cache["metadata"].get("annotations") or {}).get(SELECTED_PROFILES)
        if noted:
            return list(json.loads(noted))
        model = origin.get("model") or {}
        if model.get("profiles"):
            return list(model["profiles"])
        products = {
            node["metadata"].get("labels", {}).get("nvidia.com/gpu.product") for node in self._client.all("Node")
        }
        ids = selection.select(selection.parse(manifest), model, {product for product in products if product})
        if not ids:
            raise ReconcileError("no profiles are selected for caching")
        return ids

    async def _job(self, cache: Obj, manifest: str) -> None:
        """Make the Job, or let its state decide the cache's.

        One step of the state at a time, and each step asks the state before it: that is why a retried Job makes the
        state flap with every reconcile, and why one that has succeeded after a failure swings between Ready and
        Failed.
        """
        status, selected = cache["status"], self._selected(cache, manifest)
        job = self._client.get("Job", cache["metadata"]["namespace"], render.job_name(cache))
        state = status.get("state", "")
        if job is None:
            if state != "Ready":
                has_manifest = manifest != render.NO_MANIFEST
                await self._client.create(render.job(cache, selected, has_manifest=has_manifest))
                conditions.update(status, JOB_CREATED, "True", "JobCreated", "The Job to cache NIM has been created")
                status["state"] = "Started"
                status.pop("profiles", None)
            return
        counts = job.get("status", {})
        active, failed, succeeded = (counts.get(field) or 0 for field in ("active", "failed", "succeeded"))
        if succeeded > 0 and state != "Ready":
            text = "The Job to cache NIM has successfully completed"
            conditions.update(status, JOB_COMPLETED, "True", "JobCompleted", text)
            status["state"] = "Ready"
            status["pvc"] = render.claim_name(cache)
            profiles = _profiles(manifest, selected)
            status.pop("profiles", None)
            if profiles:
                status["profiles"] = profiles
        elif failed > 0 and state != "Failed":
            conditions.update(status, JOB_COMPLETED, "False", "JobFailed", "The Job to cache NIM has failed")
            status["state"] = "Failed"
            status.pop("profiles", None)
        elif active > 0 and state != "InProgress":
            conditions.update(status, JOB_PENDING, "False", "JobRunning", "The Job to cache NIM is in progress")
            status["state"] = "InProgress"
            status.pop("profiles", None)
        elif active == 0 and state not in ("Ready", "Pending"):
            conditions.update(status, JOB_PENDING, "True", "JobPending", "The Job to cache NIM is in pending state")
            status["state"] = "Pending"
            status.pop("profiles", None)


def _profiles(manifest: str, selected: list[str]) -> list[Obj]:
    if manifest == render.NO_MANIFEST or not selected:
        return []
    known = selection.parse(manifest)
    found = [known.get(id_) for id_ in selected]
    return [profile.status() for profile in found if profile is not None]
