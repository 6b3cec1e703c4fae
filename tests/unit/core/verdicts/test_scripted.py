"""Services, pipelines and the operator in situations that no recording has."""

from __future__ import annotations

import copy

import pytest

from nim_rollouts.core.verdicts import Subject

from .scripted import (
    CACHE,
    IMAGE,
    NAME,
    PIPELINE,
    World,
    at,
    behind,
    crashed,
    layer,
    one,
    said,
    service,
    serving_pod,
    tell,
    waits,
)


class TestOperatorAway:
    """It writes nothing: neither Ready nor Failed moves, and nothing of what it shows is news."""

    def test_another_image_is_asked_for(self) -> None:
        world = at("service-image-change", 16.985)
        assert said(world, service("1.3.4")) == ("progressing", "stale-ready", "update-not-propagated")

    def test_more_replicas_are_asked_for(self) -> None:
        world = at("service-scale", 15.98)
        assert said(world, service(replicas=2)) == ("progressing", "stale-ready", "update-not-propagated")

    def test_a_pod_dies_of_memory_under_a_ready_that_nobody_takes_back(self) -> None:
        world = at("service-ready", 60)
        assert said(world, service())[:2] == ("healthy", "ready")
        behind(world)
        assert said(world, service())[:2] == ("progressing", "stale-ready")
        crashed(serving_pod(world), 2, reason="OOMKilled", code=137)
        assert said(world, service())[:2] == ("failed", "crash-loop-oom")

    @pytest.mark.parametrize("kind", ["NIMCache", "NIMService"])
    def test_nobody_removes_the_finalizer(self, kind: str) -> None:
        world = at("service-ready", 60)
        one(world, kind)["metadata"]["deletionTimestamp"] = "2026-11-23T17:00:00Z"
        subject = CACHE if kind == "NIMCache" else service()
        assert said(world, subject) == ("progressing", "deleting", "finalizer-stuck")
        going = Subject(kind, NAME, "ns", absent=True)
        assert said(world, going) == ("progressing", "deleting", "finalizer-stuck")
        assert layer(world, going) == "operator"

    @pytest.mark.parametrize("kind", ["NIMCache", "NIMService", "NIMPipeline"])
    def test_a_status_that_is_never_written(self, kind: str) -> None:
        scenario = "pipeline-ready" if kind == "NIMPipeline" else "service-ready"
        fresh = {kind: [at(scenario, 60)[kind][0]]}
        fresh[kind][0].pop("status")
        subject = {"NIMCache": CACHE, "NIMService": service(), "NIMPipeline": PIPELINE}[kind]
        state, reason, late = said(fresh, subject)
        assert (state, reason) == ("progressing", "cache-preparing" if kind == "NIMCache" else "rollout-in-progress")
        assert late == reason and layer(fresh, subject) == "operator"

    def test_a_download_that_ends_while_nobody_looks(self) -> None:
        world = at("cache-ready", 7.0)
        assert said(world, CACHE)[:2] == ("progressing", "cache-downloading")
        one(world, "Job")["status"] = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
        assert said(world, CACHE)[:2] == ("progressing", "cache-downloading"), "the claim is not named yet"


class TestImages:
    def test_a_tag_that_does_not_exist(self) -> None:
        world = at("service-image-pull-error", 9)
        pod = serving_pod(world)
        text = f'failed to pull and unpack image "{IMAGE}:1.3.3": failed to resolve reference "{IMAGE}:1.3.3": '
        world["Event"] = [
            event for event in world["Event"] if event["involvedObject"]["name"] != pod["metadata"]["name"]
        ]
        waits(pod, "ErrImagePull", text + f"{IMAGE}:1.3.3: not found")
        assert said(world, service())[:2] == ("progressing", "image-pull-not-found")
        waits(pod, "ImagePullBackOff", f"Back-off pulling image: ErrImagePull: {text}{IMAGE}:1.3.3: not found")
        assert said(world, service())[:2] == ("failed", "image-pull-not-found")
        assert layer(world, service()) == "image-pull"

    @pytest.mark.parametrize(
        ("words", "reason", "where"),
        [
            ("unexpected status from HEAD request to https://nvcr.io/v2/x: 429 Too Many Requests",
             "image-pull-rate-limited", "rate-limit"),
            ("dial tcp: lookup nvcr.io: i/o timeout", "image-pull-failing", "network"),
            ("tls: failed to verify certificate: x509: certificate signed by unknown authority",
             "image-pull-failing", "network"),
            ("net/http: TLS handshake timeout", "image-pull-failing", "network"),
            ("write /var/lib/containerd/x: no space left on device", "image-pull-failing", "image-pull"),
            ("unexpected status code 502 Bad Gateway", "image-pull-failing", "image-pull"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("where_it_is", ["selection pod", "service"])
    def test_what_may_pass_ends_nothing(self, words: str, reason: str, where: str, where_it_is: str) -> None:
        """However often it comes: a selection pod is all that shows it, the NIMCache has no status of it."""
        world = at("cache-pull-error", 60) if where_it_is == "selection pod" else at("service-image-pull-error", 60)
        subject, stage = (
            (CACHE, "cache-preparing") if where_it_is == "selection pod" else (service(), "rollout-in-progress")
        )
        pod = one(world, "Pod", f"{NAME}-pod") if subject is CACHE else serving_pod(world)
        world["Event"] = []
        tell(world, pod, "Pulling", f'Pulling image "{IMAGE}"', count=9)
        for state in ("ErrImagePull", "ImagePullBackOff"):
            waits(pod, state, f'failed to pull image "{IMAGE}:1.3.3": rpc error: code = Unknown desc = {words}')
            assert said(world, subject) == ("progressing", stage, reason)
            assert layer(world, subject) == where

    def test_a_mirror_that_admission_puts_in(self) -> None:
        """The pod's image is not the one that was asked for; its ReplicaSet's is."""
        world = at("service-image-pull-error", 60)
        pod, mirror = serving_pod(world), "mirror.example.com/nim/x:1.3.3"
        pod["spec"]["containers"][0]["image"] = mirror
        assert said(world, service())[0] == "progressing"
        template = copy.deepcopy(one(world, "Deployment")["spec"]["template"])
        one(world, "ReplicaSet")["spec"]["template"] = template
        assert said(world, service())[:2] == ("failed", "image-pull-unauthorized")


class TestStarts:
    def test_ready_with_restarts(self) -> None:
        world = at("service-ready", 60)
        crashed(serving_pod(world), 5, looping=False, reason="OOMKilled", code=137)
        serving_pod(world)["status"]["containerStatuses"][0].update({"ready": True, "started": True})
        assert said(world, service())[:2] == ("healthy", "ready")

    def test_the_progress_deadline_of_a_long_healthy_start(self) -> None:
        world = at("service-ready", 9)
        words = f'ReplicaSet "{NAME}-x" has timed out progressing.'
        late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": words}
        one(world, "Deployment")["status"]["conditions"] = [late]
        for condition in one(world, "NIMService")["status"]["conditions"]:
            condition["message"] = f'deployment "{NAME}" exceeded its progress deadline'
        assert said(world, service())[:2] == ("progressing", "rollout-in-progress")

    def test_a_startup_probe_that_fails(self) -> None:
        world = at("service-ready", 9)
        pod = serving_pod(world)
        words = 'Startup probe failed: Get "http://10.0.32.12:8000/v1/health/ready": connect: connection refused'
        tell(world, pod, "Unhealthy", words, count=40)
        assert said(world, service()) == ("progressing", "rollout-in-progress", "startup-probe-failing")
        assert layer(world, service()) == "probe-budget"
        crashed(pod, 1, reason="Error", code=137)
        assert said(world, service()) == ("progressing", "rollout-in-progress", "startup-probe-failing")

    @pytest.mark.parametrize("word", ["Unhealthy", "Killing"])
    def test_either_word_of_the_kubelet_will_do(self, word: str) -> None:
        world = at("service-ready", 9)
        pod = serving_pod(world)
        words = {
            "Unhealthy": "Startup probe failed: timeout",
            "Killing": "Container c failed startup probe, will be ...",
        }
        tell(world, pod, word, words[word])
        crashed(pod, 3, reason="Error", code=143)
        assert said(world, service())[:2] == ("stuck", "startup-probe-failing")

    def test_a_readiness_probe_that_fails_for_a_while(self) -> None:
        world = at("service-ready", 9)
        pod = serving_pod(world)
        pod["status"]["containerStatuses"][0].update({"started": True, "ready": False})
        tell(world, pod, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", count=30)
        assert said(world, service())[:2] == ("progressing", "rollout-in-progress")
        assert layer(world, service()) == "probe-budget"

    def test_memory_that_runs_out_after_long_runs_is_no_loop(self) -> None:
        """A server of last week: it ran for days, twice, and is being started again."""
        world = at("service-ready", 9)
        crashed(serving_pod(world), 2, looping=False, reason="OOMKilled", code=137, ran=("03:00:00", "17:00:00"))
        assert said(world, service())[0] == "progressing"
        crashed(serving_pod(world), 2, looping=False, reason="OOMKilled", code=137)
        assert said(world, service())[:2] == ("failed", "crash-loop-oom")

    def test_a_crash_loop_of_which_the_last_end_is_not_told(self) -> None:
        world = at("service-ready", 9)
        container = serving_pod(world)["status"]["containerStatuses"][0]
        container.update({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {}, "restartCount": 3})
        assert said(world, service())[:2] == ("failed", "crash-loop")

    def test_an_init_container_that_crashes(self) -> None:
        world = at("service-ready", 6)
        pod = serving_pod(world)
        waits(pod, "PodInitializing")
        bad = copy.deepcopy(pod["status"]["containerStatuses"][0])
        pod["status"]["initContainerStatuses"] = [{**bad, "name": "fetch"}]
        init = {"status": {"containerStatuses": pod["status"]["initContainerStatuses"]}}
        crashed(init, 1)
        assert said(world, service()) == ("progressing", "rollout-in-progress", "crash-loop")
        crashed(init, 3)
        assert said(world, service())[:2] == ("failed", "crash-loop")


class TestRevisions:
    """What a pod of the revision before meets is why it is replaced."""

    def test_more_memory_after_a_crash_loop(self) -> None:
        world = at("service-crashloop", 80)
        assert said(world, service())[:2] == ("failed", "crash-loop-oom")
        deployment, old = one(world, "Deployment"), one(world, "ReplicaSet")
        deployment["metadata"]["generation"] = 2
        assert said(world, service())[:2] == ("progressing", "rollout-in-progress"), "nobody has acted on it yet"
        deployment["status"]["observedGeneration"] = 2
        new = copy.deepcopy(old)
        new["metadata"].update({"name": f"{NAME}-2", "uid": "new"})
        new["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "2"
        world["ReplicaSet"].append(new)
        assert said(world, service())[:2] == ("progressing", "rollout-in-progress"), "the old pod is still there"
        pod = copy.deepcopy(serving_pod(world))
        pod["metadata"].update({"name": f"{NAME}-2-x", "uid": "np"})
        pod["metadata"]["ownerReferences"][0].update({"name": f"{NAME}-2", "uid": "new"})
        crashed(pod, 4, reason="OOMKilled", code=137)
        world["Pod"].append(pod)
        assert said(world, service())[:2] == ("failed", "crash-loop-oom"), "that of the new revision counts"

    def test_an_add_on_that_is_upgraded_out_of_a_crash_loop(self) -> None:
        world = at("service-crashloop", 80)
        subject = Subject("Deployment", NAME, "ns")
        crashed(serving_pod(world), 9)
        assert said(world, subject)[:2] == ("failed", "crash-loop")
        new = copy.deepcopy(one(world, "ReplicaSet"))
        new["metadata"].update({"name": f"{NAME}-2", "uid": "new"})
        new["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "10"
        one(world, "ReplicaSet")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "9"
        world["ReplicaSet"].append(new)
        assert said(world, subject)[0] == "progressing"

    def test_what_a_deleted_namesake_leaves_behind(self) -> None:
        """Deleted and applied again: its pods and its selection pod are still there for a moment."""
        world = at("service-crashloop", 80)
        for obj in world["NIMService"]:
            obj["metadata"]["uid"] = "again"
            obj.pop("status")
        assert said(world, service())[:2] == ("progressing", "rollout-in-progress")
        world["Deployment"] = []
        assert said(world, service())[:2] == ("progressing", "rollout-in-progress")
        world = at("cache-pull-error", 60)
        assert said(world, CACHE)[0] == "failed"
        one(world, "NIMCache")["metadata"]["uid"] = "again"
        assert said(world, CACHE)[:2] == ("progressing", "cache-preparing")

    def test_somebody_elses_pods_with_our_label(self) -> None:
        world, other = at("service-ready", 9), at("service-crashloop", 80)
        stranger = one(other, "ReplicaSet")
        stranger["metadata"].update({"name": "theirs", "uid": "theirs", "ownerReferences": [{"uid": "somebody"}]})
        pod = serving_pod(other)
        pod["metadata"].update({"name": "theirs-x", "uid": "px"})
        pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "theirs", "uid": "theirs"}]
        world["ReplicaSet"].append(stranger)
        world["Pod"].append(pod)
        assert said(world, service())[:2] == ("progressing", "rollout-in-progress")


class TestScale:
    def test_to_nothing(self) -> None:
        """Nothing serves: that is what was asked for, and no service that is ready."""
        world = at("service-ready", 60)
        one(world, "NIMService")["spec"]["replicas"] = 0
        deployment = one(world, "Deployment")
        assert said(world, service(replicas=0)) == ("progressing", "stale-ready", "update-not-propagated")
        deployment["spec"]["replicas"] = 0
        deployment["status"] = {"observedGeneration": deployment["metadata"]["generation"]}
        assert said(world, service(replicas=0))[:2] == ("progressing", "stale-ready")
        one(world, "NIMService")["status"]["state"] = "NotReady"
        assert said(world, service(replicas=0))[:2] == ("progressing", "rollout-in-progress")

    def scaled(self, world: World, least: int, most: int, replicas: int, there: int) -> tuple[str, str, str]:
        one(world, "NIMService")["spec"]["scale"] = {
            "enabled": True,
            "hpa": {"minReplicas": least, "maxReplicas": most},
        }
        one(world, "NIMService")["spec"].pop("replicas", None)
        deployment = one(world, "Deployment")
        deployment["spec"]["replicas"] = replicas
        counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas", "readyReplicas"), there)
        deployment["status"].update(counts)
        return said(world, service())

    def test_an_autoscaler(self) -> None:
        world = at("service-ready", 60)
        assert self.scaled(world, 1, 3, 1, 1)[:2] == ("healthy", "ready")
        assert self.scaled(world, 2, 3, 1, 1) == ("progressing", "stale-ready", "update-not-propagated")
        assert self.scaled(world, 2, 3, 2, 1)[:2] == ("progressing", "stale-ready")
        assert self.scaled(world, 2, 3, 2, 2)[:2] == ("healthy", "ready")
        assert self.scaled(world, 1, 3, 3, 3)[:2] == ("healthy", "ready")
        assert self.scaled(world, 1, 2, 3, 3)[:2] == ("healthy", "scaling-down"), "the most is two now"

    def test_one_of_two_pods_without_a_node(self) -> None:
        world = at("service-scale", 21)
        pods = [pod for pod in world["Pod"] if pod["metadata"]["labels"].get("app") == NAME]
        words = "0/8 nodes are available: 8 Insufficient nvidia.com/gpu."
        unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        pods[-1]["status"] = {"phase": "Pending", "conditions": [unplaced]}
        pods[-1]["spec"].pop("nodeName", None)
        assert said(world, service(replicas=2)) == ("progressing", "rollout-in-progress", "unschedulable-gpu")
