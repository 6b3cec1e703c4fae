"""The ledger: what each stage of a rollout did, one record a stage, try and kind.

Keys are deterministic and nothing is chained on write, so a retry or a parallel writer puts the same record again
instead of forking a history. Records never hold a key: what looks like one is refused before it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ValidationError

from nim_rollouts.clients.store import Store, check_key
from nim_rollouts.core.errors import LedgerError, SecretLeak, redact
from nim_rollouts.core.spec import Request

FORMAT = "nim-rollouts/ledger/v1"
REQUEST_STAGE, REQUEST_KIND = "validate", "request"


@dataclass(frozen=True)
class Record:
    """One record as it was read."""

    key: str
    stage: str
    try_number: int
    kind: str
    facts: dict[str, Any]


class Ledger:
    """The records of one rollout of one deployment in one environment."""

    def __init__(self, store: Store, environment: str, deployment: str, rollout: str) -> None:
        self.store = store
        self.environment = environment
        self.deployment = deployment
        self.rollout = rollout

    @property
    def prefix(self) -> str:
        """What every key of the rollout begins with."""
        return f"{self.environment}/{self.deployment}/{self.rollout}/"

    def key(self, stage: str, try_number: int, kind: str) -> str:
        """The key of one record."""
        return check_key(f"{self.prefix}{stage}/{try_number}/{kind}.json")

    def record(self, stage: str, try_number: int, kind: str, facts: Mapping[str, Any]) -> str:
        """Write a record, and return its key. Writing the same again changes nothing.

        :param facts: plain data; dates, enums, paths and models are written as their JSON
        :raises SecretLeak: a fact looks like an NGC key, plain or base64
        """
        body = {
            "format": FORMAT,
            "environment": self.environment,
            "deployment": self.deployment,
            "rollout": self.rollout,
            "stage": stage,
            "try": try_number,
            "kind": kind,
            "facts": dict(facts),
        }
        text = canonical(body)
        refuse_secrets(text, f"{stage}/{kind}")
        key = self.key(stage, try_number, kind)
        data = text.encode()
        if self.store.get(key) != data:
            self.store.put(key, data)
        return key

    def read(self, stage: str, kind: str) -> dict[str, Any] | None:
        """The facts of the latest try's record, or None."""
        found = list(self._under(f"{self.prefix}{stage}/", kind))
        return max(found, key=lambda record: record.try_number).facts if found else None

    def records(self, stage: str | None = None) -> list[Record]:
        """Every record of the rollout, or of one stage of it, by key."""
        return list(self._under(f"{self.prefix}{stage}/" if stage else self.prefix))

    def request(self) -> Request:
        """What is being rolled out: how every task and trigger after validation learns it.

        :raises LedgerError: validation has not written it, or it cannot be read
        """
        facts = self.read(REQUEST_STAGE, REQUEST_KIND)
        if facts is None:
            raise LedgerError(
                f"no request is recorded under {self.prefix}",
                hint="Clear the run's validate task, or trigger a new run",
            )
        try:
            return Request.model_validate(facts)
        except ValidationError as error:
            raise LedgerError(
                f"the request under {self.prefix} cannot be read: {error.error_count()} fields differ",
                hint="It was written by another version; trigger a new run",
                reason="ledger-record-unreadable",
            ) from None

    def _under(self, prefix: str, kind: str | None = None) -> Iterator[Record]:
        """`kind`: those alone; what is not wanted is not fetched."""
        for key in self.store.list(prefix):
            parts = key.removeprefix(self.prefix).split("/")
            if len(parts) != 3 or not parts[1].isdigit() or not parts[2].endswith(".json"):
                continue
            if kind is not None and parts[2] != f"{kind}.json":
                continue
            content = self.store.get(key)
            if content is None:
                continue
            facts = json.loads(content)["facts"]
            yield Record(key, parts[0], int(parts[1]), parts[2].removesuffix(".json"), facts)


def canonical(data: Any) -> str:
    """JSON with sorted keys: equal facts are equal bytes."""
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False, default=_plain) + "\n"


def refuse_secrets(text: str, where: str) -> None:
    """Nothing, unless the text holds what looks like an NGC key.

    :raises SecretLeak: naming the record, never the value
    """
    if redact(text) != text:
        raise SecretLeak(f"the record {where} would hold what looks like a credential")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    raise TypeError(f"{type(value).__name__} is no fact for a ledger")
