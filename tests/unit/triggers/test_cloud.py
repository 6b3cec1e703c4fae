"""Looking at AWS now and then: until nothing is left, until the deadline, and not when nobody would remove anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from nim_rollouts.clients.remains import Remain
from nim_rollouts.core.errors import (
    AccessDenied,
    InventoryUnknown,
    LeftoversFound,
    NeedsHumanError,
    TransientError,
    as_facts,
    is_retryable,
)
from nim_rollouts.hooks.remains import Cloud, look
from nim_rollouts.operators.waits import WaitGoneOperator
from nim_rollouts.triggers.cloud import until_nothing_remains
from nim_rollouts.triggers.plans import plan_for
from nim_rollouts.triggers.watching import Outcome
from tests.unit.operators.conftest import World
from tests.unit.triggers.test_end_of_a_wait import finish
from tests.unit.triggers.test_wait import event, trigger, waiting  # noqa: F401

RUNNING = Remain("instance", "i-1", "m5.large, running")
GOING = Remain("instance", "i-1", "m5.large, shutting-down", going=True)


async def looked(
    answers: list[Any], *, seconds: float = 60.0, attended: bool = True, every_s: float = 0.01
) -> tuple[list[Remain], list[str], int]:
    """(what is left, what was said, how often it was looked)."""
    said: list[str] = []
    asked = 0

    def one() -> list[Remain]:
        nonlocal asked
        answer = answers[min(asked, len(answers) - 1)]
        asked += 1
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    until = datetime.now(UTC) + timedelta(seconds=seconds)
    left = await until_nothing_remains(
        one, "instances", until=until, every_s=every_s, attended=attended, say=said.append
    )
    return left, said, asked


async def test_it_looks_until_nothing_is_left_and_says_what_changes() -> None:
    left, said, asked = await looked([[RUNNING], [RUNNING], [GOING], []])
    assert (left, asked) == ([], 4)
    assert [line.split(" [")[0] for line in said] == [
        "instances still there: instance i-1 (m5.large, running)",
        "instances still there: instance i-1 (m5.large, shutting-down)",
        "instances: none is left",
    ]


async def test_at_the_deadline_it_says_what_is_left() -> None:
    left, _, asked = await looked([[RUNNING]], seconds=0.05, every_s=10)
    assert left == [RUNNING]
    assert asked == 2, "once at the beginning, once at the deadline, not ten seconds after it"


async def test_where_nobody_removes_it_nobody_waits_for_it() -> None:
    left, _, asked = await looked([[RUNNING], []], attended=False)
    assert (left, asked) == ([RUNNING], 1)
    left, _, asked = await looked([[GOING], []], attended=False)
    assert (left, asked) == ([], 2), "what AWS is removing goes by itself"


async def test_an_aws_that_does_not_tell_is_asked_again_and_is_never_an_empty_one() -> None:
    left, said, _ = await looked([InventoryUnknown("throttled"), []])
    assert left == [] and "cannot look" in said[0]
    with pytest.raises(InventoryUnknown):
        await looked([InventoryUnknown("throttled")], seconds=0.02)


# --- in a wait ----------------------------------------------------------------------------------------------------


@pytest.fixture
def down(waiting: World, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    ledger = waiting.session().ledger
    ledger.record("validate", 1, "result", {"scope": "everything", "deployments": {}})
    ledger.record("delete_node_pools", 1, "result", {"removed": []})

    async def watch(*_: Any, **__: Any) -> Outcome:
        return Outcome([])

    monkeypatch.setattr("nim_rollouts.triggers.watching.watch_until", watch)
    return waiting


def shows(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], list[Remain]]) -> None:
    monkeypatch.setattr("nim_rollouts.hooks.remains.look", lambda *_: answer())


async def test_nodes_are_gone_when_their_instances_are(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file = down.include.root / "environments" / "test.yaml"
    file.write_text(file.read_text() + "policies: {cloud_look_s: 1}\n")
    assert plan_for("wait_nodes_gone", down.session()).cloud is Cloud.INSTANCES
    answers = [[GOING], []]
    shows(monkeypatch, lambda: answers.pop(0) if answers else [])
    told = await asyncio.wait_for(event(trigger("wait_nodes_gone")), 10)
    assert (told["reached"], told.get("remaining")) == (True, None)
    finish(down, WaitGoneOperator(task_id="wait_nodes_gone"), told, monkeypatch)


async def test_an_instance_that_stays_fails_the_wait_and_is_named(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shows(monkeypatch, lambda: [RUNNING])
    monkeypatch.setattr("nim_rollouts.triggers.plans.plan_for", _with_deadline(0))
    told = await asyncio.wait_for(event(trigger("wait_nodes_gone")), 10)
    assert told["remaining"] == 1
    with pytest.raises(LeftoversFound, match=r"i-1 \(m5.large, running\)") as failed:
        finish(down, WaitGoneOperator(task_id="wait_nodes_gone"), told, monkeypatch)
    assert "terminate them in EC2" in failed.value.hint


def test_what_comes_back_between_the_two_looks_is_waited_for_again(
    down: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(monkeypatch, lambda: [RUNNING])
    with pytest.raises(TransientError, match="shows again"):
        finish(down, WaitGoneOperator(task_id="wait_nodes_gone"), Outcome([]).to_dict(), monkeypatch)


def _with_deadline(seconds: int) -> Any:
    from dataclasses import replace

    return lambda stage, session: replace(plan_for(stage, session), deadline_s=seconds)


def answers_with(monkeypatch: pytest.MonkeyPatch, code: str, operation: str = "DescribeInstances") -> list[str]:
    """Every call is answered with this error; returns the services that were asked."""
    asked: list[str] = []
    models = {"ec2": {"DescribeInstances", "DescribeVpcs"}, "elbv2": {"DescribeLoadBalancers", "DescribeTags"}}

    def client_of(service: str) -> Any:
        def refuse(*_: Any) -> Any:
            asked.append(service)
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, operation)

        model = SimpleNamespace(operation_names=models.get(service, set()))
        return SimpleNamespace(can_paginate=refuse, meta=SimpleNamespace(service_model=model))

    monkeypatch.setattr("nim_rollouts.hooks.inventory.clients", lambda _: client_of)
    return asked


@pytest.mark.parametrize(
    ("cloud", "code", "operation", "error", "says"),
    [
        (Cloud.INSTANCES, "UnauthorizedOperation", "DescribeInstances", AccessDenied, "grant ec2:DescribeInstances"),
        (Cloud.BALANCERS, "AccessDenied", "DescribeTags", AccessDenied, "grant elasticloadbalancing:DescribeTags"),
        (Cloud.INSTANCES, "AccessDenied", "AssumeRole", AccessDenied, "grant sts:AssumeRole"),
        (Cloud.INSTANCES, "RequestLimitExceeded", "DescribeInstances", InventoryUnknown, "throttles"),
        (Cloud.INSTANCES, "InternalError", "DescribeInstances", InventoryUnknown, "InternalError"),
    ],
)
def test_an_aws_error_is_not_an_empty_aws_and_a_refusal_names_the_right(
    down: World, monkeypatch: pytest.MonkeyPatch,
    cloud: Cloud, code: str, operation: str, error: type[Exception], says: str,
) -> None:  # fmt: skip
    monkeypatch.undo()
    answers_with(monkeypatch, code, operation)
    with pytest.raises(error, match=says) as caught:
        look(down.session(), cloud, [])
    facts = as_facts(caught.value)
    reason = "inventory-denied" if error is AccessDenied else "inventory-unknown"
    assert (facts["reason"], facts["layer"], is_retryable(caught.value)) == (
        reason,
        "teardown",
        error is not AccessDenied,
    )
    assert ("docs/worker-rights.json" in facts["hint"]) is (error is AccessDenied)


async def test_a_missing_right_ends_a_wait_at_once_and_waits_for_a_person(
    down: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No waiting grants it, and no retry."""
    monkeypatch.setattr("nim_rollouts.hooks.remains.look", look)
    asked = answers_with(monkeypatch, "UnauthorizedOperation")
    told = await asyncio.wait_for(event(trigger("wait_nodes_gone")), 10)
    assert asked == ["ec2"] and told["final"] is True
    with pytest.raises(NeedsHumanError, match="grant ec2:DescribeInstances") as failed:
        finish(down, WaitGoneOperator(task_id="wait_nodes_gone"), told, monkeypatch)
    assert (failed.value.reason, failed.value.layer) == ("inventory-denied", "teardown")
    assert down.session().facts("wait_nodes_gone", "error")["reason"] == "inventory-denied"


def test_a_right_that_the_worker_alone_lacks_is_told_as_well(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nim_rollouts.hooks.remains.look", look)
    answers_with(monkeypatch, "UnauthorizedOperation")
    with pytest.raises(AccessDenied, match="grant ec2:DescribeInstances"):
        finish(down, WaitGoneOperator(task_id="wait_nodes_gone"), Outcome([]).to_dict(), monkeypatch)


def test_of_one_deployment_no_instance_and_no_balancer_is_asked_for(
    down: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()

    def asked(*_: Any) -> Any:
        raise AssertionError("AWS was asked")

    monkeypatch.setattr("nim_rollouts.hooks.inventory.clients", lambda _: asked)
    down.session().ledger.record("validate", 2, "result", {"scope": "deployment", "deployments": {}})
    for cloud in Cloud:
        assert look(down.session(), cloud, []) == []


@pytest.mark.parametrize(("scope", "whole"), [("deployment", False), ("platform", False), ("everything", True)])
def test_others_may_keep_their_access_points_on_a_file_system_that_stays(
    down: World, monkeypatch: pytest.MonkeyPatch, scope: str, whole: bool
) -> None:
    monkeypatch.undo()
    asked: list[Any] = []
    monkeypatch.setattr("nim_rollouts.hooks.inventory.clients", lambda _: lambda service: service)
    monkeypatch.setattr("nim_rollouts.clients.remains.file_systems", lambda efs, tag, value: ["fs-1"])
    monkeypatch.setattr("nim_rollouts.clients.remains.access_points", lambda *asked_for: asked.append(asked_for) or [])
    down.session().ledger.record("validate", 2, "result", {"scope": scope, "deployments": {}})
    for removed in ([{"handle": "fs-1::fsap-1"}, {"kind": "NIMCache"}], []):
        assert look(down.session(), Cloud.ACCESS_POINTS, removed) == []
    on = ["fs-1"] if whole else []
    assert asked == [("efs", on, ["fs-1::fsap-1"]), *([("efs", on, [])] if whole else [])]
