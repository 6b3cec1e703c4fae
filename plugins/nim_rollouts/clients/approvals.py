"""Answers to questions, kept in the store under the checksum of what was asked about: one each, for good.

`approvals/<environment>/<checksum>.json` is made by conditional create, so that of two writers one is right and the
other learns what stands. A plan that no answer `approved` is kept for has not been approved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from nim_rollouts.clients.ledger import canonical, refuse_secrets
from nim_rollouts.clients.store import Store, check_key
from nim_rollouts.core.approval import APPROVED
from nim_rollouts.core.errors import LedgerError


@dataclass(frozen=True)
class Answer:
    """One answer.

    :param answer: `approved`, `rejected` or `none` (nobody answered in time)
    :param by: id of the user who answered; None: nobody was asked, or nobody answered
    :param at: when, ISO 8601 in UTC
    :param asked: false: the policy let it pass without a person
    """

    checksum: str
    answer: str
    by: str | None
    at: str
    policy: str
    reason: str
    changes: list[list[str]] = field(default_factory=list)
    asked: bool = True
    run_id: str = ""

    @property
    def approved(self) -> bool:
        """True for yes alone."""
        return self.answer == APPROVED


def answer_key(environment: str, checksum: str) -> str:
    """Where the answer lies."""
    return check_key(f"approvals/{environment}/{checksum}.json")


def read_answer(store: Store, environment: str, checksum: str) -> Answer | None:
    """The answer that stands, or None.

    :raises LedgerError: what is there is no answer to this
    """
    key = answer_key(environment, checksum)
    content = store.get(key)
    if content is None:
        return None
    try:
        answer = Answer(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise _unreadable(key) from error
    if answer.checksum != checksum:
        raise _unreadable(key)
    return answer


def write_answer(store: Store, environment: str, answer: Answer) -> Answer:
    """Keep the answer; what stands afterwards, which is another one where that came first."""
    text = canonical(asdict(answer))
    refuse_secrets(text, "approval")
    if store.create(answer_key(environment, answer.checksum), text.encode()):
        return answer
    return read_answer(store, environment, answer.checksum) or answer


def _unreadable(key: str) -> LedgerError:
    return LedgerError(
        f"{key} holds no answer that can be read",
        hint="Clear the plan's task and those after it: the new plan is asked about anew",
        reason="ledger-record-unreadable",
    )
