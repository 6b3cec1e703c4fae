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
    annotations_of,
    claims_of,
    condition,
    count,
    find,
    has_ended,
    is_deleting,
    is_true,
    name_of,
    owned,
    owned_by,
    owners,
    ref,
    status,
)
from nim_rollouts.core.verdicts.pods import diagnose, is_quota, refused

KINDS = ("NIMCache", "Job", "Pod", "PersistentVolumeClaim", "Event")
_CHOSEN = "nvidia.com/selected-profiles"
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
    # A Job that is being deleted is no more: the operator makes another unless the cache is filled.
    job = next((one for one in owned(objects, "Job", cache) if not is_deleting(one)), None)

    lost = _claim_going(objects, claim, job, state)
    if lost is not None:
        return lost
    done = _filled(objects, cache, state, job, evidence)
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


def _filled(objects: Snapshot, cache: Object, state: str, job: Object | None, evidence: list[str]) -> Verdict | None:
    claim_name = status(cache).get("pvc")
    if claim_name and "PersistentVolumeClaim" in objects and find(objects, "PersistentVolumeClaim", claim_name) is None:
        message = f"the claim {claim_name} that was filled does not exist any more"
        evidence = [*evidence, f"PersistentVolumeClaim/{claim_name} absent"]
        return progressing("cache-preparing", message, evidence, Blocker("volume-lost", message, evidence))
    if state == "Ready" and claim_name:
        behind = _not_what_is_asked(cache, evidence)
        if behind is not None:
            return progressing("stale-ready", behind.message, evidence, behind)
        return healthy("ready", f"the cache is filled, on claim {claim_name}", [*evidence, f"pvc={claim_name}"])
    # status.pvc is written on Ready alone and stays: it tells a cache that was filled from one that never was.
    if claim_name and job is not None and is_true(job, "Complete"):
        return healthy(
            "cache-status-flapping",
            f"the cache is filled, on claim {claim_name}; its state {state} is noise",
            [*evidence, f"{ref(job, 'Job')} condition Complete=True", f"pvc={claim_name}"],
        )
    return None


def _not_what_is_asked(cache: Object, evidence: list[str]) -> Blocker | None:
    """Whether a filled cache holds another model than its spec asks for: the operator fills it once, and a change of
    the spec moves nothing after that. Only tags that both sides name are compared, as the operator compares them."""
    asked = (((cache.get("spec") or {}).get("source") or {}).get("ngc") or {}).get("model") or {}
    if asked.get("profiles") or _CHOSEN in annotations_of(cache):
        return None  # chosen by name: then the operator looks at no tags
    found = [one.get("config") or {} for one in status(cache).get("profiles") or ()]
    for field, tag in (("precision", "precision"), ("tensorParallelism", "tp"), ("qosProfile", "profile")):
        wanted, held = str(asked.get(field) or "").lower(), {str(one[tag]).lower() for one in found if one.get(tag)}
        if wanted and held and wanted not in held:
            message = f"the cache holds {field} {', '.join(sorted(held))}, its spec now asks for {wanted}"
            return Blocker("update-not-propagated", message, [*evidence, f"status.profiles {tag}={sorted(held)}"])
    return None


def _claim_going(objects: Snapshot, claim: Object | None, job: Object | None, state: str) -> Verdict | None:
    """A claim that is being deleted can neither be filled nor be trusted once it is; one without its volume neither."""
    if claim is not None and status(claim).get("phase") == "Lost":
        where = f"PersistentVolumeClaim/{name_of(claim)}"
        return failed("volume-lost", f"the volume of claim {name_of(claim)} does not exist any more", [f"{where} Lost"])
    if claim is None or not is_deleting(claim):
        return None
    name = name_of(claim)
    downloads = owned(objects, "Pod", job) if job else []
    names = {name_of(pod) for pod in downloads}
    mounting = [pod for pod in objects.get("Pod", ()) if name in claims_of(pod) and name_of(pod) not in names]
    users = [pod for pod in mounting if not has_ended(pod)]
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
        stage = "volume-terminating" if state == "Ready" else "cache-preparing"
        return progressing(stage, message, evidence, Blocker("volume-terminating", message, evidence))
    evidence = [*evidence, *trouble.evidence]
    return stuck("volume-terminating", message, evidence)


def _on_its_way(
    objects: Snapshot, cache: Object, claim: Object | None, job: Object | None, evidence: list[str]
) -> Verdict:
    unbound = claims.unbound(objects, claim) if claim is not None else None
    if job is None:
        pod = selection_pod(objects, cache)
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
            or _not_reconciled(objects, cache)
        )
        return progressing(stage, message, evidence, hangs)
    return trouble.verdict(stage, message, evidence)


def selection_pod(objects: Snapshot, cache: Object) -> Object | None:
    """The operator's pod that prints the image's profiles; not the one that a deleted namesake leaves behind."""
    pod = find(objects, "Pod", f"{name_of(cache)}-pod")
    return pod if pod is None or not owners(pod) or owned_by(pod, cache) else None


def _suspended(job: Object | None) -> Blocker | None:
    """Whoever gave the download up has put its Job to rest; it does not go on by itself."""
    if job is None or not (job.get("spec") or {}).get("suspend"):
        return None
    return Blocker("job-suspended", "the download's Job is suspended", [f"{ref(job, 'Job')} suspend=true"])


def _ended_selection(objects: Snapshot, cache: Object, job: Object | None) -> Blocker | None:
    """The pod that prints the manifest should run until the operator has read it; once ended it is never replaced."""
    pod = selection_pod(objects, cache) if job is None else None
    if pod is None or not has_ended(pod) or is_deleting(pod):
        return None
    phase = status(pod).get("phase")
    message = f"the pod that lists the image's profiles has ended ({phase}), and the operator waits for it to run"
    return Blocker("selection-pod-ended", message, [f"{ref(pod, 'Pod')} phase={phase}"])


def _not_reconciled(objects: Snapshot, cache: Object) -> Blocker | None:
    """The operator's own error. A blip of it on creation is normal; one that outlasts the deadline is why."""
    if not is_true(cache, "NIM_CACHE_RECONCILE_FAILED"):
        return None
    message = " ".join(str(condition(cache, "NIM_CACHE_RECONCILE_FAILED").get("message") or "").split())
    if message == f'Pod "{name_of(cache)}-pod" not found' and selection_pod(objects, cache) is not None:
        return None  # it asked before it saw what it had made; while that pod does not run it writes no more
    reason = "quota-exceeded" if is_quota(message) else "reconcile-failed"
    return Blocker(reason, f"the operator cannot: {message}", [f"{ref(cache, 'NIMCache')} NIM_CACHE_RECONCILE_FAILED"])
