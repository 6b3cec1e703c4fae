"""Watching until verdicts are final: one loop for the triggerer, and for a worker where it takes seconds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nim_rollouts.clients.watch import Watch
from nim_rollouts.core.diagnosis import layer_of
from nim_rollouts.core.finalizers import hanging
from nim_rollouts.core.patience import Patience, borne, spent_at, without_operator
from nim_rollouts.core.verdicts import Snapshot, State, Subject, Verdict, deployment
from nim_rollouts.core.verdicts.objects import find
from nim_rollouts.triggers.notes import Timeline
from nim_rollouts.triggers.plans import Plan

if TYPE_CHECKING:
    from nim_rollouts.clients.access import ClusterAccess

Say = Callable[[str], None]

# A line at least this often, in seconds: silence for longer looks like a hang.
LINE_S = 60.0
# Looked at this often without a change, in seconds, for the deadline and the line; less a share that keeps apart the
# waits that began together.
_TICK_S, _TICK_SHARE = 15.0, 0.4
# A deadline that passes while the API server is away is looked at when it is back, if that is within so many seconds.
_GRACE_S = 60.0
_TIMELINE = 60
_UNSEEN = "cluster-unavailable"


@dataclass
class Outcome:
    """How a wait ended. `overdue`: the deadline passed before anything was final."""

    verdicts: list[tuple[Subject, Verdict]]
    overdue: bool = False
    timeline: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """True when everything is as it was waited for."""
        return all(subject.is_reached(verdict) for subject, verdict in self.verdicts)

    @property
    def is_unseen(self) -> bool:
        """True when the deadline passed while the API server did not answer: that is no verdict on anything."""
        return self.overdue and any(verdict.reason == _UNSEEN for _, verdict in self.verdicts)

    @property
    def missing(self) -> list[tuple[Subject, Verdict]]:
        """What is not as it was waited for; what cannot come first."""
        left = [(subject, verdict) for subject, verdict in self.verdicts if not subject.is_reached(verdict)]
        return sorted(left, key=lambda one: not one[0].is_final(one[1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a trigger's event."""
        return {
            "reached": self.reached,
            "overdue": self.overdue,
            "verdicts": [
                {"subject": subject.to_dict(), "verdict": verdict.to_dict()} for subject, verdict in self.verdicts
            ],
            "timeline": self.timeline,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """Back from `to_dict`."""
        pairs = [(Subject.from_dict(one["subject"]), Verdict.from_dict(one["verdict"])) for one in data["verdicts"]]
        return cls(pairs, bool(data["overdue"]), list(data["timeline"]))


def judge_all(
    subjects: Sequence[Subject],
    snapshots: Mapping[str | None, Snapshot],
    now: datetime,
    operators: Sequence[Subject] = (),
) -> list[tuple[Subject, Verdict]]:
    """The verdict on each subject from the snapshot of its namespace; of what hangs or cannot come, with its layer."""
    pairs = []
    blockers = [deployment.away(snapshots[one.namespace], one.name) for one in operators]
    away = next((blocker for blocker in blockers if blocker is not None), None)
    missing = [one.name for one in operators if find(snapshots[one.namespace], "Deployment", one.name) is None]
    for subject in subjects:
        objects = snapshots[subject.namespace]
        verdict = subject.judge(objects, now)
        if subject.absent:
            verdict = hanging(verdict, find(objects, subject.kind, subject.name), missing, away)
        else:
            verdict = without_operator(verdict, away)
        if verdict.blocker is not None or verdict.state in (State.FAILED, State.STUCK):
            verdict = replace(verdict, layer=str(layer_of(subject.kind, subject.name, verdict, objects)))
        pairs.append((subject, verdict))
    return pairs


def judge_plan(
    plan: Plan, snapshots: Mapping[str | None, Snapshot], started: datetime, now: datetime
) -> list[tuple[Subject, Verdict]]:
    """The same for a wait that began at `started`: what has used up the budget of its step is stuck."""
    pairs = judge_all(plan.subjects, snapshots, now, plan.operators)
    return [(subject, borne(verdict, plan.patience, started, now)) for subject, verdict in pairs]


async def watch_until(
    access: ClusterAccess,
    plan: Plan,
    *,
    started: datetime,
    say: Say,
    hangs: Callable[[Timeline], None] | None = None,
) -> Outcome:
    """Watch until all is reached, something is final or has used up its step's budget, or the deadline (counted from
    `started`) has passed.

    An API server that does not answer ends nothing but by the deadline, and then the outcome says so
    (`Outcome.is_unseen`): what was seen before its absence is no evidence of how things stand.

    :param hangs: is given the timeline so far when what the wait hangs on changes
    """
    if not plan.subjects:
        return Outcome([])
    deadline = started + timedelta(seconds=plan.deadline_s)
    story = _Story(started, deadline, say, hangs)
    async with AsyncExitStack() as stack:
        watches = {
            namespace: await stack.enter_async_context(Watch(access, kinds, namespace, about=plan.names_in(namespace)))
            for namespace, kinds in plan.groups.items()
        }
        snapshots: dict[str | None, Snapshot] = {}
        pending = {asyncio.create_task(watch.next(_tick())): namespace for namespace, watch in watches.items()}
        spent: list[datetime] = []
        try:
            while True:
                left = (min([_due(deadline, watches.values()), *spent]) - datetime.now(UTC)).total_seconds()
                done, _ = await asyncio.wait(pending, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    namespace = pending.pop(task)
                    snapshot = task.result()
                    if snapshot is not None:
                        snapshots[namespace] = snapshot
                    pending[asyncio.create_task(watches[namespace].next(_tick()))] = namespace
                now, trouble = datetime.now(UTC), _trouble(watches.values())
                patience: Patience = {} if trouble else plan.patience
                overdue = now >= _due(deadline, watches.values())
                outcome = _outcome(replace(plan, patience=patience), snapshots, started, now, overdue, trouble)
                story.tell(outcome, trouble)
                if outcome is None:
                    continue
                if outcome.reached or outcome.overdue or any(s.is_final(v) for s, v in outcome.missing):
                    outcome.timeline = story.timeline
                    return outcome
                ends = (spent_at(verdict, patience, started) for _, verdict in outcome.missing)
                spent = [moment for moment in ends if moment is not None]
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


def wait_in_worker(
    access: ClusterAccess, subjects: Sequence[Subject], budget_s: float, say: Say
) -> list[tuple[Subject, Verdict]]:
    """The same from a worker, for what takes seconds. Returns what is not there after `budget_s` seconds."""
    plan = Plan(tuple(subjects), int(budget_s), "cluster")
    return asyncio.run(watch_until(access, plan, started=datetime.now(UTC), say=say)).missing


def _tick() -> float:
    return _TICK_S * random.uniform(1.0 - _TICK_SHARE, 1.0)


def _trouble(watches: Iterable[Watch]) -> str:
    return "; ".join(watch.problem for watch in watches if watch.problem)


def _due(deadline: datetime, watches: Iterable[Watch]) -> datetime:
    return deadline + timedelta(seconds=_GRACE_S) if _trouble(watches) else deadline


def _outcome(
    plan: Plan,
    snapshots: Mapping[str | None, Snapshot],
    started: datetime,
    now: datetime,
    overdue: bool,
    trouble: str,
) -> Outcome | None:
    """None while not every namespace has been listed and there is time left."""
    if len(snapshots) < len(plan.groups):
        if not overdue:
            return None
        unseen = Verdict(State.PROGRESSING, _UNSEEN, "the API server has not answered yet")
        return Outcome([(subject, unseen) for subject in plan.subjects], True)
    outcome = Outcome(judge_plan(plan, snapshots, started, now))
    final = outcome.reached or any(subject.is_final(verdict) for subject, verdict in outcome.missing)
    outcome.overdue = overdue and not final
    if outcome.overdue and trouble:
        outcome.verdicts = [(subject, _unseen_since(verdict)) for subject, verdict in outcome.verdicts]
    return outcome


def _unseen_since(verdict: Verdict) -> Verdict:
    message = f"the API server does not answer; last seen was: {verdict.in_words}"
    return Verdict(State.PROGRESSING, _UNSEEN, message, verdict.evidence)


class _Story:
    """Says a line when something has changed or a minute has passed, and keeps the time line."""

    def __init__(
        self, started: datetime, deadline: datetime, say: Say, hangs: Callable[[Timeline], None] | None
    ) -> None:
        self.started, self.deadline, self.say, self.hangs = started, deadline, say, hangs
        self.timeline: Timeline = []
        self._news = ("", False)
        self._said = started - timedelta(days=1)
        self._said_of: dict[str, dict[str, str]] = {}

    def tell(self, outcome: Outcome | None, trouble: str) -> None:
        """`outcome`: None before the cluster has been seen; `trouble`: why what is known may be old."""
        now = datetime.now(UTC)
        if outcome is None:
            words = "nothing seen of the cluster yet"
        else:
            self._note(outcome, now)
            shown = outcome.missing or outcome.verdicts
            words = " | ".join(f"{subject.ref} {verdict.in_words}" for subject, verdict in shown)
        if outcome is None and not trouble and self._said < self.started:
            return  # the first moments
        # That the API server is away is news, and that it is back; how exactly it refuses is none.
        news = (words, bool(trouble))
        if news == self._news and (now - self._said).total_seconds() < LINE_S:
            return
        if trouble:
            words += f" (not following: {trouble})"
        elif self._news[1] and self._news[0] == words:
            words += " (following again)"
        self._news, self._said = news, now
        spent, left = (now - self.started).total_seconds(), (self.deadline - now).total_seconds()
        self.say(f"{words} [{spent:.0f} s, {max(left, 0):.0f} s left]")

    def _note(self, outcome: Outcome, now: datetime) -> None:
        for subject, verdict in outcome.verdicts:
            before = self._said_of.get(subject.ref, {})
            blocker = verdict.blocker
            said = {"subject": subject.ref, "state": str(verdict.state), "reason": verdict.reason}
            said |= {"hangs_on": blocker.reason} if blocker else {}
            said |= {"layer": verdict.layer} if verdict.layer else {}
            if before != said and len(self.timeline) < _TIMELINE:
                self._said_of[subject.ref] = said
                self.timeline.append({"t": round((now - self.started).total_seconds(), 1), **said})
                if self.hangs is not None and said.get("hangs_on") != before.get("hangs_on"):
                    self.hangs(list(self.timeline))
