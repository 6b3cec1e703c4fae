"""Caches, volumes, quotas and nodes in situations that no recording has."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from .scripted import CACHE, NAME, World, at, judge, layer, one, said, service, serving_pod, tell, waits

CLAIM = f"{NAME}-pvc"


def job_state(world: World, **status: Any) -> None:
    one(world, "Job")["status"] = status


def condition(type_: str, **more: str) -> dict[str, str]:
    return {"type": type_, "status": "True", **more}


EXHAUSTED = condition("Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit")


class TestJobs:
    def test_one_that_was_collected_and_made_again(self) -> None:
        world = at("cache-job-exhausted", 400)
        assert said(world, CACHE)[:2] == ("failed", "job-exhausted")
        old = one(world, "Job")
        old["metadata"]["deletionTimestamp"] = "2026-11-23T17:00:00Z"
        assert said(world, CACHE)[0] == "progressing", "it is being deleted: another comes"
        world["Job"], world["Pod"] = [], []
        assert said(world, CACHE)[:2] == ("progressing", "cache-preparing")
        new = copy.deepcopy(old)
        new["metadata"].pop("deletionTimestamp")
        new["metadata"]["uid"] = "again"
        new["status"] = {"active": 1, "ready": 0}
        world["Job"] = [new]
        assert said(world, CACHE)[:2] == ("progressing", "cache-downloading")
        new["status"] = {"active": 1, "failed": 1}
        assert said(world, CACHE)[:2] == ("progressing", "job-retrying")

    def test_a_download_that_runs_out_of_memory(self) -> None:
        world = at("cache-job-exhausted", 30)
        for pod in world["Pod"]:
            for container in pod["status"].get("containerStatuses") or ():
                container["state"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
        assert said(world, CACHE)[:2] == ("progressing", "job-retrying")
        assert layer(world, CACHE) == "memory"
        job_state(world, failed=6, conditions=[EXHAUSTED])
        assert said(world, CACHE)[:2] == ("failed", "job-exhausted")
        assert layer(world, CACHE) == "memory"

    def test_a_job_that_has_failed_of_late_and_not_yet_ended(self) -> None:
        world = at("cache-job-exhausted", 30)
        target = condition("FailureTarget", reason="BackoffLimitExceeded")
        job_state(world, failed=6, conditions=[target])
        assert said(world, CACHE)[:2] == ("progressing", "job-retrying")

    def test_a_blip_of_the_operator(self) -> None:
        world = at("cache-ready", 3)
        blip = condition("NIM_CACHE_RECONCILE_FAILED", reason="ReconcileFailed",
                         message="Operation cannot be fulfilled: the object has been modified")  # fmt: skip
        one(world, "NIMCache")["status"] = {"state": "NotReady", "conditions": [blip]}
        state, reason, late = said(world, CACHE)
        assert (state, reason) == ("progressing", "cache-downloading")
        assert late == "reconcile-failed"

    @pytest.mark.parametrize("state", ["Failed", "Pending", "InProgress", "NotReady", "Started", ""])
    def test_a_filled_cache_whose_state_toggles(self, state: str) -> None:
        world = at("cache-retry-then-ready", 25)
        one(world, "NIMCache")["status"]["state"] = state
        assert said(world, CACHE)[:2] == ("healthy", "cache-status-flapping")

    def test_a_filled_cache_that_is_filled_again(self) -> None:
        """Its Job has gone and another runs: what is on the claim is being looked at anew."""
        world = at("cache-ready", 60)
        one(world, "NIMCache")["status"]["state"] = "InProgress"
        job_state(world, active=1)
        assert said(world, CACHE)[:2] == ("progressing", "cache-downloading")


class TestSources:
    @pytest.mark.parametrize("source", ["hf", "dataStore", "ngc"])
    def test_a_source_of_which_no_profiles_are_told(self, source: str) -> None:
        """Hugging Face, NeMo Data Store, `all` profiles and endpoints fill a claim and name none."""
        world = at("cache-ready", 60)
        cache = one(world, "NIMCache")
        details = {"modelEndpoint": "meta/x"} if source == "ngc" else {"endpoint": "https://x/v1/hf", "modelName": "m"}
        cache["spec"]["source"] = {source: details}
        cache["status"].pop("profiles")
        assert said(world, CACHE)[:2] == ("healthy", "ready")

    def test_several_profiles(self) -> None:
        world = at("cache-ready", 60)
        status = one(world, "NIMCache")["status"]
        other = copy.deepcopy(status["profiles"][0])
        other["config"].update({"precision": "bf16", "tp": "4"})
        status["profiles"].insert(0, other)
        assert said(world, CACHE)[:2] == ("healthy", "ready")

    @pytest.mark.parametrize("change", [{"precision": "fp8"}, {"tensorParallelism": "4"}, {"qosProfile": "latency"}])
    def test_a_spec_that_moves_after_the_filling(self, change: dict[str, str]) -> None:
        """The generation moves, nothing is downloaded, and the state stays Ready."""
        world = at("cache-ready", 60)
        one(world, "NIMCache")["spec"]["source"]["ngc"]["model"].update(change)
        assert said(world, CACHE) == ("progressing", "stale-ready", "update-not-propagated")

    def test_profiles_that_are_chosen_by_name(self) -> None:
        world = at("cache-ready", 60)
        one(world, "NIMCache")["spec"]["source"]["ngc"]["model"] = {"profiles": ["all"], "precision": "fp8"}
        assert said(world, CACHE)[:2] == ("healthy", "ready")

    def test_a_claim_that_was_there_before(self) -> None:
        world = at("cache-ready", 60)
        cache, claim = one(world, "NIMCache"), one(world, "PersistentVolumeClaim")
        cache["spec"]["storage"]["pvc"] = {"name": "models"}
        cache["status"]["pvc"] = claim["metadata"]["name"] = "models"
        claim["metadata"].pop("ownerReferences")
        assert said(world, CACHE)[:2] == ("healthy", "ready")
        claim["metadata"]["deletionTimestamp"] = "2026-11-23T17:00:00Z"
        assert said(world, CACHE)[:2] == ("progressing", "volume-terminating")


class TestSelection:
    def test_no_node_for_it(self) -> None:
        world = at("cache-pull-error", 0.2)
        words = "0/8 nodes are available: 8 Insufficient nvidia.com/gpu."
        unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        one(world, "Pod")["status"] = {"phase": "Pending", "conditions": [unplaced]}
        assert said(world, CACHE) == ("progressing", "cache-preparing", "unschedulable-gpu")
        assert layer(world, CACHE) == "capacity"
        unplaced.update({"reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty gates"})
        assert said(world, CACHE) == ("progressing", "cache-preparing", "unschedulable")

    def test_a_secret_that_is_missing(self) -> None:
        world = at("cache-pull-error", 60)
        waits(one(world, "Pod"), "CreateContainerConfigError", 'secret "ngc-api-secret" not found')
        assert said(world, CACHE) == ("progressing", "cache-preparing", "container-config")
        assert layer(world, CACHE) == "ngc-auth"

    def test_one_that_has_ended_holds_the_cache_up_for_ever(self) -> None:
        world = at("cache-pull-error", 60)
        one(world, "Pod")["status"] = {"phase": "Succeeded"}
        assert said(world, CACHE) == ("progressing", "cache-preparing", "selection-pod-ended")
        one(world, "Pod")["metadata"]["deletionTimestamp"] = "2026-11-23T17:00:00Z"
        assert said(world, CACHE) == ("progressing", "cache-preparing", "cache-preparing")


class TestVolumes:
    def test_a_claim_whose_volume_is_lost(self) -> None:
        world = at("cache-ready", 60)
        one(world, "PersistentVolumeClaim")["status"]["phase"] = "Lost"
        assert said(world, CACHE)[:2] == ("failed", "volume-lost")
        assert layer(world, CACHE) == "volume"

    def test_a_claim_that_somebody_has_deleted(self) -> None:
        world = at("service-ready", 60)
        claim = one(world, "PersistentVolumeClaim")
        claim["metadata"]["deletionTimestamp"] = "2026-11-23T17:00:00Z"
        assert said(world, CACHE) == ("progressing", "volume-terminating", "volume-terminating")
        assert "still mounted by" in judge(world, CACHE).overdue().message
        world["PersistentVolumeClaim"] = []
        assert said(world, CACHE) == ("progressing", "cache-preparing", "volume-lost")
        del world["PersistentVolumeClaim"]
        assert said(world, CACHE)[:2] == ("healthy", "ready"), "claims are not looked at: nothing is known of them"

    def test_pods_that_have_ended_hold_no_claim(self) -> None:
        """Deleted and made again at once, and the finished download of the cache before is still there."""
        world = at("cache-recreate-while-mounted", 15.0)
        world["Pod"] = [{**pod, "status": {"phase": "Succeeded"}} for pod in world["Pod"]]
        assert said(world, CACHE)[:2] == ("progressing", "volume-terminating")
        assert "still mounted" not in judge(world, CACHE).message

    def test_a_claim_that_is_bound_after_all(self) -> None:
        world = at("cache-pvc-pending", 60)
        assert said(world, CACHE) == ("progressing", "cache-preparing", "volume-unbound")
        one(world, "PersistentVolumeClaim")["status"]["phase"] = "Bound"
        assert said(world, CACHE)[:2] == ("progressing", "cache-downloading")

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            ("0/8 nodes are available: pod has unbound immediate PersistentVolumeClaims.", "volume-unbound"),
            ("0/8 nodes are available: 8 node(s) didn't find available persistent volumes to bind.", "volume-unbound"),
            ('0/8 nodes are available: persistentvolumeclaim "x" is being deleted.', "volume-terminating"),
            ("0/8 nodes are available: 8 node(s) had volume node affinity conflict.", "unschedulable"),
        ],
    )
    def test_pods_that_their_volumes_keep_from_nodes(self, words: str, reason: str) -> None:
        world = at("service-unschedulable", 60)
        serving_pod(world)["status"]["conditions"][0]["message"] = words
        assert said(world, service()) == ("progressing", "rollout-in-progress", reason)

    def test_a_mount_that_fails_and_then_succeeds(self) -> None:
        world = at("service-ready", 6)
        pod = serving_pod(world)
        world["Event"] = []
        multi = 'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node'
        tell(world, pod, "FailedAttachVolume", multi, at="17:00:05")
        assert said(world, service()) == ("progressing", "rollout-in-progress", "volume-mount-failing")
        assert layer(world, service()) == "volume"
        tell(world, pod, "Pulling", "Pulling image", at="17:00:05", type="Normal")
        assert said(world, service())[2] == "rollout-in-progress"
        assert layer(world, service()) == "image-pull", "the pull takes long, the mount is history"

    def test_volumes_of_secrets_and_networks_of_pods(self) -> None:
        world = at("service-ready", 6)
        pod = serving_pod(world)
        world["Event"] = []
        tell(world, pod, "FailedMount", 'MountVolume.SetUp failed for volume "ca" : configmap "ca" not found')
        assert said(world, service())[2] == "container-config"
        tell(world, pod, "FailedCreatePodSandBox", "plugin type=\"aws-cni\" failed (add): failed to assign an IP "
             "address to container", at="18:00:01")  # fmt: skip
        assert said(world, service()) == ("progressing", "rollout-in-progress", "pod-network-failing")
        assert layer(world, service()) == "network"


class TestAdmission:
    QUOTA = 'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=2, used: 8, limited: 8'
    TERMINATING = 'pods "x" is forbidden: unable to create new content in namespace ns because it is being terminated'
    WEBHOOK = 'admission webhook "policy.example.com" denied the request: images must be signed'

    @pytest.mark.parametrize(
        ("words", "reason"), [(QUOTA, "quota-exceeded"), (TERMINATING, "pods-refused"), (WEBHOOK, "pods-refused")]
    )
    def test_pods_that_are_refused(self, words: str, reason: str) -> None:
        world = at("service-ready", 9)
        maker = one(world, "ReplicaSet")
        maker["status"] = {"replicas": 0, "observedGeneration": 1}
        world["Pod"] = [pod for pod in world["Pod"] if pod is not serving_pod(world)]
        tell(world, maker, "FailedCreate", "Error creating: something else", at="17:00:00")
        tell(world, maker, "FailedCreate", f"Error creating: {words}", at="17:30:00")
        world["Event"].reverse()
        assert said(world, service()) == ("progressing", "rollout-in-progress", reason)
        world = at("cache-ready", 2)
        world["Pod"] = []
        job_state(world)
        tell(world, one(world, "Job"), "FailedCreate", f"Error creating: {words}")
        assert said(world, CACHE) == ("progressing", "cache-downloading", reason)

    def test_a_quota_that_had_been_full(self) -> None:
        """The event stays for an hour; the pods are there."""
        world = at("service-ready", 6)
        tell(world, one(world, "ReplicaSet"), "FailedCreate", f"Error creating: {self.QUOTA}")
        assert said(world, service())[2] == "rollout-in-progress"
        world = at("cache-ready", 5)
        tell(world, one(world, "Job"), "FailedCreate", f"Error creating: {self.QUOTA}")
        assert said(world, CACHE)[2] == "cache-downloading"

    def test_the_operators_own_objects_are_refused(self) -> None:
        world = at("service-ready", 5.45)
        why = condition("Failed", reason="Failed", message=f'Service "x": {self.WEBHOOK}')
        one(world, "NIMService")["status"] = {"state": "Failed", "conditions": [why]}
        world["Deployment"], world["ReplicaSet"], world["Pod"] = [], [], []
        assert said(world, service()) == ("progressing", "rollout-in-progress", "reconcile-failed")


class TestNodes:
    def test_an_evicted_pod_and_the_one_that_takes_its_place(self) -> None:
        world = at("service-ready", 60)
        deployment, pod = one(world, "Deployment"), serving_pod(world)
        deployment["status"].update({"availableReplicas": 0, "readyReplicas": 0})
        one(world, "NIMService")["status"]["state"] = "NotReady"
        new = copy.deepcopy(pod)
        words = "0/8 nodes are available: 8 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }."
        unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        new["metadata"].update({"name": "new", "uid": "new"})
        new["status"] = {"phase": "Pending", "conditions": [unplaced]}
        pod["status"].update(
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory"}
        )
        world["Pod"].append(new)
        assert said(world, service()) == ("progressing", "rollout-in-progress", "unschedulable")
        assert layer(world, service()) == "scheduling"

    def test_a_pod_on_a_node_that_is_gone(self) -> None:
        """It is being deleted for ever, and what it met last is nothing that the next one meets."""
        world = at("service-image-pull-error", 60)
        serving_pod(world)["metadata"]["deletionTimestamp"] = "2026-11-23T17:00:00Z"
        assert said(world, service()) == ("progressing", "rollout-in-progress", "rollout-in-progress")
