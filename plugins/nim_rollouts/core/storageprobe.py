"""What the storage probe's last word means. Its program stands in include/manifests/storage-probe.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nim_rollouts.core.checks import Check, failed, ok
from nim_rollouts.core.layers import Layer
from nim_rollouts.core.verdicts.model import Snapshot
from nim_rollouts.core.verdicts.objects import owned, status

NAME = "storage"
_DENIED = r"permission denied|operation not permitted|not permitted"


def said(objects: Snapshot, job: Mapping[str, Any]) -> str:
    """The last word of the Job's pod; empty when it has none."""
    for pod in owned(objects, "Pod", job):
        for container in status(pod).get("containerStatuses") or ():
            ended = (container.get("state") or {}).get("terminated") or {}
            if ended.get("message"):
                return str(ended["message"]).strip()
    return ""


def judged(answer: str, storage_class: str) -> Check:
    """The check that the last word comes to."""
    if answer.startswith("written and read"):
        return ok(NAME, f"a claim of {storage_class} was bound, {answer}")
    seen = f"a claim of {storage_class} was bound and mounted, but: {answer or 'its pod has left no word'}"
    if re.search(_DENIED, answer, re.IGNORECASE):
        return failed(
            NAME,
            seen,
            f"Give the storage class {storage_class} uid 1000, gid 2000 and directoryPerms that let them write, and a "
            "file system policy elasticfilesystem:ClientWrite; delete the class, clear apply_platform and what follows",
            "storage-not-writable",
            Layer.VOLUME,
        )
    hint = (
        "Look at the file system: its space, its mount targets, its policy; then clear apply_platform and what follows"
    )
    return failed(NAME, seen, hint, "storage-unusable", Layer.VOLUME)
