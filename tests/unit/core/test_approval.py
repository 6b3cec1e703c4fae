"""Which plans are asked about, and what people are shown."""

from __future__ import annotations

import pytest

from nim_rollouts.core.approval import Asking, Question, counted, duration, need, plan_question
from nim_rollouts.core.cost import Estimate

CREATE, UPDATE, REPLACE, DELETE, FORGET = (
    ["aws_eip.a", "create"],
    ["aws_eip.b", "update"],
    ["aws_eip.c", "replace"],
    ["aws_eip.d", "delete"],
    ["aws_eip.e", "forget"],
)
ASKING = Asking("ada", "test", "us-west-2", "llama", "nvcr.io/nim/x:1", (), 3600)


@pytest.mark.parametrize(
    ("policy", "changes", "needed", "why"),
    [
        ("always", [CREATE], True, "every plan"),
        ("always", [], False, "changes no resource"),
        ("on-destroy", [CREATE, UPDATE], False, "destroys and replaces nothing"),
        ("on-destroy", [CREATE, REPLACE], True, "1 to replace"),
        ("on-destroy", [DELETE], True, "1 to destroy"),
        ("on-destroy", [FORGET], True, "1 to forget"),
        # Of a later terraform: what is not known to be harmless is asked about.
        ("on-destroy", [["aws_eip.f", "frobnicate"]], True, "1 to frobnicate"),
        ("on-destroy", [], False, "changes no resource"),
        ("never", [DELETE, REPLACE], False, "policy never"),
    ],
)
def test_the_policy(policy: str, changes: list[list[str]], needed: bool, why: str) -> None:
    found = need(policy, changes)
    assert found.needed is needed
    assert why in found.why


def question(changes: list[list[str]], asking: Asking = ASKING, **more: object) -> Question:
    return plan_question({"checksum": "abc", "changes": changes, **more}, "on-destroy", asking, Estimate(None))


def test_the_text_says_who_asks_for_what_and_the_gravest_first() -> None:
    asked = question([CREATE, REPLACE, DELETE], reasons={"aws_eip.c": "domain forces it"})
    assert asked.subject == "test: 1 to destroy, 1 to replace, 1 to create (llama)"
    body = asked.body
    assert "**ada** asks for it" in body and "`llama`" in body and "us-west-2" in body and "nvcr.io/nim/x:1" in body
    assert body.index("aws_eip.d") < body.index("aws_eip.c") < body.index("aws_eip.a")
    assert "| replace | `aws_eip.c` | domain forces it |" in body
    assert "No answer within 60 min" in body
    assert (asked.needed, asked.checksum, asked.changes) == (True, "abc", [CREATE, REPLACE, DELETE])


def test_the_text_is_the_same_for_the_same_changes_of_another_plan() -> None:
    """Airflow shows the first text of a task for good."""
    first, second = question([REPLACE]), question([REPLACE], checksum="def")
    assert (first.subject, first.body) == (second.subject, second.body)
    assert first.checksum != second.checksum


def test_a_long_list_is_cut_with_its_count_but_not_where_it_hurts() -> None:
    many = [[f"aws_eip.n{number:03}", "create"] for number in range(90)]
    body = question([*many, DELETE]).body
    assert "| destroy | `aws_eip.d` |" in body
    assert "... and 75 more (75 to create)" in body
    assert "aws_eip.n014" in body and "aws_eip.n015" not in body
    grave = [[f"aws_eip.n{number:03}", "replace"] for number in range(50)]
    assert "... and 10 more (10 to replace)" in question([*grave, CREATE]).body


def test_what_others_have_chosen_cannot_break_the_table() -> None:
    asking = Asking("eve|`\n# x", "test", "us-west-2", "")
    body = question([['aws_eip.x["a|b`c\n"]', "delete"]], asking).body
    assert '| destroy | `aws_eip.x["a\\|b\'c"]` |' in body
    assert "eve\\|'# x" in body and "\n# x" not in body


def test_approvers_are_named() -> None:
    asking = Asking("ada", "test", "us-west-2", "llama", approvers=("bob", "eve"), timeout_s=90)
    assert "Only these may answer: bob, eve." in question([DELETE], asking).body
    assert "No answer within 90 s" in question([DELETE], asking).body


def test_counts_and_durations_in_words() -> None:
    assert counted([]) == "nothing to change"
    assert [duration(s) for s in (10, 90, 120, 3600, 7200, 86_400, 172_800, 5400)] == [
        *("10 s", "90 s", "2 min", "60 min", "2 h", "24 h", "2 days", "90 min")
    ]
