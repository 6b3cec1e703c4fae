"""The Jobs of a run that nobody waits for any more, and waking a download that was put to rest so.

Only Jobs are touched, each only as it was seen: by uid and resourceVersion. The benchmark's Job is deleted, and the
storage probe's. The download's is the operator's, which makes a deleted one anew at once: a running one is suspended
instead, and of one that has failed the time to live is taken away, after which the operator would begin again and
again. A later `apply_cache` wakes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.manifests import ROLLOUT
from nim_rollouts.core.verdicts.objects import is_deleting, is_true, owned_by, status, uid_of

if TYPE_CHECKING:
    from nim_rollouts.hooks.session import Session

Object = dict[str, Any]
Say = Callable[[str], None]

STOPPED_BY = "nim-rollouts/stopped-by"
NIM_API, JOB_API = "apps.nvidia.com/v1alpha1", "batch/v1"
# A Job's status moves on while it is looked at; each time it is looked at again.
_ATTEMPTS = 6


def stop(stage: str, session: Session, say: Say) -> bool:
    """Stop the Job that a stage has waited for; True if there was one to stop.

    :raises Superseded: a newer run has the deployment, and maybe a use for the Job
    """
    stopper = _STOPPERS.get(stage)
    if stopper is None:
        return False
    session.check_deployment_claim()
    return stopper(session, say)


def _stop_benchmark(session: Session, say: Say) -> bool:
    names = session.names

    def look() -> Object | None:
        job = session.cluster.get(JOB_API, "Job", names.namespace, names.benchmark_job)
        if job is None or is_deleting(job) or _has_ended(job):
            return None
        if not _is_this_runs(session, job):
            say(f"Job {names.benchmark_job} is another than the one that was applied: left alone")
            return None
        return job

    return _settled(look, lambda job: _delete(session, job), say, f"Job {names.benchmark_job} stopped: deleted")


def _stop_probe(session: Session, say: Say) -> bool:
    """The storage probe is this rollout's by its name. One that has ended goes too, with its claim and volume."""
    names = session.names

    def look() -> Object | None:
        job = session.cluster.get(JOB_API, "Job", names.namespace, names.storage_probe)
        return None if job is None or is_deleting(job) else job

    return _settled(look, lambda job: _delete(session, job), say, f"Job {names.storage_probe} stopped: deleted")


def _stop_download(session: Session, say: Say) -> bool:
    def look() -> Object | None:
        job = _download(session)
        return None if job is None or is_true(job, "Complete") or _rests(job) else job

    def rest(job: Object) -> bool:
        spec: Object = {"ttlSecondsAfterFinished": None} if is_true(job, "Failed") else {"suspend": True}
        marks = {"annotations": {STOPPED_BY: session.rollout}}
        return session.cluster.patch(job, {"metadata": marks, "spec": spec}) is not None

    name = session.names.cache_job
    return _settled(look, rest, say, f"Job {name} put to rest: nobody waits for the download any more")


def wake_download(session: Session, say: Say) -> str | None:
    """Let the download begin again that was put to rest or has given up; what was done, or None where nothing was.

    :raises Superseded: a newer run has the deployment
    """
    name = session.names.cache_job
    job = _download(session)
    if job is None or is_true(job, "Complete"):
        return None
    session.check_deployment_claim()
    if is_true(job, "Failed"):
        # Until it is gone the operator makes no other, and the wait would find the old failure.
        done = _settled(lambda: _same(session, job), lambda seen: _delete(session, seen), say,
                        f"Job {name} had given up: removed, the operator makes another")  # fmt: skip
        return "made anew" if done else None
    if not _is_suspended(job):
        return None
    if STOPPED_BY not in (job["metadata"].get("annotations") or {}):
        say(f"Job {name} was suspended by somebody else: left so")
        return None
    changes = {"metadata": {"annotations": {STOPPED_BY: None}}, "spec": {"suspend": False}}
    done = _settled(lambda: _same(session, job), lambda seen: session.cluster.patch(seen, changes) is not None, say,
                    f"Job {name} had been put to rest: resumed")  # fmt: skip
    return "resumed" if done else None


def _settled(look: Callable[[], Object | None], act: Callable[[Object], bool], say: Say, words: str) -> bool:
    """Act on what is seen until it has worked; False when there is nothing (left) to act on."""
    seen: str | None = None
    for _ in range(_ATTEMPTS):
        job = look()
        # The same version refused twice was refused for another reason.
        if job is None or job["metadata"]["resourceVersion"] == seen:
            return False
        if act(job):
            say(words)
            return True
        seen = job["metadata"]["resourceVersion"]
    return False


def _download(session: Session) -> Object | None:
    """The download Job of a cache that is not filled yet and stays; None where there is none."""
    names, cluster = session.names, session.cluster
    job = cluster.get(JOB_API, "Job", names.namespace, names.cache_job)
    cache = cluster.get(NIM_API, "NIMCache", names.namespace, names.cache) if job is not None else None
    if job is None or cache is None or is_deleting(job) or is_deleting(cache) or not owned_by(job, cache):
        return None
    # status.pvc is written once the cache is filled, and stays.
    return None if status(cache).get("pvc") else job


def _same(session: Session, job: Object) -> Object | None:
    live = _download(session)
    return live if live is not None and uid_of(live) == uid_of(job) else None


def _delete(session: Session, job: Object) -> bool:
    """Delete this Job in this version of it, or nothing."""
    metadata = job["metadata"]
    return session.cluster.delete(job, uid=metadata["uid"], resource_version=metadata["resourceVersion"])


def _is_this_runs(session: Session, job: Object) -> bool:
    """By the uid that `apply_benchmark` recorded; by the run's mark when it was interrupted before it could."""
    applied = session.ledger.read("apply_benchmark", "result")
    if applied is None:
        return bool((job["metadata"].get("annotations") or {}).get(ROLLOUT) == session.rollout)
    return any(one["kind"] == "Job" and one["uid"] == uid_of(job) for one in applied["applied"])


def _has_ended(job: Mapping[str, Any]) -> bool:
    return is_true(job, "Complete") or is_true(job, "Failed")


def _is_suspended(job: Mapping[str, Any]) -> bool:
    return bool((job.get("spec") or {}).get("suspend"))


def _rests(job: Mapping[str, Any]) -> bool:
    if is_true(job, "Failed"):
        return (job.get("spec") or {}).get("ttlSecondsAfterFinished") is None
    return _is_suspended(job)


_STOPPERS: dict[str, Callable[[Session, Say], bool]] = {
    "wait_benchmark": _stop_benchmark,
    "wait_platform": _stop_probe,
    "wait_cache": _stop_download,
}
