"""Is a Deployment (an operator's, say) completely available? The Progressing condition is no judge: its deadline
passes while a slow image is still being pulled."""

from __future__ import annotations

from datetime import datetime

from nim_rollouts.core.verdicts.model import Blocker, Snapshot, Verdict, gone, healthy, progressing
from nim_rollouts.core.verdicts.objects import condition, count, find, is_deleting, owned, selected, status
from nim_rollouts.core.verdicts.pods import diagnose, refused
from nim_rollouts.core.verdicts.workloads import is_observed, newest_of

KINDS = ("Deployment", "ReplicaSet", "Pod", "Event")


def away(objects: Snapshot, name: str) -> Blocker | None:
    """That a Deployment has no pod that serves, as what others hang on: an operator that is away moves nothing."""
    deployment = find(objects, "Deployment", name)
    where = f"Deployment/{name}"
    if deployment is None:
        return Blocker(
            "operator-unavailable", f"the operator is away: Deployment {name} does not exist", [f"{where} absent"]
        )
    if count(status(deployment), "availableReplicas"):
        return None
    pods = selected(objects, "Pod", ((deployment.get("spec") or {}).get("selector") or {}).get("matchLabels") or {})
    trouble = diagnose(objects, pods)
    message = f"the operator is away: no pod of Deployment {name} is available" + (
        f", {trouble.message}" if trouble else ""
    )
    since = str(condition(deployment, "Available").get("lastTransitionTime") or "")
    return Blocker(
        "operator-unavailable", message, [f"{where} available=0", *(trouble.evidence if trouble else ())], since
    )


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the Deployment of that name."""
    deployment = find(objects, "Deployment", name)
    if deployment is None:
        return gone("deleted", f"Deployment {name} does not exist", [f"Deployment/{name} absent"])
    if is_deleting(deployment):
        return progressing("deleting", "the Deployment is being deleted", [f"Deployment/{name} deletionTimestamp"])
    spec, state = deployment.get("spec") or {}, status(deployment)
    wanted = count(spec, "replicas", 1)
    counts = [int(state.get(field) or 0) for field in ("replicas", "updatedReplicas", "availableReplicas")]
    observed = is_observed(deployment)
    evidence = [f"Deployment/{name} wanted={wanted} updated={counts[1]} available={counts[2]} observed={observed}"]
    if observed and all(count == wanted for count in counts):
        return healthy("ready", f"{wanted} of {wanted} pods are available", evidence)
    message = f"{min(counts[1], counts[2])} of {wanted} pods are available"
    pods = selected(objects, "Pod", (spec.get("selector") or {}).get("matchLabels") or {})
    trouble = diagnose(objects, newest_of(objects, deployment, pods))
    if trouble is not None:
        return trouble.verdict("rollout-in-progress", message, evidence)
    makers = [deployment, *owned(objects, "ReplicaSet", deployment)]
    return progressing("rollout-in-progress", message, evidence, refused(objects, makers))
