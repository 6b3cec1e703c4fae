"""Failures that no recording has, in the words of kubelet, containerd, scheduler, Karpenter and the operator.

Each ends in a verdict and a diagnosis: state and slug at the moment, slug at the deadline, layer.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.core.diagnosis import diagnose, log_source
from nim_rollouts.core.spent import Part
from nim_rollouts.core.verdicts import State, Subject, Verdict

from .replay import RECORDINGS, load, verdicts

NOW = datetime(2026, 1, 1, 0, 20, tzinfo=UTC)
IMAGE = "nvcr.io/nim/a/401-unauthorized:4.0.3"
PULL = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": '
TOKEN = (
    "failed to authorize: failed to fetch oauth token: unexpected status from GET request to "
    "https://nvcr.io/proxy_auth?scope=repository%3Anim%2Fa%2F401-unauthorized%3Apull: "
)
HEAD = "unexpected status from HEAD request to https://nvcr.io/v2/nim/a/401-unauthorized/manifests/4.0.3: "
Snapshot = dict[str, list[dict[str, Any]]]


def obj(kind: str, name: str, owner: str = "", **parts: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"u-{kind}-{name}", "generation": 1, **parts.pop("metadata", {})}
    if owner:
        owning, _, owner_name = owner.partition("/")
        metadata["ownerReferences"] = [{"kind": owning, "name": owner_name, "uid": f"u-{owning}-{owner_name}"}]
    return {"kind": kind, "metadata": metadata, **parts}


def event(about: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
    involved = {"kind": about["kind"], "name": about["metadata"]["name"], "uid": about["metadata"]["uid"]}
    name = f"e-{reason}-{len(message)}"
    return obj("Event", name, involvedObject=involved, reason=reason, message=message, type="Warning")


def serving(container: dict[str, Any], *, phase: str = "Pending", spec: dict[str, Any] | None = None) -> Snapshot:
    """A service whose Deployment has made one pod, which is so."""
    repository, _, tag = IMAGE.rpartition(":")
    pod = obj(
        "Pod", "s-1-x", "ReplicaSet/s-1",
        metadata={"labels": {"app": "s"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        spec={"nodeName": "n", "containers": [{"name": "c", "image": IMAGE, **(spec or {})}]},
        status={
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}],
            "containerStatuses": [{"name": "c", "image": IMAGE, **container}],
        },
    )  # fmt: skip
    template = {"spec": {"containers": [{"image": IMAGE}]}}
    deployment = obj("Deployment", "s", "NIMService/s", spec={"replicas": 1, "template": template}, status={})
    service = obj(
        "NIMService", "s", spec={"image": {"repository": repository, "tag": tag}}, status={"state": "NotReady"}
    )
    return {"NIMService": [service], "Deployment": [deployment], "Pod": [pod], "Event": []}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def judge(snapshot: Snapshot, subject: Subject | None = None) -> Verdict:
    return (subject or Subject("NIMService", "s", "ns", image=IMAGE)).judge(snapshot, NOW)


def told(snapshot: Snapshot, kind: str = "NIMService", name: str = "s", **more: Any) -> tuple[str, str, str, str]:
    """(state now, slug at the end, layer, the line)"""
    verdict = judge(snapshot, Subject(kind, name, "ns", image=IMAGE if kind == "NIMService" else None))
    why = diagnose(kind, name, verdict, snapshot, NOW, **more)
    return str(verdict.state), why.reason, str(why.layer), why.line


@pytest.mark.parametrize(
    ("words", "state", "slug", "layer"),
    [
        (PULL + TOKEN + "401 Unauthorized", "failed", "image-pull-unauthorized", "ngc-auth"),
        (PULL + TOKEN + "402 Payment Required", "failed", "image-pull-unauthorized", "entitlement"),
        (PULL + TOKEN + "403 Forbidden", "failed", "image-pull-unauthorized", "entitlement"),
        (
            f'failed to pull and unpack image "{IMAGE}": failed to copy: httpReadSeeker: failed open: server message: '
            "insufficient_scope: authorization failed", "failed", "image-pull-unauthorized", "entitlement",
        ),
        (PULL + HEAD + "429 Too Many Requests", "progressing", "image-pull-rate-limited", "rate-limit"),
        (PULL + TOKEN + "429 Too Many Requests", "progressing", "image-pull-rate-limited", "rate-limit"),
        (PULL + f"{IMAGE}: not found", "failed", "image-pull-not-found", "image-pull"),
        (PULL + HEAD + "503 Service Unavailable", "progressing", "image-pull-failing", "image-pull"),
        (
            PULL + 'failed to do request: Head "https://nvcr.io/v2/nim/a/401-unauthorized/manifests/4.0.3": '
            "dial tcp: lookup nvcr.io on 10.100.0.10:53: no such host", "progressing", "image-pull-failing", "network",
        ),
        (PULL + "dial tcp 34.1.2.3:443: i/o timeout", "progressing", "image-pull-failing", "network"),
    ],
)  # fmt: skip
def test_registries_refusals_are_told_apart(words: str, state: str, slug: str, layer: str) -> None:
    """The image is called 401-unauthorized and its tag is 4.0.3: only what the registry says counts."""
    first = told(serving(waiting("ErrImagePull", words)))
    assert first[0] == "progressing", "the first refusal may be a blip"
    backing_off = f'Back-off pulling image "{IMAGE}": ErrImagePull: {words}'
    assert told(serving(waiting("ImagePullBackOff", backing_off)))[:3] == (state, slug, layer)


@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_out_of_memory_wherever_it_comes(where: str) -> None:
    snapshot = serving({"state": {"waiting": {"reason": "PodInitializing"}}})
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:10:00Z"}}
    bad = {"name": "i", "state": waiting("CrashLoopBackOff")["state"], "lastState": last, "restartCount": 1}
    snapshot["Pod"][0]["status"][where] = [bad]
    assert told(snapshot)[:3] == ("failed", "crash-loop-oom", "memory")
    source = log_source(snapshot, "NIMService", "s")
    assert source is not None and (source.container, source.previous) == ("i", True)


@pytest.mark.parametrize(
    ("line", "layer"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "memory"),
        ("ERROR: no valid profile found for 1 x NVIDIA A10G", "profile"),
        ("OSError: [Errno 28] No space left on device", "volume"),
        ("PermissionError: [Errno 13] Permission denied: '/model-store/x'", "volume"),
        ("ngc: HTTP 402 Payment Required", "entitlement"),
        ("Authentication Error: 401 Unauthorized for api.ngc.nvidia.com", "ngc-auth"),
        ("ConnectError: [Errno -3] Temporary failure in name resolution", "network"),
        ("Traceback (most recent call last):", "model-endpoint"),
    ],
)
def test_a_crash_is_explained_by_the_log(line: str, layer: str) -> None:
    last = {"terminated": {"exitCode": 1, "reason": "Error"}}
    snapshot = serving({**waiting("CrashLoopBackOff"), "lastState": last, "restartCount": 3})
    state, slug, said, text = told(snapshot, log=["starting", line, "  at main.py:3"])
    assert (state, slug, said) == ("failed", "crash-loop", layer)
    if layer != "model-endpoint":
        assert f'last log line "{line}"' in text


def test_a_start_that_the_probe_does_not_wait_for() -> None:
    container = {"state": {"running": {"startedAt": "2026-01-01T00:03:00Z"}}, "started": False, "ready": False}
    snapshot = serving(container, phase="Running", spec={"startupProbe": {"failureThreshold": 120}})
    budget = [Part("node launch", 300), Part("image pull", 600), Part("start-up", 900)]
    state, slug, layer, line = told(snapshot, budget=budget)
    assert (state, slug, layer) == ("progressing", "startup-probe-failing", "probe-budget")
    assert "spent: node launch 60 of 300 s, image pull 120 of 600 s, start-up 1020 of 900 s (now)" in line
    ended = {"terminated": {"exitCode": 137, "reason": "Error"}}
    for restarts, expected in ((2, "progressing"), (3, "stuck")):
        container = {**waiting("CrashLoopBackOff"), "lastState": ended, "restartCount": restarts}
        snapshot = serving(container, phase="Running")
        words = "Container c failed startup probe, will be restarted"
        snapshot["Event"] = [event(snapshot["Pod"][0], "Killing", words)]
        assert told(snapshot)[:3] == (expected, "startup-probe-failing", "probe-budget")


def test_a_container_that_has_started_is_not_held_by_its_startup_probe() -> None:
    container = {"state": {"running": {}}, "started": True, "ready": False}
    snapshot = serving(container, phase="Running", spec={"startupProbe": {}})
    snapshot["Event"] = [event(snapshot["Pod"][0], "Unhealthy", "Startup probe failed: connection refused")]
    assert judge(snapshot).blocker is None


@pytest.mark.parametrize(
    ("message", "slug", "layer", "words"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "unschedulable-gpu", "capacity", ""),
        (
            "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "unschedulable-gpu", "quota",
            "VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of 0 allows",
        ),
        (
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", "unschedulable",
            "capacity", "creating instance, insufficient capacity, InsufficientInstanceCapacity: We currently do not "
            "have sufficient g5.12xlarge capacity",
        ),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {a: b}.", "unschedulable", "scheduling", ""),
        ('0/3 nodes are available: persistentvolumeclaim "x" not found.', "volume-unbound", "volume", ""),
        ("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.", "volume-unbound", "volume", ""),
    ],
)  # fmt: skip
def test_pods_that_fit_nowhere(message: str, slug: str, layer: str, words: str) -> None:
    snapshot = serving({})
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    snapshot["Pod"][0]["status"] = {"phase": "Pending", "conditions": [scheduled]}
    budget = [Part("node launch", 300), Part("image pull", 600)]
    state, reason, said, line = told(snapshot, nodes=[words] if words else [], budget=budget)
    assert (state, reason, said) == ("progressing", slug, layer)
    assert "node launch 1200 of 300 s (now), image pull not begun" in line
    assert f"({layer}, {slug})" in judge(snapshot).in_words or words


def test_a_fleets_errors_of_every_type_and_zone_do_not_fill_the_line() -> None:
    snapshot = serving({})
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes available"}
    snapshot["Pod"][0]["status"] = {"phase": "Pending", "conditions": [scheduled]}
    fleet = "; ".join(f"InsufficientInstanceCapacity: no g5.{size}xlarge capacity in us-west-2a" for size in range(99))
    words = f"InsufficientCapacityError: NodeClaim g5-abc event: creating instance, with fleet error(s), {fleet}"
    why = diagnose("NIMService", "s", judge(snapshot), snapshot, NOW, nodes=[words])
    assert why.layer == "capacity"
    assert "event InsufficientCapacityError: NodeClaim g5-abc event: creating instance" in why.line
    assert len(why.line) < 900
    assert why.events[-1] == words, "the record has all of it"


@pytest.mark.parametrize(
    "words",
    [
        'MountVolume.SetUp failed for volume "pvc-1": rpc error: code = DeadlineExceeded',
        'MountVolume.SetUp failed for volume "pvc-1": mount.nfs4: access denied by server while mounting 127.0.0.1:/',
    ],
)
def test_a_volume_that_cannot_be_mounted(words: str) -> None:
    snapshot = serving(waiting("ContainerCreating"))
    snapshot["Event"] = [event(snapshot["Pod"][0], "FailedMount", words)]
    assert told(snapshot)[:3] == ("progressing", "volume-mount-failing", "volume")


def test_a_missing_secret_is_named() -> None:
    snapshot = serving(waiting("CreateContainerConfigError", 'secret "ngc-api-secret" not found'))
    assert told(snapshot)[:3] == ("progressing", "container-config", "ngc-auth")


def test_a_full_quota_of_the_namespace() -> None:
    full = 'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=2, used: 8, limited: 8'
    snapshot = serving({})
    snapshot["Pod"] = []
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": full}
    snapshot["Deployment"][0]["status"] = {"conditions": [failure]}
    assert told(snapshot)[:3] == ("progressing", "quota-exceeded", "quota")
    job = obj("Job", "c-job", "NIMCache/c")
    cache = {"NIMCache": [obj("NIMCache", "c")], "Job": [job], "Event": [event(job, "FailedCreate", full)]}
    assert told(cache, "NIMCache", "c")[:3] == ("progressing", "quota-exceeded", "quota")
    condition = {"type": "NIM_CACHE_RECONCILE_FAILED", "status": "True", "message": full}
    cache = {"NIMCache": [obj("NIMCache", "c", status={"state": "NotReady", "conditions": [condition]})]}
    assert told(cache, "NIMCache", "c")[:3] == ("progressing", "quota-exceeded", "quota")


def test_an_operator_that_does_nothing() -> None:
    snapshot = serving({})
    snapshot["Pod"], snapshot["Deployment"] = [], []
    snapshot["NIMService"][0]["status"] = {}
    assert told(snapshot)[:3] == ("progressing", "rollout-in-progress", "operator")
    assert told({"NIMCache": [obj("NIMCache", "c")]}, "NIMCache", "c")[:3] == (
        "progressing", "cache-preparing", "operator",
    )  # fmt: skip
    going = obj("NIMCache", "c", metadata={"deletionTimestamp": "x", "finalizers": ["f"]})
    assert told({"NIMCache": [going]}, "NIMCache", "c")[:3] == ("progressing", "finalizer-stuck", "operator")


def test_a_long_pull_is_the_image_pulls_time() -> None:
    state, slug, layer, line = told(
        serving(waiting("ContainerCreating")), budget=[Part("node launch", 300), Part("image pull", 600)]
    )
    assert (state, slug, layer) == ("progressing", "rollout-in-progress", "image-pull")
    assert "image pull 1140 of 600 s (now)" in line


def test_an_autoscaled_service_wants_what_its_autoscaler_says() -> None:
    snapshot = serving({"ready": True, "state": {"running": {}}}, phase="Running")
    service, deployment = snapshot["NIMService"][0], snapshot["Deployment"][0]
    service["spec"]["scale"] = {"enabled": True, "hpa": {"minReplicas": 2, "maxReplicas": 4}}
    service["status"]["state"] = "Ready"

    def seen(replicas: int, available: int) -> tuple[str, str]:
        deployment["spec"]["replicas"] = replicas
        counts = {"replicas": replicas, "updatedReplicas": replicas, "availableReplicas": available}
        deployment["status"] = {"observedGeneration": 1, **counts}
        verdict = judge(snapshot)
        return str(verdict.state), verdict.reason

    assert seen(3, 3) == ("healthy", "ready")
    assert seen(3, 2) == ("progressing", "stale-ready")
    assert seen(1, 1)[0] == "progressing", "the least that was asked for is not there yet"


def test_secrets_do_not_reach_the_line() -> None:
    last = {"terminated": {"exitCode": 1, "reason": "Error"}}
    snapshot = serving({**waiting("CrashLoopBackOff"), "lastState": last, "restartCount": 3})
    verdict = judge(snapshot)
    key = "nvapi-canary-0123456789"
    for form in (
        key,
        base64.b64encode(f"$oauthtoken:{key}".encode()).decode(),
        base64.b64encode(key.encode()).decode(),
    ):
        why = diagnose("NIMService", "s", verdict, snapshot, NOW, log=[f"sent auth={form}"])
        shown = why.line + str(why.to_dict())
        assert form not in shown and "canary" not in shown and "sent" in shown


LAYERS = {
    "job-exhausted": "operator",
    "unschedulable-gpu": "capacity",
    "volume-unbound": "volume",
    "volume-terminating": "volume",
    "no-matching-profile": "profile",
    "image-pull-unauthorized": "ngc-auth",
    "crash-loop-oom": "memory",
    "update-not-propagated": "operator",
}


def test_recorded_failures_have_their_layer() -> None:
    """At every instant at which a recording is failed or stuck, or would be at its deadline."""
    seen: set[str] = set()
    for folder in sorted(RECORDINGS.iterdir()):
        if not (folder / "expected.yaml").is_file():
            continue
        recording = load(folder.name)
        for subject, expected in recording.expected["subjects"].items():
            kind, name = subject.split("/")
            final = expected["final"]
            if final["verdict"] not in ("failed", "stuck"):
                continue
            *_, (_, verdict) = verdicts(recording, subject)
            *_, (_, objects) = recording.snapshots()
            why = diagnose(kind, name, verdict, objects, NOW)
            assert why.reason == final["reason"]
            if final["reason"] in LAYERS:
                assert str(why.layer) == LAYERS[final["reason"]], why.line
            assert why.evidence and why.do and why.line.startswith(f"layer={why.layer} reason={why.reason}: ")
            seen.add(why.reason)
    assert seen


def test_what_was_reached_needs_no_diagnosis_of_its_own_state() -> None:
    assert judge({}).state is State.GONE
    why = diagnose("NIMService", "s", judge({}), {}, NOW)
    assert (why.reason, str(why.layer)) == ("deleted", "operator")


def test_a_job_that_was_collected_and_made_again() -> None:
    """An exhausted Job goes ten minutes later, and the operator makes another: then all is open again."""
    state = {"state": "Failed", "conditions": []}
    cache = obj("NIMCache", "c", status=state)
    reason = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "no more"}
    first = obj("Job", "c-job", "NIMCache/c", status={"failed": 6, "conditions": [reason]})
    again = obj("Job", "c-job", "NIMCache/c", metadata={"uid": "second"}, status={"active": 1})
    subject = Subject("NIMCache", "c", "ns")
    assert judge({"NIMCache": [cache], "Job": [first]}, subject).reason == "job-exhausted"
    assert judge({"NIMCache": [cache], "Job": []}, subject).state is State.PROGRESSING
    assert judge({"NIMCache": [cache], "Job": [again]}, subject).reason == "cache-downloading"
    other = obj("Job", "c-job", metadata={"uid": "third", "ownerReferences": [{"uid": "an-earlier-cache"}]})
    other["status"] = {"conditions": [reason]}
    assert judge({"NIMCache": [cache], "Job": [other]}, subject).state is State.PROGRESSING


def test_a_selection_pod_that_has_ended() -> None:
    pod = obj("Pod", "c-pod", status={"phase": "Failed"})
    said = told({"NIMCache": [obj("NIMCache", "c")], "Pod": [pod]}, "NIMCache", "c")
    assert said[:3] == ("progressing", "selection-pod-ended", "operator")


def test_a_claim_that_was_there_before_has_its_own_name() -> None:
    cache = obj("NIMCache", "c", spec={"storage": {"pvc": {"name": "mine"}}})
    claim = obj("PersistentVolumeClaim", "mine", status={"phase": "Pending"})
    snapshot = {"NIMCache": [cache], "PersistentVolumeClaim": [claim]}
    snapshot["Event"] = [event(claim, "ProvisioningFailed", "AccessDenied")]
    assert told(snapshot, "NIMCache", "c")[:3] == ("progressing", "volume-unbound", "volume")


@pytest.mark.parametrize(
    ("container", "slug", "layer"),
    [
        ({**waiting("CrashLoopBackOff"), "restartCount": 4,
          "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}, "crash-loop", "operator"),
        ({**waiting("CrashLoopBackOff"), "restartCount": 4,
          "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}, "crash-loop-oom", "memory"),
        ({"ready": False, "state": {"running": {"startedAt": "2026-01-01T00:02:00Z"}}, "started": True},
         "rollout-in-progress", "operator"),
        (waiting("ImagePullBackOff", PULL + HEAD + "503 Service Unavailable"), "image-pull-failing", "image-pull"),
    ],
)  # fmt: skip
def test_an_operator_that_does_not_run_is_the_operators_layer(container: Any, slug: str, layer: str) -> None:
    """A Deployment that is waited for by itself is an add-on's; behind a service the same is the model's."""
    snapshot = serving(container)
    snapshot["Deployment"][0]["spec"]["selector"] = {"matchLabels": {"app": "s"}}
    assert told(snapshot, "Deployment", "s")[1:3] == (slug, layer)
    if slug == "crash-loop":
        assert told(snapshot)[1:3] == ("crash-loop", "model-endpoint")


def test_the_operators_own_error_is_no_silent_endpoint() -> None:
    snapshot = serving({"ready": True, "started": True, "state": {"running": {}}}, phase="Running")
    counts = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    snapshot["Deployment"][0]["status"] = counts
    assert judge(snapshot).reason == "model-endpoint-unavailable"
    words = 'no matches for kind "ServiceMonitor" in version "monitoring.coreos.com/v1"'
    failing = {"type": "Failed", "status": "True", "reason": "Failed", "message": words}
    snapshot["NIMService"][0]["status"] = {"state": "Failed", "conditions": [failing]}
    state, slug, layer, line = told(snapshot)
    assert (state, slug, layer) == ("progressing", "reconcile-failed", "operator")
    assert words in line


def test_claims() -> None:
    subject = Subject("PersistentVolumeClaim", "v", "ns")

    def seen(phase: str, **more: Any) -> Verdict:
        claim = obj("PersistentVolumeClaim", "v", status={"phase": phase}, **more)
        words = 'failed to provision volume with StorageClass "x": rpc error: AccessPointLimitExceeded'
        return judge({"PersistentVolumeClaim": [claim], "Event": [event(claim, "ProvisioningFailed", words)]}, subject)

    assert seen("Bound").state is State.HEALTHY
    assert (seen("Lost").state, seen("Lost").reason) == (State.FAILED, "volume-lost")
    assert (seen("Pending").state, seen("Pending").overdue().reason) == (State.PROGRESSING, "volume-unbound")
    assert seen("Bound", metadata={"deletionTimestamp": "x"}).overdue().reason == "finalizer-stuck"
    assert judge({}, subject).state is State.GONE


def pipeline(tag: str, *, replicas: int = 1, state: str = "Ready", **asked: Any) -> Snapshot:
    """A pipeline of one service that serves tag 1 with one replica."""
    spec = {"image": {"repository": "r/x", "tag": tag}, "replicas": replicas, **asked}
    child = {"image": {"repository": "r/x", "tag": "1"}, "replicas": 1, "resources": {"limits": {"cpu": "1000m"}},
             "env": [{"name": "ADDED", "value": "x"}, {"name": "A", "value": "1"}]}  # fmt: skip
    template = {"spec": {"containers": [{"image": "r/x:1"}]}}
    counts = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    status = {"state": state, "states": {"s": state}}
    return {
        "NIMPipeline": [obj("NIMPipeline", "p", spec={"services": [{"name": "s", "enabled": True, "spec": spec}]},
                            status=status)],
        "NIMService": [obj("NIMService", "s", "NIMPipeline/p", spec=child, status={"state": state})],
        "Deployment": [obj("Deployment", "s", "NIMService/s", spec={"replicas": 1, "template": template},
                           status=counts)],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("snapshot", "now_said", "late"),
    [
        (pipeline("1"), ("healthy", "ready"), "ready"),
        (pipeline("2"), ("progressing", "stale-ready"), "update-not-propagated"),
        (pipeline("1", replicas=2), ("progressing", "stale-ready"), "update-not-propagated"),
        (pipeline("1", env=[{"name": "A", "value": "1"}]), ("healthy", "ready"), "ready"),
        (pipeline("1", env=[{"name": "A", "value": "2"}]), ("progressing", "stale-ready"), "update-not-propagated"),
        (pipeline("1", resources={"limits": {"cpu": 1}}), ("healthy", "ready"), "ready"),
        (pipeline("1", metrics={}, nodeSelector={}, command=[]), ("healthy", "ready"), "ready"),
        (pipeline("1", args=["x"]), ("progressing", "stale-ready"), "update-not-propagated"),
        (pipeline("1", state="NotReady"), ("progressing", "rollout-in-progress"), "model-endpoint-unavailable"),
    ],
)
def test_pipelines(snapshot: Snapshot, now_said: tuple[str, str], late: str) -> None:
    verdict = judge(snapshot, Subject("NIMPipeline", "p", "ns"))
    assert (str(verdict.state), verdict.reason) == now_said
    assert verdict.overdue().reason == late


def test_pipelines_whose_services_are_elsewhere() -> None:
    subject = Subject("NIMPipeline", "p", "ns")
    missing = pipeline("1", state="NotReady") | {"NIMService": [], "Deployment": []}
    assert judge(missing, subject).reason == "rollout-in-progress"
    others = pipeline("1")
    others["NIMService"][0]["metadata"]["ownerReferences"] = []
    assert judge(others, subject).overdue().reason == "service-not-owned"
    off = pipeline("1")
    off["NIMPipeline"][0]["spec"]["services"][0]["enabled"] = False
    assert judge(off, subject).overdue().reason == "update-not-propagated"
    assert judge(off | {"NIMService": []}, subject).state is State.HEALTHY
    gone = pipeline("1") | {"NIMPipeline": []}
    assert judge(gone, subject).reason == "children-terminating"
    bad = pipeline("1", state="NotReady")
    bad["Deployment"][0]["status"] = {}
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    container = {"name": "c", "image": "r/x:1", **waiting("CrashLoopBackOff"), "lastState": last, "restartCount": 2}
    bad["Pod"] = [obj("Pod", "s-x", metadata={"labels": {"app": "s"}}, spec={"containers": [{"image": "r/x:1"}]},
                      status={"containerStatuses": [container]})]  # fmt: skip
    assert told(bad, "NIMPipeline", "p")[:3] == ("failed", "crash-loop-oom", "memory")
