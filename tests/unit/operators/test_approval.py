"""A plan is asked about once, its answer is found by every try, and a no skips all that follows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import DownstreamTasksSkipped, TaskAwaitingInput, TaskDeferred

from nim_rollouts.clients import approvals
from nim_rollouts.core.errors import LedgerError, NeedsHumanError, PermanentError, Superseded
from nim_rollouts.hooks import questions
from nim_rollouts.operators.approval import ApprovePlanOperator
from tests.unit.operators.conftest import ENVIRONMENT, World

REPLACE = [["aws_eip.nat[0]", "replace"]]
ADA = {"id": "ada", "name": "ada"}
TI_ID = "019b0000-0000-7000-8000-000000000000"


class Asked:
    """Airflow's record of the question, as it keeps it: one over all tries, with the words of the first."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.users: list[Any] = []

    def shown(self, ti_id: Any, subject: str, body: str, options: Any, **more: Any) -> tuple[str, str]:
        assert options == ["Approve", "Reject"]
        assert more["defaults"] == ["Reject"]
        self.texts.append((subject, body))
        self.users.append(more["assigned_users"])
        return self.texts[0]


def _killed(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


class Desk:
    """One run at its approval."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.monkeypatch, self.airflow = world, monkeypatch, Asked()
        monkeypatch.setattr(questions, "shown", self.airflow.shown)
        monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
        world.accepted(triggered_by="ada")

    def policies(self, **values: Any) -> None:
        file = self.world.include.root / "environments" / f"{ENVIRONMENT}.yaml"
        told = ", ".join(f"{name}: {str(value).lower()}" for name, value in values.items())
        kept = [line for line in file.read_text().splitlines() if not line.startswith("policies:")]
        file.write_text("\n".join([*kept, f"policies: {{{told}}}", ""]))

    def planned(self, changes: list[list[str]], checksum: str = "sum1", number: int = 1) -> None:
        facts = {"checksum": checksum, "changes": changes, "plan_key": "x"}
        self.world.session().ledger.record("terraform_plan", number, "result", facts)

    def _task(self, number: int) -> tuple[ApprovePlanOperator, dict[str, Any]]:
        task = ApprovePlanOperator(task_id="approve_plan")
        self.world.prepared(task, self.monkeypatch)
        context = self.world.context("approve_plan", number)
        context["ti"].id, context["ti"].xcom_push = TI_ID, lambda **_: None
        context |= {"task": task, "task_instance": context["ti"]}
        rules = {"terraform_apply": TriggerRule.ALL_SUCCESS, "apply_platform": TriggerRule.NONE_FAILED,
                 "reject": TriggerRule.ONE_FAILED, "conclude": TriggerRule.ALL_DONE}  # fmt: skip
        followers = [
            SimpleNamespace(task_id=name, trigger_rule=rule, is_teardown=False) for name, rule in rules.items()
        ]
        self.monkeypatch.setattr(ApprovePlanOperator, "get_flat_relatives", lambda *_, **__: followers)
        self.monkeypatch.setattr("airflow.sdk.bases.skipmixin._ensure_tasks", list)
        self.monkeypatch.setattr("airflow.providers.standard.utils.skipmixin._ensure_tasks", list, raising=False)
        return task, context

    def try_it(self, number: int = 1) -> Any:
        """One try; returns what Airflow would be told: the wait, the deferral, the tasks to skip, or None."""
        task, context = self._task(number)
        return self._ended(lambda: task.execute(context))

    def answer(self, number: int = 1, *, method: str = "execute_complete", **event: Any) -> Any:
        task, context = self._task(number)
        whole = {"chosen_options": ["Approve"], "params_input": {}, "responded_at": datetime.now(UTC),
                 "responded_by_user": ADA, "timedout": False, **event}  # fmt: skip
        return self._ended(lambda: getattr(task, method)(context, whole))

    @staticmethod
    def _ended(call: Any) -> Any:
        try:
            return call()
        except (TaskAwaitingInput, TaskDeferred) as waits:
            return waits
        except DownstreamTasksSkipped as skip:
            return list(skip.tasks)

    def stands(self, checksum: str = "sum1") -> approvals.Answer | None:
        return approvals.read_answer(self.world.session().store, ENVIRONMENT, checksum)

    def result(self) -> dict[str, Any]:
        return self.world.session().facts("approve_plan")


@pytest.fixture
def desk(world: World, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(world, monkeypatch)


def test_without_need_it_passes_and_says_why(desk: Desk) -> None:
    desk.planned([["aws_vpc.this", "create"]])
    assert desk.try_it() is None
    assert desk.airflow.texts == []
    found = desk.stands()
    assert found is not None
    assert (found.answer, found.asked, found.by, found.policy) == ("approved", False, None, "on-destroy")
    assert found.reason.endswith("destroys and replaces nothing")
    assert desk.result()["declined"] is False


def test_policy_never_asks_nothing(desk: Desk) -> None:
    desk.policies(approval="never")
    desk.planned(REPLACE)
    assert desk.try_it() is None
    assert desk.airflow.texts == []


def test_a_replacement_waits_for_a_person_and_goes_on_with_a_yes(desk: Desk) -> None:
    desk.policies(approval_timeout_s=600, approvers="[ada, bob]")
    desk.planned(REPLACE)
    waits = desk.try_it()
    assert isinstance(waits, TaskAwaitingInput)
    assert waits.method_name == "execute_complete"
    assert timedelta(seconds=590) < waits.timeout <= timedelta(seconds=600)
    assert desk.airflow.users == [[{"id": "ada", "name": "ada"}, {"id": "bob", "name": "bob"}]]
    ((subject, body),) = desk.airflow.texts
    assert subject.startswith("test: 1 to replace")
    assert "**ada** asks for it" in body
    assert "g5.12xlarge for the service" in body
    assert desk.stands() is None
    assert desk.answer() is None
    found = desk.stands()
    assert found is not None
    assert (found.answer, found.by, found.changes, found.asked) == ("approved", "ada", REPLACE, True)
    assert datetime.fromisoformat(found.at).tzinfo is not None


@pytest.mark.parametrize(
    ("event", "answer", "by"),
    [
        ({"chosen_options": ["Reject"]}, "rejected", "ada"),
        ({"chosen_options": ["Reject"], "responded_by_user": None, "timedout": True}, "none", None),
        ({"error": "too late", "error_type": "timeout"}, "none", None),
    ],
    ids=["no", "silence", "silence-without-default"],
)
def test_a_no_or_silence_skips_all_that_follows_but_the_end(
    desk: Desk, event: dict[str, Any], answer: str, by: str | None
) -> None:
    desk.planned(REPLACE)
    desk.try_it()
    assert desk.answer(**event) == ["terraform_apply", "apply_platform", "reject"]
    found = desk.stands()
    assert found is not None
    assert (found.answer, found.by) == (answer, by)
    assert desk.result()["declined"] is True
    # Every try looks there first, whatever it may be asked.
    assert desk.try_it(2) == ["terraform_apply", "apply_platform", "reject"]
    assert len(desk.airflow.texts) == 1


def test_an_answer_that_airflow_took_and_lost_is_found_by_the_next_try(desk: Desk) -> None:
    desk.planned(REPLACE)
    desk.try_it()
    looks = desk.try_it(2)
    assert isinstance(looks, TaskDeferred)
    assert looks.method_name == "looked"
    assert looks.trigger.serialize()[1] == {"ti_id": TI_ID, "after_s": 10}
    assert desk.answer(2, method="looked", received=True) is None
    assert len(desk.airflow.texts) == 1
    found = desk.stands()
    assert found is not None and found.approved


def test_a_question_without_an_answer_is_put_again_and_its_time_goes_on(desk: Desk) -> None:
    desk.policies(approval_timeout_s=600)
    desk.planned(REPLACE)
    desk.try_it()
    ledger = desk.world.session().ledger
    first = ledger.read("approve_plan", "question")
    assert first is not None
    ledger.record("approve_plan", 1, "question",
                  {**first, "until": (datetime.now(UTC) + timedelta(seconds=100)).isoformat()})  # fmt: skip
    desk.try_it(2)
    waits = desk.answer(2, method="looked", received=False)
    assert isinstance(waits, TaskAwaitingInput)
    assert timedelta(seconds=90) < waits.timeout <= timedelta(seconds=100)
    assert len(desk.airflow.texts) == 1, "putting it again would wipe an answer that has come meanwhile"
    assert desk.answer(2) is None


def test_a_try_that_was_killed_as_it_asked_leaves_the_question_to_the_next(desk: Desk) -> None:
    desk.planned(REPLACE)
    desk.monkeypatch.setattr(questions, "shown", _killed)
    with pytest.raises(KeyboardInterrupt):
        desk.try_it()
    desk.monkeypatch.setattr(questions, "shown", desk.airflow.shown)
    desk.try_it(2)
    assert isinstance(desk.answer(2, method="looked", received=False, exists=False), TaskAwaitingInput)
    assert len(desk.airflow.texts) == 1


def test_an_answer_during_the_look_wakes_the_task_with_airflows_own_event(desk: Desk) -> None:
    desk.planned(REPLACE)
    desk.try_it()
    assert isinstance(desk.try_it(2), TaskDeferred)
    assert desk.answer(2, method="looked") is None
    found = desk.stands()
    assert found is not None and (found.answer, found.by) == ("approved", "ada")
    assert len(desk.airflow.texts) == 1


def test_the_question_is_put_once_a_try(desk: Desk) -> None:
    """Airflow wipes an answer to a question that is put again: one that came in between would be lost."""
    desk.planned(REPLACE)
    desk.monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", _killed)
    assert isinstance(desk.try_it(), TaskAwaitingInput)
    assert len(desk.airflow.texts) == 1


def test_words_that_are_not_shown_are_not_agreed_to(desk: Desk) -> None:
    """The plan was made anew after a question: Airflow would go on to show the old one."""
    desk.planned(REPLACE)
    desk.try_it()
    desk.planned([["aws_eks_cluster.this", "delete"]], "sum2", 2)
    with pytest.raises(NeedsHumanError, match="older question") as caught:
        desk.try_it(2)
    assert caught.value.reason == "question-stale"
    # Nor by a later try, to which the refused one looks like one that has asked.
    desk.try_it(3)
    with pytest.raises(NeedsHumanError, match="older question"):
        desk.answer(3, method="looked", received=False)
    # The same changes in a new plan are the same words.
    desk.planned(REPLACE, "sum3", 3)
    assert isinstance(desk.try_it(4), TaskAwaitingInput)


def test_an_answer_is_for_the_plan_that_was_asked_about(desk: Desk) -> None:
    desk.planned(REPLACE)
    desk.try_it()
    desk.planned([["aws_eks_cluster.this", "delete"]], "sum2", 2)
    with pytest.raises(PermanentError, match="made anew") as caught:
        desk.answer()
    assert caught.value.reason == "question-moved"
    assert desk.stands("sum2") is None


def test_four_eyes(desk: Desk) -> None:
    desk.policies(four_eyes=True)
    desk.planned(REPLACE)
    desk.try_it()
    assert desk.answer() == ["terraform_apply", "apply_platform", "reject"]
    found = desk.stands()
    assert found is not None
    assert (found.answer, found.by) == ("rejected", "ada")


def test_four_eyes_of_another_pair(desk: Desk) -> None:
    desk.policies(four_eyes=True)
    desk.planned(REPLACE)
    desk.try_it()
    assert desk.answer(responded_by_user={"id": "bob", "name": "Bob"}) is None


def test_a_superseded_run_asks_nobody(desk: Desk) -> None:
    desk.planned(REPLACE)
    desk.world.accepted(run_id="manual__2")
    with pytest.raises(Superseded):
        desk.try_it()
    assert desk.airflow.texts == []


def test_of_two_answers_the_first_stands(desk: Desk) -> None:
    store = desk.world.session().store
    first = approvals.Answer("s", "rejected", "ada", "2026-01-01T00:00:00+00:00", "always", "why")
    second = approvals.Answer("s", "approved", "bob", "2026-01-01T00:00:01+00:00", "always", "why")
    assert approvals.write_answer(store, ENVIRONMENT, first) == first
    assert approvals.write_answer(store, ENVIRONMENT, second) == first
    assert approvals.read_answer(store, ENVIRONMENT, "s") == first
    assert approvals.answer_key(ENVIRONMENT, "s") == "approvals/test/s.json"


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"checksum": "other"}', b"[]"])
def test_what_is_no_answer_is_no_yes(desk: Desk, content: bytes) -> None:
    store = desk.world.session().store
    store.put(approvals.answer_key(ENVIRONMENT, "s"), content)
    with pytest.raises(LedgerError, match="no answer that can be read"):
        approvals.read_answer(store, ENVIRONMENT, "s")
