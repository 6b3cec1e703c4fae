"""The verdict functions against recorded traces of the NIM operator."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import yaml

from nim_rollouts.core.patience import STEP_OF
from nim_rollouts.core.verdicts import State, Verdict

from .replay import RECORDINGS, Recording, load, verdicts

# Objects of one moment arrive over several watches: within this many seconds before a phase ends or after it began,
# the order of arrival decides, and the verdict of the neighbour phase is as right.
SLACK = 0.06

SUBJECTS = [
    (folder.name, subject)
    for folder in sorted(RECORDINGS.iterdir())
    if (folder / "expected.yaml").is_file()
    for subject in yaml.safe_load((folder / "expected.yaml").read_text())["subjects"]
]


def phase_at(phases: list[dict], t: float) -> dict:
    return next(one for one in reversed(phases) if one["from"] <= t)


def agrees_at(phases: list[dict], t: float, verdict: Verdict, slack: float) -> str | None:
    """None, or what is wrong at t. Within `slack` of a bound, the neighbour's verdict is as right; so is another
    reason of the same verdict: between the last pod's readiness and Ready, only /v1/models is missing, which the
    expectations call by that name where it lasts and still a rollout where it takes 20 ms."""
    begin = phases[0]["from"]
    near = [phase_at(phases, max(moment, begin)) for moment in (t, t - slack, t + slack)]
    problems = [agrees(phase, verdict) for phase in near]
    if any(phase is not near[0] for phase in near) and str(verdict.state) == near[0]["verdict"]:
        return None
    return None if None in problems else f"{problems[0]}, expected {near[0]['verdict']}/{near[0]['reason']}"


def same_phase(phases: list[dict], t: float) -> bool:
    return phase_at(phases, max(t - SLACK, phases[0]["from"])) is phase_at(phases, t + SLACK)


def agrees(phase: dict, verdict: Verdict) -> str | None:
    """None, or what is wrong."""
    allowed = phase.get("accept") or [phase["verdict"]]
    if phase.get("needs_deadline"):
        before, late = phase["before_deadline"], verdict.overdue()
        if (str(verdict.state), verdict.reason) != (before["verdict"], before["reason"]):
            return f"before the deadline {verdict.state}/{verdict.reason}"
        if str(late.state) not in allowed or late.reason != phase["reason"]:
            return f"after the deadline {late.state}/{late.reason}"
        return None
    if str(verdict.state) not in allowed or verdict.reason != phase["reason"]:
        return f"{verdict.state}/{verdict.reason}"
    return None


@dataclass
class Row:
    """One subject of one scenario, judged at every event and halfway between two."""

    scenario: str
    subject: str
    instants: int = 0
    agree: int = 0
    exact: int = 0
    early: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = "" if not self.wrong else f" first: {self.wrong[0]}; last: {self.wrong[-1]}"
        figures = f"{self.instants:5d} {self.agree:5d} {self.exact:5d} {self.early:5d}"
        return f"{self.scenario:32s} {self.subject:36s} {figures}{told}"


def judged(scenario: str, subject: str, recording: Recording) -> Row:
    row = Row(scenario, subject)
    expected = recording.expected["subjects"][subject]
    phases, earliest = expected["phases"], expected["not_before"]
    for t, verdict in verdicts(recording, subject, between=True):
        row.instants += 1
        problem = agrees_at(phases, t, verdict, SLACK)
        row.agree += problem is None
        row.exact += agrees_at(phases, t, verdict, 0.0) is None
        if problem:
            row.wrong.append(f"t={t:.3f} {problem}")
        decided = verdict.state in (State.HEALTHY, State.FAILED, State.STUCK, State.GONE)
        if decided and t < earliest.get(str(verdict.state), float("inf")) - 1e-6:
            row.early += 1
            row.wrong.append(f"t={t:.3f} too early: {verdict.state}/{verdict.reason}")
    return row


def test_the_whole_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [judged(scenario, subject, load(scenario)) for scenario, subject in SUBJECTS]
    with capsys.disabled():
        print(f"\n{RECORDINGS}\n{'scenario':32s} {'subject':36s} judged agree exact early")
        print(*rows, sep="\n")
        total, agree = sum(row.instants for row in rows), sum(row.agree for row in rows)
        exact = sum(row.exact for row in rows)
        print(f"{len(rows)} subjects, {total} instants: {agree} agree within {SLACK} s, {exact} to the millisecond")
    assert rows
    assert not [row for row in rows if row.wrong]


@pytest.mark.parametrize(("scenario", "subject"), SUBJECTS)
def test_phases(scenario: str, subject: str) -> None:
    recording = load(scenario)
    expected = recording.expected["subjects"][subject]
    wrong = []
    for t, verdict in verdicts(recording, subject):
        if same_phase(expected["phases"], t):
            phase = phase_at(expected["phases"], t)
            problem = agrees(phase, verdict)
            if problem:
                wrong.append(f"t={t}: {problem}, expected {phase['verdict']}/{phase['reason']}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("scenario", "subject"), SUBJECTS)
def test_nothing_is_said_too_early(scenario: str, subject: str) -> None:
    recording = load(scenario)
    earliest = recording.expected["subjects"][subject]["not_before"]
    for t, verdict in verdicts(recording, subject):
        if verdict.state in (State.HEALTHY, State.FAILED, State.STUCK):
            assert str(verdict.state) in earliest, (t, verdict)
            assert t >= earliest[str(verdict.state)] - 1e-6, (t, verdict)


@pytest.mark.parametrize(("scenario", "subject"), SUBJECTS)
def test_what_may_be_said_only_after_a_deadline_is_told_from_its_first_instant(scenario: str, subject: str) -> None:
    recording = load(scenario)
    phases = recording.expected["subjects"][subject]["phases"]
    for t, verdict in verdicts(recording, subject):
        phase = phase_at(phases, t)
        if phase.get("needs_deadline") and same_phase(phases, t):
            assert verdict.blocker is not None and verdict.blocker.reason == phase["reason"], (t, verdict)
            assert verdict.blocker.since or verdict.blocker.reason not in STEP_OF, (t, verdict)


@pytest.mark.parametrize(("scenario", "subject"), SUBJECTS)
def test_the_end(scenario: str, subject: str) -> None:
    recording = load(scenario)
    final = recording.expected["subjects"][subject]["final"]
    *_, (_, verdict) = verdicts(recording, subject)
    late = verdict.overdue() if final["verdict"] == "stuck" else verdict
    assert (str(late.state), late.reason) == (final["verdict"], final["reason"])
    assert late.message and late.evidence
