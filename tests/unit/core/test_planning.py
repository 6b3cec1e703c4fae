"""What may be applied, on which state."""

from __future__ import annotations

import pytest

from nim_rollouts.clients.terraform_plan import PlanSummary
from nim_rollouts.core.errors import NeedsHumanError, TerraformFailed
from nim_rollouts.core.planning import Mark, left_to_do, moved_by_another, refused


@pytest.mark.parametrize(
    ("answer", "needed", "why"),
    [
        ("approved", True, None),
        (None, False, None),
        (None, True, "nobody has approved it"),
        ("rejected", True, "it was rejected"),
        ("rejected", False, "it was rejected"),
        ("none", True, "nobody answered in time"),
        ("yes?", False, "nobody has approved it"),
    ],
)
def test_only_a_yes_is_a_yes(answer: str | None, needed: bool, why: str | None) -> None:
    assert refused(answer, needed) == why


BASE: Mark = ("l-1", 7)


@pytest.mark.parametrize(
    ("now", "left", "held", "moved"),
    [
        (BASE, [], False, None),  # cut off before it wrote anything
        (("l-1", 9), [("l-1", 9)], False, None),  # as our own apply says that it left it
        (("l-1", 9), [], True, None),  # our dead try still held the lock
        (("l-1", 9), [], False, "serial 7 was planned on, it is 9"),
        (("l-1", 10), [("l-1", 9)], False, "known to have left 9"),
        (("l-1", 6), [], True, "it went back from serial 7 to 6"),
        (("l-2", 8), [], True, "another state altogether"),
        (("", 0), [], False, "another state altogether"),
    ],
)
def test_a_state_is_ours_only_where_that_is_known(now: Mark, left: list[Mark], held: bool, moved: str | None) -> None:
    why = moved_by_another(now, BASE, left, held=held)
    assert why is None if moved is None else (why is not None and moved in why)


def a_plan(*changes: tuple[str, str], serial: int = 7) -> PlanSummary:
    return PlanSummary(list(changes), 0, 0, 0, 0, "sum", bool(changes), lineage="l-1", serial=serial)


SEEN = a_plan(("aws_vpc.a", "create"), ("aws_vpc.b", "create"))


@pytest.mark.parametrize("serial", [7, 9])
def test_nothing_left_to_do_asks_for_nobody(serial: int) -> None:
    assert left_to_do(SEEN, a_plan(serial=serial), [], held=False) is False


def test_what_is_left_is_within_what_was_approved_on_a_state_of_ours() -> None:
    rest = a_plan(("aws_vpc.b", "create"), serial=9)
    assert left_to_do(SEEN, rest, [("l-1", 9)], held=False) is True
    with pytest.raises(NeedsHumanError) as moved:
        left_to_do(SEEN, rest, [], held=False)
    assert moved.value.reason == "state-moved"
    with pytest.raises(TerraformFailed, match="delete aws_vpc.a") as beyond:
        left_to_do(SEEN, a_plan(("aws_vpc.a", "delete")), [], held=False)
    assert beyond.value.reason == "plan-changed"


def test_the_first_apply_of_all_may_have_made_the_lineage() -> None:
    assert moved_by_another(("l-new", 1), ("", 0), [], held=True) is None
    assert moved_by_another(("l-new", 1), ("", 0), [], held=False) is not None
