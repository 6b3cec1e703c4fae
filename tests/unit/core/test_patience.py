"""What a wait hangs on: told with its layer at once, stuck once its step's budget is spent, and not a moment before."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nim_rollouts.core.layers import REMEDIES
from nim_rollouts.core.patience import STEP_OF, Step, borne, spent_at, without_operator
from nim_rollouts.core.verdicts import State
from nim_rollouts.core.verdicts.model import Blocker, Verdict, failed, healthy, progressing

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PATIENCE = {Step.NODE_LAUNCH: 300, Step.BINDING: 60}


def hanging(reason: str = "unschedulable", since: str = "2026-01-01T12:00:00Z") -> Verdict:
    return progressing("cache-downloading", "on its way", ["a"], Blocker(reason, "no node", ["b"], since))


def after(verdict: Verdict, seconds: float, started: datetime = NOON) -> Verdict:
    return borne(verdict, PATIENCE, started, NOON + timedelta(seconds=seconds))


def test_it_is_stuck_when_the_budget_of_its_step_is_spent_and_not_before() -> None:
    assert after(hanging(), 299.9) == hanging()
    late = after(hanging(), 300)
    assert (late.state, late.reason) == (State.STUCK, "unschedulable")
    assert late.message == "no node (node launch may take 300 s)"
    assert late.evidence == ["a", "b"]


def test_each_step_has_its_own_budget() -> None:
    assert after(hanging("volume-unbound"), 59).state is State.PROGRESSING
    assert after(hanging("volume-unbound"), 61).state is State.STUCK


def test_a_wait_that_begins_later_gives_the_step_its_time_anew() -> None:
    cleared = NOON + timedelta(hours=1)
    assert after(hanging(), 3600 + 299, cleared).state is State.PROGRESSING
    assert after(hanging(), 3600 + 300, cleared).state is State.STUCK


@pytest.mark.parametrize(
    "verdict",
    [
        progressing("cache-downloading", "on its way"),
        hanging(since=""),
        hanging(since="yesterday"),
        hanging("quota-exceeded"),
        hanging("model-endpoint-unavailable"),
        healthy("ready", "serves"),
        failed("crash-loop-oom", "out of memory"),
    ],
    ids=["nothing", "no time", "no moment", "no step", "no budget", "healthy", "failed"],
)
def test_what_no_budget_applies_to_stays_as_it_is(verdict: Verdict) -> None:
    assert spent_at(verdict, PATIENCE, NOON) is None
    assert after(verdict, 10**6) == verdict


AWAY = Blocker("operator-unavailable", "no pod", ["d"], "2026-01-01T12:00:00Z")


@pytest.mark.parametrize("reason", ["model-endpoint-unavailable", "reconcile-failed", "update-not-propagated"])
def test_without_its_operator_that_is_what_it_hangs_on(reason: str) -> None:
    assert without_operator(progressing("cache-preparing", "on its way"), AWAY).blocker == AWAY
    assert without_operator(hanging(reason), AWAY).blocker == AWAY
    assert without_operator(hanging(reason), None) == hanging(reason)


@pytest.mark.parametrize("verdict", [hanging(), hanging("image-pull-failing"), healthy("ready", "serves")])
def test_what_pods_meet_by_themselves_is_not_the_operators(verdict: Verdict) -> None:
    assert without_operator(verdict, AWAY) == verdict


def test_every_slug_with_a_step_is_known_and_every_step_is_used() -> None:
    assert set(STEP_OF) <= set(REMEDIES)
    assert set(STEP_OF.values()) == set(Step)


def test_a_blocker_survives_the_way_through_airflow() -> None:
    verdict = Verdict(
        State.PROGRESSING, "x", "y", [], Blocker("volume-unbound", "z", ["e"], "2026-01-01T12:00:00Z"), "volume"
    )
    assert Verdict.from_dict(verdict.to_dict()) == verdict


def test_the_documents_name_every_budget_that_ends_a_step() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "waiting.md").read_text()
    assert {"node_launch_s", "bind_s", "image_pull_s", "endpoint_s", "service_s", "operator_s"} <= set(
        re.findall(r"`(\w+_s)`", text)
    )
