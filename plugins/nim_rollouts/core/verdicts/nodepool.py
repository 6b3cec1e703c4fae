"""Can a Karpenter NodePool start nodes? Its Ready condition says so, and what it lacks where not."""

from __future__ import annotations

from datetime import datetime

from nim_rollouts.core.verdicts.model import Blocker, Snapshot, Verdict, gone, healthy, progressing
from nim_rollouts.core.verdicts.objects import condition, find, is_deleting, is_true, status

KINDS = ("NodePool",)


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the NodePool of that name."""
    return by_ready(objects, "NodePool", name)


def by_ready(objects: Snapshot, kind: str, name: str) -> Verdict:
    """The verdict on an object of Karpenter's that has a Ready condition made of others."""
    found = find(objects, kind, name)
    where = f"{kind}/{name}"
    if found is None:
        return gone("deleted", f"{kind} {name} does not exist", [f"{where} absent"])
    if is_deleting(found):
        return progressing("deleting", f"the {kind} is being deleted", [f"{where} deletionTimestamp"])
    ready = condition(found, "Ready")
    seen = int(ready.get("observedGeneration") or 0) >= int(found["metadata"].get("generation") or 0)
    if is_true(found, "Ready") and seen:
        return healthy("ready", f"the {kind} is ready", [f"{where} Ready=True"])
    wrong = [one for one in status(found).get("conditions") or () if one.get("status") == "False"]
    if not wrong or not seen:
        return progressing(
            "node-pool-not-ready", f"the {kind} is not ready yet", [f"{where} Ready={ready.get('status')}"]
        )
    told = "; ".join(
        f"{one['type']}: {one.get('message') or one.get('reason')}" for one in wrong if one["type"] != "Ready"
    )
    message = f"the {kind} is not ready: {told or ready.get('message')}"
    evidence = [f"{where} {one['type']}=False {one.get('reason')}" for one in wrong]
    since = str(ready.get("lastTransitionTime") or "")
    return progressing(
        "node-pool-not-ready", message, evidence, Blocker("node-pool-not-ready", message, evidence, since)
    )
