"""Does a NIMService serve what is wanted?

Its Ready may be that of the rollout before: neither the operator nor its conditions carry an observed generation.
Only together with a Deployment that has observed its own newest generation, runs the wanted image and is complete
does Ready count. NotReady and Failed are never final in themselves; the pods say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from nim_rollouts.core.verdicts import gone as gone_verdict
from nim_rollouts.core.verdicts.model import Blocker, Object, Snapshot, Verdict, healthy, progressing
from nim_rollouts.core.verdicts.objects import (
    condition,
    count,
    find,
    images,
    is_deleting,
    owned,
    owned_by,
    selected,
    status,
)
from nim_rollouts.core.verdicts.pods import diagnose, is_quota, refused
from nim_rollouts.core.verdicts.workloads import is_observed, newest_of

KINDS = ("NIMService", "NIMCache", "Deployment", "ReplicaSet", "Pod", "PersistentVolumeClaim", "Event")
_CACHE_REASONS = {
    "NIMCacheNotFound": ("cache-missing", "its NIMCache does not exist yet"),
    "NIMCacheNotReady": ("cache-not-ready", "its NIMCache is not ready yet"),
    "NIMCacheFailed": ("cache-not-ready", "its NIMCache says Failed"),
}


@dataclass(frozen=True)
class Desired:
    """What is to be served: name of the NIMService, image with tag, number of replicas."""

    name: str
    image: str
    replicas: int = 1


def judge(objects: Snapshot, desired: Desired | Mapping[str, Any], now: datetime) -> Verdict:
    """The verdict on the NIMService that is desired."""
    wanted = desired if isinstance(desired, Desired) else Desired(**desired)
    service = find(objects, "NIMService", wanted.name)
    if service is None:
        return gone_verdict.judge(objects, "NIMService", wanted.name, None, now)
    if is_deleting(service):
        return progressing(
            "deleting", "the NIMService is being deleted", [f"NIMService/{wanted.name} deletionTimestamp"]
        )
    deployment = find(objects, "Deployment", wanted.name)
    if deployment is not None and not owned_by(deployment, service):
        deployment = None  # that of a deleted namesake, on its way out
    state = str(status(service).get("state") or "")
    evidence = [f"NIMService/{wanted.name} state={state or 'none'}", _deployment_evidence(deployment, wanted)]
    spec = service.get("spec") or {}
    if deployment is not None and (spec.get("scale") or {}).get("enabled"):
        wanted = replace(wanted, replicas=_scaled(spec, deployment))
    asked = f"{(spec.get('image') or {}).get('repository')}:{(spec.get('image') or {}).get('tag')}"
    if asked != wanted.image:
        message = f"the NIMService asks for {asked}, wanted is {wanted.image}"
        return progressing(
            "rollout-in-progress", message, evidence, Blocker("update-not-propagated", message, evidence)
        )
    if state == "Ready":
        return _ready(objects, deployment, wanted, evidence)
    held = _by_cache(service, deployment, wanted, evidence)
    if held is not None:
        return held
    return _rolling_out(objects, service, deployment, wanted, evidence)


def _ready(objects: Snapshot, deployment: Object | None, wanted: Desired, evidence: list[str]) -> Verdict:
    if deployment is not None and is_complete(deployment, wanted) and wanted.replicas > 0:
        return healthy("ready", f"{wanted.replicas} of {wanted.replicas} pods serve {wanted.image}", evidence)
    if deployment is not None and _surplus_only(deployment, wanted):
        return healthy("scaling-down", "surplus pods are going, the service keeps serving", evidence)
    stage, message = "stale-ready", "Ready is shown, but belongs to the rollout before"
    behind = _not_propagated(deployment, wanted, evidence)
    # An operator that is away writes nothing; what the pods meet meanwhile, they say themselves.
    trouble = diagnose(objects, _pods(objects, deployment, wanted)) if behind is None else None
    if trouble is not None:
        return trouble.verdict(stage, message, evidence)
    return progressing(stage, message, evidence, behind)


def _by_cache(service: Object, deployment: Object | None, wanted: Desired, evidence: list[str]) -> Verdict | None:
    """The verdict when the state is not Ready because of the cache."""
    reasons = (condition(service, "Failed"), condition(service, "Ready"))
    code = next((str(one["reason"]) for one in reasons if one.get("reason") in _CACHE_REASONS), None)
    if code is None:
        return None
    slug, text = _CACHE_REASONS[code]
    evidence = [*evidence, f"NIMService/{wanted.name} reason={code}"]
    if deployment is None:
        return progressing(slug, text, evidence)
    if is_complete(deployment, wanted) and wanted.replicas > 0:
        return healthy(
            "serving-degraded-status", f"the pods serve {wanted.image}; the state is bad because {text}", evidence
        )
    blocker = _not_propagated(deployment, wanted, evidence)
    if blocker is not None:
        return progressing("rollout-in-progress", blocker.message, evidence, blocker)
    return None


def _rolling_out(
    objects: Snapshot, service: Object, deployment: Object | None, wanted: Desired, evidence: list[str]
) -> Verdict:
    stage, message = "rollout-in-progress", _progress(deployment, wanted)
    error = condition(service, "Failed")
    if error.get("status") == "True" and error.get("message"):
        # Its reconciler's own error (an object that the API server refuses, say). It may pass, so it decides nothing.
        message += f"; the operator says: {' '.join(str(error['message']).split())[:300]}"
    pods = _pods(objects, deployment, wanted)
    trouble = diagnose(objects, pods)
    if trouble is not None:
        return trouble.verdict(stage, message, evidence)
    failing = _not_reconciled(service)
    if failing is None and deployment is not None and is_complete(deployment, wanted) and wanted.replicas > 0:
        return _silent(pods, evidence)
    makers = [deployment, *owned(objects, "ReplicaSet", deployment)] if deployment is not None else []
    blocker = _not_propagated(deployment, wanted, evidence) or refused(objects, makers) or failing
    return progressing(stage, message, evidence, blocker)


def _silent(pods: Sequence[Object], evidence: list[str]) -> Verdict:
    """The operator asks /v1/models once the pods are ready, and says nothing of an answer that it does not like."""
    reason, message = "model-endpoint-unavailable", "all pods are ready, /v1/models does not answer the operator yet"
    ready = [str(condition(pod, "Ready").get("lastTransitionTime") or "") for pod in pods]
    return progressing(reason, message, evidence, Blocker(reason, message, [], max(ready, default="")))


def _pods(objects: Snapshot, deployment: Object | None, wanted: Desired) -> list[Object]:
    """The pods that are to serve: of the wanted image and of the Deployment's newest revision."""
    return newest_of(objects, deployment, selected(objects, "Pod", {"app": wanted.name}), wanted.image)


def _not_reconciled(service: Object) -> Blocker | None:
    """The operator's own error, which it repeats for ever; a blip of it on creation is normal."""
    why = condition(service, "Failed")
    if why.get("status") != "True" or why.get("reason") in _CACHE_REASONS or not why.get("message"):
        return None
    message = " ".join(str(why["message"]).split())
    evidence = [f"NIMService/{service['metadata']['name']} Failed={why.get('reason')}"]
    return Blocker(
        "quota-exceeded" if is_quota(message) else "reconcile-failed", f"the operator cannot: {message}", evidence
    )


def _scaled(spec: Mapping[str, Any], deployment: Object) -> int:
    """With an autoscaler the Deployment has the number, between the least and the most that are asked for."""
    scaler = (spec.get("scale") or {}).get("hpa") or {}
    least = count(scaler, "minReplicas", 1)
    return max(min(_replicas(deployment), count(scaler, "maxReplicas", _replicas(deployment))), least)


def is_complete(deployment: Object, wanted: Desired) -> bool:
    """True when the Deployment has observed its newest generation and all wanted replicas serve the wanted image."""
    state = status(deployment)
    counts = [int(state.get(field) or 0) for field in ("replicas", "updatedReplicas", "availableReplicas")]
    return (
        is_observed(deployment)
        and wanted.image in images(deployment)
        and _replicas(deployment) == wanted.replicas
        and all(count == wanted.replicas for count in counts)
    )


def _surplus_only(deployment: Object, wanted: Desired) -> bool:
    """True while a scale-down is under way and enough pods of the wanted image serve."""
    state = status(deployment)
    serving = min(int(state.get("updatedReplicas") or 0), int(state.get("availableReplicas") or 0))
    same_pods = wanted.image in images(deployment) and int(state.get("replicas") or 0) == serving
    return same_pods and serving > wanted.replicas > 0


def _not_propagated(deployment: Object | None, wanted: Desired, evidence: list[str]) -> Blocker | None:
    if deployment is None:
        return None
    if wanted.image in images(deployment) and _replicas(deployment) == wanted.replicas:
        return None
    message = f"the Deployment still has {', '.join(images(deployment))} with {_replicas(deployment)} replicas"
    return Blocker("update-not-propagated", message, evidence)


def _replicas(deployment: Object) -> int:
    return count(deployment.get("spec") or {}, "replicas", 1)


def _progress(deployment: Object | None, wanted: Desired) -> str:
    if deployment is None:
        return "the operator has not made the Deployment yet"
    available = int(status(deployment).get("availableReplicas") or 0) if wanted.image in images(deployment) else 0
    updated = int(status(deployment).get("updatedReplicas") or 0) if is_observed(deployment) else 0
    return f"{updated} of {wanted.replicas} pods made, {min(available, updated)} available"


def _deployment_evidence(deployment: Object | None, wanted: Desired) -> str:
    if deployment is None:
        return f"Deployment/{wanted.name} absent"
    state = status(deployment)
    return (
        f"Deployment/{wanted.name} generation={deployment['metadata'].get('generation')} "
        f"observed={state.get('observedGeneration')} updated={state.get('updatedReplicas', 0)} "
        f"available={state.get('availableReplicas', 0)} image={','.join(images(deployment))}"
    )
