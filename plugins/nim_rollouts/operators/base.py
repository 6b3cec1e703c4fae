"""The base of every stage: who it works for, whether it may write, what it did, and how it fails.

A stage reads its request and the earlier stages' facts from the ledger, not from XCom: so any single task can be
cleared and run again on its own. It leaves one record a try (result or error) and one asset event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from nim_rollouts.core.errors import Superseded, as_facts, one_line
from nim_rollouts.lineage.assets import extra, stage_asset
from nim_rollouts.operators.retry import FIRST_DELAY_S, RETRIES, ErrorClassRetryPolicy, say_why

if TYPE_CHECKING:
    from nim_rollouts.clients.claims import Claim
    from nim_rollouts.hooks.session import Session

Facts = dict[str, Any]

RESULT, ERROR, INTENT = "result", "error", "intent"

#: For the DAGs' default_args too: of a mapped task Airflow reads these from there, not from the operator.
DEFAULT_ARGS: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=FIRST_DELAY_S),
    "retry_policy": ErrorClassRetryPolicy(),
    "on_failure_callback": say_why,
    "on_retry_callback": say_why,
}


@dataclass
class Stage:
    """One try of one stage: the session, Airflow's context, and the way to say something."""

    name: str
    session: Session
    context: Any
    log: Any
    scopes: tuple[str, ...] = ("deployment",)
    _taken: list[Claim] | None = field(default=None, repr=False)

    @property
    def try_number(self) -> int:
        """1 for the first try; grows with retries and clears."""
        return int(self.context["ti"].try_number)

    def intend(self, facts: Facts) -> None:
        """Write down what is about to be done, before it is."""
        self.session.ledger.record(self.name, self.try_number, INTENT, facts)

    def first_intent(self) -> Facts | None:
        """What the run's first try of this stage was about to do."""
        found = [one for one in self.session.ledger.records() if (one.stage, one.kind) == (self.name, INTENT)]
        return min(found, key=lambda one: one.try_number).facts if found else None

    def check_claims(self) -> None:
        """Nothing, if this run may still write.

        :raises Superseded: a newer run has taken a claim that this stage writes under
        """
        from nim_rollouts.clients import claims

        for claim in self._scoped_claims():
            claims.check(self.session.store, claim)

    def hold_claims(self) -> None:
        """As `check_claims`; and a claim that was released with the run's end is held again, so that no new run begins
        to write beside a cleared task of this one."""
        from nim_rollouts.clients import claims

        for claim in self._scoped_claims():
            claims.hold_again(self.session.store, claim)

    def _scoped_claims(self) -> list[Claim]:
        if not self.scopes:
            return []
        if self._taken is None:
            self._taken = self.session.claims()
        return [claim for claim in self._taken if _kind(claim) in self.scopes]

    def release_claims(self, *kinds: str) -> None:
        """Give up the run's claims of these kinds; fine when they are released already or a newer run has them."""
        from nim_rollouts.clients import claims

        for claim in reversed(self.session.claims()):
            if _kind(claim) in kinds:
                claims.release(self.session.store, claim)


class StageOperator(BaseOperator):
    """A task of ours. Subclasses give `run(stage)`, which returns the facts for the ledger.

    :param environment: name of the environment (templated)
    :param deployment: name of the deployment; empty: the whole environment (templated)
    :param run_id: of the DAG run (templated)
    """

    template_fields: Sequence[str] = ("environment", "deployment", "run_id")
    ui_color = "#e8f5d0"

    #: Which claims must still be this run's: the deployment's, the environment's, or both.
    claim_scopes: ClassVar[tuple[str, ...]] = ("deployment",)
    #: A stage that only reads leaves the claims as they are, also when it is cleared.
    reads_only: ClassVar[bool] = False

    def __init__(
        self,
        *,
        environment: str = "{{ params.environment }}",
        deployment: str = "{{ params.deployment }}",
        run_id: str = "{{ run_id }}",
        **kwargs: Any,
    ) -> None:
        # A mapped task's arguments come with Airflow's own defaults, None among them, from the mapping.
        for name, value in {**DEFAULT_ARGS, "outlets": [stage_asset(kwargs["task_id"])]}.items():
            if kwargs.get(name) is None:
                kwargs[name] = value
        super().__init__(**kwargs)
        self.environment = environment
        self.deployment = deployment
        self.run_id = run_id

    @property
    def stage_name(self) -> str:
        """The stage in the ledger. A mapped task adds what tells its instances apart."""
        return str(self.task_id)

    def run(self, stage: Stage) -> Facts:
        """Do the stage's work, so that doing it again changes nothing. Returns the facts for the ledger."""
        raise NotImplementedError

    def execute(self, context: Any) -> Any:
        """Airflow's entry."""
        return self.perform(context, self.run)

    def perform(self, context: Any, work: Callable[[Stage], Facts]) -> Any:
        """Run `work` as a stage: claim checked, result or error recorded, asset emitted."""
        stage: Stage | None = None
        try:
            stage = self.open_stage(context)
            (stage.check_claims if self.reads_only else stage.hold_claims)()
            facts = work(stage)
            stage.session.ledger.record(stage.name, stage.try_number, RESULT, facts)
        except Exception as error:
            self._failed(stage, error)
            raise
        self.emit(stage, facts)
        return self.returned(facts)

    def returned(self, facts: Facts) -> Any:
        """The task's XCom; none, by default."""
        return None

    def open_stage(self, context: Any) -> Stage:
        """The try, ready to work."""
        from nim_rollouts.hooks.session import Session

        session = Session(self.environment, self.deployment, self.run_id)
        refuse_another_run(session, context)
        return Stage(self.stage_name, session, context, self.log, self.claim_scopes)

    def emit(self, stage: Stage, facts: Facts) -> None:
        """Put the facts on the stage's asset event."""
        events = stage.context["outlet_events"]
        for asset in self.outlets:
            events[asset].extra = extra(
                facts,
                environment=stage.session.environment.name,
                deployment=stage.session.scope,
                rollout=stage.session.rollout,
                stage=stage.name,
            )

    def _failed(self, stage: Stage | None, error: Exception) -> None:
        from airflow.sdk.exceptions import AirflowSkipException

        if isinstance(error, AirflowSkipException):
            return
        self.log.error("%s", one_line(error))
        # A superseded run's records are closed: it changes nothing any more, its own history included.
        if stage is None or isinstance(error, Superseded):
            return
        try:
            stage.session.ledger.record(stage.name, stage.try_number, ERROR, as_facts(error))
        except Exception as lost:  # the error itself matters more than its record
            self.log.warning("the error could not be recorded: %s", one_line(lost))


def refuse_another_run(session: Session, context: Any) -> None:
    """Nothing, if the records under this run's id are its own. A run that was deleted, or one of another DAG, may have
    had the id before: its intents and results would be taken for this one's, and its service for one to take back.

    :raises RunIdReused: they are another run's
    """
    from nim_rollouts.core.errors import RunIdReused
    from nim_rollouts.hooks.session import CLAIMS_KIND

    taken = session.ledger.read("validate", CLAIMS_KIND)
    if taken is None:
        return
    ours, theirs = run_mark(context), taken.get("run_after")
    if taken["dag_id"] == context["ti"].dag_id and (not ours or not theirs or ours == theirs):
        return
    since = f", triggered {theirs}" if theirs else ""
    raise RunIdReused(
        f"the run id {session.run_id} was used before for {session.scope} by {taken['dag_id']}{since}, "
        "and its records are kept"
    )


def run_mark(context: Any) -> str | None:
    """What tells two runs of the same id apart: when a run was to begin, which stays the same when it is cleared."""
    moment = getattr(context["dag_run"], "run_after", None)
    return moment.astimezone(UTC).isoformat() if moment is not None else None


def _kind(claim: Claim) -> str:
    return "environment" if claim.scope.endswith("/_environment.json") else "deployment"


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)
