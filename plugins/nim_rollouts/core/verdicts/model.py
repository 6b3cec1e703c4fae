"""What a verdict is, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from nim_rollouts.core.layers import remedy_of

Object = Mapping[str, Any]
Snapshot = Mapping[str, Sequence[Object]]
"""Kind -> the objects of that kind, as one namespace (or, for cluster-scoped kinds, the cluster) holds them now.
`managedFields` may be missing; `core/v1` Events are under "Event" and may be incomplete."""


class State(StrEnum):
    """`PROGRESSING` may still become any of the others; `HEALTHY` is reached; `FAILED` cannot come; `STUCK` hangs on
    something that will not move by itself, or was not there in time; `GONE`: the object does not exist."""

    PROGRESSING = "progressing"
    HEALTHY = "healthy"
    FAILED = "failed"
    STUCK = "stuck"
    GONE = "gone"


@dataclass(frozen=True)
class Blocker:
    """Evidence that would make a wait stuck. It is told at once, and ends the wait only when the budget of its step
    (`core.patience`) or the deadline is spent: a pod that fits no node is normal while a node is being started.

    :param since: when the step began, as the API server writes a time; empty where the objects do not say
    """

    reason: str
    message: str
    evidence: list[str] = field(default_factory=list)
    since: str = ""


@dataclass(frozen=True)
class Verdict:
    """The judgement on one object.

    :param reason: slug; stable
    :param message: for a person, one sentence without a full stop
    :param evidence: the objects and values that show it, `Kind/name field=value`
    :param blocker: what it hangs on just now, for a verdict that is still progressing
    :param layer: at fault, where the objects say more than the slug does (`core.diagnosis.layer_of`)
    """

    state: State
    reason: str
    message: str
    evidence: list[str] = field(default_factory=list)
    blocker: Blocker | None = None
    layer: str = ""

    def overdue(self) -> Verdict:
        """The same, once the deadline has passed: what was progressing is stuck, for the blocker's reason if known."""
        if self.state is not State.PROGRESSING:
            return self
        if self.blocker is not None:
            evidence = [*self.evidence, *self.blocker.evidence]
            return Verdict(State.STUCK, self.blocker.reason, self.blocker.message, evidence, layer=self.layer)
        reason = "finalizer-stuck" if self.reason == "deleting" else self.reason
        return replace(self, state=State.STUCK, reason=reason)

    @property
    def in_words(self) -> str:
        """State, message, and layer and slug of what it hangs on or cannot come for, for a progress line."""
        text, reason = f"{self.state}: {self.message}", self.reason
        if self.blocker is not None:
            reason = self.blocker.reason
            text += "" if self.blocker.message == self.message else f"; {self.blocker.message}"
        elif self.state not in (State.FAILED, State.STUCK):
            return text
        return f"{text} ({self.layer or remedy_of(reason).layer}, {reason})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a trigger's event or the ledger."""
        return {**asdict(self), "state": str(self.state)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """Back from `to_dict`."""
        blocker = data.get("blocker")
        return cls(
            State(data["state"]),
            data["reason"],
            data["message"],
            list(data.get("evidence") or []),
            Blocker(**blocker) if blocker else None,
            data.get("layer") or "",
        )


def progressing(
    reason: str, message: str, evidence: list[str] | None = None, blocker: Blocker | None = None
) -> Verdict:
    """Shorthand."""
    return Verdict(State.PROGRESSING, reason, message, evidence or [], blocker)


def healthy(reason: str, message: str, evidence: list[str] | None = None) -> Verdict:
    """Shorthand."""
    return Verdict(State.HEALTHY, reason, message, evidence or [])


def failed(reason: str, message: str, evidence: list[str] | None = None) -> Verdict:
    """Shorthand."""
    return Verdict(State.FAILED, reason, message, evidence or [])


def stuck(reason: str, message: str, evidence: list[str] | None = None) -> Verdict:
    """Shorthand."""
    return Verdict(State.STUCK, reason, message, evidence or [])


def gone(reason: str, message: str, evidence: list[str] | None = None) -> Verdict:
    """Shorthand."""
    return Verdict(State.GONE, reason, message, evidence or [])
