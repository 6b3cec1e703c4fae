"""A run id that was used before: by a run that was deleted since, or by another DAG. Its records are not this run's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from nim_rollouts.core.errors import RolloutRejected, RunIdReused, StoreUnavailable
from nim_rollouts.operators.base import StageOperator
from nim_rollouts.operators.decide import ConcludeOperator, RejectOperator
from nim_rollouts.operators.model import ApplyCacheOperator, ApplyServiceOperator
from nim_rollouts.operators.validate import ValidateOperator
from tests.unit.operators.conftest import World
from tests.unit.operators.test_validate import fine  # noqa: F401

FIRST, SECOND = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def context(world: World, task_id: str, when: datetime, dag_id: str = "nim_deploy") -> dict[str, Any]:
    made = world.context(task_id)
    made["dag_run"].run_after = when
    made["ti"].dag_id = dag_id
    return made


@pytest.fixture
def promoted(world: World, fine: ValidateOperator, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    """A run that has validated and applied; Airflow knows it no more."""
    fine.execute(context(world, "validate", FIRST))
    for operator in (ApplyCacheOperator(task_id="apply_cache"), ApplyServiceOperator(task_id="apply_service")):
        perform(world, operator, FIRST, monkeypatch)
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: True)
    world.cluster.log.clear()
    return world


def perform(
    world: World, operator: StageOperator, when: datetime, monkeypatch: pytest.MonkeyPatch, dag_id: str = "nim_deploy"
) -> None:
    world.prepared(operator, monkeypatch)
    operator.execute(context(world, operator.task_id, when, dag_id))


@pytest.mark.parametrize(("when", "dag_id"), [(SECOND, "nim_deploy"), (FIRST, "nim_teardown")])
def test_another_run_of_the_id_is_refused_and_writes_nothing(
    promoted: World,
    fine: ValidateOperator,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    when: datetime,
    dag_id: str,
) -> None:
    store = promoted.session().store
    before = {key: store.get(key) for key in store.list("")}
    with pytest.raises(RunIdReused, match="was used before"):
        fine.execute(context(promoted, "validate", when, dag_id))
    # Of what comes after a failed validation: nothing of the first run's is taken back, and its end is not overwritten.
    with pytest.raises(AirflowSkipException):
        perform(promoted, RejectOperator(task_id="reject"), when, monkeypatch, dag_id)
    with pytest.raises(RolloutRejected, match="was used before"):
        perform(promoted, ConcludeOperator(task_id="conclude"), when, monkeypatch, dag_id)
    assert promoted.cluster.log == []
    assert {key: store.get(key) for key in store.list("")} == before


def test_a_cleared_run_is_the_same_run(promoted: World, fine: ValidateOperator) -> None:  # noqa: F811
    again = context(promoted, "validate", FIRST)
    again["ti"].try_number = 2
    fine.execute(again)


def test_a_store_that_is_away_for_a_moment_is_no_refusal(promoted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would be taken back, and the run would have no decision."""

    def away(*_: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr("nim_rollouts.operators.base.refuse_another_run", away)
    for operator in (RejectOperator(task_id="reject"), ConcludeOperator(task_id="conclude")):
        with pytest.raises(StoreUnavailable):
            perform(promoted, operator, FIRST, monkeypatch)
