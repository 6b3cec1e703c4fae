"""Has a Job of ours finished? Its conditions decide; its pods say what it waits for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from nim_rollouts.core.verdicts.claim import unbound
from nim_rollouts.core.verdicts.model import Blocker, Object, Snapshot, Verdict, failed, gone, healthy, progressing
from nim_rollouts.core.verdicts.objects import condition, find, is_deleting, is_true, owned, status
from nim_rollouts.core.verdicts.pods import diagnose, refused

KINDS = ("Job", "Pod", "PersistentVolumeClaim", "Event")
_REASONS = {"DeadlineExceeded": "job-deadline-exceeded", "BackoffLimitExceeded": "job-exhausted"}


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the Job of that name."""
    job = find(objects, "Job", name)
    if job is None:
        return gone("deleted", f"Job {name} does not exist", [f"Job/{name} absent"])
    if is_true(job, "Complete"):
        return healthy("ready", "the Job is complete", [f"Job/{name} condition Complete=True"])
    if is_true(job, "Failed"):
        why = condition(job, "Failed")
        reason = _REASONS.get(str(why.get("reason")), "job-failed")
        return failed(
            reason, f"the Job failed: {why.get('message') or why.get('reason')}", [f"Job/{name} {why.get('reason')}"]
        )
    if is_deleting(job):
        return progressing("deleting", "the Job is being deleted", [f"Job/{name} deletionTimestamp"])
    state = status(job)
    evidence = [f"Job/{name} active={state.get('active', 0)} ready={state.get('ready', 0)}"]
    stage = "job-running" if state.get("ready") else "job-pending"
    message = "the Job's pod runs" if state.get("ready") else "the Job's pod has not started yet"
    pods = owned(objects, "Pod", job)
    trouble = diagnose(objects, pods)
    claim = _own_claim(objects, pods)
    # The scheduler only says that a claim is not bound; the claim's events say why.
    if claim is not None and (trouble is None or trouble.reason == claim.reason):
        return progressing(stage, message, evidence, claim)
    if trouble is not None:
        return trouble.verdict(stage, message, evidence)
    return progressing(stage, message, evidence, None if state.get("ready") else refused(objects, [job]))


def _own_claim(objects: Snapshot, pods: Iterable[Object]) -> Blocker | None:
    """Why a claim that was made for a pod (an ephemeral volume) is not bound."""
    for claim in (one for pod in pods for one in owned(objects, "PersistentVolumeClaim", pod)):
        blocker = unbound(objects, claim)
        if blocker is not None:
            return blocker
    return None
