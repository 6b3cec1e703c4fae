"""The storage probe's Job: applied with the platform, waited for with it, judged and removed by its verification.

Whatever ends a run in between, the Job goes: a wait that gives up deletes it, else its time to live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nim_rollouts.core.storageprobe import NAME
from nim_rollouts.operators.base import RESULT, Facts, Stage

if TYPE_CHECKING:
    from nim_rollouts.core.checks import Check
    from nim_rollouts.core.verdicts import Snapshot
    from nim_rollouts.hooks.session import Session

APPLIED_BY, WAITED_BY = "apply_platform", "wait_platform"
FACT = "storage_probe"


def apply(stage: Stage) -> Facts:
    """Apply the Job, unless the deployment's cache is filled: that is proof enough, and a rollout that changes nothing
    makes no volume. The facts say which Job, or why none."""
    from nim_rollouts.core import manifests
    from nim_rollouts.operators.platform import apply_and_say

    session = stage.session
    filled = _filled_cache(session)
    if filled:
        stage.log.info("no storage probe: %s", filled)
        return {"skipped": filled}
    image = session.environment.verify.image
    job = manifests.storage_probe(session.manifest_context(), session.deployment, image)
    _make_room(stage, job)
    return apply_and_say(stage, job) | {"image": image}


def _filled_cache(session: Session) -> str:
    from nim_rollouts.clients.resources import api_version_of

    name, namespace = session.names.cache, session.names.namespace
    cache = session.cluster.get(api_version_of("NIMCache"), "NIMCache", namespace, name)
    status = (cache or {}).get("status") or {}
    if status.get("state") != "Ready" or not status.get("pvc"):
        return ""
    return f"NIMCache {name} is filled, in claim {status['pvc']}"


def _make_room(stage: Stage, job: dict[str, Any]) -> None:
    """One that is being deleted, has failed, or has found the storage bad would be no answer to this try. What a try
    that was killed has made, and what found it good, is gone on with: one intent, one Job."""
    from nim_rollouts.core.verdicts.objects import is_deleting, is_true
    from nim_rollouts.operators.model import subject_of, wait_gone

    session = stage.session
    live = session.cluster.get("batch/v1", "Job", session.names.namespace, job["metadata"]["name"])
    if live is None:
        return
    refused = is_true(live, "Complete") and not _found_good(session, live)
    if not (is_deleting(live) or is_true(live, "Failed") or refused):
        return
    stage.check_claims()
    session.cluster.delete(live, uid=live["metadata"]["uid"], generation=session.request.generation)
    wait_gone(stage, [subject_of(live)], session.environment.budgets.delete_s)


def _found_good(session: Session, job: dict[str, Any]) -> bool:
    from nim_rollouts.core import storageprobe

    pods = session.cluster.list("v1", "Pod", session.names.namespace)
    answer = storageprobe.said({"Pod": pods}, job)
    return storageprobe.judged(answer, session.deployment.cache.storage_class).outcome == "ok"


def applied(session: Session) -> Facts:
    """What `apply` came to in this run; empty before it."""
    found = (session.ledger.read(APPLIED_BY, RESULT) or {}).get(FACT)
    return dict(found or {})


def answered(session: Session) -> Facts | None:
    """The answer that this very Job gave to an earlier wait, or None."""
    told = (session.ledger.read(WAITED_BY, RESULT) or {}).get(FACT)
    return told if told and told.get("uid") and told["uid"] == applied(session).get("uid") else None


def answer(session: Session, snapshot: Snapshot) -> Facts:
    """What the wait for the platform records of the probe: once the Job is gone, only that tells it."""
    from nim_rollouts.core import storageprobe
    from nim_rollouts.core.verdicts.objects import find

    known = answered(session)
    if known is not None:
        return known
    job = find(snapshot, "Job", session.names.storage_probe)
    uid = applied(session).get("uid")
    if job is None or uid is None:
        return applied(session)
    return {"uid": uid, "said": storageprobe.said(snapshot, job)}


def check(stage: Stage) -> Check:
    """The verification's line on the storage."""
    from nim_rollouts.core.checks import failed, skipped
    from nim_rollouts.core.layers import Layer
    from nim_rollouts.core.storageprobe import judged

    session = stage.session
    storage_class = session.deployment.cache.storage_class
    if session.cluster.get("storage.k8s.io/v1", "StorageClass", None, storage_class) is None:
        return failed(
            NAME,
            f"the cluster has no storage class {storage_class}",
            "Name one that it has in cache.storage_class of the deployment",
            "storage-class-missing",
            Layer.VOLUME,
        )
    known = applied(session)
    if not known.get("uid"):
        return skipped(
            NAME, str(known.get("skipped") or f"storage class {storage_class} is there; no probe was applied")
        )
    return judged(str((answered(session) or {}).get("said") or ""), storage_class)


def remove(stage: Stage) -> None:
    """Delete this run's Job, and with it pod, claim and volume. Fine when it is gone."""
    session = stage.session
    live = session.cluster.get("batch/v1", "Job", session.names.namespace, session.names.storage_probe)
    if live is not None and session.cluster.delete(live, uid=live["metadata"]["uid"]):
        stage.log.info("Job/%s removed", session.names.storage_probe)
