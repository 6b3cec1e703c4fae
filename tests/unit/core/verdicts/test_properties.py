"""What must hold of every recording, however it is seen: late, in part, in another order, from another clock."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from nim_rollouts.core.diagnosis import diagnose
from nim_rollouts.core.spent import Part
from nim_rollouts.core.verdicts import VERDICTS, State, Subject, Verdict
from nim_rollouts.core.verdicts.objects import moment_of, times_seen

from .replay import RECORDINGS, START, Recording, load, subject_of, verdicts
from .test_variations import SCENARIOS, problems, renamed, without

DECIDED = (State.HEALTHY, State.FAILED, State.STUCK, State.GONE)
KINDS = ("Pod", "Job", "PersistentVolumeClaim", "Deployment", "ReplicaSet", "NIMCache", "NIMService", "Event")


def too_early(recording: Recording, subject: str) -> list[str]:
    """What was said of a subject before there was evidence of it."""
    earliest = recording.expected["subjects"][subject]["not_before"]
    return [
        f"{subject} t={t}: {verdict.state}/{verdict.reason}"
        for t, verdict in verdicts(recording, subject)
        if verdict.state in DECIDED and t < earliest.get(str(verdict.state), float("inf")) - 1e-6
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kind_that_is_not_seen_brings_nothing_forward(scenario: str, kind: str) -> None:
    recording = without(kind)(load(scenario))
    for subject in recording.expected["subjects"]:
        if not subject.startswith(f"{kind}/"):
            early = [one for one in too_early(recording, subject) if "gone/deleted" not in one]
            assert not early


def late(recording: Recording, kind: str, seconds: float) -> Recording:
    """One kind's watch lags behind the others."""
    events = [
        {**event, "t": event["t"] + (seconds if event["object"]["kind"] == kind else 0.0)} for event in recording.events
    ]
    return Recording(sorted(events, key=lambda event: event["t"]), recording.expected)


@pytest.mark.parametrize("seconds", [0.2, 3.0])
@pytest.mark.parametrize("kind", ["Pod", "Job", "PersistentVolumeClaim", "Deployment", "ReplicaSet", "Event"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_watch_that_lags_behind_brings_nothing_forward(scenario: str, kind: str, seconds: float) -> None:
    recording = late(load(scenario), kind, seconds)
    for subject, expected in recording.expected["subjects"].items():
        early = [one for one in too_early(recording, subject) if "gone/" not in one]
        assert not early
        *_, (_, verdict) = verdicts(recording, subject)
        final = expected["final"]
        end = verdict.overdue() if final["verdict"] == "stuck" else verdict
        assert (str(end.state), end.reason) == (final["verdict"], final["reason"])


def prefixed(recording: Recording) -> Recording:
    """The same again under names that begin with the names of the first, in the same namespace."""
    text = json.dumps(recording.events)
    subjects = {subject.split("/")[1] for subject in recording.expected["subjects"]}
    names = sorted(subjects, key=len, reverse=True)
    for number, name in enumerate(names):
        text = re.sub(rf"(?<![/\w.-]){re.escape(name)}(?=[^\w:.]|-)|(?<=/){re.escape(name)}(?=\")", f"@{number}@", text)
    for number, name in enumerate(names):
        text = text.replace(f"@{number}@", f"{name}-job")
    return Recording(json.loads(re.sub(r'"uid": "(\w)', r'"uid": "n\1', text)), {"subjects": {}})


@pytest.mark.parametrize("other", ["service-crashloop", "cache-no-profile", "service-deleted", "cache-job-exhausted"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_neighbour_whose_name_begins_alike_is_another(scenario: str, other: str) -> None:
    if other not in SCENARIOS:
        pytest.skip("judging other recordings")
    one, two = load(scenario), prefixed(load(other))
    events = sorted([*one.events, *two.events], key=lambda event: event["t"])
    together = Recording(events, one.expected)
    for subject in together.expected["subjects"]:
        if subject.startswith("NIMPipeline"):
            continue  # asserted elsewhere; three recordings at once cost time
        assert not problems(together, subject)


def seen(recording: Recording, subject: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Verdict]:
    kind, name = subject.split("/")
    wanted, there = None, False
    for number, (t, objects) in enumerate(recording.snapshots()):
        there = there or any(one["metadata"]["name"] == name for one in objects.get(kind, []))
        if there and number % 2 == 0:
            wanted = subject_of(kind, name, objects, wanted)
            yield wanted.judge(change(objects), START + timedelta(seconds=t))


def told(found: Iterator[Verdict]) -> list[tuple[str, str, str | None, str]]:
    return [(str(v.state), v.reason, v.blocker.reason if v.blocker else None, v.overdue().reason) for v in found]


def shuffled(objects: dict[str, Any]) -> dict[str, Any]:
    chance = random.Random(len(objects.get("Event", ())))
    return {kind: chance.sample(found, len(found)) for kind, found in reversed(objects.items())}


def padded(objects: dict[str, Any]) -> dict[str, Any]:
    """Kinds of which there is nothing are there as empty lists, as a watch shows them."""
    return {**{kind: [] for kind in (*KINDS, "NIMPipeline", "Service", "HorizontalPodAutoscaler")}, **objects}


def aggregated(objects: dict[str, Any]) -> dict[str, Any]:
    """Events as events.k8s.io recorders leave them: series instead of counts, micro times, nothing old."""

    def again(event: dict[str, Any]) -> dict[str, Any]:
        number, last = event.get("count") or 1, str(event.get("lastTimestamp") or event.get("eventTime") or "")
        micro = last if "." in last else last.replace("Z", ".000000Z")
        kept = {key: value for key, value in event.items() if key not in ("count", "firstTimestamp", "lastTimestamp")}
        series = {"count": number, "lastObservedTime": micro} if number > 1 else None
        return {**kept, "eventTime": micro or None, "series": series, "count": None}

    return {**objects, "Event": [again(event) for event in objects.get("Event", ())]}


def skewed(objects: dict[str, Any]) -> dict[str, Any]:
    """Nodes' clocks run some seconds ahead of the control plane's, the operator's behind."""
    ahead = {"Pod": 4, "Event": 7, "NIMCache": -5, "NIMService": -5}

    def moved(kind: str, found: list[Any]) -> list[Any]:
        def later(match: re.Match[str]) -> str:
            moment = datetime.fromisoformat(match.group(1)) + timedelta(seconds=ahead.get(kind, 0))
            return json.dumps(moment.isoformat().replace("+00:00", "Z"))

        text = re.sub(r'"(\d{4}-\d\d-\d\dT[\d:.]+Z)"', later, json.dumps(found))
        return json.loads(text)

    return {kind: moved(kind, found) for kind, found in objects.items()}


@pytest.mark.parametrize("change", [shuffled, padded, aggregated, skewed])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_how_it_is_written_down_does_not_count(
    scenario: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    recording = load(scenario)
    for subject in recording.expected["subjects"]:
        assert told(seen(recording, subject, change)) == told(seen(recording, subject, lambda objects: objects))


OPTIONAL = (
    "started", "lastState", "restartCount", "containerID", "imageID", "startedAt", "finishedAt", "reason", "message",
    "count", "firstTimestamp", "lastTimestamp", "eventTime", "creationTimestamp", "lastTransitionTime", "labels",
    "annotations", "ownerReferences", "conditions", "containerStatuses", "uid", "generation", "observedGeneration",
    "resources", "storage", "replicas", "profiles", "involvedObject", "phase", "state", "spec", "status",
)  # fmt: skip


@pytest.mark.parametrize("value", ["absent", "null"])
@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_that_is_missing_everywhere_is_no_error(field: str, value: str) -> None:
    """Whatever a server leaves out or writes as null: a verdict and a diagnosis come."""

    def without_it(found: Any) -> Any:
        if isinstance(found, dict):
            kept = {key: without_it(one) for key, one in found.items() if key != field}
            return {**kept, field: None} if value == "null" and field in found else kept
        return [without_it(one) for one in found] if isinstance(found, list) else found

    chosen = [
        "cache-recreate-while-mounted",
        "service-crashloop",
        "pipeline-update-not-propagated",
        "cache-pvc-pending",
    ]
    for scenario in [one for one in chosen if one in SCENARIOS] or SCENARIOS[:3]:
        recording = load(scenario)
        snapshots = list(recording.snapshots())
        for subject in recording.expected["subjects"]:
            kind, name = subject.split("/")
            wanted = None
            for t, objects in snapshots[7 :: max(len(snapshots) // 7, 1)]:
                wanted = subject_of(kind, name, objects, wanted)
                bare = without_it(copy.deepcopy(objects))
                verdict = wanted.judge(bare, START + timedelta(seconds=t))
                assert verdict.reason and verdict.message
                assert diagnose(kind, name, verdict, bare, START + timedelta(seconds=t)).line


def thinned(chance: random.Random, found: Any, part: float, depth: int = 0) -> Any:
    """Without a part of the fields, or with null in their place; kinds and names stay."""
    if isinstance(found, list):
        return [thinned(chance, one, part, depth + 1) for one in found]
    if not isinstance(found, dict):
        return found
    kept = {}
    for key, one in found.items():
        if not depth or key in ("name", "kind", "metadata") or chance.random() > part:
            kept[key] = thinned(chance, one, part, depth + 1)
        elif chance.random() < 0.5:
            kept[key] = None
    return kept


@pytest.mark.parametrize("seed", range(12))
def test_fields_that_are_missing_here_and_there_are_no_error(seed: int) -> None:
    chance = random.Random(seed)
    recording = load(chance.choice(SCENARIOS))
    for t, objects in chance.sample(list(recording.snapshots()), 10):
        part, now = chance.choice([0.05, 0.3]), START + timedelta(seconds=t)
        bare = {kind: [thinned(chance, one, part) for one in found] for kind, found in objects.items()}
        names = [(one["kind"], one["metadata"]["name"]) for found in objects.values() for one in found]
        for kind, name in names:
            for absent in (False, True) if kind in (*VERDICTS, "NIMService") else (True,):
                subject = Subject(kind, name, "ns", image="r:t", absent=absent)
                verdict = subject.judge(bare, now)
                assert verdict.in_words and verdict.overdue().message
                assert diagnose(kind, name, verdict, bare, now, budget=[Part("node launch", 3)]).line


@pytest.mark.parametrize(
    ("event", "last", "first", "times"),
    [
        ({"firstTimestamp": "1", "lastTimestamp": "3", "count": 4, "eventTime": None}, "3", "1", 4),
        ({"eventTime": "1", "series": {"count": 5, "lastObservedTime": "3"}}, "3", "1", 5),
        ({"eventTime": "1", "series": None, "count": None}, "1", "1", 1),
        ({"metadata": {"creationTimestamp": "0"}}, "0", "0", 1),
    ],
)
def test_when_and_how_often_an_event_happened(event: dict[str, Any], last: str, first: str, times: int) -> None:
    event = {"metadata": {}, **event}
    assert (moment_of(event), moment_of(event, first=True), times_seen(event)) == (last, first, times)


def test_the_recordings_are_there() -> None:
    assert SCENARIOS and RECORDINGS.is_dir()
    assert renamed(load(SCENARIOS[0])).events
