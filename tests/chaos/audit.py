"""The API server's audit log: which writes were ours, in which order, and what became of each object that we meant."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

#: What the cluster's token webhook calls Airflow: an identity of AWS. Everybody else of a rehearsal has another name.
OURS = "arn:aws:"
_OURS_IN_LINE = b'"username":"' + OURS.encode()
#: Objects of a benchmark and of the storage probe are named after their run; the same point of two runs must be one.
_OF_THE_RUN = re.compile(r"-(bench|probe)-[0-9a-f]{8}$")
#: What the kubelet's stand-in makes for `kubectl logs` and the like.
_STAND_INS = ("logs", "portforwards", "execs", "attaches")


@dataclass(frozen=True)
class Write:
    """One request that the API server has answered and that meant to change an object."""

    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    ours: bool
    agent: str
    received: float
    """Seconds since the epoch, as the next."""
    answered: float

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Write | None:
        """None for what changes no object: a dry run, a review, a connection, a status or another subresource."""
        about = entry.get("objectRef") or {}
        if entry.get("stage") != "ResponseComplete" or "dryRun=" in entry["requestURI"]:
            return None
        if about.get("subresource") or entry["verb"] not in ("create", "update", "patch", "delete", "deletecollection"):
            return None
        if str(about.get("resource", "")).endswith("reviews"):
            return None
        return cls(
            verb=entry["verb"],
            resource=about.get("resource", ""),
            namespace=about.get("namespace", ""),
            name=about.get("name", ""),
            code=int((entry.get("responseStatus") or {}).get("code", 0)),
            ours=entry["user"]["username"].startswith(OURS),
            agent=entry.get("userAgent", ""),
            received=_seconds(entry["requestReceivedTimestamp"]),
            answered=_seconds(entry["stageTimestamp"]),
        )

    @property
    def made(self) -> bool:
        """It made the object: server-side apply answers 201 to the one request that does."""
        return self.code == 201

    @property
    def point(self) -> Point:
        """The place in a rollout at which it happens."""
        return Point(self.verb, self.resource, _OF_THE_RUN.sub(r"-\1-*", self.name))


@dataclass(frozen=True, order=True)
class Point:
    """A write of a rollout, the same in every run."""

    verb: str
    resource: str
    name: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}/{self.name}"


class AuditLog:
    """The log from now on."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("rb")
        self._begin = self._file.seek(0, 2)
        self._rest = b""

    def fresh(self) -> Iterator[Write]:
        """Our writes since the last look. Looked at every millisecond: only lines that can be ours are parsed."""
        read = self._file.read()
        if not read:
            return
        *lines, self._rest = (self._rest + read).split(b"\n")
        for line in lines:
            if _OURS_IN_LINE in line and (write := Write.read(json.loads(line))):
                yield write

    def all(self) -> list[Write]:
        """Everybody's writes from the beginning to now."""
        return read(self._path, self._begin)

    def close(self) -> None:
        """No more looking."""
        self._file.close()


def read(path: Path, begin: int = 0) -> list[Write]:
    """Everybody's writes of a log, from a place in it to now."""
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read().split(b"\n")[:-1]
    return [write for line in lines if (write := Write.read(json.loads(line)))]


def points(writes: Iterable[Write]) -> list[Point]:
    """Every write of ours that made its object, in order: each is a place where a process can be killed."""
    return list(dict.fromkeys(write.point for write in writes if write.ours and write.made))


def repeated(writes: Iterable[Write]) -> set[str]:
    """Kinds of what we wrote and found there already."""
    return {write.resource for write in writes if write.ours and not write.made and write.code < 400}


def makings(writes: Iterable[Write]) -> Counter[Point]:
    """How often each object that we mean was made: one intent, one object, is a 1 for each."""
    return Counter(write.point for write in writes if write.ours and write.made)


def made_for_us(writes: Iterable[Write], namespace: str) -> Counter[str]:
    """How many objects of each kind the others made in a namespace: the operator's Job, the Jobs' pods and so on.

    Made by name or by a name that the API server generates; what belongs to the cluster's own housekeeping is left out.
    """
    housekeeping = {"events", "leases", "endpoints", "endpointslices", "serviceaccounts", *_STAND_INS}
    made = [w for w in writes if not w.ours and w.made and w.namespace == namespace and w.resource not in housekeeping]
    return Counter(write.resource for write in made if write.name != "kube-root-ca.crt")


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
