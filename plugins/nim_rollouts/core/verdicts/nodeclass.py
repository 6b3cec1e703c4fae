"""Does an EC2NodeClass find what it names in AWS: subnets, security groups, images, its role?"""

from __future__ import annotations

from datetime import datetime

from nim_rollouts.core.verdicts.model import Snapshot, Verdict
from nim_rollouts.core.verdicts.nodepool import by_ready

KINDS = ("EC2NodeClass",)


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the EC2NodeClass of that name."""
    return by_ready(objects, "EC2NodeClass", name)
