"""Summaries of plans: counts, replacement, drift, and what a retry may go on with."""

from __future__ import annotations

from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary, summarise


def change(address: str, *actions: str) -> dict[str, object]:
    return {"address": address, "change": {"actions": list(actions)}}


SHOWN = {
    "resource_changes": [
        change("aws_vpc.this", "no-op"),
        change("data.aws_caller_identity.current", "read"),
        change("aws_subnet.b", "create"),
        change("aws_subnet.a", "create"),
        change("aws_eks_cluster.this", "update"),
        change("aws_security_group.efs", "create", "delete"),
        change("aws_iam_role.old", "delete"),
    ],
    "resource_drift": [change("aws_eks_cluster.this", "update"), change("aws_iam_role.node", "update")],
    "output_changes": {"vpc_id": {"actions": ["no-op"]}, "region": {"actions": ["create"]}},
}


def test_counts_and_steps() -> None:
    summary = summarise(SHOWN, checksum="c0ffee", plan_file="/w/plan")
    assert (summary.add, summary.change, summary.replace, summary.destroy) == (2, 1, 1, 1)
    assert summary.steps == 6  # a replacement is two actions
    assert summary.has_changes and summary.output_changes == ["region"]
    assert summary.changes[0] == ("aws_eks_cluster.this", "update")
    assert ("aws_security_group.efs", "replace") in summary.changes
    assert summary.text() == "2 to create, 1 to update, 1 to replace, 1 to destroy"


def test_drift_names_only_what_the_plan_would_undo() -> None:
    assert summarise(SHOWN, checksum="", plan_file="").drift == [("aws_eks_cluster.this", "update")]


def test_facts_come_back_the_same() -> None:
    summary = summarise(SHOWN, checksum="c0ffee", plan_file="/w/plan")
    assert PlanSummary.from_facts(summary.as_facts()) == summary


def test_nothing_to_do() -> None:
    summary = summarise({"resource_changes": [change("aws_vpc.this", "no-op")]}, checksum="", plan_file="")
    assert not summary.has_changes and summary.text() == "no changes"


def test_only_outputs() -> None:
    shown = {"output_changes": {"b": {"actions": ["update"]}, "a": {"actions": ["create"]}}}
    summary = summarise(shown, checksum="", plan_file="")
    assert summary.has_changes and summary.changes == [] and summary.text() == "only outputs change: a, b"


def test_a_retry_may_go_on_with_what_was_approved_and_no_more() -> None:
    approved = summarise(SHOWN, checksum="", plan_file="").as_facts()["changes"]
    rest = {"resource_changes": [change("aws_subnet.b", "create")]}
    assert summarise(rest, checksum="", plan_file="").within(approved)
    worse = {"resource_changes": [change("aws_subnet.b", "delete")]}
    assert not summarise(worse, checksum="", plan_file="").within(approved)


def test_apply_summary_text() -> None:
    assert ApplySummary([], 0, 0, 0, 1.94).text() == "nothing to do (1.9 s)"
    assert ApplySummary([("a.b", "create", 2.0)], 1, 0, 0, 14.5).text() == "1 added, 0 changed, 0 destroyed in 14.5 s"
