"""What may be applied: by whose approval, and on which state. Pure.

A plan is approved as a list of (address, action). terraform itself refuses a plan whose state has moved on since; what
it cannot know is who moved it. Our own apply that was cut off moves it too, and may go on; anybody else's may not be
planned over unseen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from nim_rollouts.core.errors import NeedsHumanError, TerraformFailed

Mark = tuple[str, int]
"""(lineage, serial) of a state; ("", 0) where there is none."""


class Plan(Protocol):
    """What is asked of a plan here."""

    @property
    def has_changes(self) -> bool: ...
    @property
    def changes(self) -> list[tuple[str, str]]: ...
    @property
    def lineage(self) -> str: ...
    @property
    def serial(self) -> int | None: ...
    def beyond(self, approved: Iterable[tuple[str, str] | list[str]]) -> list[tuple[str, str]]: ...


def left_to_do(approved: Plan, now: Plan, left: Collection[Mark], *, held: bool) -> bool:
    """Whether anything is left to do of a plan that a try of ours has begun to apply.

    Nothing left is nothing to ask about: a try that was killed after its last step, or whose terraform ended on another
    worker, has told nobody which state it left.

    :param now: the plan of what is left
    :param left: states that our own tries of the plan are known to have left
    :param held: our dead try still held the lock when this one came: nobody else can have written
    :raises NeedsHumanError: somebody else has moved the state
    :raises TerraformFailed: what is left is more than what was approved
    """
    if not now.has_changes:
        return False
    why = moved_by_another((now.lineage, now.serial or 0), (approved.lineage, approved.serial or 0), left, held=held)
    if why is not None:
        raise state_moved(why)
    if beyond := now.beyond(approved.changes):
        raise plan_changed(beyond)
    return True


def refused(answer: str | None, needed: bool) -> str | None:
    """Why a plan with this answer (`approved`, `rejected`, `none`; None: no record) may not be applied, or None.

    A no counts even where the policy would not have asked.
    """
    if answer == "approved" or (answer is None and not needed):
        return None
    return {"rejected": "it was rejected", "none": "nobody answered in time"}.get(
        answer or "", "nobody has approved it"
    )


def moved_by_another(now: Mark, planned: Mark, left: Collection[Mark], *, held: bool) -> str | None:
    """Why the state as it is now cannot be what our own interrupted apply left, or None.

    :param planned: the state that the approved plan starts from
    :param left: states that our own tries of this plan are known to have left
    :param held: our dead try still held the lock when this one came: nobody else can have written
    """
    if now in left or now == planned:
        return None
    if planned[1] and now[0] != planned[0]:
        return f"it is another state altogether (lineage {now[0] or 'none'}, planned on {planned[0]})"
    if now[1] < planned[1]:
        return f"it went back from serial {planned[1]} to {now[1]}"
    if held:
        return None
    known = ", ".join(str(serial) for _, serial in sorted(left)) or "none"
    return f"serial {planned[1]} was planned on, it is {now[1]}, and our own tries are known to have left {known}"


def state_moved(why: str) -> NeedsHumanError:
    """Somebody else has moved the state."""
    return NeedsHumanError(
        f"the state is not the one that our own tries left: {why}",
        layer="terraform",
        reason="state-moved",
        hint="Somebody else has applied since. Trigger a new run: its plan shows what is left to do now",
    )


def plan_changed(beyond: Iterable[Sequence[str]]) -> TerraformFailed:
    """What is left to do is more than what was approved."""
    return TerraformFailed(
        f"what is left to do is not what was planned: {', '.join(f'{action} {address}' for address, action in beyond)}",
        reason="plan-changed",
        hint="Clear the task that planned (terraform_plan) and those after it, and look at the new plan",
    )
