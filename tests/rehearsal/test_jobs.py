"""Stopping and waking a run's Jobs, with the genuine Job controller and an operator that makes what is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.resources import Ref
from nim_rollouts.core.manifests import ROLLOUT
from nim_rollouts.core.names import Names
from nim_rollouts.core.verdicts.objects import is_deleting, is_true
from nim_rollouts.hooks import jobs
from nim_rollouts.operators.model import ApplyServiceOperator
from tests.rehearsal.plane import admin
from tests.rehearsal.replay.plane import running

NAMES = Names("default", "c", "s", "d", "d-bench", "d-bench")
CACHE = {
    "apiVersion": jobs.NIM_API,
    "kind": "NIMCache",
    "metadata": {"name": NAMES.cache, "namespace": NAMES.namespace},
    "spec": {
        "source": {
            "ngc": {"modelPuller": "example.com/nim:1", "authSecret": "key", "model": {"profiles": ["one"]}},
        },
        "storage": {"pvc": {"create": True, "size": "1Gi", "volumeAccessMode": "ReadWriteMany"}},
    },
}
# What the selection pod would have printed: with it the operator goes on without that pod.
MANIFEST = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": f"{NAMES.cache}-manifest", "namespace": NAMES.namespace},
    "data": {"model_manifest.yaml": "one: {model: m, release: '1', tags: {}}"},
}
BENCHMARK = {
    "apiVersion": jobs.JOB_API,
    "kind": "Job",
    "metadata": {"name": NAMES.benchmark_job, "namespace": NAMES.namespace, "annotations": {ROLLOUT: "rollout-1"}},
    "spec": {
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "one", "image": "example.com/one"}]}}
    },
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("jobs")) as plane:
        plane.start_operator()
        yield Cluster(admin(plane.r))


@pytest.fixture
def session(cluster: Cluster) -> Any:
    ledger = SimpleNamespace(read=lambda stage, kind: None)
    return SimpleNamespace(
        names=NAMES, cluster=cluster, ledger=ledger, rollout="rollout-1", check_deployment_claim=lambda: None
    )


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def test_a_download_is_put_to_rest_resumed_and_made_anew(cluster: Cluster, session: Any) -> None:
    said: list[str] = []
    cluster.apply(MANIFEST)
    cluster.apply(CACHE)

    def job() -> dict[str, Any]:
        return cluster.get(jobs.JOB_API, "Job", NAMES.namespace, NAMES.cache_job) or {}

    def pods() -> list[dict[str, Any]]:
        found = cluster.list("v1", "Pod", NAMES.namespace, label_selector=f"job-name={NAMES.cache_job}")
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    first = until(lambda: job().get("status", {}).get("active") and job())
    assert len(until(pods)) == 1

    assert jobs.stop("wait_cache", session, said.append)
    until(lambda: is_true(job(), "Suspended") and not pods())
    assert job()["metadata"]["uid"] == first["metadata"]["uid"], "the operator lets it rest"
    assert not jobs.stop("wait_cache", session, said.append)

    assert jobs.wake_download(session, said.append) == "resumed"
    assert len(until(pods)) == 1
    assert jobs.STOPPED_BY not in (job()["metadata"].get("annotations") or {})

    until(lambda: cluster.patch(job(), {"spec": {"activeDeadlineSeconds": 1}}))  # its status may move meanwhile
    until(lambda: is_true(job(), "Failed"))
    assert jobs.stop("wait_cache", session, said.append)
    assert "ttlSecondsAfterFinished" not in job()["spec"], "cleaned up it would be made again, and again"
    assert jobs.wake_download(session, said.append) == "made anew"
    until(lambda: job().get("metadata", {}).get("uid") not in (None, first["metadata"]["uid"]) and pods())
    assert len(said) == 4, said


@pytest.mark.slow
def test_a_filled_cache_that_flaps_is_settled(cluster: Cluster, session: Any) -> None:
    """Follows the test above: its download fails once, then succeeds, and the operator swings to and fro."""

    def cache() -> dict[str, Any]:
        return cluster.get(jobs.NIM_API, "NIMCache", NAMES.namespace, NAMES.cache) or {}

    def end(pod: dict[str, Any], phase: str) -> None:
        path = Ref.of(pod).path + "/status"
        cluster.rest.json("PATCH", path, body={"status": {"phase": phase}}, content_type="application/merge-patch+json")

    def open_pods() -> list[dict[str, Any]]:
        found = cluster.list("v1", "Pod", NAMES.namespace, label_selector=f"job-name={NAMES.cache_job}")
        return [pod for pod in found if pod["status"]["phase"] == "Pending" and not is_deleting(pod)]

    end(until(open_pods)[0], "Failed")
    end(until(open_pods, 40)[0], "Succeeded")
    until(lambda: cache().get("status", {}).get("pvc"))
    claim = cluster.get("v1", "PersistentVolumeClaim", NAMES.namespace, cache()["status"]["pvc"])
    assert claim is not None and cluster.patch(claim, {"metadata": {"annotations": {"test": "1"}}})
    until(lambda: cache()["status"]["state"] == "Failed")

    stage = SimpleNamespace(session=session, log=logging.getLogger("test"), check_claims=lambda: None)
    ApplyServiceOperator._settle_cache(stage)  # type: ignore[arg-type]
    assert cache()["status"]["state"] == "Ready"
    assert cluster.get(jobs.JOB_API, "Job", NAMES.namespace, NAMES.cache_job) is None
    time.sleep(1)  # nothing may happen any more
    assert cache()["status"]["state"] == "Ready"
    assert cluster.get(jobs.JOB_API, "Job", NAMES.namespace, NAMES.cache_job) is None


def test_a_benchmark_goes_with_its_pod(cluster: Cluster, session: Any) -> None:
    cluster.apply(BENCHMARK)
    selector = f"job-name={NAMES.benchmark_job}"
    until(lambda: cluster.list("v1", "Pod", NAMES.namespace, label_selector=selector))
    assert jobs.stop("wait_benchmark", session, lambda text: None)
    until(lambda: not cluster.list("v1", "Pod", NAMES.namespace, label_selector=selector))
    assert cluster.get(jobs.JOB_API, "Job", NAMES.namespace, NAMES.benchmark_job) is None


def test_what_has_moved_on_is_not_patched(cluster: Cluster) -> None:
    made = cluster.apply({**MANIFEST, "metadata": {**MANIFEST["metadata"], "name": "moving"}}).obj
    assert cluster.patch(made, {"data": {"a": "1"}}) is not None
    assert cluster.patch(made, {"data": {"a": "2"}}) is None, "seen before it was changed"
    cluster.delete(made)
    assert cluster.patch(made, {"data": {"a": "3"}}) is None
