"""A question to a person before something is bought or destroyed, and an answer that is asked for once.

The answer lies in the store under the checksum of what was asked about, and every try looks there first. Airflow can
lose an answer that it has taken (its deferral race, when it comes within seconds): the next try then finds it in
Airflow's own record, through the triggerer, before it puts the question again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

# Parsed in 0.1 s; the parse budget of tests/unit/test_dags.py holds with it.
from airflow.providers.standard.operators.hitl import ApprovalOperator  # noqa: TID253
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import TaskAwaitingInput

from nim_rollouts.core.approval import APPROVED, NONE, REJECTED, Asking, Question, plan_question
from nim_rollouts.core.errors import NeedsHumanError, PermanentError
from nim_rollouts.operators.base import Facts, Stage, StageOperator, now

if TYPE_CHECKING:
    from nim_rollouts.clients.approvals import Answer
    from nim_rollouts.core.cost import Estimate

QUESTION = "question"
#: Kind of the record that says that people see this very question.
SHOWN = "shown"
# Longer than the 8 seconds in which a deferral can be lost to Airflow's own race.
LOOK_AFTER_S = 10


class AskOperator(StageOperator, ApprovalOperator):
    """Asks, unless the question says that there is no need. Yes: the run goes on. No, or no answer in the
    environment's `policies.approval_timeout_s`: all that follows is skipped, but what runs at the end of every run.

    Subclasses give `question(stage)`, the same for every try of a run.
    """

    template_fields: Sequence[str] = StageOperator.template_fields
    claim_scopes: ClassVar[tuple[str, ...]] = ("environment",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="", body="", defaults=ApprovalOperator.REJECT, **kwargs)

    def question(self, stage: Stage) -> Question:
        """What is asked."""
        raise NotImplementedError

    def execute(self, context: Any) -> Any:
        """Look for an answer, then ask."""
        return self._settle(context, self.run)

    def run(self, stage: Stage) -> Facts:
        """The answer that stands, or the policy's; else the question is put, and the task waits without a worker."""
        question = self.question(stage)
        if standing := self._standing(stage, question):
            stage.log.info("answered already: %s", _told(standing))
            return _facts(standing)
        if not question.needed:
            stage.log.info("no question: %s", question.why)
            return _facts(self._keep(stage, question, APPROVED, by=None, asked=False))
        if self._asked(stage, question):
            stage.log.info("an earlier try has asked: looking for its answer in %d s", LOOK_AFTER_S)
            self._look(stage)
        self._ask(stage, question)
        raise AssertionError("asking ends the worker's part of the task")

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Airflow's entry once there is an answer, or none in time."""
        return self._settle(context, lambda stage: self._answered(stage, event))

    def looked(self, context: Any, event: dict[str, Any]) -> Any:
        """Airflow's entry once an earlier try's question has been looked at."""
        return self._settle(context, lambda stage: self._after_look(stage, event))

    def declined(self, context: Any, facts: Facts) -> None:
        """What a no means to the run: nothing after it runs, but what closes every run."""
        followers = context["task"].get_flat_relatives(upstream=False)
        ends = (TriggerRule.ALL_DONE, TriggerRule.ALL_DONE_SETUP_SUCCESS)
        self.skip(context["ti"], [task for task in followers if not task.is_teardown and task.trigger_rule not in ends])

    def _settle(self, context: Any, work: Any) -> None:
        facts: Facts = {}

        def noted(stage: Stage) -> Facts:
            facts.update(work(stage))
            return facts

        self.perform(context, noted)
        if facts["declined"]:
            self.declined(context, facts)

    def _answered(self, stage: Stage, event: dict[str, Any]) -> Facts:
        question = self.question(stage)
        asked = stage.session.ledger.read(stage.name, QUESTION)
        if standing := self._standing(stage, question):
            return _facts(standing)
        if asked is None or asked["checksum"] != question.checksum:
            raise PermanentError(
                "the answer is to another question: what it was about has been made anew since",
                layer="approval",
                reason="question-moved",
                hint="Trigger a new run, and leave its plan alone while it is asked about",
            )
        if "error" in event and event.get("error_type") != "timeout":
            self.process_trigger_event_error(event)
        answer, by, at = _read(event)
        if answer == APPROVED and self._is_own(stage, event["responded_by_user"]):
            stage.log.warning("%s has asked for it, and may not approve it: policies.four_eyes", by)
            answer = REJECTED
        return _facts(self._keep(stage, question, answer, by=by, at=at))

    def _after_look(self, stage: Stage, event: dict[str, Any]) -> Facts:
        # Whoever answers during the look wakes the task with Airflow's own event, which has no `received`.
        if event.get("received", "chosen_options" in event):
            return self._answered(stage, event)
        question = self.question(stage)
        if event.get("exists", True) and self._asked(stage, question, SHOWN):
            # To put it again would wipe an answer that has come since the look.
            self._wait_for_answer(stage, question)
        self._ask(stage, question)
        raise AssertionError("asking ends the worker's part of the task")

    def _look(self, stage: Stage) -> None:
        from nim_rollouts.triggers.answers import AnswerTrigger

        ti_id = str(stage.context["ti"].id)
        self.defer(trigger=AnswerTrigger(ti_id=ti_id, after_s=LOOK_AFTER_S), method_name="looked")

    def _ask(self, stage: Stage, question: Question) -> None:
        """Put the question and wait."""
        from nim_rollouts.hooks import questions

        policies = stage.session.environment.policies
        moment = now()
        until = self._until(stage, question, moment)
        assigned = [{"id": user, "name": user} for user in policies.approvers]
        stage.session.ledger.record(
            stage.name,
            stage.try_number,
            QUESTION,
            {"checksum": question.checksum, "subject": question.subject, "body": question.body, "why": question.why,
             "asked_at": moment.isoformat(), "until": until.isoformat(), "approvers": policies.approvers},
        )  # fmt: skip
        ti = stage.context["ti"]
        seen = questions.shown(ti.id, question.subject, question.body, self.options, defaults=self.defaults,
                               assigned_users=assigned)  # fmt: skip
        if seen != (question.subject, question.body):
            raise NeedsHumanError(
                "Airflow would show an older question of this task in place of the new one, "
                f'"{seen[0]}" for "{question.subject}"',
                layer="approval",
                reason="question-stale",
                hint="Trigger a new run: its question is new",
            )
        stage.session.ledger.record(stage.name, stage.try_number, SHOWN, {"checksum": question.checksum})
        self._wait_for_answer(stage, question)

    def _wait_for_answer(self, stage: Stage, question: Question) -> NoReturn:
        """Park the task without a worker; an answer that is there already wakes it at once."""
        from nim_rollouts.hooks import questions

        # What Airflow's listeners are told of it.
        self.subject, self.body = question.subject, question.body
        moment = now()
        until = self._until(stage, question, moment)
        ti = stage.context["ti"]
        stage.log.info("%s", question.why)
        page = questions.page(ti.dag_id, ti.run_id, ti.task_id)
        stage.log.info("waiting for an answer until %s, at %s", until.isoformat(timespec="seconds"), page)
        # Airflow itself ends the wait; a question whose time is over is put for a moment, so that it is closed there.
        # Not by the parent's `execute`, which would put the question once more, and so wipe an answer to the first.
        raise TaskAwaitingInput(method_name="execute_complete", timeout=max(until - moment, timedelta(seconds=1)))

    def _until(self, stage: Stage, question: Question, moment: datetime) -> datetime:
        """When silence becomes a no. Of a question that an earlier try has put the time goes on."""
        earlier = self._asked(stage, question)
        if earlier:
            return datetime.fromisoformat(earlier["until"])
        return moment + timedelta(seconds=stage.session.environment.policies.approval_timeout_s)

    @staticmethod
    def _asked(stage: Stage, question: Question, kind: str = QUESTION) -> Facts | None:
        """What the first try that asked just this wrote down."""
        records = [one for one in stage.session.ledger.records(stage.name) if one.kind == kind]
        found = [one for one in records if one.facts["checksum"] == question.checksum]
        return min(found, key=lambda one: one.try_number).facts if found else None

    @staticmethod
    def _standing(stage: Stage, question: Question) -> Answer | None:
        from nim_rollouts.clients.approvals import read_answer

        return read_answer(stage.session.store, stage.session.environment.name, question.checksum)

    @staticmethod
    def _is_own(stage: Stage, user: dict[str, str]) -> bool:
        """True when who asked would approve, and must not. Airflow tells of a run's user the name alone."""
        asker = stage.session.request.triggered_by
        return stage.session.environment.policies.four_eyes and asker in (user["id"], user["name"])

    @staticmethod
    def _keep(
        stage: Stage, question: Question, answer: str, *, by: str | None, at: str | None = None, asked: bool = True
    ) -> Answer:
        from nim_rollouts.clients.approvals import Answer, write_answer

        session = stage.session
        given = Answer(
            checksum=question.checksum,
            answer=answer,
            by=by,
            at=at or now().isoformat(),
            policy=question.policy,
            reason=question.why,
            changes=question.changes,
            asked=asked,
            run_id=session.run_id,
        )
        stands = write_answer(session.store, session.environment.name, given)
        if asked:
            stage.log.info("%s", _told(stands))
        return stands


class ApprovePlanOperator(AskOperator):
    """Asks about the terraform plan of this run, by the environment's `policies.approval`.

    :param plan_stage: the stage whose result is the plan
    :param title: what would be done, as the question's headline
    """

    def __init__(self, *, plan_stage: str = "terraform_plan", title: str = "Apply this plan", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_stage, self.title = plan_stage, title

    def question(self, stage: Stage) -> Question:
        """The plan, its cost, and who asks."""
        session = stage.session
        facts, environment, request = session.facts(self.plan_stage), session.environment, session.request
        policies = environment.policies
        asking = Asking(
            triggered_by=request.triggered_by or "nobody known",
            environment=environment.name,
            region=environment.region,
            deployment=request.deployment,
            image=request.spec.image.reference if request.spec else "",
            approvers=policies.approvers,
            timeout_s=policies.approval_timeout_s,
        )
        return plan_question(facts, policies.approval, asking, self._cost(stage, facts), title=self.title)

    @staticmethod
    def _cost(stage: Stage, facts: Facts) -> Estimate:
        from nim_rollouts.core.cost import estimate
        from nim_rollouts.core.instances import fits

        session, spec = stage.session, stage.session.request.spec
        table = session.include.prices(session.environment.region)
        types: list[str] = []
        if spec is not None:
            types = fits(spec.service.resources.effective, session.environment.instance_types, spec.profile.gpus)
        return estimate(
            [(address, action) for address, action in facts["changes"]],
            table,
            sizes=facts.get("sizes"),
            gpu_types=types,
            gpu_nodes=spec.service.replicas if spec is not None else 0,
        )


def _read(event: dict[str, Any]) -> tuple[str, str | None, str | None]:
    """(answer, the user's id, when) of Airflow's event. The default, which Airflow writes when the time is over, has
    no user."""
    user, at = event.get("responded_by_user"), event.get("responded_at")
    moment = at.isoformat() if isinstance(at, datetime) else at
    if "error" in event or event.get("timedout") or not user:
        return NONE, None, moment
    yes = list(event["chosen_options"]) == [ApprovalOperator.APPROVE]
    return (APPROVED if yes else REJECTED), str(user["id"]), moment


def _facts(answer: Answer) -> Facts:
    from dataclasses import asdict

    return {**asdict(answer), "declined": not answer.approved, "told": _told(answer)}


def _told(answer: Answer) -> str:
    if answer.answer == NONE:
        return f"nobody answered in time, which counts as no ({answer.at})"
    if not answer.asked:
        return f"not asked about: {answer.reason}"
    return f"{answer.answer} by {answer.by} at {answer.at}"
