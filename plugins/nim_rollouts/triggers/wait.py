"""The trigger behind every wait: no worker before it, one event at its end, judged again on a worker.

It knows a run by three texts and reads everything else from the store, so a restarted triggerer goes on where the last
one was: also with the time, which counts from the try's recorded start. Nothing blocks the event loop: files, AWS and
tokens are a thread's business.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nim_rollouts.core.errors import (
    NeedsHumanError,
    NimRolloutsError,
    PermanentError,
    as_facts,
    is_retryable,
    one_line,
)

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

    from nim_rollouts.clients.access import ClusterAccess
    from nim_rollouts.clients.remains import Remain
    from nim_rollouts.hooks.session import Session
    from nim_rollouts.triggers.notes import Timeline
    from nim_rollouts.triggers.plans import Plan

STARTED, HANGING = "started", "hanging"

# A retry follows within the longest delay that the policy grants. What comes later was cleared by somebody.
_CARRIED_S = 1800.0
_NEW_S = 5.0
# Whatever its deadline, a wait that begins or goes on has so many seconds to look.
_LEAST_S = 60.0

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
# A triggerer gives a killed trigger 30 s for its last words.
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
# Threads of their own: where many waits begin together, those that are ready are not to stand in line behind those that
# are not, for the threads in which the watches get their tokens.
_preparing = ThreadPoolExecutor(4, thread_name_prefix="wait-prepare")
# How long the store or AWS may be away before a wait has looked at the cluster at all.
_PATIENCE_S = 600.0


class WaitTrigger(BaseTrigger):
    """Waits for what the stage's plan names.

    :param environment: name of the environment (a template until the triggerer renders it, as the next two)
    :param deployment: name of the deployment; empty: the whole environment
    :param run_id: of the DAG run
    :param stage: the waiting task, whose plan is `triggers.plans`
    :param stop_job: a user's end of the task stops the Job that is waited for
    """

    def __init__(self, environment: str, deployment: str, run_id: str, stage: str, stop_job: bool = False) -> None:
        super().__init__()
        self.environment = environment
        self.deployment = deployment
        self.run_id = run_id
        self.stage = stage
        self.stop_job = stop_job

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How another triggerer makes the same trigger."""
        names = ("environment", "deployment", "run_id", "stage", "stop_job")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        """Airflow's; after it the context is of no use, and would keep a copy of the whole DAG, made for this trigger
        alone, as long as it waits."""
        super().render_template_fields(context, jinja_env)
        context.clear()
        if self.task is not None:
            self.task_instance.task = None

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event: the outcome, or an error that no waiting will mend."""
        try:
            plan, access, started = await self._prepared()
        except Exception as error:
            self.log.error("%s", one_line(error))
            yield TriggerEvent({"error": as_facts(error), "final": not is_retryable(error)})
            return
        from nim_rollouts.triggers.notes import Notes
        from nim_rollouts.triggers.watching import Outcome, watch_until

        try:
            if access is None:
                self.log.info("there is no cluster: nothing to wait for in it")
                outcome = Outcome([])
            else:
                self._say_deadline(plan, started)
                notes = Notes(self._note)
                try:
                    begun = _in_time(plan, started)
                    outcome = await watch_until(access, plan, started=begun, say=self.log.info, hangs=notes.take)
                finally:
                    await notes.written()
            remaining = await self._remaining(plan, started, access) if outcome.reached else None
        except Exception as error:
            # Airflow would fail the task without a word of why; so it is told, recorded and tried again as any other.
            self.log.error("the wait broke: %s", one_line(error), exc_info=not isinstance(error, NimRolloutsError))
            yield TriggerEvent({"error": as_facts(error), "final": not is_retryable(error)})
            return
        waited = round((datetime.now(UTC) - started).total_seconds(), 1)
        told = {**outcome.to_dict(), "started_at": started.isoformat(), "waited_s": waited}
        yield TriggerEvent(told | ({"remaining": len(remaining)} if remaining else {}))

    async def _remaining(self, plan: Plan, started: datetime, access: ClusterAccess | None) -> list[Remain]:
        """What AWS has left of it when its time is over, or when waiting is of no use."""
        if plan.cloud is None:
            return []
        from nim_rollouts.hooks.remains import look
        from nim_rollouts.triggers.cloud import until_nothing_remains

        session, cloud = await asyncio.to_thread(self._session), plan.cloud
        until = _in_time(plan, started) + timedelta(seconds=plan.deadline_s)
        every = session.environment.policies.cloud_look_s
        return await until_nothing_remains(
            lambda: look(session, cloud, plan.removed), str(cloud),
            until=until, every_s=every, attended=access is not None, say=self.log.info,
        )  # fmt: skip

    def _say_deadline(self, plan: Plan, started: datetime) -> None:
        """How long the wait may take, and why."""
        spent = (datetime.now(UTC) - started).total_seconds()
        what = ", ".join([*(subject.ref for subject in plan.subjects), *([str(plan.cloud)] if plan.cloud else [])])
        begun = f"; it began {spent:.0f} s ago, before a retry or a restart" if spent > _NEW_S else ""
        self.log.info("waiting for %s, at most %d s (%s)%s", what, plan.deadline_s, plan.why or plan.layer, begun)

    async def on_kill(self) -> None:
        """A user has ended the task. Only a Job of ours is stopped, and only when the task was not merely cleared:
        the next try goes on waiting for the same Job."""
        if not self.stop_job:
            return
        # Airflow (3.3.2) cancels a killed trigger again at each of its rounds, a second or so, and its last words with
        # it. What a thread has begun it also ends.
        self._stopping = asyncio.ensure_future(asyncio.to_thread(self._stop_job_patiently))
        await asyncio.shield(self._stopping)

    def _stop_job_patiently(self) -> None:
        for pause in (*_PAUSES_S, None):
            try:
                return self._stop_job()
            except Exception as error:
                if pause is None or not is_retryable(error):
                    self.log.error("the Job could not be stopped: %s", one_line(error))
                    return None
                self.log.warning("cannot stop the Job yet, trying again: %s", one_line(error))
            time.sleep(pause)
        return None

    async def _prepared(self) -> tuple[Plan, ClusterAccess | None, datetime]:
        """Session, plan and access, tried again while what they need is away for a moment."""
        loop = asyncio.get_running_loop()
        patience, pause = loop.time() + _PATIENCE_S, _FIRST_PAUSE_S
        while True:
            try:
                return await loop.run_in_executor(_preparing, contextvars.copy_context().run, self._prepare)
            except (PermanentError, NeedsHumanError):
                raise
            except Exception as error:
                if loop.time() > patience:
                    raise
                self.log.warning("cannot look yet, trying again: %s", one_line(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _prepare(self) -> tuple[Plan, ClusterAccess | None, datetime]:
        # Imported here for the event loop's sake, which would stand still meanwhile.
        import aiohttp  # noqa: F401

        import nim_rollouts.triggers.watching  # noqa: F401
        from nim_rollouts.core.errors import ClusterMissing
        from nim_rollouts.triggers.plans import plan_for

        session = self._session()
        session.check_deployment_claim()
        plan = plan_for(self.stage, session)
        started = self._started(session)
        if not plan.subjects and plan.cloud is None:
            return plan, None, started
        try:
            return plan, session.shared_access, started
        except ClusterMissing:
            # Where the whole cluster is gone, so is everything whose absence is waited for.
            if all(subject.absent for subject in plan.subjects):
                return plan, None, started
            raise

    def _session(self) -> Session:
        from nim_rollouts.hooks.session import Session

        return Session(self.environment, self.deployment, self.run_id, shared=True)

    def _started(self, session: Session) -> datetime:
        """When this wait began: written down once, so that a restart does not begin the deadline anew, nor a retry
        (see `carry_on`). A try that nobody has announced has all of the time: it was cleared."""
        number = int(getattr(self.task_instance, "try_number", 1) or 1)
        now, facts = datetime.now(UTC), _start_of(session, self.stage, number)
        if facts is not None and "carried_at" not in facts:
            return datetime.fromisoformat(facts["started_at"])
        started = now
        if facts is not None and (now - datetime.fromisoformat(facts["carried_at"])).total_seconds() < _CARRIED_S:
            started = datetime.fromisoformat(facts["started_at"])
        session.ledger.record(self.stage, number, STARTED, {"started_at": started.isoformat()})
        return started

    def _note(self, timeline: Timeline) -> None:
        """What the wait hangs on, for whoever reads the ledger meanwhile. It decides nothing, so it fails nothing."""
        number = int(getattr(self.task_instance, "try_number", 1) or 1)
        try:
            self._session().ledger.record(self.stage, number, HANGING, {"timeline": timeline})
        except Exception as error:
            self.log.warning("what the wait hangs on cannot be recorded: %s", one_line(error))

    def _stop_job(self) -> None:
        from nim_rollouts.hooks import jobs
        from nim_rollouts.hooks.runs import task_states

        ti = self.task_instance
        state = task_states(ti.dag_id, ti.run_id).get(ti.task_id) if ti is not None else None
        # Whoever calls the wait for a cache a success goes on with the rollout, and the download with it.
        ended = ("failed", "skipped") if self.stage == "wait_cache" else ("failed", "skipped", "success")
        if state not in ended:
            self.log.info("the task is %s: its Job goes on", state or "cleared")
            return
        self.log.info("the task was ended by a user")
        jobs.stop(self.stage, self._session(), self.log.info)


def _in_time(plan: Plan, started: datetime) -> datetime:
    """The wait's start, or so late a one that there is time to look: the deadline of a retry, or of a wait whose
    triggerer was away, may be over, and nothing was seen since."""
    least = min(_LEAST_S, plan.deadline_s)
    return max(started, datetime.now(UTC) - timedelta(seconds=plan.deadline_s - least))


def carry_on(session: Session, stage: str, number: int) -> None:
    """A try of a waiting stage has failed and is made again: the next one goes on with its deadline."""
    facts = _start_of(session, stage, number)
    if facts is not None:
        carried = {"started_at": facts["started_at"], "carried_at": datetime.now(UTC).isoformat()}
        session.ledger.record(stage, number + 1, STARTED, carried)


def _start_of(session: Session, stage: str, number: int) -> dict[str, Any] | None:
    written = session.store.get(session.ledger.key(stage, number, STARTED))
    return None if written is None else dict(json.loads(written)["facts"])
