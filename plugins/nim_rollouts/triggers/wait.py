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
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nim_rollouts.core.errors import NeedsHumanError, PermanentError, as_facts, is_retryable, one_line

if TYPE_CHECKING:
    from nim_rollouts.clients.access import ClusterAccess
    from nim_rollouts.hooks.session import Session
    from nim_rollouts.triggers.plans import Plan

STARTED = "started"

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
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

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event: the outcome, or an error that no waiting will mend."""
        try:
            plan, access, started = await self._prepared()
        except Exception as error:
            self.log.error("%s", one_line(error))
            yield TriggerEvent({"error": as_facts(error), "final": not is_retryable(error)})
            return
        from nim_rollouts.triggers.watching import Outcome, watch_until

        if access is None:
            self.log.info("there is no cluster: nothing to wait for")
            outcome = Outcome([])
        else:
            outcome = await watch_until(access, plan, started=started, say=self.log.info)
        waited = round((datetime.now(UTC) - started).total_seconds(), 1)
        yield TriggerEvent({**outcome.to_dict(), "started_at": started.isoformat(), "waited_s": waited})

    async def on_kill(self) -> None:
        """A user has ended the task. Only a Job of ours is stopped, and only when the task was not merely cleared:
        the next try goes on waiting for the same Job."""
        if self.stop_job:
            await asyncio.to_thread(self._stop_job)

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
        self._refuse_older(session)
        plan = plan_for(self.stage, session)
        started = self._started(session)
        if not plan.subjects:
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

    @staticmethod
    def _refuse_older(session: Session) -> None:
        from nim_rollouts.clients import claims

        for claim in session.claims():
            if not claim.scope.endswith("/_environment.json"):
                claims.check(session.store, claim)

    def _started(self, session: Session) -> datetime:
        """When this try began to wait: written down once, so that a restart does not begin the deadline anew."""
        number = int(getattr(self.task_instance, "try_number", 1) or 1)
        written = session.store.get(session.ledger.key(self.stage, number, STARTED))
        if written is not None:
            return datetime.fromisoformat(json.loads(written)["facts"]["started_at"])
        started = datetime.now(UTC)
        session.ledger.record(self.stage, number, STARTED, {"started_at": started.isoformat()})
        return started

    def _stop_job(self) -> None:
        from nim_rollouts.hooks.runs import task_states
        from nim_rollouts.triggers.plans import plan_for

        ti = self.task_instance
        state = task_states(ti.dag_id, ti.run_id).get(ti.task_id) if ti is not None else None
        if state not in ("failed", "success", "skipped"):
            self.log.info("the task is %s, not ended: its Job goes on", state or "cleared")
            return
        session = self._session()
        for subject in plan_for(self.stage, session).subjects:
            live = session.cluster.get("batch/v1", "Job", subject.namespace, subject.name)
            if live is None or any(one.get("status") == "True" for one in _ends(live)):
                continue
            if not self._is_ours(session, live):
                self.log.info("Job %s is another than the one that was applied: left alone", subject.name)
                continue
            self.log.info("the task was ended by a user: stopping Job %s", subject.name)
            _delete_as_seen(session, live)

    @staticmethod
    def _is_ours(session: Session, job: dict[str, Any]) -> bool:
        applied = session.facts("apply_benchmark")["applied"]
        return any(one["kind"] == "Job" and one["uid"] == job["metadata"]["uid"] for one in applied)


def _delete_as_seen(session: Session, job: dict[str, Any]) -> None:
    """Delete this Job in this version of it, or nothing: whoever has touched it meanwhile has a use for it."""
    from nim_rollouts.clients.resources import Ref
    from nim_rollouts.clients.rest import ApiRefusal

    metadata = job["metadata"]
    options = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
    }
    try:
        session.cluster.rest.json("DELETE", Ref.of(job).path, body=options)
    except ApiRefusal as refusal:
        if refusal.status not in (404, 409):
            raise


def _ends(job: dict[str, Any]) -> list[dict[str, Any]]:
    conditions = (job.get("status") or {}).get("conditions") or []
    return [one for one in conditions if one.get("type") in ("Complete", "Failed")]
