"""Applies that may have been cut off: a mark in the environment's store while one is under way, and what follows from
a mark that was left.

The mark is the environment's, not the run's: whatever plans next must know, be it a retry, a new run or a teardown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.errors import NimRolloutsError

if TYPE_CHECKING:
    from nim_rollouts.clients.terraform import Terraform
    from nim_rollouts.clients.terraform_adopt import Adoption
    from nim_rollouts.clients.terraform_plan import PlanSummary
    from nim_rollouts.core.environment import Environment
    from nim_rollouts.hooks.session import Session

Say = Callable[[str], None]


@contextmanager
def applying(session: Session, checksum: str, terraform: Terraform) -> Iterator[None]:
    """While terraform applies. The mark goes only when it has succeeded: then all it made is in the state. Or when it
    has not begun, and no mark was there before."""
    key = _key(session.environment)
    marked = session.store.get(key) is not None
    session.store.put(key, json.dumps({"run_id": session.run_id, "checksum": checksum}).encode())
    try:
        yield
    except NimRolloutsError:
        if not marked and not terraform.began:
            session.store.delete(key)
        raise
    session.store.delete(key)


def interrupted(session: Session) -> dict[str, Any] | None:
    """The mark of an apply that did not come to its end, or None."""
    found = session.store.get(_key(session.environment))
    return json.loads(found) if found is not None else None


def over(session: Session) -> None:
    """Nothing is left to do of what was interrupted."""
    session.store.delete(_key(session.environment))


def plan(terraform: Terraform, session: Session, say: Say, *, explain: bool | None = None) -> PlanSummary:
    """The plan; after an interrupted apply with what that has made taken over, instead of made again. So is the log
    group that EKS makes once more after a teardown: it would be in the way of the next apply.

    :param explain: as `Terraform.plan` takes it
    """
    from nim_rollouts.hooks.infrastructure import variables

    adoption = _adoption(terraform, session, say)
    if adoption is None:
        return terraform.plan(variables(session.environment), explain=explain)
    found = adoption.plan()
    if adoption.interrupted and not found.has_changes:
        over(session)  # nothing is missing: it had come to its end after all
    return found


def settle(terraform: Terraform, session: Session, say: Say) -> None:
    """Before a destruction: what an interrupted apply has made comes into the state, so that it is destroyed too; and
    after one the log group that EKS made again."""
    adoption = _adoption(terraform, session, say)
    if adoption is not None:
        adoption.settle()
        over(session)


def _adoption(terraform: Terraform, session: Session, say: Say) -> Adoption | None:
    """What is to be taken over; None where nothing can be."""
    from nim_rollouts.clients.terraform_adopt import Adoption
    from nim_rollouts.hooks.infrastructure import variables
    from nim_rollouts.hooks.inventory import clients

    client = clients(session.environment)
    mark, logs = interrupted(session), _logs(session.environment, client, say)
    if mark is None and logs is None:
        return None
    if mark is not None:
        say(f"an apply of the run {mark['run_id']} did not come to its end: looking for what it has made")
    return Adoption(terraform, variables(session.environment), client, say, interrupted=mark is not None, logs=logs)


def _logs(environment: Environment, client: Callable[[str], Any], say: Say) -> str | None:
    from botocore.exceptions import BotoCoreError, ClientError

    from nim_rollouts.clients.terraform_lookup import written_again

    try:
        return written_again(environment.cluster.name, environment.name, client)
    except (BotoCoreError, ClientError) as error:
        # The apply would say so: nothing is lost but a shorter way.
        say(f"whether EKS has made its log group again cannot be seen: {error}")
        return None


def _key(environment: Environment) -> str:
    return f"terraform/{environment.name}/applying.json"
