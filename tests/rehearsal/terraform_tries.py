"""What a worker does in one try of a terraform stage, without Airflow around it: the operator's own `run`, its intent
and result in the ledger, its error as a file. Each try is a process of its own, made to be killed."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nim_rollouts.clients.approvals import Answer, write_answer
from nim_rollouts.core.approval import APPROVED, ON_DESTROY
from nim_rollouts.core.errors import TransientError
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators.base import RESULT, Stage
from nim_rollouts.operators.teardown_terraform import (
    PlanDestroyOperator,
    TerraformDestroyOperator,
)
from nim_rollouts.operators.terraform import TerraformApplyOperator, TerraformPlanOperator

OPERATORS = {
    "terraform_plan": TerraformPlanOperator,
    "terraform_apply": TerraformApplyOperator,
    "plan_destroy": PlanDestroyOperator,
    "terraform_destroy": TerraformDestroyOperator,
}


def work(
    variables: Mapping[str, str], environment: str, run_id: str, stages: list[str], try_number: int, folder: str
) -> None:
    """Run the stages one after the other. `folder` gets the log, and `ended.json` with how it went.

    :param variables: of the environment: AWS's, the include folder, the work folder, the connection
    """
    os.environ.update(variables)
    place = Path(folder)
    place.mkdir(parents=True)
    logging.basicConfig(filename=place / "log", level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    log = logging.getLogger("try")
    ended: dict[str, Any] = {"ok": True}
    try:
        for name in stages:
            session = Session(environment, "", run_id)
            # There is no cluster's API here, and so no node that could be left.
            session.cluster_if_any = lambda: None  # type: ignore[method-assign]
            # What validation would have written down: a teardown of everything.
            session.ledger.record("validate", try_number, RESULT, {"scope": "everything"})
            context = {"ti": SimpleNamespace(try_number=try_number, dag_id="kills", task_id=name), "run_id": run_id}
            stage = Stage(name, session, context, log, ("environment",))
            facts = OPERATORS[name](task_id=name).run(stage)
            session.ledger.record(name, try_number, RESULT, facts)
            if name == "plan_destroy":
                _approve(session, facts)
            ended[name] = facts
    except Exception as error:
        log.error("%s", traceback.format_exc())
        ended = {"ok": False, "again": isinstance(error, TransientError), "reason": getattr(error, "reason", ""),
                 "error": str(error)}  # fmt: skip
    (place / "ended.json").write_text(json.dumps(ended, default=str))


def _approve(session: Session, plan: dict[str, Any]) -> None:
    """As the name that was typed into a teardown's form does."""
    when = datetime.now(UTC).isoformat()
    answer = Answer(plan["checksum"], APPROVED, "tester", when, ON_DESTROY, "typed", plan["changes"], asked=False)
    write_answer(session.store, session.environment.name, answer)
