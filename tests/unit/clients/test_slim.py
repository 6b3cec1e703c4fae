"""What a triggerer keeps and shows of a cluster is enough to judge by: on every recording, at every instant."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nim_rollouts.clients import slim
from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.feed import Feed
from nim_rollouts.clients.watch import Watch
from nim_rollouts.core.diagnosis import diagnose
from tests.unit.core.verdicts.replay import OWN, RECORDINGS, START, Recording, load, subject_of
from tests.unit.core.verdicts.test_variations import renamed, repods

SCENARIOS = sorted(path.parent.name for path in RECORDINGS.glob("*/expected.yaml"))


NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
KINDS = ("NIMCache", "NIMService", "NIMPipeline", "Job", "Deployment", "PersistentVolumeClaim")


async def _idle(self: Feed, *_: Any) -> None:
    await asyncio.Event().wait()


def long_names(recording: Recording) -> Recording:
    """Names so long that those of pods no longer begin with them (the API server cuts them)."""
    return repods(renamed(recording, "-of-a-name-that-fills-all-that-a-label-may-hold"))


def other_claims(recording: Recording) -> Recording:
    """Claims whose names have nothing to do with their caches'."""
    events = json.loads(
        re.sub(r"\b([a-z0-9-]+)-pvc\b", lambda found: f"vol{len(found[1])}", json.dumps(recording.events))
    )
    for event in events:
        obj = event["object"]
        if obj["kind"] == "NIMCache":
            obj["spec"]["storage"]["pvc"]["name"] = f"vol{len(obj['metadata']['name'])}"
    return Recording(events, recording.expected)


VARIATIONS: dict[str, Callable[[Recording], Recording]] = {
    "as recorded": lambda recording: recording,
    "long names": long_names,
    "other claims": other_claims,
}


class Eyes:
    """Everybody who waits, each for one object of a recording or for its end, in one event loop."""

    def __init__(self, recording: Recording, chosen: Callable[[str, str], bool] = lambda kind, name: True) -> None:
        self.objects = [event["object"] for event in recording.events]
        self.namespace = self.objects[0]["metadata"]["namespace"]
        waited = dict.fromkeys((one["kind"], one["metadata"]["name"]) for one in self.objects if one["kind"] in KINDS)
        self.waited = [(kind, name) for kind, name in waited if chosen(kind, name)]
        self.watches: dict[tuple[str, str, bool], Watch] = {}
        self.last: dict[tuple[str, str], Any] = {}

    async def open(self, absent: bool) -> None:
        access = ClusterAccess("https://nowhere")
        for kind, name in self.waited:
            kinds = replace(subject_of(kind, name, {}, None), absent=absent).kinds
            watch = await Watch(access, kinds, self.namespace, about=[name]).__aenter__()
            self.watches[kind, name, absent] = watch

    @property
    def feeds(self) -> dict[str, Feed]:
        return {feed.kind: feed for watch in self.watches.values() for feed in watch._feeds.values()}

    def look(self, everything: dict[str, list[dict[str, Any]]], t: float) -> None:
        """What is told of what is kept is what is told of everything, verdict and diagnosis."""
        now = START + timedelta(seconds=t)
        for (kind, name, absent), watch in self.watches.items():
            subject = self.last[kind, name] = subject_of(kind, name, everything, self.last.get((kind, name)))
            subject = replace(subject, absent=absent)
            whole, kept = {one: everything.get(one, []) for one in subject.kinds}, watch.snapshot()
            verdict = subject.judge(whole, now)
            assert subject.judge(kept, now) == verdict, (t, subject.ref)
            # Whoever explains a wait that has ended badly reads all objects; who is asked meanwhile, has these.
            assert diagnose(kind, name, verdict, kept, NOW) == diagnose(kind, name, verdict, whole, NOW), (t, subject)

    async def close(self) -> None:
        for watch in self.watches.values():
            await watch.__aexit__()


def _arrive(feeds: dict[str, Feed], event: dict[str, Any]) -> None:
    obj = event["object"]
    # As the API server selects.
    if obj["kind"] in feeds and not (obj["kind"] == "Event" and obj.get("reason") in slim.NOISE):
        feeds[obj["kind"]]._take(event["type"], slim.slim(copy.deepcopy(obj)))


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_verdict_is_that_on_everything(
    scenario: str, variation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Feed, "follow", _idle)
    recording = VARIATIONS[variation](load(scenario))
    eyes = Eyes(recording)
    await eyes.open(absent=False)
    await eyes.open(absent=True)
    for feed in eyes.feeds.values():
        feed._replace({})
    for event, (t, everything) in zip(recording.events, recording.snapshots(), strict=True):
        _arrive(eyes.feeds, event)
        eyes.look(everything, t)
    await eyes.close()


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_who_comes_late_is_shown_the_same(scenario: str, variation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that begins, or begins again, in the middle: beside others whose feeds are there, and after a list."""
    monkeypatch.setattr(Feed, "follow", _idle)
    recording = VARIATIONS[variation](load(scenario))
    first = Eyes(recording)
    await first.open(absent=False)
    for feed in first.feeds.values():
        feed._replace({})
    steps = list(zip(recording.events, recording.snapshots(), strict=True))
    for number, (event, (t, everything)) in enumerate(steps):
        _arrive(first.feeds, event)
        if number % 23 and event is not recording.events[-1]:
            continue
        for _, feed in sorted(first.feeds.items(), reverse=bool(number % 2)):
            feed._replace({key: copy.deepcopy(obj) for key, obj in feed.objects.items()})
        late = Eyes(recording)
        await late.open(absent=False)
        late.look(everything, t)
        first.look(everything, t)
        await late.close()
    await first.close()


def test_a_recorded_pod_becomes_small() -> None:
    pods = [event["object"] for event in load("service-ready", OWN).events if event["object"]["kind"] == "Pod"]
    whole, small = json.dumps(pods[-1]), json.dumps(slim.slim(copy.deepcopy(pods[-1])))
    assert len(small) < 0.75 * len(whole)
    assert '"env"' not in small and "podIP" not in small


def test_equal_strings_of_two_objects_are_one() -> None:
    def cache(name: str) -> dict[str, Any]:
        text = f'{{"kind": "NIMCache", "metadata": {{"name": "{name}", "labels": {{"app": "a thing"}}}}}}'
        return slim.slim(json.loads(text))

    one, other = cache("one"), cache("other")
    assert one["metadata"]["labels"]["app"] is other["metadata"]["labels"]["app"]
    assert [id(key) for key in one["metadata"]] == [id(key) for key in other["metadata"]]


@pytest.mark.parametrize("spec", [None, {}, {"template": None}, {"template": "text"}, {"template": {"spec": None}}])
def test_half_written_objects_are_kept(spec: Any) -> None:
    for kind in ("Pod", "Deployment", "Thing", "Node", "CustomResourceDefinition"):
        kept = slim.slim({"kind": kind, "metadata": {"name": "n"}, "spec": spec, "status": None})
        assert kept["metadata"] == {"name": "n"}


def test_heartbeats_of_a_node_are_no_change() -> None:
    def node(beat: str, ready: str = "True") -> dict[str, Any]:
        condition = {"type": "Ready", "status": ready, "lastHeartbeatTime": beat}
        metadata = {"name": "n", "resourceVersion": beat}
        return slim.slim({"kind": "Node", "metadata": metadata, "status": {"conditions": [condition], "images": [1]}})

    assert slim.same(node("1"), node("2"))
    assert not slim.same(node("1"), node("2", "False"))
