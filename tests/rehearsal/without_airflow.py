"""The tasks of a pipeline one after the other in this process, with no Airflow around them: real operators, real
triggers, a real store, and what Airflow's scheduler would do with their ends (skips, rules, a person's answer).

For tests that need a pipeline to stop, or to have stopped, at a certain task, in seconds instead of minutes.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import (
    AirflowSkipException,
    DownstreamTasksSkipped,
    TaskAwaitingInput,
    TaskDeferred,
)

from nim_rollouts.core.errors import NimRolloutsError, is_retryable, one_line

ROOT = Path(__file__).resolve().parents[2]
PERSON = {"id": "ada", "name": "ada"}
Answer = Callable[[str, str], bool]


@dataclass
class Run:
    """One run: states by task, and how each failure read."""

    dag_id: str
    run_id: str
    params: Mapping[str, Any]
    states: dict[str, str] = field(default_factory=dict)
    errors: dict[str, NimRolloutsError] = field(default_factory=dict)
    questions: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        return [f"{task}: {one_line(error)}" for task, error in self.errors.items()]


class Pipelines:
    """Runs pipelines. One an environment of a test; `patch` makes the rest of the process believe in it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._dags: dict[str, Any] = {}
        self._runs: dict[tuple[str, str], Run] = {}
        self._number = 0
        patch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: True)
        patch.setattr("nim_rollouts.hooks.runs.task_states", lambda dag_id, run_id: self._runs[dag_id, run_id].states)
        patch.setattr("nim_rollouts.hooks.questions.shown", lambda ti_id, subject, body, options, **_: (subject, body))
        patch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)

    def run(
        self,
        dag_id: str,
        params: Mapping[str, Any],
        *,
        until: str | None = None,
        but: Iterable[str] = (),
        answer: Answer = lambda subject, body: False,
        before: Mapping[str, Callable[[], None]] | None = None,
        again: Run | None = None,
        from_task: str | None = None,
    ) -> Run:
        """Run the tasks in order.

        :param until: the last task that runs: whatever follows never happens, as when everything was killed there
        :param but: tasks that are left out, as if they had succeeded
        :param answer: a person's answer to a question, by its subject and body
        :param before: called before a task runs
        :param again: a run whose tasks are run again from `from_task` on, as when they were cleared
        """
        dag = self._dag(dag_id)
        self._number += 1
        run = again or Run(dag_id, f"manual__{dag_id}-{self._number}", params)
        self._runs[dag_id, run.run_id] = run
        order = [task.task_id for task in dag.topological_sort()]
        if from_task is not None:
            order = order[order.index(from_task) :]
            for name in order:
                run.states.pop(name, None)
                run.errors.pop(name, None)
        for name in order:
            rule = dag.get_task(name).trigger_rule
            above = [run.states.get(one, "") for one in dag.get_task(name).upstream_task_ids]
            state = "success" if name in but else run.states.get(name) or _by_rule(rule, above)
            if state is None:
                (before or {}).get(name, lambda: None)()
                state = self._task(dag, run, name, answer)
            run.states[name] = state
            if name == until:
                break
        return run

    def _task(self, dag: Any, run: Run, name: str, answer: Answer) -> str:
        try:
            for operator in self._operators(dag, run, name):
                self._execute(operator, run, answer)
        except AirflowSkipException:
            return "skipped"
        except DownstreamTasksSkipped as skip:
            run.states |= dict.fromkeys(skip.tasks, "skipped")
        except NimRolloutsError as error:
            run.errors[name] = error
            return "failed"
        return "success"

    def _execute(self, operator: Any, run: Run, answer: Answer) -> None:
        for try_number in range(1, 5):
            context = self._context(operator, run, try_number)
            try:
                if getattr(operator, "start_from_trigger", False):
                    operator.finish(context, _triggered(operator, run, try_number))
                else:
                    operator.execute(context)
                return
            except (TaskAwaitingInput, TaskDeferred):
                self._answered(operator, run, context, answer)
                return
            except NimRolloutsError as error:
                if not is_retryable(error) or try_number == 4:
                    raise

    def _answered(self, operator: Any, run: Run, context: Any, answer: Answer) -> None:
        run.questions.append((operator.task_id, operator.subject, operator.body))
        chosen = ["Approve"] if answer(operator.subject, operator.body) else ["Reject"]
        event = {"chosen_options": chosen, "params_input": {}, "responded_at": datetime.now(UTC),
                 "responded_by_user": PERSON, "timedout": False}  # fmt: skip
        operator.execute_complete(context, event)

    def _operators(self, dag: Any, run: Run, name: str) -> list[Any]:
        task = dag.get_task(name)
        if task.is_mapped:
            from nim_rollouts.clients.include import Include

            addons = Include().environment(run.params["environment"]).addons
            made = [task.operator_class(task_id=name, addon=one.name) for one in addons]
            for number, operator in enumerate(made):
                operator.__dict__["map_number"] = number
        else:
            made = [task]
        for operator in made:
            operator.environment, operator.run_id = run.params["environment"], run.run_id
            operator.deployment = run.params.get("deployment", "")
            for param in ("scope", "confirm", "image_tag", "strategy", "skip_benchmark"):
                if hasattr(operator, param):
                    setattr(operator, param, run.params.get(param, ""))
        return made

    @staticmethod
    def _context(operator: Any, run: Run, try_number: int) -> dict[str, Any]:
        class Events(dict):  # type: ignore[type-arg]
            def __missing__(self, key: Any) -> Any:
                return self.setdefault(key, SimpleNamespace(extra=None))

        ti = SimpleNamespace(dag_id=run.dag_id, run_id=run.run_id, task_id=operator.task_id, try_number=try_number,
                             map_index=-1, max_tries=0, id="019b0000-0000-7000-8000-000000000000",
                             xcom_push=lambda **_: None)  # fmt: skip
        dag_run = SimpleNamespace(triggering_user_name=PERSON["id"], run_type="manual", run_after=None)
        return {"ti": ti, "task_instance": ti, "task": operator, "dag_run": dag_run, "outlet_events": Events()}

    def _dag(self, dag_id: str) -> Any:
        if dag_id not in self._dags:
            spec = importlib.util.spec_from_file_location(f"dag_{dag_id}", ROOT / "dags" / f"{dag_id}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self._dags[dag_id] = module.dag
        return self._dags[dag_id]


def _by_rule(rule: Any, above: list[str]) -> str | None:
    """What becomes of a task by its trigger rule; None: it runs."""
    bad = [state for state in above if state in ("failed", "upstream_failed")]
    if rule == TriggerRule.ALL_DONE:
        return None
    if rule == TriggerRule.ONE_FAILED:
        return None if "failed" in above else "skipped"
    if rule == TriggerRule.NONE_FAILED:
        return "upstream_failed" if bad else None
    assert rule == TriggerRule.ALL_SUCCESS, rule
    return "upstream_failed" if bad else "skipped" if "skipped" in above else None


def _triggered(operator: Any, run: Run, try_number: int) -> Any:
    """The event of the wait's trigger, run to its end here as a triggerer would."""
    from nim_rollouts.triggers.wait import WaitTrigger

    trigger = WaitTrigger(operator.environment, operator.deployment, run.run_id, operator.task_id)
    trigger._task_instance = SimpleNamespace(
        dag_id=run.dag_id, run_id=run.run_id, task_id=operator.task_id, try_number=try_number
    )

    async def only() -> Any:
        (event,) = [one.payload async for one in trigger.run()]
        return event

    return asyncio.run(only())
