"""How long a wait bears with what it hangs on: the budget of that step, not the whole deadline. Pure.

What hangs may pass by itself, so the first evidence of it ends nothing; it is told at once, and once the step has had
the time that the environment gives it, waiting for the rest of the deadline would tell nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum

from nim_rollouts.core.verdicts.model import Blocker, State, Verdict
from nim_rollouts.core.verdicts.objects import time_of


class Step(StrEnum):
    """A part of a rollout that has a budget of its own. The values are what messages show."""

    NODE_LAUNCH = "node launch"
    BINDING = "volume binding"
    IMAGE_PULL = "image pull"
    START_UP = "start-up"
    ENDPOINT = "model endpoint"
    OPERATOR = "operator"


Patience = Mapping[Step, int]
"""Seconds of each step that has a budget in this wait."""

#: The step that each slug hangs in. Where none is named (a quota, the operator's own errors) the deadline decides.
STEP_OF: dict[str, Step] = {
    "unschedulable": Step.NODE_LAUNCH,
    "unschedulable-gpu": Step.NODE_LAUNCH,
    "volume-unbound": Step.BINDING,
    "volume-mount-failing": Step.IMAGE_PULL,
    "pod-network-failing": Step.IMAGE_PULL,
    "container-config": Step.IMAGE_PULL,
    "image-pull-failing": Step.IMAGE_PULL,
    "image-pull-rate-limited": Step.IMAGE_PULL,
    "image-pull-unauthorized": Step.IMAGE_PULL,
    "image-pull-not-found": Step.IMAGE_PULL,
    "startup-probe-failing": Step.START_UP,
    "model-endpoint-unavailable": Step.ENDPOINT,
    "operator-unavailable": Step.OPERATOR,
}
#: What only the operator moves on, or ends: with no operator that is what it hangs on.
_OPERATORS = ("model-endpoint-unavailable", "update-not-propagated", "reconcile-failed", "selection-pod-ended")


def without_operator(verdict: Verdict, away: Blocker | None) -> Verdict:
    """The verdict on what an operator has to move on, while it is away. What pods meet by themselves stays said."""
    if away is None or verdict.state is not State.PROGRESSING:
        return verdict
    if verdict.blocker is not None and verdict.blocker.reason not in _OPERATORS:
        return verdict
    return replace(verdict, blocker=away)


def spent_at(verdict: Verdict, patience: Patience, started: datetime) -> datetime | None:
    """When the step's budget is spent on what the verdict hangs on; None where it hangs on nothing or has no budget.

    :param started: when the try began to wait: one that was cleared after a repair gives the step its time anew
    """
    blocker = verdict.blocker
    since = time_of(blocker.since) if blocker is not None else None
    if verdict.state is not State.PROGRESSING or blocker is None or since is None:
        return None
    step = STEP_OF.get(blocker.reason)
    if step is None or step not in patience:
        return None
    return max(since, started) + timedelta(seconds=patience[step])


def borne(verdict: Verdict, patience: Patience, started: datetime, now: datetime) -> Verdict:
    """The verdict, or that it is stuck, once the budget of the step in which it hangs is spent."""
    spent = spent_at(verdict, patience, started)
    if spent is None or now < spent or verdict.blocker is None:
        return verdict
    late = verdict.overdue()
    step = STEP_OF[verdict.blocker.reason]
    return replace(late, message=f"{late.message} ({step} may take {patience[step]} s)")
