"""The model: its cache, its service, and the Service that clients use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.errors import WaitStuck
from nim_rollouts.operators.base import Facts, Stage, StageOperator, now
from nim_rollouts.operators.leftovers import clear_cache, clear_service
from nim_rollouts.operators.platform import apply_and_say

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Object

NIM_API = "apps.nvidia.com/v1alpha1"
NUDGED = "nim-rollouts/nudged-at"
# How often, and how far apart in seconds, a flapping cache is looked at. The operator answers a nudge within a second;
# a second nudge before it has would flip the cache to and fro.
_LOOKS, _LOOK_S, _LOOKS_A_NUDGE = 10, 1.0, 5


class ApplyCacheOperator(StageOperator):
    """The NIMCache. Its name carries the hash of its spec: the same model is never downloaded twice."""

    def run(self, stage: Stage) -> Facts:
        """Server-side apply. The intent names it, so that a later stage knows that something may be there.

        A download that an earlier try or run gave up is begun again: the operator itself would wait for ever.
        """
        from nim_rollouts.core import manifests
        from nim_rollouts.hooks import jobs

        session = stage.session
        cache = manifests.nim_cache(session.manifest_context(), session.deployment)
        stage.intend({"kind": "NIMCache", "name": session.names.cache, "namespace": session.names.namespace})
        applied = [apply_and_say(stage, cache)]
        return {
            "applied": applied,
            "applied_at": now().isoformat(),
            "download": jobs.wake_download(session, stage.log.info),
            "cleared": clear_cache(stage) if applied[0]["became"] != "created" else [],
        }


class ApplyServiceOperator(StageOperator):
    """The NIMService by the strategy `replace`: the old one leaves its GPUs first, then the new one starts."""

    def run(self, stage: Stage) -> Facts:
        """Remove older NIMServices of the deployment and wait until they are gone, then apply the new one."""
        from nim_rollouts.core import manifests

        session = stage.session
        context, deployment = session.manifest_context(), session.deployment
        # In every namespace: a deployment that has moved leaves its GPUs in the old one.
        standing = services_of(stage, deployment.name, None)
        mine = [one for one in standing if one["metadata"]["namespace"] == session.names.namespace]
        stage.intend(
            {
                "kind": "NIMService",
                "name": session.names.service,
                "namespace": session.names.namespace,
                "standing": {one["metadata"]["name"]: one["metadata"]["uid"] for one in mine},
            }
        )
        self._settle_cache(stage)
        wanted = [one for one in mine if one["metadata"]["name"] == session.names.service]
        replaced = self._make_room(stage, [one for one in standing if one not in wanted])
        applied_at = now().isoformat()
        objects = [manifests.nim_service(context, deployment), manifests.stable_service(context, deployment)]
        applied = [apply_and_say(stage, obj) for obj in objects]
        cleared = clear_service(stage) if applied[0]["became"] != "created" else []
        return {
            "applied": applied,
            "cleared": cleared,
            "applied_at": applied_at,
            "replaced": replaced,
            "image_from": sorted({image_of(one) for one in standing}) or None,
            "image_to": deployment.image.reference,
        }

    @staticmethod
    def _settle_cache(stage: Stage) -> None:
        """Remove the finished download Job of a filled cache if one of its pods had failed: while that Job exists the
        operator flips the cache to Failed at each reconcile, and a new service is not started behind a Failed cache.

        Of a cache that says Failed just now the operator would make the Job anew, so it is made to look again first: an
        event of the claim flips it back. Else the service would wait until the Job's time to live is over.
        """
        from nim_rollouts.core.verdicts.objects import is_true, status

        session = stage.session
        names, cluster = session.names, session.cluster
        job = cluster.get("batch/v1", "Job", names.namespace, names.cache_job)
        if job is None or not status(job).get("failed") or not is_true(job, "Complete"):
            return
        for look in range(_LOOKS):
            cache = cluster.get(NIM_API, "NIMCache", names.namespace, names.cache)
            if cache is None:
                return
            state, claim = status(cache).get("state"), status(cache).get("pvc")
            stage.check_claims()
            if state == "Ready":
                if cluster.delete(job, uid=job["metadata"]["uid"]):
                    stage.log.info("Job %s removed: it had needed a retry, and the cache is filled", names.cache_job)
                return
            if not claim:
                return  # not filled, for all that is known
            if look % _LOOKS_A_NUDGE == 0:
                _nudge(stage, claim)
            time.sleep(_LOOK_S)
        stage.log.info("NIMCache %s still does not say Ready: going on, the service waits for it", names.cache)

    def _make_room(self, stage: Stage, old: list[Object]) -> list[dict[str, str]]:
        if not old:
            return []
        names = ", ".join(one["metadata"]["name"] for one in old)
        stage.log.warning(
            "downtime from here until the new service is ready: %s gives up its GPUs first (strategy replace)", names
        )
        for service in old:
            stage.check_claims()
            stage.session.cluster.delete(
                service, uid=service["metadata"]["uid"], generation=stage.session.request.generation
            )
        budget = stage.session.environment.budgets.delete_s
        wait_gone(stage, [subject_of(one) for one in old], budget)
        return [{"name": one["metadata"]["name"], "uid": one["metadata"]["uid"], "image": image_of(one)} for one in old]


def _nudge(stage: Stage, claim: str) -> None:
    """Make the operator look at the cache again. It looks at changes of what the cache owns, not at its annotations."""
    session = stage.session
    live = session.cluster.get("v1", "PersistentVolumeClaim", session.names.namespace, claim)
    if live is not None:
        stage.log.info("the filled cache says Failed, from a retry: nudging the operator by a mark on claim %s", claim)
        session.cluster.patch(live, {"metadata": {"annotations": {NUDGED: now().isoformat()}}})


def services_of(stage: Stage, deployment: str, namespace: str | None) -> list[Object]:
    """The NIMServices that were made for a deployment in this environment."""
    from nim_rollouts.core.manifests import DEPLOYMENT_LABEL, ENVIRONMENT_LABEL

    selector = f"{DEPLOYMENT_LABEL}={deployment},{ENVIRONMENT_LABEL}={stage.session.environment.name}"
    return stage.session.cluster.list(NIM_API, "NIMService", namespace, label_selector=selector)


def image_of(service: Object) -> str:
    """The image that a NIMService asks for."""
    image = (service.get("spec") or {}).get("image") or {}
    return f"{image.get('repository')}:{image.get('tag')}"


def subject_of(obj: Object) -> Any:
    """The disappearance of this very object."""
    from nim_rollouts.core.verdicts import Subject

    metadata = obj["metadata"]
    return Subject(obj["kind"], metadata["name"], metadata.get("namespace"), absent=True, uid=metadata["uid"])


def wait_gone(stage: Stage, subjects: list[Any], budget_s: float) -> None:
    """Watch until all are gone with what they owned, inside a worker: for what takes seconds.

    :raises WaitStuck: they are not gone within the budget
    """
    from nim_rollouts.triggers.watching import wait_in_worker

    left = wait_in_worker(stage.session.access, subjects, budget_s, stage.log.info)
    for subject, verdict in left:
        raise WaitStuck.of(subject.ref, verdict.overdue(), deadline_s=budget_s)
