"""What a triggerer keeps and shows of a cluster is enough to judge by: on every recording, at every instant."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from nim_rollouts.clients import slim
from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.feed import Feed
from nim_rollouts.clients.watch import Watch
from tests.unit.core.verdicts.replay import RECORDINGS, START, load, subject_of

SCENARIOS = sorted(path.parent.name for path in RECORDINGS.glob("*/expected.yaml"))


async def _idle(self: Feed, *_: Any) -> None:
    await asyncio.Event().wait()


def _references(expected: dict[str, Any], objects: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    kinds = ("NIMCache", "NIMService", "Job", "Deployment")
    return {(one["kind"], one["metadata"]["name"]) for one in objects if one["kind"] in kinds}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_verdict_is_that_on_everything(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Feed, "follow", _idle)
    recording = load(scenario)
    events = recording.events
    namespace = events[0]["object"]["metadata"]["namespace"]
    waited = _references(recording.expected, [event["object"] for event in events])
    access = ClusterAccess("https://nowhere")
    watches: dict[tuple[str, str], Watch] = {}
    for kind, name in waited:
        kinds = subject_of(kind, name, {}, None).kinds
        watches[kind, name] = await Watch(access, kinds, namespace, about=[name]).__aenter__()
    feeds = {feed.kind: feed for watch in watches.values() for feed in watch._feeds.values()}
    for feed in feeds.values():
        feed._replace({})
    last: dict[tuple[str, str], Any] = {}
    for event, (t, everything) in zip(events, recording.snapshots(), strict=True):
        obj = event["object"]
        # As the API server selects.
        if obj["kind"] in feeds and not (obj["kind"] == "Event" and obj.get("reason") in slim.NOISE):
            feeds[obj["kind"]]._take(event["type"], slim.slim(copy.deepcopy(obj)))
        now = START + timedelta(seconds=t)
        for (kind, name), watch in watches.items():
            subject = last[kind, name] = subject_of(kind, name, everything, last.get((kind, name)))
            asked_for = {one: everything.get(one, []) for one in subject.kinds}
            assert subject.judge(watch.snapshot(), now) == subject.judge(asked_for, now), (t, kind, name)
    for watch in watches.values():
        await watch.__aexit__()


def test_a_recorded_pod_becomes_small() -> None:
    pods = [event["object"] for event in load("service-ready").events if event["object"]["kind"] == "Pod"]
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
