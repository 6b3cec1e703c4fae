"""Summaries of plans: counts, replacement, drift, and what a retry may go on with."""

from __future__ import annotations

import json

from nim_rollouts.clients.terraform_events import Progress
from nim_rollouts.clients.terraform_plan import (
    ApplySummary,
    PlanSummary,
    explained,
    from_events,
    planned_values,
    summarise,
)


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


def told(**event: object) -> str:
    return json.dumps(event)


def planned(address: str, action: str, **more: object) -> str:
    resource = {"addr": address, "resource_type": address.split(".")[0]}
    return told(type="planned_change", change={"resource": resource, "action": action, **more})


def from_lines(*lines: str) -> PlanSummary:
    progress = Progress()
    for line in lines:
        progress.line(line)
    return from_events(progress, checksum="c0ffee", plan_file="/w/plan")


EVENTS = (
    told(type="resource_drift", change={"resource": {"addr": "aws_vpc.this"}, "action": "update"}),
    told(type="resource_drift", change={"resource": {"addr": "aws_iam_role.node"}, "action": "update"}),
    planned("aws_vpc.this", "replace", reason="cannot_update"),
    planned("aws_subnet.a", "create"),
    planned("aws_eip.old", "delete", reason="delete_because_no_resource_config"),
    planned("data.aws_partition.this", "read"),
    told(type="outputs", outputs={"vpc_id": {"action": "update"}, "hush": {"action": "noop", "sensitive": True}}),
)


def test_a_summary_from_the_plan_s_own_events() -> None:
    summary = from_lines(*EVENTS)
    assert summary.changes == [("aws_eip.old", "delete"), ("aws_subnet.a", "create"), ("aws_vpc.this", "replace")]
    assert (summary.add, summary.change, summary.replace, summary.destroy, summary.steps) == (1, 0, 1, 1, 4)
    assert summary.output_changes == ["vpc_id"] and summary.drift == [("aws_vpc.this", "update")]
    assert summary.destructive == [("aws_eip.old", "delete"), ("aws_vpc.this", "replace")]
    assert PlanSummary.from_facts(json.loads(json.dumps(summary.as_facts()))) == summary


def test_why_each_thing_goes() -> None:
    shown = {"resource_changes": [{"address": "aws_vpc.this", "change": {"actions": ["delete", "create"],
             "replace_paths": [["cidr_block"], ["options", 0, "name"]]}}]}  # fmt: skip
    summary = explained(from_lines(*EVENTS), shown)
    because = "cannot be changed in place because of cidr_block, options[0].name"
    assert summary.reasons() == {"aws_eip.old": "no longer in the configuration", "aws_vpc.this": because}
    assert summary.lines() == [
        "delete aws_eip.old (no longer in the configuration)",
        f"replace aws_vpc.this ({because})",
        "create aws_subnet.a",
    ]


def test_a_replacement_that_was_cut_off_may_be_completed_and_no_more() -> None:
    approved = [("aws_vpc.this", "replace"), ("aws_subnet.a", "create")]
    assert from_lines(planned("aws_vpc.this", "create")).within(approved)
    assert from_lines(planned("aws_vpc.this", "delete")).within(approved)
    assert from_lines(planned("aws_subnet.a", "delete")).beyond(approved) == [("aws_subnet.a", "delete")]
    assert from_lines(planned("aws_subnet.a", "update")).beyond(approved) == [("aws_subnet.a", "update")]


def test_what_was_half_made_may_be_made_again_and_nothing_else_replaced() -> None:
    approved = [("aws_subnet.a", "create"), ("aws_vpc.this", "update")]
    assert from_lines(planned("aws_subnet.a", "replace", reason="tainted")).within(approved)
    assert not from_lines(planned("aws_subnet.a", "replace", reason="cannot_update")).within(approved)
    assert not from_lines(planned("aws_vpc.this", "replace", reason="tainted")).within(approved)


def test_what_was_to_be_made_and_is_taken_over_may_be_completed() -> None:
    approved = [("aws_subnet.a", "create")]
    summary = from_lines(planned("aws_subnet.a", "update", importing={"id": "subnet-1"}))
    assert summary.imports == ["aws_subnet.a"] and summary.within(approved) and "1 to take over" in summary.text()
    other = from_lines(planned("aws_subnet.b", "update", importing={"id": "subnet-2"}))
    assert not other.within(approved)


def test_facts_of_an_older_version_can_be_read() -> None:
    facts = {"changes": [["a.b", "create"]], "add": 1, "change": 0, "replace": 0, "destroy": 0, "checksum": "c",
             "has_changes": True, "plan_key": "plans/x"}  # fmt: skip
    assert PlanSummary.from_facts(facts).lines() == ["create a.b"]


def test_planned_values_without_the_sensitive_ones() -> None:
    after = {"name": "x", "password": "hush", "rules": [{"key": "hush", "port": 1}], "tags": {"a": "b"}}
    marks = {"password": True, "rules": [{"key": True}], "tags": {}}
    change = {
        "actions": ["create"],
        "before": None,
        "after": after,
        "before_sensitive": False,
        "after_sensitive": marks,
    }
    shown = {"resource_changes": [{"address": "a.b", "type": "a", "change": change},
             {"address": "a.c", "type": "a", "change": {"actions": ["no-op"], "after": after}}]}  # fmt: skip
    [found] = planned_values(shown)["resource_changes"]
    assert found["after"] == {"name": "x", "rules": [{"port": 1}], "tags": {"a": "b"}} and "hush" not in str(found)
