"""Is an object gone, and everything that it owned?

A namesake with another uid is another object: what was to go has gone. Reason `deleted` means that nothing is left,
`children-terminating` that pods or claims still are.
"""

from __future__ import annotations

from datetime import datetime

from nim_rollouts.core.verdicts.model import Object, Snapshot, Verdict, gone, progressing
from nim_rollouts.core.verdicts.objects import find, is_deleting, labels, owners, ref, uid_of

_CHILDREN = (
    "NIMService",
    "Job",
    "Deployment",
    "ReplicaSet",
    "PersistentVolumeClaim",
    "Pod",
    "Service",
    "HorizontalPodAutoscaler",
)


def kinds(kind: str) -> tuple[str, ...]:
    """The kinds that must be in the snapshot to judge one of this kind."""
    return {
        "NIMCache": ("NIMCache", "Job", "Pod", "PersistentVolumeClaim"),
        "NIMService": ("NIMService", "Deployment", "ReplicaSet", "Pod"),
        "NIMPipeline": ("NIMPipeline", "NIMService", "Deployment", "ReplicaSet", "Pod"),
        "Job": ("Job", "Pod"),
        "Deployment": ("Deployment", "ReplicaSet", "Pod"),
    }.get(kind, (kind,))


def judge(objects: Snapshot, kind: str, name: str, uid: str | None, now: datetime) -> Verdict:
    """The verdict on the disappearance of one object.

    :param uid: of the object that is to go; None for whatever has the name
    """
    target = find(objects, kind, name)
    if target is not None and (uid is None or uid_of(target) == uid):
        finalizers = ", ".join(target["metadata"].get("finalizers") or ()) or "none"
        if is_deleting(target):
            message = f"the {kind} is being deleted, finalizers: {finalizers}"
            return progressing("deleting", message, [f"{kind}/{name} deletionTimestamp finalizers={finalizers}"])
        return progressing("not-deleted", f"the {kind} exists and is not being deleted", [f"{kind}/{name}"])
    left = _left(objects, kind, name, uid, namesake=target is not None)
    if left:
        return gone("children-terminating", f"the {kind} is gone, still there: {', '.join(left)}", left)
    return gone("deleted", f"the {kind} and what it owned are gone", [f"{kind}/{name} absent"])


def _left(objects: Snapshot, kind: str, name: str, uid: str | None, *, namesake: bool) -> list[str]:
    """What the object owned, through any number of owners. Garbage collection takes owners away first, so an
    intermediate one (the Job of a pod) may be missing; then the names that the operator and Kubernetes give help."""
    owner_uids = {uid} if uid else set()
    owner_names: set[tuple[str, str]] = set()
    if not namesake:
        owner_names.add((kind, name))
        if kind == "NIMCache":
            owner_names.add(("Job", f"{name}-job"))
    found: dict[str, Object] = {}
    while True:
        more = {
            ref(one, child): one
            for child in _CHILDREN
            for one in objects.get(child, ())
            if ref(one, child) not in found and _is_child(one, child, kind, name, owner_uids, owner_names, namesake)
        }
        if not more:
            return sorted(found)
        found.update(more)
        owner_uids |= {value for one in more.values() if (value := uid_of(one))}


def _is_child(
    obj: Object,
    child: str,
    kind: str,
    name: str,
    uids: set[str],
    names: set[tuple[str, str]],
    namesake: bool,
) -> bool:
    for reference in owners(obj):
        if reference.get("uid") in uids or (reference.get("kind"), reference.get("name")) in names:
            return True
    # The operator's pods carry `app` = the NIMService's name; its ReplicaSet may be gone before them.
    if kind == "NIMService" and child == "Pod" and not namesake:
        return labels(obj).get("app") == name
    return False
