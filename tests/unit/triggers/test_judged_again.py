"""What the worker finds after the trigger's event may be another state: it judges anew, from fresh objects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.core.errors import Superseded, TransientError, WaitFailed
from nim_rollouts.operators.waits import WaitCacheOperator, WaitServiceOperator
from tests.unit.operators.conftest import World
from tests.unit.operators.test_jobs import loading  # noqa: F401
from tests.unit.triggers.test_end_of_a_wait import finish, told


def serving(world: World, *, replicas: int = 1, available: int = 1) -> None:
    """A NIMService that the operator calls Ready, with its Deployment."""
    names, image = world.session().names, world.session().deployment.image
    service = world.cluster.put(
        {
            "apiVersion": "apps.nvidia.com/v1alpha1",
            "kind": "NIMService",
            "metadata": {"name": names.service, "namespace": names.namespace},
            "spec": {"image": {"repository": image.repository, "tag": image.tag}},
            "status": {"state": "Ready" if available else "NotReady"},
        }
    )
    world.cluster.put(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": names.service,
                "namespace": names.namespace,
                "generation": 1,
                "ownerReferences": [{"kind": "NIMService", "name": names.service, "uid": service["metadata"]["uid"]}],
            },
            "spec": {"replicas": 1, "template": {"spec": {"containers": [{"image": image.reference}]}}},
            "status": {
                "observedGeneration": 1,
                "replicas": replicas,
                "updatedReplicas": replicas,
                "availableReplicas": available,
            },
        }
    )
    world.cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod-1", "namespace": names.namespace, "labels": {"app": names.service}},
            "spec": {"containers": [{"name": "nim", "image": image.reference}]},
            "status": {"containerStatuses": [{"name": "nim", "ready": bool(available)}]},
        }
    )


@pytest.fixture
def healthy(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The event of a trigger that has seen the service healthy."""
    world.accepted()
    world.session().ledger.record("apply_service", 1, "result", {"applied_at": datetime.now(UTC).isoformat()})
    serving(world)
    found = told(world, "wait_service")
    assert found["reached"] is True
    return found


def wait_service(world: World, event: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    finish(world, WaitServiceOperator(task_id="wait_service"), event, monkeypatch)


def test_a_service_that_crashes_between_event_and_worker_fails(
    world: World, healthy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(world, available=0)
    pod = world.cluster.get("", "Pod", world.session().names.namespace, "pod-1")
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:00:00Z"}}
    waiting_state = {"waiting": {"reason": "CrashLoopBackOff"}}
    pod["status"] = {
        "containerStatuses": [
            {"name": "nim", "restartCount": 1, "ready": False, "state": waiting_state, "lastState": ended}
        ]
    }
    with pytest.raises(WaitFailed) as failed:
        wait_service(world, healthy, monkeypatch)
    assert failed.value.reason == "crash-loop-oom"


@pytest.mark.parametrize("change", ["another image", "away again"])
def test_a_service_that_is_no_longer_what_the_event_said_is_waited_for_again(
    world: World, healthy: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "another image":
        names = world.session().names
        world.cluster.get("", "NIMService", names.namespace, names.service)["spec"]["image"]["tag"] = "somebody-elses"
    else:
        serving(world, available=0)
    with pytest.raises(TransientError, match="changed between two looks"):
        wait_service(world, healthy, monkeypatch)


def test_a_service_that_a_newer_run_has_taken_over_is_not_this_runs(
    world: World, healthy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accepted(run_id="manual__2")
    with pytest.raises(Superseded):
        wait_service(world, healthy, monkeypatch)
    assert world.session().ledger.read("wait_service", "result") is None


def test_a_service_that_was_deleted_meanwhile_fails(
    world: World, healthy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in [key for key in world.cluster.objects if key[0] in ("NIMService", "Deployment", "Pod")]:
        world.cluster.objects.pop(key)
    with pytest.raises(WaitFailed) as failed:
        wait_service(world, healthy, monkeypatch)
    assert failed.value.reason == "deleted"


def test_where_no_profile_fits_those_that_there_are_are_named(
    loading: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = loading.session().names
    loading.cluster.objects.pop(("Job", names.namespace, names.cache_job))
    reason = "no profiles are selected for caching"
    failed = {"type": "NIM_CACHE_RECONCILE_FAILED", "status": "True", "message": reason}
    cache = loading.cluster.get("", "NIMCache", names.namespace, names.cache)
    cache["status"] = {"state": "NotReady", "conditions": [failed]}
    manifest = "one: {tags: {gpu: L40S, precision: fp8, tp: '1'}}"
    loading.cluster.put(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{names.cache}-manifest", "namespace": names.namespace},
            "data": {"model_manifest.yaml": manifest},
        }
    )
    with pytest.raises(WaitFailed) as told_so:
        finish(loading, WaitCacheOperator(task_id="wait_cache"), told(loading, "wait_cache"), monkeypatch)
    assert told_so.value.reason == "no-matching-profile"
    assert told_so.value.hint.endswith("It offers precision=fp8 gpu=L40S tp=1")
    assert loading.session().facts("wait_cache", "error")["diagnosis"]["offers"] == ["precision=fp8 gpu=L40S tp=1"]
