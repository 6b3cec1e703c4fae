"""Whose pods speak for a Deployment: those of its newest revision.

While one is replaced by another, the pods before may be crashing or fit nowhere; that is why they are replaced, and no
judgement on what comes. So are the pods that a deleted namesake leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterable

from nim_rollouts.core.verdicts.model import Object, Snapshot
from nim_rollouts.core.verdicts.objects import annotations_of, images, owned, owners, status, uid_of

_REVISION = "deployment.kubernetes.io/revision"


def is_observed(deployment: Object) -> bool:
    """True once the Deployment controller has acted on the newest generation."""
    return int(status(deployment).get("observedGeneration") or 0) >= int(deployment["metadata"].get("generation") or 0)


def newest_of(
    objects: Snapshot, deployment: Object | None, pods: Iterable[Object], image: str | None = None
) -> list[Object]:
    """Of these pods, those that may belong to the Deployment's newest revision.

    A pod whose ReplicaSet is not (yet) in the snapshot stays: what is not known excludes nothing.

    :param deployment: None when there is none (yet): then pods of ReplicaSets are somebody else's
    :param image: that the pods run, if any will not do. It is looked for in the ReplicaSet as well, since admission may
        have put a mirror's address into the pods.
    """
    if image is not None:
        makers = [uid_of(one) for one in objects.get("ReplicaSet", ()) if image in images(one)]
        pods = [pod for pod in pods if image in images(pod) or any(one.get("uid") in makers for one in owners(pod))]
    if deployment is None:
        return [pod for pod in pods if not any(one.get("kind") == "ReplicaSet" for one in owners(pod))]
    if status(deployment).get("observedGeneration") and not is_observed(deployment):
        return []  # whatever there is was made for the generation before
    mine = _newest(owned(objects, "ReplicaSet", deployment))
    others = {uid_of(one) for one in objects.get("ReplicaSet", ())} - {uid_of(one) for one in mine}
    return [pod for pod in pods if not any(one.get("uid") in others for one in owners(pod))]


def _newest(sets: list[Object]) -> list[Object]:
    """Those of the highest revision. (The Deployment's own mark is no help: the NIM operator wipes it with each update,
    and it comes back a moment later.)"""
    marks = [str(annotations_of(one).get(_REVISION)) for one in sets]
    revisions = [int(mark) if mark.isdigit() else 0 for mark in marks]
    return [one for one, revision in zip(sets, revisions, strict=True) if revision == max(revisions)]
