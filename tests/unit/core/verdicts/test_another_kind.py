"""docs/waiting.md: the example of another kind to wait for, run as it stands there."""

from __future__ import annotations

import re
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.resources import api_version_of
from nim_rollouts.core.verdicts import VERDICTS, Subject

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PAGE = Path(__file__).resolve().parents[4] / "docs" / "waiting.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    module_text, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType("statefulset")
    exec(compile(module_text, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setattr("nim_rollouts.core.verdicts.VERDICTS", dict(VERDICTS))
    from nim_rollouts.core import verdicts

    exec(line, {"VERDICTS": verdicts.VERDICTS, "statefulset": module})


def stateful(generation: int = 1, **state: Any) -> dict[str, Any]:
    metadata = {"name": "db", "uid": "u", "generation": generation}
    return {"kind": "StatefulSet", "metadata": metadata, "spec": {"replicas": 2}, "status": state}


def pod(waiting: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": waiting, "message": message}}
    return {
        "kind": "Pod",
        "metadata": {"name": "db-0", "uid": "p", "ownerReferences": [{"uid": "u", "kind": "StatefulSet"}]},
        "status": {"containerStatuses": [{"name": "c", "image": "i", "state": state}]},
    }


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ({}, ("gone", "deleted")),
        ({"StatefulSet": [stateful(observedGeneration=1)]}, ("progressing", "rollout-in-progress")),
        (
            {"StatefulSet": [stateful(observedGeneration=1, updatedReplicas=2, readyReplicas=2)]},
            ("healthy", "ready"),
        ),
        (
            {"StatefulSet": [stateful(2, observedGeneration=1, updatedReplicas=2, readyReplicas=2)]},
            ("progressing", "rollout-in-progress"),
        ),
        (
            {"StatefulSet": [stateful()], "Pod": [pod("ImagePullBackOff", "401 Unauthorized")]},
            ("failed", "image-pull-unauthorized"),
        ),
    ],
)
def test_the_example_of_the_page(objects: dict[str, list[dict[str, Any]]], expected: tuple[str, str]) -> None:
    subject = Subject("StatefulSet", "db", "ns")
    assert subject.kinds == ("StatefulSet", "Pod", "Event")
    verdict = subject.judge(objects, NOW)
    assert (str(verdict.state), verdict.reason) == expected
    assert subject.is_final(verdict) is (expected[0] != "progressing")
    assert api_version_of(subject.kind) == "apps/v1"
