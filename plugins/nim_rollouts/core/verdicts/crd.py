"""Can objects of a custom kind be made? Only once its definition is Established."""

from __future__ import annotations

from datetime import datetime

from nim_rollouts.core.verdicts.model import Snapshot, Verdict, failed, gone, healthy, progressing
from nim_rollouts.core.verdicts.objects import condition, find, is_deleting, is_true

KINDS = ("CustomResourceDefinition",)


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the CustomResourceDefinition of that name (`plural.group`)."""
    definition = find(objects, "CustomResourceDefinition", name)
    if definition is None:
        return gone("deleted", f"{name} does not exist", [f"CustomResourceDefinition/{name} absent"])
    if is_deleting(definition):
        return progressing("deleting", f"{name} is being deleted", [f"CustomResourceDefinition/{name}"])
    names = condition(definition, "NamesAccepted")
    if names.get("status") == "False" and names.get("reason") not in (None, "", "NotAccepted"):
        return failed(
            "crd-names-conflict", f"{name}: {names.get('message')}", [f"CustomResourceDefinition/{name} NamesAccepted"]
        )
    if is_true(definition, "Established"):
        return healthy("ready", f"{name} is established", [f"CustomResourceDefinition/{name} Established=True"])
    return progressing("crd-not-established", f"{name} is not established yet", [f"CustomResourceDefinition/{name}"])
