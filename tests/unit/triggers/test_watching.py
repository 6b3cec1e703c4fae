"""The watching loop: what ends it, what does not, and what it says meanwhile. The watch is a script of snapshots."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nim_rollouts.core.layers import remedy_of
from nim_rollouts.core.patience import Step
from nim_rollouts.core.verdicts import Snapshot, State, Subject
from nim_rollouts.triggers import watching
from nim_rollouts.triggers.plans import Plan
from nim_rollouts.triggers.watching import Outcome, judge_all, watch_until

JOB = Subject("Job", "job", "ns")
OPERATOR = (Subject("Deployment", "operator", "ops"),)


def job(*conditions: str) -> dict[str, Any]:
    return {
        "kind": "Job",
        "metadata": {"name": "job", "namespace": "ns", "uid": "1"},
        "status": {"conditions": [{"type": one, "status": "True"} for one in conditions]},
    }


def snapshot(*objects: dict[str, Any]) -> Snapshot:
    return {"Job": list(objects), "Pod": [], "Event": []}


class Script:
    """Stands for `Watch`: gives the namespace's snapshots one by one, then nothing any more."""

    snapshots: dict[str | None, list[Snapshot]] = {}
    problem: str | None = None

    def __init__(self, access: Any, kinds: Any, namespace: str | None, *, about: Any = None) -> None:
        self.left = list(self.snapshots[namespace])

    async def __aenter__(self) -> Script:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def next(self, timeout_s: float) -> Snapshot | None:
        if self.left:
            return self.left.pop(0)
        await asyncio.sleep(timeout_s)
        return None


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> type[Script]:
    cls = type("Scripted", (Script,), {})
    monkeypatch.setattr(watching, "Watch", cls)
    monkeypatch.setattr(watching, "_TICK_S", 0.05)
    return cls


async def wait(
    subjects: tuple[Subject, ...] = (JOB,), deadline_s: int = 60, since_s: float = 0
) -> tuple[Outcome, list]:
    said: list[str] = []
    started = datetime.now(UTC) - timedelta(seconds=since_s)
    outcome = await watch_until(None, Plan(subjects, deadline_s, "test"), started=started, say=said.append)
    return outcome, said


async def test_it_ends_when_everything_is_there(script: type[Script]) -> None:
    script.snapshots = {"ns": [snapshot(job()), snapshot(job("Complete"))]}
    outcome, said = await wait()
    assert outcome.reached and not outcome.overdue
    assert [step["reason"] for step in outcome.timeline] == ["job-pending", "ready"]
    assert len(said) == 2 and "s left" in said[0]


async def test_it_ends_at_once_when_it_cannot_come(script: type[Script]) -> None:
    script.snapshots = {"ns": [snapshot(job("Failed"))]}
    outcome, _ = await wait()
    assert not outcome.reached and not outcome.overdue
    assert outcome.missing[0][1].state is State.FAILED


async def test_it_ends_at_the_deadline_which_counts_from_the_start_of_the_try(script: type[Script]) -> None:
    script.snapshots = {"ns": [snapshot(job())]}
    outcome, _ = await wait(deadline_s=60, since_s=61)
    assert outcome.overdue and not outcome.reached


async def test_an_api_server_that_never_answers_is_overdue_not_healthy(script: type[Script]) -> None:
    script.snapshots = {"ns": []}
    outcome, _ = await wait(deadline_s=1, since_s=1)
    assert outcome.overdue
    assert outcome.missing[0][1].reason == "cluster-unavailable"


async def test_a_deadline_that_passes_while_the_api_server_is_away_is_no_verdict(
    script: type[Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_GRACE_S", 0.3)
    script.snapshots, script.problem = {"ns": [snapshot(job())]}, "Job: connection refused"
    outcome, said = await wait(deadline_s=60, since_s=60)
    assert outcome.is_unseen and not outcome.reached
    subject, verdict = outcome.missing[0]
    assert verdict.reason == "cluster-unavailable" and "last seen was: progressing" in verdict.message
    assert not subject.is_final(verdict) and remedy_of(verdict.overdue().reason).layer == "api-server"
    assert "connection refused" in said[-1]
    assert Outcome.from_dict(outcome.to_dict()).is_unseen


@pytest.mark.parametrize("conditions", [("Complete",), ()])
async def test_what_it_says_when_it_is_back_counts(
    script: type[Script], monkeypatch: pytest.MonkeyPatch, conditions: tuple[str, ...]
) -> None:
    async def back(self: Script, timeout_s: float) -> Any:
        if len(self.left) < 2:
            await asyncio.sleep(0.1)
            type(self).problem = None
        return self.left.pop(0)

    monkeypatch.setattr(script, "next", back)
    script.snapshots, script.problem = {"ns": [snapshot(job()), snapshot(job(*conditions))]}, "Job: connection refused"
    outcome, _ = await wait(deadline_s=60, since_s=60)
    assert not outcome.is_unseen
    assert (outcome.reached, outcome.overdue) == (bool(conditions), not conditions)


async def test_all_namespaces_must_have_been_seen(script: type[Script]) -> None:
    other = Subject("Job", "job", "other")
    script.snapshots = {"ns": [snapshot(job("Complete"))], "other": []}
    outcome, _ = await wait((JOB, other), deadline_s=1, since_s=0.8)
    assert outcome.overdue
    script.snapshots = {"ns": [snapshot(job("Complete"))], "other": [snapshot(job("Complete"))]}
    outcome, _ = await wait((JOB, other))
    assert outcome.reached


async def test_the_same_is_not_said_again_until_a_minute_has_passed(
    script: type[Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    script.snapshots = {"ns": [snapshot(job())] * 5 + [snapshot(job("Complete"))]}
    _, said = await wait()
    assert len(said) == 2
    monkeypatch.setattr(watching, "LINE_S", 0.0)
    _, said = await wait()
    assert len(said) == 6


async def test_a_broken_watch_is_told(script: type[Script]) -> None:
    script.snapshots, script.problem = {"ns": [snapshot(job()), snapshot(job("Complete"))]}, "Job: connection refused"
    _, said = await wait()
    assert "not following: Job: connection refused" in said[0]


def hanging(moment: datetime, words: str = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.") -> Snapshot:
    """The Job's pod has had no node since that moment, and the cloud has none to give."""
    since = moment.isoformat()
    scheduled = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words,
        "lastTransitionTime": since,
    }  # fmt: skip
    owner = {"kind": "Job", "name": "job", "uid": "1"}
    pod = {
        "kind": "Pod", "metadata": {"name": "job-x", "namespace": "ns", "uid": "2", "ownerReferences": [owner]},
        "status": {"phase": "Pending", "conditions": [scheduled]},
    }  # fmt: skip
    said = {
        "kind": "Event", "metadata": {"name": "e", "namespace": "ns"}, "reason": "FailedScheduling",
        "message": "incompatible with nodepool g5 (no instance type has the required offering)",
        "lastTimestamp": since, "involvedObject": {"kind": "Pod", "name": "job-x", "uid": "2"},
    }  # fmt: skip
    return {"Job": [job()], "Pod": [pod], "Event": [said]}


async def test_what_it_hangs_on_is_told_at_once_and_ends_it_with_its_step(script: type[Script]) -> None:
    begin = datetime.now(UTC)
    script.snapshots = {"ns": [snapshot(job()), hanging(begin)]}
    said: list[str] = []
    noted: list[list[dict[str, Any]]] = []
    plan = Plan((JOB,), 3600, "test", patience={Step.NODE_LAUNCH: 1})
    outcome = await watch_until(None, plan, started=begin, say=said.append, hangs=noted.append)
    took = (datetime.now(UTC) - begin).total_seconds()
    assert "(capacity, unschedulable-gpu)" in said[1] and "no instance type has the required offering" in said[1]
    assert [step.get("hangs_on") for step in noted[0]] == [None, "unschedulable-gpu"]
    assert noted[0][1]["layer"] == "capacity" and noted[0][1]["t"] < 0.5
    verdict = outcome.missing[0][1]
    assert (verdict.state, verdict.reason) == (State.STUCK, "unschedulable-gpu")
    assert not outcome.overdue and 1 <= took < 1.5, "it wakes for the budget's end, whatever the watch does"


def operator(available: int, since: datetime) -> Snapshot:
    condition = {"type": "Available", "status": "False", "lastTransitionTime": since.isoformat()}
    status = {"availableReplicas": available, "conditions": [condition]}
    found = {"kind": "Deployment", "metadata": {"name": "operator", "namespace": "ops", "uid": "9"}, "status": status}
    return {"Deployment": [found], "ReplicaSet": [], "Pod": [], "Event": []}


async def test_an_operator_that_is_away_is_what_the_wait_hangs_on(script: type[Script]) -> None:
    begin = datetime.now(UTC)
    script.snapshots = {"ns": [snapshot(job())], "ops": [operator(1, begin), operator(0, begin)]}
    said: list[str] = []
    plan = Plan((JOB,), 60, "test", patience={Step.OPERATOR: 1}, operators=OPERATOR)
    outcome = await watch_until(None, plan, started=begin, say=said.append)
    assert "operator" not in said[0] and "(operator, operator-unavailable)" in said[1]
    assert [(subject.name, verdict.state) for subject, verdict in outcome.missing] == [("job", State.STUCK)]
    assert outcome.missing[0][1].reason == "operator-unavailable"


async def test_an_operator_that_is_away_takes_nothing_from_what_is_there(script: type[Script]) -> None:
    script.snapshots = {"ns": [snapshot(job("Complete"))], "ops": [operator(0, datetime.now(UTC))]}
    plan = Plan((JOB,), 60, "test", patience={Step.OPERATOR: 1}, operators=OPERATOR)
    outcome = await watch_until(None, plan, started=datetime.now(UTC), say=lambda text: None)
    assert outcome.reached


async def test_what_cannot_be_followed_uses_up_no_budget(script: type[Script], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod may have a node by now: an API server that is away is no verdict, and no busy loop either."""
    script.snapshots, script.problem = {"ns": [hanging(datetime.now(UTC) - timedelta(hours=1))]}, "Pod: refused"
    monkeypatch.setattr(watching, "_GRACE_S", 0.3)
    looks: list[datetime] = []
    judge = watching.judge_plan
    monkeypatch.setattr(watching, "judge_plan", lambda *given: looks.append(given[3]) or judge(*given))
    begin = datetime.now(UTC)
    plan = Plan((JOB,), 1, "test", patience={Step.NODE_LAUNCH: 0})
    outcome = await watch_until(None, plan, started=begin, say=lambda text: None)
    assert outcome.overdue and (datetime.now(UTC) - begin).total_seconds() >= 1
    assert len(looks) < 80, "a look a tick, no more"


async def test_a_node_that_comes_in_time_is_no_matter(script: type[Script]) -> None:
    script.snapshots = {"ns": [hanging(datetime.now(UTC)), snapshot(job("Complete"))]}
    plan = Plan((JOB,), 60, "test", patience={Step.NODE_LAUNCH: 1})
    outcome = await watch_until(None, plan, started=datetime.now(UTC), say=lambda text: None)
    assert outcome.reached


def test_a_node_that_was_found_after_all_is_no_lack_of_capacity() -> None:
    objects = hanging(datetime(2026, 1, 1, tzinfo=UTC))
    nominated = {**objects["Event"][0], "reason": "Nominated", "message": "Pod should schedule on: nodeclaim/g5-1"}
    nominated |= {"lastTimestamp": "2026-01-01T00:00:09+00:00", "metadata": {"name": "f", "namespace": "ns"}}
    ((_, verdict),) = judge_all([JOB], {"ns": {**objects, "Event": [*objects["Event"], nominated]}}, datetime.now(UTC))
    assert verdict.blocker is not None and "required offering" not in verdict.blocker.message


async def test_nothing_to_wait_for_is_reached() -> None:
    outcome, _ = await wait(())
    assert outcome.reached


def test_an_outcome_survives_the_way_through_airflow() -> None:
    verdict = JOB.judge(snapshot(job("Failed")), datetime.now(UTC))
    outcome = Outcome([(JOB, verdict)], True, [{"t": 1.0}])
    assert Outcome.from_dict(outcome.to_dict()).to_dict() == outcome.to_dict()


def test_a_worker_can_wait_for_seconds(script: type[Script]) -> None:
    script.snapshots = {"ns": [snapshot(job("Complete"))]}
    assert watching.wait_in_worker(None, [JOB], 5, lambda text: None) == []
