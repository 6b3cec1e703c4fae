"""Every stage: claims before work, one record a try, one asset event, and Airflow's behaviour by the error's class."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowSkipException

from nim_rollouts.clients import claims
from nim_rollouts.core.errors import (
    ClusterUnavailable,
    NeedsHumanError,
    NgcKeyError,
    NgcUnavailable,
    Superseded,
    TerraformFailed,
)
from nim_rollouts.lineage.assets import extra
from nim_rollouts.operators.base import Facts, Stage, StageOperator
from nim_rollouts.operators.retry import RETRIES, ErrorClassRetryPolicy, say_why


class Probe(StageOperator):
    """Does what the test wants."""

    work: Any = staticmethod(lambda stage: {"did": "it"})

    def run(self, stage: Stage) -> Facts:
        return self.work(stage)


@pytest.mark.parametrize(
    ("error", "action", "delay_s"),
    [
        (NgcKeyError("bad key"), RetryAction.FAIL, None),
        (TerraformFailed("no"), RetryAction.FAIL, None),
        (NeedsHumanError("quota"), RetryAction.FAIL, None),
        (ClusterUnavailable("away"), RetryAction.RETRY, 5),
        (NgcUnavailable("slow down", retry_after_s=42), RetryAction.RETRY, 42),
        (NgcUnavailable("slow down", retry_after_s=86_400), RetryAction.RETRY, 900),
        (KeyError("a defect"), RetryAction.DEFAULT, None),
    ],
)
def test_the_class_of_the_error_decides(error: Exception, action: RetryAction, delay_s: float | None) -> None:
    decision = ErrorClassRetryPolicy().evaluate(error, 1, RETRIES)
    assert decision.action is action
    assert decision.retry_delay == (timedelta(seconds=delay_s) if delay_s else None)
    assert decision.reason and decision.reason.startswith("layer=")


def test_patience_grows_and_begins_anew_with_a_clear() -> None:
    def delays(first: int, last: int) -> list[float]:
        error, policy = ClusterUnavailable("away"), ErrorClassRetryPolicy()
        found = [policy.evaluate(error, number, last).retry_delay for number in range(first, last + 1)]
        return [delay.total_seconds() for delay in found if delay]

    assert delays(1, RETRIES) == delays(8, 7 + RETRIES) == [5, 15, 45, 135]


def test_a_task_with_other_retries_begins_with_the_same_patience() -> None:
    policy, context = ErrorClassRetryPolicy(), {"task": SimpleNamespace(retries=1)}
    assert policy.evaluate(ClusterUnavailable("away"), 1, 1, context).retry_delay == timedelta(seconds=5)


def test_the_policy_survives_serialization() -> None:
    data = ErrorClassRetryPolicy().serialize()
    assert {rule["action"] for rule in data["rules"]} == {"fail", "retry"}


def test_the_log_ends_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        say_why({"exception": NgcKeyError("the key is refused")})
    assert caplog.messages[-1].startswith("layer=ngc reason=ngc-key-invalid: the key is refused.")


def test_a_stage_records_its_facts_and_puts_them_on_its_asset(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    probe = Probe(task_id="probe")
    world.prepared(probe, monkeypatch)
    assert probe.execute(world.context("probe")) is None
    assert world.session().facts("probe") == {"did": "it"}
    told = world.events["nim-rollouts-probe"].extra
    assert told["facts"] == {"did": "it"}
    assert (told["environment"], told["stage"]) == ("test", "probe")


def test_a_failing_stage_records_why(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    probe = Probe(task_id="probe")
    world.prepared(probe, monkeypatch)

    def fails(stage: Stage) -> Facts:
        raise TerraformFailed("no room", reason="quota")

    probe.work = fails
    with pytest.raises(TerraformFailed):
        probe.execute(world.context("probe"))
    assert world.session().facts("probe", "error")["reason"] == "quota"
    assert world.session().ledger.read("probe", "result") is None
    assert "nim-rollouts-probe" not in world.events


def test_a_skip_is_no_failure(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    probe = Probe(task_id="probe")
    world.prepared(probe, monkeypatch)

    def skips(stage: Stage) -> Facts:
        raise AirflowSkipException("not wanted")

    probe.work = skips
    with pytest.raises(AirflowSkipException):
        probe.execute(world.context("probe"))
    assert world.session().ledger.read("probe", "error") is None


def test_an_older_run_does_no_work_and_leaves_its_records_alone(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    world.accepted(run_id="manual__2")
    before = world.session().store.list("")
    probe = Probe(task_id="probe")
    world.prepared(probe, monkeypatch)
    probe.work = lambda stage: pytest.fail("must not work")
    with pytest.raises(Superseded):
        probe.execute(world.context("probe"))
    assert world.session().store.list("") == before


def test_the_second_try_has_a_record_of_its_own(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.accepted()
    probe = Probe(task_id="probe")
    world.prepared(probe, monkeypatch)
    for number in (1, 2):
        probe.work = lambda stage, n=number: {"try": n}
        probe.execute(world.context("probe", number))
    assert [one.facts["try"] for one in world.session().ledger.records() if one.stage == "probe"] == [1, 2]
    assert world.session().facts("probe") == {"try": 2}


def test_an_event_carries_no_more_than_the_database_should_load() -> None:
    told = extra({"small": 1, "large": ["x" * 100] * 1000}, stage="probe")
    assert told == {"stage": "probe", "facts": {"small": 1}, "shortened": True}


def test_a_cleared_stage_that_writes_holds_the_claim_and_one_that_reads_does_not(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accepted()
    session = world.session()
    (claim,) = [one for one in session.claims() if "_environment" not in one.scope]
    claims.release(session.store, claim)
    probe = Probe(task_id="probe")
    world.prepared(probe, monkeypatch)
    monkeypatch.setattr(Probe, "reads_only", True)
    probe.execute(world.context("probe"))
    assert claims.held_by(session.store, claim.scope) is None
    monkeypatch.setattr(Probe, "reads_only", False)
    probe.execute(world.context("probe", 2))
    assert claims.held_by(session.store, claim.scope) == claim.holder
