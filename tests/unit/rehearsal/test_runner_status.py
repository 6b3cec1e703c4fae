"""Phase, conditions and container statuses from what containers do."""

from __future__ import annotations

import pytest

from rehearsal.kube import Obj
from rehearsal.runner.pulls import Backoff
from rehearsal.runner.status import ContainerState, PodState, phase, qos_class, render

RUNNING: Obj = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
WAITING: Obj = {"waiting": {"reason": "ContainerCreating"}}


def ended(code: int) -> Obj:
    return {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}}


def container(state: Obj, *, last: Obj | None = None, init: bool = False, name: str = "c") -> ContainerState:
    return ContainerState({"name": name, "image": "i:1"}, init=init, state=state, last_state=last or {})


@pytest.mark.parametrize(
    ("policy", "containers", "wanted"),
    [
        ("Always", [container(WAITING)], "Pending"),
        ("Always", [container(RUNNING)], "Running"),
        ("Always", [container(ended(1))], "Running"),
        ("Always", [container({"waiting": {"reason": "CrashLoopBackOff"}}, last=ended(1))], "Running"),
        ("Never", [container(ended(0))], "Succeeded"),
        ("Never", [container(ended(0)), container(ended(3))], "Failed"),
        ("Never", [container(ended(3)), container(RUNNING)], "Running"),
        ("OnFailure", [container(ended(0))], "Succeeded"),
        ("OnFailure", [container(ended(1))], "Running"),
        ("Never", [container(ended(1), init=True), container(WAITING)], "Failed"),
        ("Always", [container(ended(1), init=True), container(WAITING)], "Pending"),
        ("Always", [container(RUNNING, init=True), container(WAITING)], "Pending"),
        ("Always", [container(ended(0), init=True), container(RUNNING)], "Running"),
    ],
)
def test_phase(policy: str, containers: list[ContainerState], wanted: str) -> None:
    assert phase(policy, PodState(containers)) == wanted


def test_a_deleted_pods_end_follows_from_its_exit_codes_whatever_the_restart_policy() -> None:
    assert phase("Always", PodState([container(ended(143))], ending=True)) == "Failed"
    assert phase("Always", PodState([container(ended(0))], ending=True)) == "Succeeded"


def test_a_pod_deleted_before_it_started_says_so() -> None:
    state = container(WAITING)
    state.close()
    assert state.state["terminated"]["reason"] == "ContainerStatusUnknown"
    assert phase("Always", PodState([state], ending=True)) == "Failed"


def test_a_deadline_ends_the_pod_only_when_nothing_runs() -> None:
    late = ("DeadlineExceeded", "words")
    assert phase("Never", PodState([container(RUNNING)], failed=late)) == "Running"
    assert phase("Never", PodState([container(ended(0))], failed=late)) == "Failed"


def conditions(status: Obj) -> dict[str, tuple[str, str | None]]:
    return {c["type"]: (c["status"], c.get("reason")) for c in status["conditions"]}


def test_conditions_from_start_to_end() -> None:
    pod: Obj = {"metadata": {"generation": 2}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}}
    one = container(WAITING)
    state = PodState([one], host_ip="127.0.0.1", start_time="t0")
    first = render(pod, state, "t1")
    assert first["phase"] == "Pending" and first["observedGeneration"] == 2 and "podIP" not in first
    assert conditions(first)["Ready"] == ("False", "ContainersNotReady")
    message = next(c for c in first["conditions"] if c["type"] == "Ready")["message"]
    assert message == "containers with unready status: [c]"
    one.state, one.ready, one.started, state.sandbox, state.pod_ip = RUNNING, True, True, True, "10.97.0.2"
    second = render(pod, state, "t2", first)
    assert {kind: status for kind, (status, _) in conditions(second).items()} == dict.fromkeys(
        ("Initialized", "PodReadyToStartContainers", "Ready", "ContainersReady", "PodScheduled"), "True"
    )
    moments = {c["type"]: c["lastTransitionTime"] for c in second["conditions"]}
    assert moments["Initialized"] == "t1" and moments["Ready"] == "t2"
    one.state, one.ready = ended(0), False
    third = render(pod, state, "t3", second)
    assert third["phase"] == "Succeeded"
    assert conditions(third)["Ready"] == conditions(third)["ContainersReady"] == ("False", "PodCompleted")


def test_the_conditions_of_others_are_kept() -> None:
    theirs = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
    pod: Obj = {"metadata": {}, "spec": {"containers": []}, "status": {"conditions": [theirs]}}
    assert theirs in render(pod, PodState([container(RUNNING)]), "t")["conditions"]


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({}, "BestEffort"),
        ({"limits": {"cpu": "0", "memory": "0"}, "requests": {"cpu": "0", "memory": "0"}}, "BestEffort"),
        ({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"nvidia.com/gpu": "1"}}, "BestEffort"),
    ],
)
def test_qos(resources: Obj, wanted: str) -> None:
    assert qos_class({"containers": [{"name": "c", "resources": resources}]}) == wanted


def test_back_off_doubles_to_five_minutes_and_starts_anew_after_a_long_run() -> None:
    crash = Backoff(free=True)
    assert [crash.next(5) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert [crash.next(601), crash.next(1)] == [0, 10]
    assert [Backoff(free=False).next() for _ in range(1)] == [10]
