"""Pipelines in situations that no recording has."""

from __future__ import annotations

from typing import Any

import pytest

from nim_rollouts.core.verdicts import Subject

from .scripted import NAME, PIPELINE, at, judge, layer, one, said, serving_pod, waits


class TestPipelines:
    def test_one_of_two_services_cannot_come(self) -> None:
        world = at("pipeline-ready", 9)
        pod = serving_pod(world)
        waits(pod, "ImagePullBackOff", "unexpected status from GET request to https://nvcr.io/x: 401 Unauthorized")
        state, reason, _ = said(world, PIPELINE)
        assert (state, reason) == ("failed", "image-pull-unauthorized")
        assert NAME in judge(world, PIPELINE).message
        waits(pod, "ErrImagePull", "unexpected status from GET request to https://nvcr.io/x: 401 Unauthorized")
        assert said(world, PIPELINE)[:2] == ("progressing", "image-pull-unauthorized")

    def test_one_of_two_services_fits_nowhere(self) -> None:
        world = at("pipeline-ready", 9)
        words = "0/8 nodes are available: 8 Insufficient nvidia.com/gpu."
        unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        serving_pod(world)["status"] = {"phase": "Pending", "conditions": [unplaced]}
        assert said(world, PIPELINE) == ("progressing", "rollout-in-progress", "unschedulable-gpu")
        assert layer(world, PIPELINE) == "capacity"

    def test_a_service_that_is_switched_off(self) -> None:
        world = at("pipeline-ready", 60)
        pipeline = one(world, "NIMPipeline")
        off = next(one for one in pipeline["spec"]["services"] if one["name"] == NAME)
        off["enabled"] = False
        assert said(world, PIPELINE) == ("progressing", "stale-ready", "update-not-propagated")
        one(world, "NIMService", NAME)["metadata"]["deletionTimestamp"] = "2026-11-23T17:00:00Z"
        assert said(world, PIPELINE)[:2] == ("healthy", "ready")
        world["NIMService"] = [one for one in world["NIMService"] if one["metadata"]["name"] != NAME]
        assert said(world, PIPELINE)[:2] == ("healthy", "ready")

    def test_what_the_operator_drops_is_no_difference(self) -> None:
        """It writes a service's spec anew from Go's structs: false, zero and empty maps are left out."""
        world = at("pipeline-ready", 60)
        spec = one(world, "NIMPipeline")["spec"]["services"][0]["spec"]
        spec.update({"metrics": {"enabled": False}, "scale": {"enabled": False, "annotations": {}}})
        assert said(world, PIPELINE)[:2] == ("healthy", "ready")
        spec["schedulerName"] = ""
        assert said(world, PIPELINE)[:2] == ("healthy", "ready")

    @pytest.mark.parametrize(
        "change", [{"schedulerName": "other"}, {"annotations": {"a": "b"}}, {"proxy": {"httpProxy": "x"}}]
    )
    def test_what_is_added_to_the_pipeline_alone(self, change: dict[str, Any]) -> None:
        world = at("pipeline-ready", 60)
        one(world, "NIMPipeline")["spec"]["services"][0]["spec"].update(change)
        assert said(world, PIPELINE) == ("progressing", "stale-ready", "update-not-propagated")

    def test_none_is_asked_for(self) -> None:
        world = at("pipeline-ready", 60)
        pipeline = one(world, "NIMPipeline")
        pipeline["spec"]["services"] = []
        pipeline["status"] = {"state": "Ready"}
        world["NIMService"] = []
        assert said(world, PIPELINE)[:2] == ("healthy", "ready")

    def test_a_service_of_that_name_is_somebody_elses(self) -> None:
        world = at("pipeline-ready", 60)
        one(world, "NIMService", NAME)["metadata"]["ownerReferences"] = []
        assert said(world, PIPELINE)[2] == "service-not-owned"

    def test_a_cache_that_is_not_there(self) -> None:
        world = at("service-cache-missing", 5)
        missing = one(world, "NIMService")
        world = at("pipeline-ready", 60)
        one(world, "NIMPipeline")["status"]["state"] = "Failed"
        mine = one(world, "NIMService", NAME)
        mine["status"] = missing["status"]
        for kind in ("Deployment", "ReplicaSet", "Pod"):
            world[kind] = [obj for obj in world[kind] if not obj["metadata"]["name"].startswith(NAME)]
        assert said(world, PIPELINE) == ("progressing", "rollout-in-progress", "cache-missing")

    def test_gone_with_all_it_had(self) -> None:
        world = at("pipeline-ready", 60)
        world["NIMPipeline"] = []
        going = Subject("NIMPipeline", "rag", "ns", absent=True)
        assert said(world, going)[:2] == ("gone", "children-terminating")
