"""From moments to figures: a step's time is what passed between the end of the step before it and its own end.

So the steps of one side add up to its whole time, whatever lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

#: Step -> the tasks of nim_deploy that it consists of. A step that the script does not have is the pipeline's own.
STEPS: dict[str, tuple[str, ...]] = {
    "validate": ("validate",),
    "terraform plan": ("terraform_plan", "approve_plan"),
    "terraform apply": ("terraform_apply",),
    "terraform outputs": ("terraform_outputs",),
    "cluster access": ("cluster_access",),
    "charts": ("install_addon",),
    "platform": ("apply_platform", "wait_platform", "verify_platform"),
    "secrets": ("apply_secrets",),
    "cache": ("apply_cache", "wait_cache"),
    "service": ("apply_service", "wait_service"),
    "gate": ("gate",),
    "smoke test": ("smoke_test",),
    "benchmark": ("apply_benchmark", "wait_benchmark"),
    "report": ("judge",),
    "decision": ("promote", "conclude"),
}
#: What passes after the last task until Airflow calls the run ended.
LAST = "end of the run"


@dataclass(frozen=True)
class Moment:
    """One task instance that ran: when it began (its worker, or its trigger) and when it ended."""

    task: str
    began: datetime
    ended: datetime


def script_seconds(lines: Iterable[str]) -> dict[str, float]:
    """Of by_hand.sh's file of steps: a line is the time at which a step began, in seconds, and its name."""
    marks = [(float(at), name) for at, _, name in (line.strip().partition(" ") for line in lines)]
    if not marks or marks[-1][1] != "end":
        raise ValueError(f"by_hand.sh did not come to its end, but to {marks[-1][1] if marks else 'nothing'}")
    return {name: after - at for (at, name), (after, _) in zip(marks, marks[1:], strict=False)}


def run_seconds(moments: Sequence[Moment], began: datetime, ended: datetime) -> dict[str, float]:
    """Of one run of a chain with nim_deploy's task ids.

    :param began: when it was asked for
    :raises ValueError: a task is of no step
    """
    of = {task: step for step, tasks in STEPS.items() for task in tasks}
    if unknown := sorted({one.task for one in moments} - of.keys()):
        raise ValueError(f"in no step of this benchmark: {', '.join(unknown)}")
    ends: dict[str, datetime] = {}
    for one in moments:
        ends[of[one.task]] = max(one.ended, ends.get(of[one.task], one.ended))
    seconds, before = {}, began
    for step in STEPS:
        if step in ends:
            seconds[step] = (ends[step] - before).total_seconds()
            before = ends[step]
    return seconds | {LAST: (ended - before).total_seconds()}


def gaps(moments: Sequence[Moment], began: datetime) -> dict[str, float]:
    """Of one run: between a task's end and the next one's beginning, and what a task takes; medians and sums."""
    ordered = sorted(moments, key=lambda one: one.ended)
    before = [began, *(one.ended for one in ordered)]
    between = [(one.began - end).total_seconds() for one, end in zip(ordered, before, strict=False)]
    inside = [(one.ended - one.began).total_seconds() for one in ordered]
    return {
        "tasks": len(ordered),
        "between_median_s": round(median(between), 2),
        "between_sum_s": round(sum(between), 1),
        "task_median_s": round(median(inside), 2),
        "task_sum_s": round(sum(inside), 1),
    }


def middle(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over several runs."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def rows(script: Mapping[str, float], ours: Mapping[str, float], empty: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row a step, in order: seconds by hand and ours, the difference, what of it is Airflow's, what remains."""
    found = []
    for step in (*STEPS, LAST):
        by_hand, mine, airflow = script.get(step), ours.get(step, 0.0), empty.get(step, 0.0)
        difference = mine - (by_hand or 0.0)
        row = {"step": step, "by_hand_s": by_hand, "ours_s": mine, "difference_s": difference, "airflow_s": airflow,
               "rest_s": difference - airflow}  # fmt: skip
        found.append({key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()})
    return found


def total(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The sums of the rows."""
    names = ("by_hand_s", "ours_s", "difference_s", "airflow_s", "rest_s")
    return {name: round(sum(row[name] or 0.0 for row in table), 1) for name in names}


def text(table: Sequence[Mapping[str, Any]]) -> str:
    """The rows for people."""
    names = ("by_hand_s", "ours_s", "difference_s", "airflow_s", "rest_s")
    lines = [f"{'seconds':<20}{'by hand':>10}{'ours':>10}{'difference':>12}{'Airflow':>10}{'rest':>8}"]
    for row in [*table, {"step": "total", **total(table)}]:
        shown = ["-" if row[name] is None else f"{row[name]:.1f}" for name in names]
        lines.append(f"{row['step']:<20}{shown[0]:>10}{shown[1]:>10}{shown[2]:>12}{shown[3]:>10}{shown[4]:>8}")
    return "\n".join(lines)
