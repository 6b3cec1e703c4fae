"""Looks once whether somebody has answered a question that an earlier try of the task has asked.

A worker cannot ask Airflow for an answer, a triggerer can. The task's own Airflow record of it is wiped when the
question is put again, so it is looked at before that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class AnswerTrigger(BaseTrigger):
    """Fires once, with `received` and, if so, what Airflow's own event of an answer holds.

    :param ti_id: the task instance whose question it is
    :param after_s: seconds before the look: a trigger that fires at once can lose its task (Airflow's deferral race)
    """

    def __init__(self, *, ti_id: str, after_s: float) -> None:
        super().__init__()
        self.ti_id, self.after_s = ti_id, after_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """As Airflow stores it."""
        return "nim_rollouts.triggers.answers.AnswerTrigger", {"ti_id": self.ti_id, "after_s": self.after_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, look, tell."""
        from asgiref.sync import sync_to_async

        from nim_rollouts.hooks.questions import look

        await asyncio.sleep(self.after_s)
        # The triggerer's own channel to Airflow is bound to its threads in asgiref's way.
        yield TriggerEvent(await sync_to_async(look)(self.ti_id))
