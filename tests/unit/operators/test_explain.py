"""A wait that ends badly says why: layer, evidence, the log's last line and what was spent, in line and record."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.core.errors import ClusterUnavailable, WaitFailed, WaitStuck, is_retryable, one_line
from nim_rollouts.core.verdicts import Subject
from nim_rollouts.operators.waits import WaitServiceOperator
from nim_rollouts.triggers.watching import Outcome, judge_all
from tests.unit.operators.conftest import World


@pytest.fixture
def waiting(world: World) -> World:
    world.accepted()
    world.session().ledger.record("apply_service", 1, "result", {"applied_at": "2026-01-01T00:00:00+00:00"})
    session = world.session()
    names, image = session.names, session.deployment.image
    spec = {"image": {"repository": image.repository, "tag": image.tag}}
    metadata = {"name": names.service, "namespace": names.namespace}
    world.cluster.put({"apiVersion": "apps.nvidia.com/v1alpha1", "kind": "NIMService", "metadata": metadata,
                       "spec": spec, "status": {"state": "NotReady"}})  # fmt: skip
    return world


def put_pod(world: World, status: dict[str, Any]) -> None:
    names, image = world.session().names, world.session().deployment.image.reference
    metadata = {
        "name": "s-x", "namespace": names.namespace, "labels": {"app": names.service},
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    world.cluster.put(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [{"image": image}]},
         "status": status}
    )  # fmt: skip


def finish(world: World, monkeypatch: pytest.MonkeyPatch, *, overdue: bool = False) -> None:
    session = world.session()
    names, deployment = session.names, session.deployment
    subject = Subject("NIMService", names.service, names.namespace, deployment.image.reference,
                      deployment.service.replicas)  # fmt: skip
    objects = {names.namespace: {kind: world.cluster.list("", kind, names.namespace) for kind in subject.kinds}}
    told = Outcome(judge_all([subject], objects, datetime.now(UTC)), overdue)
    operator = WaitServiceOperator(task_id="wait_service")
    world.prepared(operator, monkeypatch)
    operator.finish(world.context("wait_service"), told.to_dict())


def crashing(reason: str = "Error", code: int = 1) -> dict[str, Any]:
    last = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": "2026-01-01T00:10:00Z"}}
    container = {
        "name": "c",
        "restartCount": 3,
        "lastState": last,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }
    return {"phase": "Running", "containerStatuses": [container]}


def test_a_failure_names_its_layer_and_shows_the_log(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pod(waiting, crashing())
    waiting.cluster.text = "starting\nERROR: no valid profile found for this GPU\n"
    with pytest.raises(WaitFailed) as failed:
        finish(waiting, monkeypatch)
    line = one_line(failed.value)
    assert line.startswith("layer=profile reason=crash-loop: NIMService/")
    assert 'last log line "ERROR: no valid profile found for this GPU"' in line
    assert line.endswith("Choose engine, precision and GPUs of a profile that the image lists")
    assert not is_retryable(failed.value)
    written = waiting.session().facts("wait_service", "error")
    assert (written["layer"], written["reason"]) == ("profile", "crash-loop")
    assert written["diagnosis"]["log"][-1] == "ERROR: no valid profile found for this GPU"


def test_a_log_that_cannot_be_read_takes_nothing_away(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ClusterUnavailable("the kubelet does not answer")

    put_pod(waiting, crashing("OOMKilled", 137))
    waiting.cluster.logs = unreachable  # type: ignore[method-assign]
    with pytest.raises(WaitFailed) as failed:
        finish(waiting, monkeypatch)
    assert (failed.value.layer, failed.value.reason) == ("memory", "crash-loop-oom")


@pytest.mark.parametrize(
    ("words", "layer"),
    [
        ("VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of 0", "quota"),
        ("insufficient capacity, with fleet error(s), InsufficientInstanceCapacity", "capacity"),
    ],
)
def test_what_the_node_provisioner_says_is_looked_up(
    waiting: World, monkeypatch: pytest.MonkeyPatch, words: str, layer: str
) -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    put_pod(waiting, {"phase": "Pending", "conditions": [scheduled]})
    waiting.cluster.put(
        {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"}, "type": "Warning",
         "reason": "InsufficientCapacityError", "message": words, "involvedObject": {"kind": "NodeClaim"}}
    )  # fmt: skip
    with pytest.raises(WaitStuck) as stuck:
        finish(waiting, monkeypatch, overdue=True)
    assert (stuck.value.layer, stuck.value.reason) == (layer, "unschedulable-gpu")
    diagnosis = waiting.session().facts("wait_service", "error")["diagnosis"]
    assert diagnosis["events"][-1].endswith(words)
    assert "image pull not begun, start-up not begun" in diagnosis["spent"]
    assert "is stuck after" in str(stuck.value)
    assert "timeline" in diagnosis


@pytest.mark.parametrize(("status", "layer"), [(500, "model-endpoint"), (200, "operator"), (None, "model-endpoint")])
def test_a_silent_endpoint_is_asked(
    waiting: World, monkeypatch: pytest.MonkeyPatch, status: int | None, layer: str
) -> None:
    """Nothing in the cluster tells what the operator got from /v1/models. A pod that answers us blames the operator."""
    session = waiting.session()
    (service,) = waiting.cluster.list("", "NIMService", session.names.namespace)
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), 1)
    template = {"spec": {"containers": [{"image": session.deployment.image.reference}]}}
    owner = {"kind": "NIMService", "name": session.names.service, "uid": service["metadata"]["uid"]}
    metadata = {"name": session.names.service, "namespace": session.names.namespace, "ownerReferences": [owner]}
    waiting.cluster.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "status": counts,
                         "spec": {"replicas": 1, "template": template}})  # fmt: skip
    put_pod(waiting, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    asked: list[str] = []

    def answers(method: str, path: str, **_: Any) -> Any:
        asked.append(f"{method} {path}")
        if status is None:
            raise ClusterUnavailable("the kubelet does not answer")
        return SimpleNamespace(status=status)

    monkeypatch.setattr(waiting.cluster, "answers", answers)
    with pytest.raises(WaitStuck) as stuck:
        finish(waiting, monkeypatch, overdue=True)
    assert asked == ["GET /v1/models"]
    assert (stuck.value.layer, stuck.value.reason) == (layer, "model-endpoint-unavailable")
    assert (f"Pod/s-x GET /v1/models={status}" in str(stuck.value)) is (status is not None)
