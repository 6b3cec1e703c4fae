"""How a wait ends badly: the objects say that it cannot come, or its time is over. Part of the tree of `errors`."""

from __future__ import annotations

from typing import Any, Protocol, Self

from nim_rollouts.core.errorbase import PermanentError, redact


class VerdictLike(Protocol):
    """The part of `core.verdicts.Verdict` that an error reports (a protocol: errors know no verdicts)."""

    @property
    def reason(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def evidence(self) -> list[str]: ...


class DiagnosisLike(Protocol):
    """The part of `core.diagnosis.Diagnosis` that an error reports."""

    @property
    def layer(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def sentence(self) -> str: ...

    @property
    def do(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


class _OfVerdict(PermanentError):
    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        reason: str | None = None,
        layer: str | None = None,
        evidence: list[str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, reason=reason, layer=layer)
        self.evidence = [redact(line) for line in evidence or []]
        self.diagnosis: dict[str, Any] | None = None

    @classmethod
    def explained(cls, subject: str, verdict: VerdictLike, why: DiagnosisLike, deadline_s: float | None = None) -> Self:
        """The error for a verdict on `subject` (Kind/name) with all that was found out about it.

        :param deadline_s: seconds after which the wait gave up; None when it did not wait for that
        """
        after = f" is stuck after {deadline_s:.0f} s" if deadline_s is not None else ""
        error = cls(
            f"{subject}{after}: {why.sentence}",
            reason=why.reason,
            layer=str(why.layer),
            hint=why.do[:1].upper() + why.do[1:],
            evidence=verdict.evidence,
        )
        error.diagnosis = why.to_dict()
        return error


class WaitFailed(_OfVerdict):
    """The objects say that what was waited for cannot come."""

    default_reason, default_layer = "wait-failed", "kubernetes"

    @classmethod
    def of(cls, subject: str, verdict: VerdictLike, *, layer: str | None = None, hint: str | None = None) -> WaitFailed:
        """The error for a failed verdict on `subject` (Kind/name)."""
        return cls(
            f"{subject}: {verdict.message}", reason=verdict.reason, layer=layer, hint=hint, evidence=verdict.evidence
        )


class WaitStuck(_OfVerdict):
    """The deadline has passed; the verdict tells what it hangs on."""

    default_reason, default_layer = "wait-stuck", "kubernetes"

    @classmethod
    def of(
        cls,
        subject: str,
        verdict: VerdictLike,
        *,
        deadline_s: float | None = None,
        layer: str | None = None,
        hint: str | None = None,
    ) -> WaitStuck:
        """The error for `subject` (Kind/name) that was not ready within `deadline_s` seconds."""
        after = f" after {deadline_s:.0f} s" if deadline_s is not None else ""
        return cls(
            f"{subject} is stuck{after}: {verdict.message}",
            reason=verdict.reason,
            layer=layer,
            hint=hint,
            evidence=verdict.evidence,
        )
