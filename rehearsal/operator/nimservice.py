"""The NIMService controller (platform standalone, Deployments)."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import aiohttp

from rehearsal.kube import ApiError
from rehearsal.operator import conditions, goform
from rehearsal.operator import render_service as render
from rehearsal.operator.api import SERVICE_FINALIZER, Obj, Panic, ReconcileError
from rehearsal.operator.controller import Result
from rehearsal.operator.models import EndpointSilent, model_name
from rehearsal.operator.recorder import Recorder
from rehearsal.operator.render_cache import claim_of
from rehearsal.operator.sync import Client, message_of, spec_hash

log = logging.getLogger(__name__)

NOT_READY_POLL_S = 30.0
MODEL_POLL_S = 5.0
PLATFORM_POLL_S = 30.0
GPU = "nvidia.com/gpu"


@dataclass
class Storage:
    """Where the pods get the model from."""

    volume: Obj
    profile: str | None = None
    profiles: tuple[Obj, ...] = ()
    """The profiles in the cache's status, for the automatic GPU count."""


class Waiting(Exception):
    """The status has been written; nothing more is to be done until something changes."""


class NimServiceReconciler:
    kind = "NIMService"
    lead_s = 0.004
    owns: tuple[str, ...] = (
        "Deployment", "Service", "ServiceAccount", "Role", "RoleBinding", "PersistentVolumeClaim",
        "HorizontalPodAutoscaler", "Ingress",
    )  # fmt: skip

    def __init__(self, client: Client, recorder: Recorder, http: aiohttp.ClientSession):
        self._client, self._recorder, self._http = client, recorder, http

    async def settle(self) -> None:
        await self._client.settle()

    async def reconcile(self, namespace: str, name: str) -> Result:
        service = self._client.get(self.kind, namespace, name)
        if service is None:
            return Result()
        finalizers = service["metadata"].setdefault("finalizers", [])
        if service["metadata"].get("deletionTimestamp"):
            if SERVICE_FINALIZER in finalizers:
                finalizers.remove(SERVICE_FINALIZER)
                await self._client.update(service)
            return Result()
        if SERVICE_FINALIZER not in finalizers:
            service = await self._add_finalizer(service)
        if service["spec"].get("inferencePlatform") == "kserve":
            # KServe's CRDs are never there in a rehearsal: looked for again and again, without a word in the status.
            return Result(requeue_after=PLATFORM_POLL_S)
        try:
            return await self._steps(service)
        except Waiting:
            return Result()
        except (ReconcileError, ApiError) as error:
            message = message_of(error)
            await self._failed(service, "Failed", message)
            self._recorder.event(service, "Warning", "ReconcileFailed", f"NIMService {name} failed, msg: {message}")
            raise

    async def _add_finalizer(self, service: Obj) -> Obj:
        asked = copy.deepcopy(service["spec"])
        service["metadata"]["finalizers"].append(SERVICE_FINALIZER)
        service["spec"] = goform.nimservice_spec(service["spec"])
        updated = await self._client.update(service)
        if "port" not in asked.get("expose", {}).get("service", {}):
            # This pass still looks at what was asked for; the next one reads the default that the update has brought.
            render.port({"spec": asked})
        return updated

    async def _steps(self, service: Obj) -> Result:
        parent = spec_hash(service["spec"])
        await self._children(service, parent)
        storage = await self._storage(service)
        if service["spec"].get("multiNode"):
            raise ReconcileError('no matches for kind "LeaderWorkerSet" in version "leaderworkerset.x-k8s.io/v1"')
        resources = _resources(service["spec"], storage)
        deployment = render.deployment(service, storage.volume, storage.profile, resources, self._replicas(service))
        await self._client.sync(deployment, parent)
        return await self._judge(service)

    async def _children(self, service: Obj, parent: str) -> None:
        optional = [
            render.ingress(service),
            *render.routes(service),
            render.autoscaler(service),
            render.service_monitor(service),
        ]
        for child in [*render.account(service), render.service_object(service), *optional]:
            if child is not None:
                await self._client.sync(child, parent)
        meta = service["metadata"]
        if render.autoscaler(service) is None and self._client.get(
            "HorizontalPodAutoscaler", meta["namespace"], meta["name"]
        ):
            await self._client.delete("HorizontalPodAutoscaler", meta["namespace"], meta["name"])

    def _replicas(self, service: Obj) -> int | None:
        if not service["spec"].get("scale", {}).get("enabled"):
            replicas: int | None = service["spec"].get("replicas")
            return replicas
        meta = service["metadata"]
        live = self._client.get("Deployment", meta["namespace"], meta["name"])
        scaled: int | None = live["spec"].get("replicas") if live else None
        return scaled

    async def _storage(self, service: Obj) -> Storage:
        """The model's volume. Raises Waiting when a NIMCache is not usable yet, with that in the status."""
        storage, meta = service["spec"]["storage"], service["metadata"]
        if storage.get("nimCache", {}).get("name"):
            return await self._cache(service, storage["nimCache"])
        pvc = storage.get("pvc", {})
        if pvc.get("create"):
            name = pvc.get("name") or f"{meta['name']}-pvc"
            if self._client.get("PersistentVolumeClaim", meta["namespace"], name) is None:
                await self._client.create(claim_of(service, pvc, name, "nim-service"))
                service.setdefault("status", {})["state"] = "PVC-Created"
            return Storage({"persistentVolumeClaim": {"claimName": name}})
        if pvc.get("name"):
            return Storage({"persistentVolumeClaim": {"claimName": pvc["name"]}})
        if "emptyDir" in storage:
            return Storage({"emptyDir": dict(storage["emptyDir"])})
        if storage.get("hostPath"):
            return Storage({"hostPath": {"path": storage["hostPath"], "type": "DirectoryOrCreate"}})
        raise ReconcileError("neither nimCache, pvc, emptyDir nor hostPath storage is given")

    async def _cache(self, service: Obj, wanted: Obj) -> Storage:
        name = wanted["name"]
        cache = self._client.get("NIMCache", service["metadata"]["namespace"], name)
        if cache is None:
            message = f"NIMCache {name} not found"
            await self._failed(service, "NIMCacheNotFound", message)
            self._recorder.event(service, "Warning", "Failed", message)
            raise Waiting
        status = cache.get("status", {})
        if status.get("state") == "Failed":
            # The reason is left out, as the real one leaves it out: it is in the NIMCache.
            await self._failed(service, "NIMCacheFailed", "")
            self._recorder.event(service, "Warning", "Failed", "")
            raise Waiting
        if status.get("state") != "Ready":
            message = f"NIMCache {name} not ready"
            await self._not_ready(service, "NIMCacheNotReady", message)
            self._recorder.event(
                service, "Normal", "NotReady", f"NIMService {service['metadata']['name']} not ready yet, msg: {message}"
            )
            raise Waiting
        volume: Obj = {"persistentVolumeClaim": {"claimName": status.get("pvc") or f"{name}-pvc"}}
        if service["spec"]["storage"].get("readOnly"):
            volume["persistentVolumeClaim"]["readOnly"] = True
        optimized = "ngc" in cache["spec"]["source"] and not cache["spec"]["source"]["ngc"].get("modelEndpoint")
        return Storage(volume, wanted.get("profile"), tuple(status.get("profiles") or []) if optimized else ())

    async def _judge(self, service: Obj) -> Result:
        name = service["metadata"]["name"]
        message, ready = self._rollout(service)
        if not ready:
            await self._not_ready(service, "NotReady", message)
            self._recorder.event(service, "Normal", "NotReady", f"NIMService {name} not ready, msg: {message}")
            return Result(requeue_after=NOT_READY_POLL_S)
        live = self._client.get("Service", service["metadata"]["namespace"], name)
        if live is None:
            raise ReconcileError(f'Service "{name}" not found')
        address = f"{live['spec'].get('clusterIP')}:{render.port(service)}"
        try:
            model = await model_name(self._http, address)
        except EndpointSilent as error:
            log.info("NIMService %s: %s", name, error)
            return Result(requeue_after=MODEL_POLL_S)
        status = service.setdefault("status", {})
        status["model"] = {"name": model, "clusterEndpoint": address, "externalEndpoint": self._external(service, live)}
        status["state"] = "Ready"
        conditions.set_(status, "Ready", "True", "Ready", message)
        conditions.set_(status, "Failed", "False", "Ready", "")
        await self._client.update_status(service)
        self._recorder.event(service, "Normal", "Ready", f"NIMService {name} ready, msg: {message}")
        return Result()

    def _rollout(self, service: Obj) -> tuple[str, bool]:
        """What the cached Deployment's counts say. Its generation is not looked at: right after a change they are
        those of the old rollout, and the service is called ready on their strength."""
        name = service["metadata"]["name"]
        live = self._client.get("Deployment", service["metadata"]["namespace"], name)
        if live is None:
            return "", False
        status, wanted = live.get("status", {}), live["spec"].get("replicas", 1)
        for condition in status.get("conditions") or []:
            if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
                return f'deployment "{name}" exceeded its progress deadline', False
        updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        waiting = f'Waiting for deployment "{name}" rollout to finish:'
        if updated < wanted:
            return f"{waiting} {updated} out of {wanted} new replicas have been updated...\n", False
        if available < updated or wanted == 0:
            return f"{waiting} {available} of {updated} updated replicas are available...\n", False
        return f'deployment "{name}" successfully rolled out\n', True

    @staticmethod
    def _external(service: Obj, live: Obj) -> str:
        """Empty for most load balancers: `spec.loadBalancerIP` is read, not what the cloud has given."""
        child = render.ingress(service)
        if child is not None:
            rules = child["spec"].get("rules") or [{}]
            return str(rules[0].get("host", ""))
        if live["spec"].get("type") == "LoadBalancer":
            return str(live["spec"].get("loadBalancerIP", ""))
        return ""

    async def _not_ready(self, service: Obj, reason: str, message: str) -> None:
        status = service.setdefault("status", {})
        status["state"] = "NotReady"
        conditions.set_(status, "Ready", "False", reason, message)
        conditions.set_(status, "Failed", "False", "Ready", message)
        await self._client.update_status(service)

    async def _failed(self, service: Obj, reason: str, message: str) -> None:
        status = service.setdefault("status", {})
        status["state"] = "Failed"
        conditions.set_(status, "Ready", "False", "Failed", "")
        conditions.set_(status, "Failed", "True", reason, message)
        await self._client.update_status(service)


def _resources(spec: Obj, storage: Storage) -> Obj:
    """The container's resources; for a named profile of an optimized cache with as many GPUs as it needs."""
    resources: Obj = copy.deepcopy(spec.get("resources") or {})
    profile = next((p for p in storage.profiles if p["name"] == storage.profile), None)
    named = any(GPU in (resources.get(side) or {}) for side in ("limits", "requests"))
    if profile is None or spec.get("draResources") or named:
        return resources
    count = str((profile.get("config") or {}).get("tp", "1"))
    if not resources:
        return {side: {GPU: count} for side in ("limits", "requests")}
    for side in ("requests", "limits"):
        if resources.get(side) is None:
            raise Panic(f"assignment to entry in nil map (spec.resources.{side})")
        resources[side][GPU] = count
    return resources
