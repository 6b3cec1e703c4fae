"""Recorded watch traces as snapshots: the objects of a scenario's namespace as they were at any instant."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from nim_rollouts.core.verdicts import Subject, Verdict

#: Other recordings of the same shape are judged with RECORDINGS_DIR=/a/folder.
OWN = Path(__file__).resolve().parents[3] / "recordings"
RECORDINGS = Path(os.environ.get("RECORDINGS_DIR") or OWN).absolute()
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Recording:
    """One scenario: its events in order and what an orchestrator should conclude."""

    events: list[dict[str, Any]]
    expected: dict[str, Any]

    def snapshots(self) -> Iterator[tuple[float, dict[str, list[dict[str, Any]]]]]:
        """(t, snapshot) after each event."""
        state: dict[tuple[str, str], dict[str, Any]] = {}
        for event in self.events:
            obj = event["object"]
            key = (obj["kind"], obj["metadata"]["name"])
            if event["type"] == "DELETED":
                state.pop(key, None)
            else:
                state[key] = obj
            by_kind: dict[str, list[dict[str, Any]]] = {}
            for one in state.values():
                by_kind.setdefault(one["kind"], []).append(one)
            yield event["t"], by_kind


@lru_cache
def load(scenario: str, folder: Path = RECORDINGS) -> Recording:
    """The recording of that name: everybody's, not to be altered."""
    folder = folder / scenario
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return Recording(events, yaml.safe_load((folder / "expected.yaml").read_text()))


def subject_of(kind: str, name: str, objects: dict[str, list[dict[str, Any]]], last: Subject | None) -> Subject:
    """What the orchestrator would wait for: of a service, the image and replicas that its own spec asks for."""
    if kind == "NIMService":
        found = next((one for one in objects.get(kind, []) if one["metadata"]["name"] == name), None)
        if found is None:
            return last or Subject(kind, name, image="none:none")
        image = found["spec"]["image"]
        return Subject(
            kind, name, image=f"{image['repository']}:{image['tag']}", replicas=found["spec"].get("replicas", 1)
        )
    return Subject(kind, name)


def verdicts(recording: Recording, reference: str, *, between: bool = False) -> Iterator[tuple[float, Verdict]]:
    """(t, verdict) after each event, from the subject's first appearance on.

    :param between: also halfway to the next event, and a minute after the last
    """
    kind, name = reference.split("/")
    subject, seen = None, False
    times = [event["t"] for event in recording.events]
    for number, (t, objects) in enumerate(recording.snapshots()):
        seen = seen or any(one["metadata"]["name"] == name for one in objects.get(kind, []))
        if not seen:
            continue
        subject = subject_of(kind, name, objects, subject)
        yield t, subject.judge(objects, START + timedelta(seconds=t))
        following = times[number + 1] if number + 1 < len(times) else t + 120
        if between and following > t:
            halfway = (t + following) / 2
            yield halfway, subject.judge(objects, START + timedelta(seconds=halfway))
