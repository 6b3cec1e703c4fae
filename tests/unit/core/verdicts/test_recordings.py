"""The verdict functions against recorded traces of the NIM operator."""

from __future__ import annotations

import pytest
import yaml

from nim_rollouts.core.verdicts import State, Verdict

from .replay import RECORDINGS, load, verdicts

# Objects of one moment arrive over several watches: within this many seconds before a phase ends or after it began,
# the order of arrival decides, and the verdict of the neighbour phase is as right.
SLACK = 0.06

SUBJECTS = [
    (folder.name, subject)
    for folder in sorted(RECORDINGS.iterdir())
    if (folder / "expected.yaml").is_file()
    for subject in yaml.safe_load((folder / "expected.yaml").read_text())["subjects"]
    if not subject.startswith("NIMPipeline/")
]


def phase_at(phases: list[dict], t: float) -> dict:
    return next(one for one in reversed(phases) if one["from"] <= t)


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
def test_the_end(scenario: str, subject: str) -> None:
    recording = load(scenario)
    final = recording.expected["subjects"][subject]["final"]
    *_, (_, verdict) = verdicts(recording, subject)
    late = verdict.overdue() if final["verdict"] == "stuck" else verdict
    assert (str(late.state), late.reason) == (final["verdict"], final["reason"])
    assert late.message and late.evidence
