"""Jobs, Deployments, CRDs, disappearance, and what a Subject makes of a verdict."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.core.verdicts import Blocker, State, Subject, Verdict, cache, crd, deployment, gone, job, service

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def obj(kind: str, name: str, **parts: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"{kind}-{name}", "generation": 1, **parts.pop("metadata", {})}
    return {"kind": kind, "metadata": metadata, **parts}


def conditions(**values: str) -> list[dict[str, str]]:
    return [{"type": type_, "status": "True", "reason": reason} for type_, reason in values.items()]


def owner(kind: str, name: str) -> dict[str, Any]:
    return {"ownerReferences": [{"kind": kind, "name": name, "uid": f"{kind}-{name}"}]}


def said(verdict: Verdict) -> tuple[str, str]:
    return str(verdict.state), verdict.reason


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, ("progressing", "job-pending")),
        ({"active": 1, "ready": 1}, ("progressing", "job-running")),
        ({"conditions": conditions(Complete="CompletionsReached")}, ("healthy", "ready")),
        ({"conditions": conditions(Failed="DeadlineExceeded")}, ("failed", "job-deadline-exceeded")),
        ({"conditions": conditions(Failed="BackoffLimitExceeded")}, ("failed", "job-exhausted")),
        ({"conditions": conditions(Failed="PodFailurePolicy")}, ("failed", "job-failed")),
        ({"conditions": conditions(FailureTarget="DeadlineExceeded")}, ("progressing", "job-pending")),
    ],
)
def test_jobs(status: dict[str, Any], expected: tuple[str, str]) -> None:
    assert said(job.judge({"Job": [obj("Job", "j", status=status)]}, "j", NOW)) == expected


def ready(status: str, **more: str) -> dict[str, Any]:
    return {"type": "Ready", "status": status, "reason": "x", "message": "", "observedGeneration": 1, **more}


@pytest.mark.parametrize("kind", ["NodePool", "EC2NodeClass"])
def test_node_pools_and_classes(kind: str) -> None:
    def judge(*found: dict[str, Any], **parts: Any) -> Verdict:
        return Subject(kind, "p").judge({kind: [obj(kind, "p", status={"conditions": list(found)}, **parts)]}, NOW)

    assert said(judge(ready("True"))) == ("healthy", "ready")
    assert said(judge()) == ("progressing", "node-pool-not-ready")
    # What was found true of the generation before says nothing of this one.
    assert said(judge(ready("True"), metadata={"generation": 2})) == ("progressing", "node-pool-not-ready")
    why = {
        "type": "SubnetsReady",
        "status": "False",
        "reason": "SubnetsNotFound",
        "message": "did not match any Subnets",
    }
    wrong = judge(why, ready("False"))
    assert said(wrong) == ("progressing", "node-pool-not-ready") and "did not match any Subnets" in wrong.message
    assert said(wrong.overdue()) == ("stuck", "node-pool-not-ready")
    assert f"{kind}/p SubnetsReady=False SubnetsNotFound" in wrong.overdue().evidence
    assert said(judge(ready("True"), metadata={"deletionTimestamp": "now"})) == ("progressing", "deleting")
    assert said(Subject(kind, "q").judge({}, NOW)) == ("gone", "deleted")


def test_a_job_hangs_on_its_pod() -> None:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: cpu"}
    pod = obj("Pod", "j-x", metadata=owner("Job", "j"), status={"conditions": [scheduled]})
    verdict = job.judge({"Job": [obj("Job", "j")], "Pod": [pod]}, "j", NOW)
    assert said(verdict) == ("progressing", "job-pending")
    assert said(verdict.overdue()) == ("stuck", "unschedulable")
    assert "Pod/j-x" in verdict.overdue().evidence
    assert said(job.judge({}, "j", NOW)) == ("gone", "deleted")


@pytest.mark.parametrize(
    ("generation", "status", "expected"),
    [
        (1, {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}, "healthy"),
        (2, {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}, "progressing"),
        (1, {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 1}, "progressing"),
        (1, {}, "progressing"),
    ],
)
def test_deployments(generation: int, status: dict[str, Any], expected: str) -> None:
    one = obj("Deployment", "d", metadata={"generation": generation}, spec={"replicas": 1}, status=status)
    assert str(deployment.judge({"Deployment": [one]}, "d", NOW).state) == expected


def test_the_progress_deadline_is_no_failure() -> None:
    late = {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
    one = obj("Deployment", "d", spec={"replicas": 1}, status=late)
    assert deployment.judge({"Deployment": [one]}, "d", NOW).state is State.PROGRESSING


def test_crds() -> None:
    name = "x.example.com"

    def judge(*found: dict[str, Any]) -> tuple[str, str]:
        one = obj("CustomResourceDefinition", name, status={"conditions": list(found)})
        return said(crd.judge({"CustomResourceDefinition": [one]}, name, NOW))

    assert judge() == ("progressing", "crd-not-established")
    assert judge(*conditions(Established="InitialNamesAccepted")) == ("healthy", "ready")
    taken = {"type": "NamesAccepted", "status": "False", "reason": "ListKindConflict", "message": "taken"}
    assert judge(taken) == ("failed", "crd-names-conflict")
    assert said(crd.judge({}, name, NOW)) == ("gone", "deleted")


class TestGone:
    claim = obj("PersistentVolumeClaim", "c-pvc", metadata=owner("NIMCache", "c"))
    pod = obj("Pod", "c-job-x", metadata=owner("Job", "c-job"))

    def test_the_object_is_there(self) -> None:
        there = {"NIMCache": [obj("NIMCache", "c")]}
        assert said(gone.judge(there, "NIMCache", "c", None, NOW)) == ("progressing", "not-deleted")
        assert said(gone.judge(there, "NIMCache", "c", None, NOW).overdue()) == ("stuck", "not-deleted")

    def test_a_finalizer_that_nobody_removes(self) -> None:
        metadata = {"deletionTimestamp": "x", "finalizers": ["f.example.com"]}
        verdict = gone.judge({"NIMCache": [obj("NIMCache", "c", metadata=metadata)]}, "NIMCache", "c", None, NOW)
        assert said(verdict) == ("progressing", "deleting")
        assert said(verdict.overdue()) == ("stuck", "finalizer-stuck")
        assert "f.example.com" in verdict.message

    def test_children_of_a_gone_owner(self) -> None:
        for children in ({"PersistentVolumeClaim": [self.claim]}, {"Pod": [self.pod]}):
            verdict = gone.judge(children, "NIMCache", "c", "NIMCache-c", NOW)
            assert said(verdict) == ("gone", "children-terminating")
        assert said(gone.judge({}, "NIMCache", "c", None, NOW)) == ("gone", "deleted")

    def test_grandchildren(self) -> None:
        chain = {
            "Deployment": [obj("Deployment", "s", metadata=owner("NIMService", "s"))],
            "ReplicaSet": [obj("ReplicaSet", "s-1", metadata=owner("Deployment", "s"))],
            "Pod": [obj("Pod", "s-1-x", metadata=owner("ReplicaSet", "s-1"))],
        }
        assert len(gone.judge(chain, "NIMService", "s", "NIMService-s", NOW).evidence) == 3

    def test_a_namesake_is_another_object(self) -> None:
        new = obj("NIMCache", "c", metadata={"uid": "new"})
        theirs = obj("PersistentVolumeClaim", "c-pvc", metadata={"ownerReferences": [{"uid": "new"}]})
        snapshot = {"NIMCache": [new], "PersistentVolumeClaim": [theirs]}
        assert said(gone.judge(snapshot, "NIMCache", "c", "old", NOW)) == ("gone", "deleted")
        snapshot["PersistentVolumeClaim"].append(self.claim | {"metadata": self.claim["metadata"] | owner_uid("old")})
        assert said(gone.judge(snapshot, "NIMCache", "c", "old", NOW)) == ("gone", "children-terminating")

    def test_somebody_elses_things_stay_out_of_it(self) -> None:
        other = obj("Pod", "other", metadata=owner("Job", "other-job") | {"labels": {"app": "other"}})
        assert said(gone.judge({"Pod": [other]}, "NIMService", "s", None, NOW)) == ("gone", "deleted")


def owner_uid(uid: str) -> dict[str, Any]:
    return {"ownerReferences": [{"kind": "NIMCache", "name": "c", "uid": uid}]}


class TestSubject:
    def test_round_trip(self) -> None:
        subject = Subject("NIMService", "s", "ns", image="a:b", replicas=2)
        assert Subject.from_dict(subject.to_dict()) == subject
        verdict = Verdict(State.PROGRESSING, "r", "m", ["e"], Blocker("b", "why", ["x"]))
        assert Verdict.from_dict(verdict.to_dict()) == verdict

    def test_reached_and_final(self) -> None:
        subject, absent = Subject("NIMCache", "c"), Subject("NIMCache", "c", absent=True)
        ready, lost = Verdict(State.HEALTHY, "ready", ""), Verdict(State.GONE, "deleted", "")
        leaving = Verdict(State.GONE, "children-terminating", "")
        assert subject.is_reached(ready) and subject.is_final(ready)
        assert subject.is_final(lost) and not subject.is_reached(lost)
        assert absent.is_reached(lost) and absent.is_final(lost)
        assert not absent.is_reached(leaving) and not absent.is_final(leaving)
        assert not subject.is_final(Verdict(State.PROGRESSING, "", ""))

    def test_a_service_needs_its_image(self) -> None:
        with pytest.raises(ValueError, match="image"):
            Subject("NIMService", "s").judge({}, NOW)

    @pytest.mark.parametrize(
        ("kind", "module"),
        [("NIMCache", cache), ("NIMService", service), ("Job", job), ("Deployment", deployment)],
    )
    def test_kinds_are_those_that_the_judge_reads(self, kind: str, module: Any) -> None:
        assert Subject(kind, "x").kinds == module.KINDS
        assert kind in Subject(kind, "x", absent=True).kinds


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("toomanyrequests: 429 Too Many Requests", ("progressing", "cache-preparing")),
        ("unexpected status: 503 Service Unavailable", ("progressing", "cache-preparing")),
        ("manifest unknown: not found", ("failed", "image-pull-not-found")),
        ("unexpected status: 402 Payment Required", ("failed", "image-pull-unauthorized")),
        ("403 Forbidden: insufficient_scope", ("failed", "image-pull-unauthorized")),
    ],
)
def test_pull_errors_are_told_apart(message: str, expected: tuple[str, str]) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
    pod = obj("Pod", "c-pod", status={"containerStatuses": [{"name": "a", "image": "i", "state": waiting}]})
    assert said(cache.judge({"NIMCache": [obj("NIMCache", "c")], "Pod": [pod]}, "c", NOW)) == expected


def test_a_terse_back_off_takes_its_reason_from_the_event() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "i"'}}
    pod = obj("Pod", "c-pod", status={"containerStatuses": [{"name": "a", "image": "i", "state": waiting}]})
    involved = {"kind": "Pod", "name": "c-pod", "uid": "Pod-c-pod"}
    event = obj("Event", "e", involvedObject=involved, reason="Failed", message="pull: 401 Unauthorized")
    snapshot = {"NIMCache": [obj("NIMCache", "c")], "Pod": [pod], "Event": [event]}
    assert said(cache.judge(snapshot, "c", NOW)) == ("failed", "image-pull-unauthorized")


def test_a_ready_cache_on_a_dying_claim_is_not_healthy() -> None:
    ready = obj("NIMCache", "c", status={"state": "Ready", "pvc": "c-pvc"})
    claim = obj("PersistentVolumeClaim", "c-pvc", metadata={"deletionTimestamp": "x"})
    verdict = cache.judge({"NIMCache": [ready], "PersistentVolumeClaim": [claim]}, "c", NOW)
    assert verdict.state is State.PROGRESSING
    assert verdict.reason == "volume-terminating"


def test_a_restart_or_two_are_no_verdict() -> None:
    image = "r/x:1"

    def verdict(restarts: int, reason: str) -> tuple[str, str]:
        last = {"terminated": {"exitCode": 1 if reason == "Error" else 137, "reason": reason}}
        container = {"name": "a", "state": {"running": {}}, "lastState": last, "restartCount": restarts}
        pod = obj(
            "Pod", "s-1", metadata={"labels": {"app": "s"}}, spec={"containers": [{"image": image}]},
            status={"containerStatuses": [container]},
        )  # fmt: skip
        nim = obj("NIMService", "s", spec={"image": {"repository": "r/x", "tag": "1"}}, status={"state": "NotReady"})
        return said(service.judge({"NIMService": [nim], "Pod": [pod]}, {"name": "s", "image": image}, NOW))

    assert verdict(1, "Error") == ("progressing", "rollout-in-progress")
    assert verdict(2, "Error") == ("progressing", "rollout-in-progress")
    assert verdict(3, "Error") == ("failed", "crash-loop")
    assert verdict(1, "OOMKilled") == ("progressing", "rollout-in-progress")
    assert verdict(2, "OOMKilled") == ("failed", "crash-loop-oom")


def test_what_the_operator_says_is_told_and_decides_nothing() -> None:
    error = {"type": "Failed", "status": "True", "reason": "Failed", "message": "Service is invalid:\n spec.ports"}
    refused = obj("NIMService", "s", spec={"image": {"repository": "r", "tag": "1"}},
                  status={"state": "Failed", "conditions": [error]})  # fmt: skip
    verdict = service.judge({"NIMService": [refused]}, service.Desired("s", "r:1"), NOW)
    assert said(verdict) == ("progressing", "rollout-in-progress")
    overdue = verdict.overdue()
    assert said(overdue) == ("stuck", "reconcile-failed")
    assert "Service is invalid: spec.ports" in overdue.message

    error = {"type": "NIM_CACHE_RECONCILE_FAILED", "status": "True", "message": "quota exceeded"}
    waiting = obj("NIMCache", "c", status={"state": "NotReady", "conditions": [error]})
    verdict = cache.judge({"NIMCache": [waiting]}, "c", NOW)
    assert said(verdict) == ("progressing", "cache-preparing")
    assert "quota exceeded" in verdict.overdue().message


def test_a_selection_pod_that_has_ended_is_named() -> None:
    pod = obj("Pod", "c-pod", metadata=owner("NIMCache", "c"), status={"phase": "Failed"})
    verdict = cache.judge({"NIMCache": [obj("NIMCache", "c")], "Pod": [pod]}, "c", NOW)
    assert said(verdict) == ("progressing", "cache-preparing")
    overdue = verdict.overdue()
    assert said(overdue) == ("stuck", "selection-pod-ended")
    assert "has ended (Failed)" in overdue.message and "Pod/c-pod" in " ".join(overdue.evidence)


def test_a_deployment_without_a_pod_that_serves_is_away() -> None:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: cpu"}
    pod = obj("Pod", "o-x", metadata={"labels": {"app": "o"}}, status={"conditions": [scheduled]})
    spec = {"selector": {"matchLabels": {"app": "o"}}}
    gone_since = {
        "conditions": [{"type": "Available", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    }
    found = deployment.away({"Deployment": [obj("Deployment", "o", spec=spec, status=gone_since)], "Pod": [pod]}, "o")
    assert found is not None and found.since == "2026-01-01T00:00:00Z"
    assert "no pod of Deployment o is available, no node for the pod" in found.message and "Pod/o-x" in found.evidence
    serving = obj("Deployment", "o", spec=spec, status={"availableReplicas": 1, "replicas": 2})
    assert deployment.away({"Deployment": [serving]}, "o") is None, "a rollout of it goes on, and it serves"
    missing = deployment.away({}, "o")
    assert missing is not None and missing.reason == "operator-unavailable"
