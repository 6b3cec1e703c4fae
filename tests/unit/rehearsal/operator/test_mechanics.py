"""Queue, quantities, conditions, re-serialised specs: what the operator's stand-in is made of."""

from __future__ import annotations

import asyncio
import time

import pytest

from rehearsal.operator import conditions, goform
from rehearsal.operator.api import Panic
from rehearsal.operator.nimservice import Storage, _resources
from rehearsal.operator.quantity import canonical
from rehearsal.operator.workqueue import BASE_DELAY, WorkQueue

A, B = ("ns", "a"), ("ns", "b")


async def test_a_key_added_while_it_is_handled_comes_again_once() -> None:
    queue = WorkQueue()
    for key in (A, B, A):
        queue.add(key)
    assert await queue.get() == A
    queue.add(A)
    queue.add(A)
    assert await queue.get() == B
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.02)
    queue.done(A)
    assert await queue.get() == A


async def test_of_several_delays_the_earliest_counts_and_an_event_does_not_cancel_it() -> None:
    queue = WorkQueue()
    began = time.monotonic()
    queue.add_after(A, 30)
    queue.add_after(A, 0.05)
    queue.add_after(A, 10)
    queue.add(A)
    assert await queue.get() == A
    queue.done(A)
    queue.forget(A)
    assert await asyncio.wait_for(queue.get(), 1) == A
    assert time.monotonic() - began >= 0.05


async def test_failures_wait_twice_as_long_each_time() -> None:
    queue = WorkQueue()
    waits = []
    for _ in range(4):
        began = time.monotonic()
        queue.add_rate_limited(A)
        queue.done(await asyncio.wait_for(queue.get(), 1))
        waits.append(time.monotonic() - began)
    assert all(wait >= BASE_DELAY * 2**n for n, wait in enumerate(waits))
    queue.forget(A)
    began = time.monotonic()
    queue.add_rate_limited(A)
    await queue.get()
    assert time.monotonic() - began < waits[-1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, "2"), ("2", "2"), ("0", "0"), (0.5, "500m"), ("500m", "500m"), ("1000m", "1"), ("1024Mi", "1Gi"),
        ("50Gi", "50Gi"), ("1.5Gi", "1536Mi"), ("1000", "1k"), ("1e3", "1e3"), ("100M", "100M"),
        ("0.1Gi", "107374182400m"),
    ],
)  # fmt: skip
def test_quantities(given: object, expected: str) -> None:
    assert canonical(given) == expected


def test_nimcache_spec_comes_back_with_defaults_and_without_what_is_empty() -> None:
    spec = {
        "source": {"ngc": {"modelPuller": "x:1", "authSecret": "s", "pullSecret": "", "model": {"lora": False}}},
        "storage": {"pvc": {"create": True, "size": "50Gi", "annotations": {}}},
        "nodeSelector": {},
        "resources": {"memory": "1024Mi"},
        "tolerations": [],
    }
    assert goform.nimcache_spec(spec) == {
        "source": {"ngc": {"modelPuller": "x:1", "authSecret": "s", "model": {"lora": False}}},
        "storage": {"pvc": {"create": True, "size": "50Gi"}},
        "resources": {"cpu": "0", "memory": "1Gi"},
    }


def test_nimservice_spec_keeps_zero_replicas_and_an_empty_volume() -> None:
    result = goform.nimservice_spec(
        {
            "image": {"repository": "r", "tag": "1"},
            "replicas": 0,
            "storage": {"emptyDir": {}},
            "env": [{"name": "A", "value": ""}],
        }
    )
    assert result["replicas"] == 0
    assert result["storage"] == {"emptyDir": {}, "nimCache": {}, "pvc": {}}
    assert result["env"] == [{"name": "A"}]
    assert result["scale"] == {"hpa": {"maxReplicas": 0}}


def test_transition_times() -> None:
    old = {
        "type": "Ready",
        "status": "True",
        "reason": "Ready",
        "message": "",
        "lastTransitionTime": "2020-01-01T00:00:00Z",
    }
    status = {"conditions": [dict(old)]}
    conditions.set_(status, "Ready", "True", "Ready", "still")
    assert status["conditions"][0]["lastTransitionTime"] == old["lastTransitionTime"]
    conditions.update(status, "Ready", "True", "Ready", "still")
    assert status["conditions"][0]["lastTransitionTime"] != old["lastTransitionTime"]


PROFILE = Storage({}, "p", ({"name": "p", "config": {"tp": "4"}},))


def test_gpus_of_a_named_profile() -> None:
    assert _resources({}, PROFILE) == {side: {"nvidia.com/gpu": "4"} for side in ("limits", "requests")}
    named = {"limits": {"nvidia.com/gpu": "2"}}
    assert _resources({"resources": named}, PROFILE) == named
    both = {"limits": {"cpu": "1"}, "requests": {}}
    assert _resources({"resources": both}, PROFILE)["requests"] == {"nvidia.com/gpu": "4"}
    with pytest.raises(Panic):
        _resources({"resources": {"limits": {"cpu": "1"}}}, PROFILE)
