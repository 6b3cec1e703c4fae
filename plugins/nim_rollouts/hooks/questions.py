"""Airflow's own record of a question to a person (Human-in-the-loop), as far as a task and a trigger can reach it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

_NOT_FOUND = 404


def shown(ti_id: Any, subject: str, body: str, options: Sequence[str], **more: Any) -> tuple[str, str]:
    """Put the question, from a worker; the subject and body that people now see.

    Airflow keeps one question a task instance over all of its tries and clears, with the words of the first: what is
    shown may be older words than those given here.
    """
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    payload = CreateHITLDetailPayload(ti_id=ti_id, options=list(options), subject=subject, body=body, params={}, **more)
    answer = SUPERVISOR_COMMS.send(msg=payload)
    return answer.subject, answer.body or ""


def look(ti_id: str) -> dict[str, Any]:
    """The answer to the task's question so far, from a triggerer (a worker may not ask for it). `exists`: whether
    Airflow has a question of the task at all."""
    import uuid

    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.hitl import get_hitl_detail_content_detail

    try:
        found = get_hitl_detail_content_detail(uuid.UUID(ti_id))
    except AirflowRuntimeError as error:
        if (getattr(error.error, "detail", None) or {}).get("status_code") == _NOT_FOUND:
            return {"received": False, "exists": False}
        raise
    if not found.response_received:
        return {"received": False, "exists": True}
    user = found.responded_by_user
    return {
        "received": True,
        "exists": True,
        "chosen_options": list(found.chosen_options or ()),
        "responded_at": found.responded_at.isoformat() if found.responded_at else None,
        "responded_by_user": {"id": user.id, "name": user.name} if user else None,
        "timedout": user is None,
    }


def page(dag_id: str, run_id: str, task_id: str) -> str:
    """Where a person answers: the task's page in Airflow, without its host where the worker does not know it."""
    from airflow.sdk.configuration import conf

    base = conf.get("api", "base_url", fallback="") or ""
    return f"{base.rstrip('/')}/dags/{quote(dag_id)}/runs/{quote(run_id, safe='')}/tasks/{task_id}/required_actions"
