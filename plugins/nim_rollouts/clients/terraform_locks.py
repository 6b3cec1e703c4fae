"""Whose state lock it is. terraform's lock has no lease: what a killed one leaves stands until somebody removes it.

Ours to remove is only a lock that a process of this work folder made which has certainly ended: the lock says the same
user@host, and was made while that process was about to take one. On another worker that cannot be known (terraform
outlives its worker on purpose, and may still be at work there), so from there a lock is never removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: How long after its start terraform asks for the lock at the latest, where its output does not tell.
_ASKS_WITHIN_S = 60.0
#: Two clocks of one host: the kernel's for a process, terraform's for its lock.
_CLOCK_S = 2.0


@dataclass(frozen=True)
class LockInfo:
    """Who holds the state lock, as terraform reports it. `who` is user@host, `created` a time in UTC as text."""

    id: str
    operation: str
    who: str
    created: str

    def text(self) -> str:
        operation, who, created = (value or "unknown" for value in (self.operation, self.who, self.created))
        return f"{operation} by {who} since {created}, lock id {self.id}"

    def created_epoch(self) -> float | None:
        """`created` (as in `2026-11-23 19:52:20.708 +0000 UTC`) in seconds since the epoch."""
        match = re.match(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)? \+0000 UTC", self.created)
        if match is None:
            return None
        moment = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return moment.timestamp() + float(match[2] or 0)


def own_lock(record: Mapping[str, Any] | None, who: str, created_epoch: float | None) -> bool:
    """True when a state lock can only be the one of the ended terraform in `record`: same user and host, made between
    that process's start and the moment by which it had the lock (`until`; else a minute later)."""
    if record is None or created_epoch is None or who != record["who"]:
        return False
    until = record.get("until") or record["started"] + _ASKS_WITHIN_S
    return bool(record["started"] - _CLOCK_S <= created_epoch <= until)


def owner_of(lock: LockInfo, ended: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The ended terraform of ours that left this lock, or None: then it is not ours to remove."""
    return next((record for record in ended if own_lock(record, lock.who, lock.created_epoch())), None)


def held_until(record: Mapping[str, Any], output: Path) -> float | None:
    """When the process had its lock at the latest: everything that it says after its version comes later than that."""
    try:
        with output.open() as lines:
            for line in lines:
                event = json.loads(line)
                if event.get("type") not in ("version", "diagnostic"):
                    return datetime.fromisoformat(event["@timestamp"]).timestamp() + _CLOCK_S
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return None


def whoami() -> str:
    """user@host as terraform writes it into a lock."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"


def this_worker() -> dict[str, Any]:
    """Who is about to act, for a record: user@host as in a lock, and the process, with the start that tells it from a
    later one of the same pid."""
    import os

    import psutil

    return {"who": whoami(), "pid": os.getpid(), "pid_started": psutil.Process().create_time()}
