"""Which part of a wait's budget went where: node launch, image pull, and what the container itself takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nim_rollouts.core.verdicts.model import Object
from nim_rollouts.core.verdicts.objects import condition, status, time_of


@dataclass(frozen=True)
class Part:
    """One part of a deadline: `node launch`, `image pull`, and one that is named after the work; seconds."""

    name: str
    budget_s: float


def spent_on(pods: Sequence[Object], budget: Sequence[Part], now: datetime) -> str:
    """In words, for the pod that is least far: `node launch 12 of 300 s, image pull 588 of 600 s (now), ...`."""
    if not budget:
        return ""
    moments = [_moments(pod, now) for pod in pods]
    if not moments:
        return f"no pod was made, nothing of {', '.join(f'{part.name} {part.budget_s:.0f} s' for part in budget)}"
    furthest = min(moments, key=len)
    words = []
    for number, part in enumerate(budget):
        if number >= len(furthest):
            words.append(f"{part.name} not begun")
            continue
        here = " (now)" if number == len(furthest) - 1 else ""
        words.append(f"{part.name} {furthest[number]:.0f} of {part.budget_s:.0f} s{here}")
    return ", ".join(words)


def _moments(pod: Object, now: datetime) -> list[float]:
    """Seconds of each part so far: until it was scheduled, until a container of its own ran, since then."""
    created = time_of(pod["metadata"].get("creationTimestamp")) or now
    scheduled = condition(pod, "PodScheduled")
    placed = time_of(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None
    if placed is None:
        return [_seconds(created, now)]
    begins = [_began(one) for one in status(pod).get("containerStatuses") or ()]
    began = [one for one in begins if one is not None]
    if not began:
        return [_seconds(created, placed), _seconds(placed, now)]
    return [_seconds(created, placed), _seconds(placed, min(began)), _seconds(min(began), now)]


def _began(container: Object) -> datetime | None:
    for which in ("lastState", "state"):
        for state in (container.get(which) or {}).values():
            if moment := time_of((state or {}).get("startedAt")):
                return moment
    return None


def _seconds(begin: datetime, end: datetime) -> float:
    return max((end - begin).total_seconds(), 0.0)
