"""Other recordings of the same operator: made by script from those that there are, and judged alike.

What is varied is what another run varies: names, order of what comes together, lost Events, kinds that are not
watched, neighbours in the namespace, restarts of pods that serve.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from nim_rollouts.core.diagnosis import diagnose
from nim_rollouts.core.verdicts import State, Verdict

from .replay import OWN, RECORDINGS, START, Recording, load, verdicts
from .test_recordings import SLACK, agrees, agrees_at, phase_at

SCENARIOS = sorted(folder.name for folder in RECORDINGS.iterdir() if (folder / "expected.yaml").is_file())


def _names(recording: Recording) -> set[str]:
    return {subject.split("/")[1] for subject in recording.expected["subjects"]}


def renamed(recording: Recording, suffix: str = "-7b") -> Recording:
    """Other names of everything that a user names, another namespace, other uids; pods and ReplicaSets follow."""
    events, expected = json.dumps(recording.events), yaml.safe_dump(recording.expected)
    for name in sorted(_names(recording), key=len, reverse=True):
        new = f"profile-not-found-{len(name)}{suffix}"
        # An image's path ends in the model's name too: it stays, as it would.
        pattern = rf"(?<![/\w.-]){re.escape(name)}(?=[^\w:.]|-)|(?<=/){re.escape(name)}(?=\")"
        events = re.sub(pattern, new, events)
        expected = re.sub(rf"(?<![\w.-]){re.escape(name)}\b", new, expected)
    events = re.sub(r'"nim-([a-z-]+)"', r'"other-\1"', events)
    events = re.sub(r'"uid": "(\w)', rf'"uid": "{suffix}\1', events)
    return Recording(json.loads(events), yaml.safe_load(expected))


def without(*kinds: str) -> Callable[[Recording], Recording]:
    def change(recording: Recording) -> Recording:
        return Recording([one for one in recording.events if one["object"]["kind"] not in kinds], recording.expected)

    return change


def reordered(recording: Recording) -> Recording:
    """Objects of one moment arrive over several watches: kinds change places within 10 ms, each in its own order."""
    groups: list[list[dict[str, Any]]] = []
    for event in recording.events:
        if groups and event["t"] - groups[-1][0]["t"] <= 0.010:
            groups[-1].append(event)
        else:
            groups.append([event])
    events = []
    for group in groups:
        times = [event["t"] for event in group]
        order = sorted(group, key=lambda event: event["object"]["kind"], reverse=True)
        events += [{**event, "t": t} for event, t in zip(order, times, strict=True)]
    return Recording(events, recording.expected)


def restarted(recording: Recording) -> Recording:
    """Pods that serve had been restarted before they did; that is history."""
    events = copy.deepcopy(recording.events)
    for event in events:
        if event["object"]["kind"] != "Pod":
            continue
        for container in (event["object"].get("status") or {}).get("containerStatuses") or ():
            if container.get("ready"):
                container["restartCount"] = 4
                container["lastState"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    return Recording(events, recording.expected)


def repods(recording: Recording) -> Recording:
    """Pods of Jobs and ReplicaSets with names that tell nothing."""
    text = json.dumps(recording.events)
    pods = {e["object"]["metadata"]["name"] for e in recording.events if e["object"]["kind"] == "Pod"}
    for number, pod in enumerate(sorted((one for one in pods if not one.endswith("-pod")), key=len, reverse=True)):
        text = text.replace(f'"{pod}"', f'"p-{number}"')
    return Recording(json.loads(text), recording.expected)


CHANGES: dict[str, Callable[[Recording], Recording]] = {
    "renamed": renamed,
    "reordered": reordered,
    "restarted": restarted,
    "other pod names": repods,
    "fewer kinds": without("ReplicaSet", "Service", "HorizontalPodAutoscaler"),
}


def problems(recording: Recording, subject: str, slack: float = SLACK) -> list[str]:
    phases = recording.expected["subjects"][subject]["phases"]
    found = [(t, agrees_at(phases, t, verdict, slack)) for t, verdict in verdicts(recording, subject)]
    return [f"{subject} t={t}: {problem}" for t, problem in found if problem]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_another_run_is_judged_alike(scenario: str, change: str) -> None:
    recording = CHANGES[change](load(scenario))
    for subject in recording.expected["subjects"]:
        assert not problems(recording, subject)


def test_the_new_names_are_everywhere() -> None:
    recording = renamed(load("service-ready", OWN))
    kinds = {
        one["object"]["kind"] for one in recording.events for n in [one["object"]["metadata"]["name"]] if "7b" in n
    }
    assert {"NIMCache", "NIMService", "Pod", "Deployment", "PersistentVolumeClaim", "Event"} <= kinds


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_lost_events_delay_a_verdict_and_never_change_it(scenario: str) -> None:
    """Nothing earlier, no other end; what was final once ends a wait, so that it is said once is enough."""
    recording = without("Event")(load(scenario))
    for subject, expected in recording.expected["subjects"].items():
        said: list[tuple[str, str]] = []
        for t, verdict in verdicts(recording, subject):
            if verdict.state in (State.HEALTHY, State.FAILED, State.STUCK):
                assert t >= expected["not_before"].get(str(verdict.state), float("inf")) - 1e-6
            said.append(_end(verdict, expected["final"]["verdict"]))
        assert (expected["final"]["verdict"], expected["final"]["reason"]) in said
        assert said[-1][1] == expected["final"]["reason"]


def _end(verdict: Verdict, wanted: str) -> tuple[str, str]:
    late = verdict.overdue() if wanted == "stuck" else verdict
    return str(late.state), late.reason


@pytest.mark.parametrize("other", ["service-crashloop", "cache-pvc-pending", "service-image-pull-error"])
@pytest.mark.parametrize("scenario", ["service-ready", "service-deleted", "cache-recreate-while-mounted"])
def test_neighbours_in_a_namespace_stay_apart(scenario: str, other: str) -> None:
    if not {scenario, other} <= set(SCENARIOS):
        pytest.skip("judging other recordings")
    one, two = load(scenario), renamed(load(other))
    together = Recording(
        sorted([*one.events, *two.events], key=lambda event: event["t"]),
        {"subjects": one.expected["subjects"] | two.expected["subjects"]},
    )
    for subject in together.expected["subjects"]:
        assert not problems(together, subject)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_late_look_says_the_same(scenario: str) -> None:
    """Level-based: who comes to see a snapshot for the first time says what one says who has seen all of it."""
    recording = load(scenario)
    for subject, expected in recording.expected["subjects"].items():
        *_, (t, _) = verdicts(recording, subject)
        snapshot: dict[tuple[str, str], dict[str, Any]] = {}
        for event in recording.events:
            key = (event["object"]["kind"], event["object"]["metadata"]["name"])
            snapshot.pop(key, None)
            if event["type"] != "DELETED":
                snapshot[key] = event["object"]
        latest = Recording(
            [{"t": t, "type": "ADDED", "object": one} for one in reversed(snapshot.values())], recording.expected
        )
        found = list(verdicts(latest, subject))
        if not found:
            assert expected["final"]["verdict"] == "gone"
            continue
        assert agrees(phase_at(expected["phases"], t), found[-1][1]) is None


@pytest.mark.parametrize("seed", range(6))
def test_half_written_objects_are_no_error(seed: int) -> None:
    """Objects of other versions lack what these have: whatever is missing, a verdict and a diagnosis come."""
    chance = random.Random(seed)

    def thinned(value: Any, depth: int = 0) -> Any:
        if isinstance(value, dict):
            kept = {k: thinned(v, depth + 1) for k, v in value.items() if depth < 2 or chance.random() > 0.15}
            return {k: None if depth > 2 and chance.random() < 0.05 else v for k, v in kept.items()}
        return [thinned(one, depth + 1) for one in value] if isinstance(value, list) else value

    for scenario in chance.sample(SCENARIOS, min(8, len(SCENARIOS))):
        recording = load(scenario)
        events = [{**one, "object": _with_names(thinned(one["object"]), one["object"])} for one in recording.events]
        for subject in recording.expected["subjects"]:
            kind, name = subject.split("/")
            if kind == "NIMService":
                continue  # its wanted image is read from its own spec by the replay
            objects: dict[str, list[dict[str, Any]]] = {}
            for _, verdict in verdicts(Recording(events, recording.expected), subject):
                assert verdict.message and verdict.reason
            for event in events:
                objects.setdefault(event["object"]["kind"], []).append(event["object"])
            assert diagnose(kind, name, verdict, objects, START).line


def _with_names(thin: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """What the API server itself guarantees."""
    kept = {key: whole["metadata"][key] for key in ("name", "namespace", "uid") if key in whole["metadata"]}
    return {**thin, "kind": whole["kind"], "metadata": {**(thin.get("metadata") or {}), **kept}}
