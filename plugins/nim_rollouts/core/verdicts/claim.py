"""Is a volume claim bound? Pending alone says nothing: a provisioner may be at work, or wait for the first pod."""

from __future__ import annotations

from datetime import datetime

from nim_rollouts.core.verdicts.model import Blocker, Object, Snapshot, Verdict, failed, gone, healthy, progressing
from nim_rollouts.core.verdicts.objects import events_of, find, is_deleting, moment_of, name_of, ref, status

KINDS = ("PersistentVolumeClaim", "Event")


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the PersistentVolumeClaim of that name."""
    claim = find(objects, "PersistentVolumeClaim", name)
    where = f"PersistentVolumeClaim/{name}"
    if claim is None:
        return gone("deleted", f"claim {name} does not exist", [f"{where} absent"])
    if is_deleting(claim):
        return progressing("deleting", f"claim {name} is being deleted", [f"{where} deletionTimestamp"])
    phase = str(status(claim).get("phase") or "none")
    evidence = [f"{where} phase={phase}"]
    if phase == "Bound":
        return healthy("ready", f"claim {name} is bound", evidence)
    if phase == "Lost":
        return failed("volume-lost", f"the volume of claim {name} does not exist any more", evidence)
    return progressing("claim-pending", f"claim {name} is not bound yet", evidence, unbound(objects, claim))


def unbound(objects: Snapshot, claim: Object) -> Blocker | None:
    """Why a claim is not bound, once provisioning has failed at least once."""
    if status(claim).get("phase") == "Bound":
        return None
    for event in events_of(objects, claim):
        if event.get("reason") == "ProvisioningFailed":
            return Blocker(
                "volume-unbound",
                f"claim {name_of(claim)} is not bound: {event.get('message')}",
                [f"{ref(claim, 'PersistentVolumeClaim')} phase=Pending", "Event ProvisioningFailed"],
                moment_of(event, first=True),
            )
    return None
