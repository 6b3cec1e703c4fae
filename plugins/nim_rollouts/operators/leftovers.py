"""What an earlier try has left that would end the next wait at once: pods that have failed for good and back off.

Nothing of it comes back by itself soon (a kubelet backs off for up to 5 minutes), and whoever clears a task has
repaired something. What runs is left alone. What was seen is in the ledger's error record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Object
    from nim_rollouts.operators.base import Stage


def clear_cache(stage: Stage) -> list[str]:
    """Remove pods of a cache that is not filled: the operator and the Job make others. Returns what was removed."""
    from nim_rollouts.core.verdicts.cache import selection_pod
    from nim_rollouts.core.verdicts.objects import find, has_ended, status

    name = stage.session.names.cache
    objects = _objects(stage, "NIMCache", "Job", "Pod", "Event")
    cache = find(objects, "NIMCache", name)
    if cache is None or status(cache).get("pvc"):
        return []
    selection = selection_pod(objects, cache)
    ended = [selection] if selection is not None and has_ended(selection) else []
    return _remove(stage, [*ended, *_failing(objects, "NIMCache", name)])


def clear_service(stage: Stage) -> list[str]:
    """Remove pods of the NIMService's newest revision: their ReplicaSet makes others. Returns what was removed."""
    objects = _objects(stage, "Deployment", "ReplicaSet", "Pod", "Event")
    return _remove(stage, _failing(objects, "NIMService", stage.session.names.service))


def _objects(stage: Stage, *kinds: str) -> dict[str, list[Object]]:
    from nim_rollouts.clients.resources import api_version_of

    cluster, namespace = stage.session.cluster, stage.session.names.namespace
    return {kind: cluster.list(api_version_of(kind), kind, namespace) for kind in kinds}


def _failing(objects: dict[str, list[Object]], kind: str, name: str) -> list[Any]:
    from nim_rollouts.core.diagnosis import pods_of
    from nim_rollouts.core.verdicts.pods import diagnose

    troubles = [(pod, diagnose(objects, [pod])) for pod in pods_of(objects, kind, name)]
    return [pod for pod, trouble in troubles if trouble is not None and trouble.final]


def _remove(stage: Stage, pods: list[Any]) -> list[str]:
    from nim_rollouts.core.verdicts.objects import is_deleting

    removed = []
    for pod in pods:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if is_deleting(pod):
            continue
        stage.check_claims()
        if stage.session.cluster.delete(pod, uid=uid):
            stage.log.info("Pod %s removed: it had failed before, and another is tried", name)
            removed.append(f"Pod/{name}")
    return removed
