"""A report against the deployment's objectives: pass, fail, or inconclusive.

Order: an incomplete run fails, whatever its figures say; a missed objective fails; figures that contradict each
other, a metric that is not in the report or too few samples for a percentile leave no verdict (a human looks).
The error rate is always judged, since latencies and throughput count successful requests alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from nim_rollouts.core import report as reports
from nim_rollouts.core.report import BenchmarkReport

ERROR_RATE = "error_rate"
# The share of failed requests that is let pass when the deployment names no bound.
DEFAULT_MAX_ERROR_RATE = 0.01


class Objective(Protocol):
    """A bound on one statistic (avg when none is named) of a metric, in the report's unit; `error_rate` is a share."""

    @property
    def metric(self) -> str: ...
    @property
    def statistic(self) -> str | None: ...
    @property
    def max(self) -> float | None: ...
    @property
    def min(self) -> float | None: ...


class Outcome(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Row:
    """One objective and what became of it. `value` in `unit`, None when the report has none."""

    metric: str
    statistic: str
    bound: str
    value: float | None
    unit: str
    outcome: Outcome
    note: str = ""

    @property
    def text(self) -> str:
        if self.value is None:
            return f"{self.metric} {self.statistic}: {self.note}"
        words = {Outcome.PASS: "meets", Outcome.FAIL: "misses", Outcome.INCONCLUSIVE: "is not sure to meet"}
        note = f" ({self.note})" if self.note else ""
        if self.metric == ERROR_RATE:
            return f"error rate {_percent(self.value)} {words[self.outcome]} {self.bound}{note}"
        name = f"{self.metric} {self.statistic}"
        return f"{name} {_number(self.value)}{_unit(self.unit)} {words[self.outcome]} {self.bound}{note}"


@dataclass(frozen=True)
class SloVerdict:
    """The outcome, why in one line, and every objective's row."""

    outcome: Outcome
    reason: str
    rows: tuple[Row, ...]

    def facts(self) -> dict[str, Any]:
        """The verdict as ledger facts."""
        rows = [
            {
                "metric": row.metric,
                "statistic": row.statistic,
                "bound": row.bound,
                "value": row.value,
                "unit": row.unit,
                "outcome": row.outcome.value,
                **({"note": row.note} if row.note else {}),
            }
            for row in self.rows
        ]
        return {"outcome": self.outcome.value, "reason": self.reason, "objectives": rows}


@dataclass(frozen=True)
class _Bound:
    """An objective of our own: the default for the error rate."""

    metric: str
    statistic: str | None = None
    max: float | None = None
    min: float | None = None


def judge(report: BenchmarkReport, objectives: Sequence[Objective], expected_requests: int) -> SloVerdict:
    """Compare a report with the objectives.

    :param expected_requests: how many requests the run was asked to make, without warm-up
    """
    all_objectives: list[Objective] = list(objectives)
    if not any(one.metric == ERROR_RATE for one in objectives):
        all_objectives.append(_Bound(ERROR_RATE, max=DEFAULT_MAX_ERROR_RATE))
    rows = tuple(_row(report, one) for one in all_objectives)

    missing = reports.incomplete(report, expected_requests)
    if missing is not None:
        return SloVerdict(Outcome.FAIL, missing, rows)
    failed = [row.text for row in rows if row.outcome is Outcome.FAIL]
    if failed:
        return SloVerdict(Outcome.FAIL, "; ".join(failed), rows)
    unsure = reports.implausible(report) + [row.text for row in rows if row.outcome is Outcome.INCONCLUSIVE]
    if unsure:
        return SloVerdict(Outcome.INCONCLUSIVE, "; ".join(unsure), rows)
    return SloVerdict(Outcome.PASS, "; ".join(row.text for row in rows), rows)


def _row(report: BenchmarkReport, objective: Objective) -> Row:
    statistic = objective.statistic or "avg"
    bound = _bound_text(objective)
    if objective.metric == ERROR_RATE:
        note = f"{report.errors} of {report.made} requests failed"
        if report.error_causes:
            note += f": {', '.join(report.error_causes[:2])}"
        outcome = _outcome(report.error_rate, objective)
        return Row(ERROR_RATE, "avg", bound, report.error_rate, "", outcome, note if report.errors else "")
    metric = report.metrics.get(objective.metric)
    value = None if metric is None else metric.get(statistic)
    if metric is None or value is None:
        known = "" if metric is None else f" (it has {', '.join(metric.statistics)})"
        return Row(objective.metric, statistic, bound, None, "", Outcome.INCONCLUSIVE, f"not in the report{known}")
    outcome, note = _outcome(value, objective), ""
    if outcome is Outcome.PASS and report.made < _samples_needed(statistic):
        outcome = Outcome.INCONCLUSIVE
        note = f"{report.made} requests are too few for {statistic}, which needs {_samples_needed(statistic)}"
    return Row(objective.metric, statistic, bound, value, metric.unit, outcome, note)


def _outcome(value: float, objective: Objective) -> Outcome:
    above = objective.max is not None and value > objective.max
    below = objective.min is not None and value < objective.min
    return Outcome.FAIL if above or below else Outcome.PASS


def _samples_needed(statistic: str) -> int:
    """At least one sample must lie beyond a percentile, or it is only the largest value's neighbour: 100 for p99."""
    if not statistic.startswith("p") or not statistic[1:].isdigit():
        return 1
    percent = int(statistic[1:])
    beyond = min(percent, 100 - percent)
    return -(-100 // beyond) if beyond > 0 else 1


def _bound_text(objective: Objective) -> str:
    parts, shown = [], _percent if objective.metric == ERROR_RATE else _number
    if objective.max is not None:
        parts.append(f"<= {shown(objective.max)}")
    if objective.min is not None:
        parts.append(f">= {shown(objective.min)}")
    return " and ".join(parts)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""
