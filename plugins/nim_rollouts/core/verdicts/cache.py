"""Is a NIMCache filled?

The operator's own state misleads: Failed is set on the first failed pod while the Job still has retries and flaps
later on, NotReady is normal for a moment after creation, and an exhausted Job can end in Pending. So the Job, its
pods and the claim decide. (Read in the operator's source and seen in its recorded traces, 3.1.)
"""

from __future__ import annotations

from datetime import datetime

from nim_rollouts.core.verdicts import claim as claims
from nim_rollouts.core.verdicts import gone as gone_verdict
from nim_rollouts.core.verdicts.model import Blocker, Object, Snapshot, Verdict, failed, healthy, progressing, stuck
from nim_rollouts.core.verdicts.objects import (
    claims_of,
    condition,
    count,
    find,
    is_deleting,
    is_true,
    name_of,
    owned,
    ref,
    status,
)
from nim_rollouts.core.verdicts.pods import diagnose, is_quota, refused

KINDS = ("NIMCache", "Job", "Pod", "PersistentVolumeClaim", "Event")
_NO_PROFILE = "no profiles are selected"


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the NIMCache of that name."""
    cache = find(objects, "NIMCache", name)
    if cache is None:
        return gone_verdict.judge(objects, "NIMCache", name, None, now)
    if is_deleting(cache):
        return progressing("deleting", "the NIMCache is being deleted", [f"NIMCache/{name} deletionTimestamp"])
    state = str(status(cache).get("state") or "")
    evidence = [f"NIMCache/{name} state={state or 'none'}"]
    claim = find(objects, "PersistentVolumeClaim", _claim_name(cache))
    job = next(iter(owned(objects, "Job", cache)), None)

    lost = _claim_going(objects, claim, job)
    if lost is not None:
        return lost
    done = _filled(cache, state, job, evidence)
    if done is not None:
        return done
    if job is not None and is_true(job, "Failed"):
        why = condition(job, "Failed")
        return failed(
            "job-exhausted",
            f"the download Job gave up after {status(job).get('failed', 0)} pods: "
            f"{why.get('message') or why.get('reason')}",
            [f"{ref(job, 'Job')} condition Failed={why.get('reason')}"],
        )
    profile = str(condition(cache, "NIM_CACHE_RECONCILE_FAILED").get("message") or "")
    if job is None and is_true(cache, "NIM_CACHE_RECONCILE_FAILED") and _NO_PROFILE in profile:
        return failed(
            "no-matching-profile",
            "no model profile of the image fits the requested engine, precision and GPUs",
            [f"NIMCache/{name} NIM_CACHE_RECONCILE_FAILED={profile}"],
        )
    return _on_its_way(objects, cache, claim, job, evidence)


def _claim_name(cache: Object) -> str:
    """That of the status, which is written on Ready alone; before that the one asked for, or the operator's own."""
    asked = ((cache.get("spec") or {}).get("storage") or {}).get("pvc") or {}
    return str(status(cache).get("pvc") or asked.get("name") or f"{name_of(cache)}-pvc")


def _filled(cache: Object, state: str, job: Object | None, evidence: list[str]) -> Verdict | None:
    claim_name = status(cache).get("pvc")
    if state == "Ready" and claim_name:
        return healthy("ready", f"the cache is filled, on claim {claim_name}", [*evidence, f"pvc={claim_name}"])
    # status.pvc is written on Ready alone and stays: it tells a cache that was filled from one that never was.
    if claim_name and job is not None and is_true(job, "Complete"):
        return healthy(
            "cache-status-flapping",
            f"the cache is filled, on claim {claim_name}; its state {state} is noise",
            [*evidence, f"{ref(job, 'Job')} condition Complete=True", f"pvc={claim_name}"],
        )
    return None


def _claim_going(objects: Snapshot, claim: Object | None, job: Object | None) -> Verdict | None:
    """A claim that is being deleted can neither be filled nor be trusted once it is."""
    if claim is None or not is_deleting(claim):
        return None
    name = name_of(claim)
    downloads = owned(objects, "Pod", job) if job else []
    names = {name_of(pod) for pod in downloads}
    users = [pod for pod in objects.get("Pod", ()) if name in claims_of(pod) and name_of(pod) not in names]
    evidence = [f"PersistentVolumeClaim/{name} deletionTimestamp", *(ref(pod, "Pod") for pod in users)]
    staying = [pod for pod in users if not is_deleting(pod)]
    message = f"claim {name} is being deleted"
    if not staying:
        return progressing("volume-terminating", f"{message}, the pods that mount it are going", evidence)
    holders = ", ".join(name_of(pod) for pod in staying)
    message = f"{message} but still mounted by {holders}"
    trouble = diagnose(objects, downloads)
    if trouble is None or trouble.reason != "volume-terminating":
        # The scheduler has not refused the new download yet; the holder may still go.
        return progressing("cache-preparing", message, evidence, Blocker("volume-terminating", message, evidence))
    evidence = [*evidence, *trouble.evidence]
    return stuck("volume-terminating", message, evidence)


def _on_its_way(
    objects: Snapshot, cache: Object, claim: Object | None, job: Object | None, evidence: list[str]
) -> Verdict:
    name = name_of(cache)
    unbound = claims.unbound(objects, claim) if claim is not None else None
    if job is None:
        pod = find(objects, "Pod", f"{name}-pod")
        trouble = diagnose(objects, [pod] if pod else [])
        stage, message = "cache-preparing", "the operator prepares the claim and chooses the model profile"
    else:
        evidence = [*evidence, f"{ref(job, 'Job')} failed={status(job).get('failed', 0)}"]
        trouble = diagnose(objects, owned(objects, "Pod", job))
        failures = int(status(job).get("failed") or 0)
        if failures:
            limit = count(job.get("spec") or {}, "backoffLimit", 6)
            stage, message = "job-retrying", f"{failures} download pods failed, the Job makes up to {limit + 1}"
        else:
            stage, message = "cache-downloading", "the model is being downloaded"
    if unbound is not None and (trouble is None or not trouble.final):
        return progressing("cache-preparing", "the volume claim is not bound yet", evidence, unbound)
    if trouble is not None and trouble.reason == "volume-terminating" and claim is None:
        # The scheduler's words are of a moment ago: the old claim has gone, the operator makes the new one next.
        return progressing("volume-terminating", "the old claim has gone, the new one is made next", evidence)
    if trouble is None:
        makers = [job] if job else []
        hangs = (
            _suspended(job)
            or refused(objects, makers)
            or _ended_selection(objects, cache, job)
            or _not_reconciled(cache)
        )
        return progressing(stage, message, evidence, hangs)
    return trouble.verdict(stage, message, evidence)


def _suspended(job: Object | None) -> Blocker | None:
    """Whoever gave the download up has put its Job to rest; it does not go on by itself."""
    if job is None or not (job.get("spec") or {}).get("suspend"):
        return None
    return Blocker("job-suspended", "the download's Job is suspended", [f"{ref(job, 'Job')} suspend=true"])


def _ended_selection(objects: Snapshot, cache: Object, job: Object | None) -> Blocker | None:
    """The pod that prints the manifest should run until the operator has read it; once ended it is never replaced."""
    pod = find(objects, "Pod", f"{name_of(cache)}-pod") if job is None else None
    phase = str(status(pod).get("phase")) if pod else ""
    if pod is None or phase not in ("Failed", "Succeeded"):
        return None
    message = f"the pod that lists the image's profiles has ended ({phase}), and the operator waits for it to run"
    return Blocker("selection-pod-ended", message, [f"{ref(pod, 'Pod')} phase={phase}"])


def _not_reconciled(cache: Object) -> Blocker | None:
    """The operator's own error. A blip of it on creation is normal; one that outlasts the deadline is why."""
    if not is_true(cache, "NIM_CACHE_RECONCILE_FAILED"):
        return None
    message = " ".join(str(condition(cache, "NIM_CACHE_RECONCILE_FAILED").get("message") or "").split())
    reason = "quota-exceeded" if is_quota(message) else "reconcile-failed"
    return Blocker(reason, f"the operator cannot: {message}", [f"{ref(cache, 'NIMCache')} NIM_CACHE_RECONCILE_FAILED"])
