"""What Airflow knows about runs, asked from a worker or a triggerer through the execution API."""

from __future__ import annotations

from nim_rollouts.clients.claims import Holder

_LIVE = ["queued", "running"]


def is_ended(holder: Holder) -> bool:
    """True when the run has ended or was deleted."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return bool(RuntimeTaskInstance.get_dr_count(dag_id=holder.dag_id, run_ids=[holder.run_id], states=_LIVE) == 0)


def task_states(dag_id: str, run_id: str) -> dict[str, str | None]:
    """Task id (of a mapped one with `_<map index>`) -> state, of one run."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    found = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
    return {task: None if state is None else str(getattr(state, "value", state)) for task, state in found.items()}
