"""The specs of a deployment's NIMCache and NIMService, as data.

They are what the names' hashes cover, so every field of them comes from the deployment and nowhere else.
Field names and rules: the NIM Operator's CRDs apps.nvidia.com/v1alpha1 (3.x).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nim_rollouts.core.quantity import canonical_quantity
from nim_rollouts.core.spec import GPU, Deployment, Profile, Toleration

# Both secrets are per namespace, so one of each serves every deployment in it.
PULL_SECRET = "ngc-secret"
API_SECRET = "ngc-api-secret"

_GPU_TOLERATION = Toleration(key=GPU, operator="Exists", effect="NoSchedule")


def cache_spec(deployment: Deployment) -> dict[str, Any]:
    """`spec` of the NIMCache."""
    cache = deployment.cache
    spec: dict[str, Any] = {
        "source": {
            "ngc": {
                "modelPuller": deployment.image.reference,
                "pullSecret": PULL_SECRET,
                "authSecret": API_SECRET,
                "model": _model(deployment.profile),
            }
        },
        "storage": {
            "pvc": {
                "create": True,
                "storageClass": cache.storage_class,
                "size": cache.size,
                "volumeAccessMode": cache.access_mode,
            }
        },
        "nodeSelector": dict(cache.node_selector),
        "tolerations": _tolerations(cache.tolerations),
        "resources": _quantities(cache.asked),
        "env": _env(cache.env),
    }
    return _without_empty(spec)


def service_spec(deployment: Deployment, cache_name: str) -> dict[str, Any]:
    """`spec` of the NIMService that serves from the cache of that name, with replicas."""
    service = deployment.service
    tolerations = list(service.tolerations)
    # EKS adds this by admission (ExtendedResourceToleration); a plain API server does not, and the pod stays Pending.
    if service.gpus and not any(_tolerates_gpu(one) for one in tolerations):
        tolerations.append(_GPU_TOLERATION)
    spec: dict[str, Any] = {
        "image": {
            "repository": deployment.image.repository,
            "tag": deployment.image.tag,
            "pullPolicy": "IfNotPresent",
            "pullSecrets": [PULL_SECRET],
        },
        "authSecret": API_SECRET,
        "storage": {"nimCache": {"name": cache_name}},
        "replicas": service.replicas,
        # Both maps always: with one of them nil the operator's GPU assignment panics on every reconcile.
        "resources": {
            "requests": _quantities(service.resources.effective),
            "limits": _quantities(service.resources.limits or service.resources.effective),
        },
        "nodeSelector": dict(service.node_selector),
        "tolerations": _tolerations(tolerations),
        # The port always: without it the operator's first reconcile panics.
        "expose": {"service": {"type": "ClusterIP", "port": service.port}},
        "env": _env(service.env),
        "runtimeClassName": service.runtime_class,
        "startupProbe": _ready_probe(service.start.first_look_s, service.start.look_every_s, service.start.looks),
        # It begins to count when the startup probe has passed.
        "readinessProbe": _ready_probe(0, service.start.look_every_s, 3),
    }
    return _without_empty(spec)


def hashed_service_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The part of a NIMService's spec that its name stands for: not the replicas, which move without a new service."""
    return {key: value for key, value in spec.items() if key not in ("replicas", "scale", "labels", "annotations")}


def _ready_probe(initial_delay_s: int, period_s: int, failures: int) -> dict[str, Any]:
    """The operator's own probe (`/v1/health/ready` on the port it names `api`) with times of ours."""
    probe = {
        "httpGet": {"path": "/v1/health/ready", "port": "api"},
        # A zero vanishes when the operator writes the object back; each later apply would put it in again.
        **({"initialDelaySeconds": initial_delay_s} if initial_delay_s else {}),
        "periodSeconds": period_s,
        "failureThreshold": failures,
    }
    return {"enabled": True, "probe": probe}


def _model(profile: Profile) -> dict[str, Any]:
    if profile.ids:
        return {"profiles": list(profile.ids)}
    model: dict[str, Any] = {
        "engine": profile.engine,
        "precision": profile.precision,
        "tensorParallelism": None if profile.tensor_parallelism is None else str(profile.tensor_parallelism),
        "qosProfile": profile.qos,
        "lora": profile.lora,
        "gpus": [{"product": product} for product in profile.gpus],
    }
    return _without_empty(model)


def _tolerations(tolerations: list[Toleration]) -> list[dict[str, Any]]:
    return [one.manifest() for one in tolerations]


def _tolerates_gpu(toleration: Toleration) -> bool:
    return toleration.key in (GPU, None) and toleration.operator == "Exists"


def _env(values: dict[str, str]) -> list[dict[str, str]]:
    # An empty value vanishes likewise, and is the default.
    return [{"name": name, **({"value": value} if value else {})} for name, value in sorted(values.items())]


def _quantities(values: Mapping[str, str]) -> dict[str, str]:
    return {name: canonical_quantity(value) for name, value in values.items()}


def _without_empty(spec: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given. The operator drops empty maps when it rewrites the object; so do we beforehand."""
    return {key: value for key, value in spec.items() if value is not None and value != {} and value != []}
