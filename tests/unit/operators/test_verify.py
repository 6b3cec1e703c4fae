"""verify_platform: every check is told, all failures in one error, and its probe's Job is gone in any case."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from nim_rollouts.core.errors import (
    ClusterUnavailable,
    GpuFit,
    NeedsHumanError,
    PlatformNotReady,
    QuotaTooSmall,
    SpecError,
)
from nim_rollouts.core.quota import Running
from nim_rollouts.core.verdicts.objects import name_of
from nim_rollouts.hooks import jobs
from nim_rollouts.operators import capacity, storage_probe
from nim_rollouts.operators.platform import ApplyPlatformOperator
from nim_rollouts.operators.validate import ValidateOperator
from nim_rollouts.operators.verify import VerifyPlatformOperator
from nim_rollouts.triggers.plans import plan_for
from tests.unit.core.test_pools import pool, requirement
from tests.unit.operators.conftest import World

NAMES = [
    "crds", "operators", "webhooks", "storage", "node-pools", "gpu-fit", "quota", "dry-run",
]  # fmt: skip


def verify(world: World) -> dict[str, dict[str, str]]:
    facts = VerifyPlatformOperator(task_id="verify_platform").run(world.stage("verify_platform"))
    world.session().ledger.record("verify_platform", 1, "result", facts)
    return {one["name"]: one for one in facts["checks"]}


def applied(world: World) -> dict[str, Any]:
    """Run `apply_platform`; what it says of the probe."""
    ledger = world.session().ledger
    ledger.record("terraform_outputs", 1, "result", {"outputs": {"efs_file_system_id": "fs-1"}})
    facts = ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    ledger.record("apply_platform", 1, "result", facts)
    return dict(facts["storage_probe"])


def probe(world: World) -> dict[str, Any] | None:
    return world.cluster.get("batch/v1", "Job", "nim-service", world.session().names.storage_probe)


def answered(world: World, said: str) -> None:
    """As `wait_platform` records it."""
    job = probe(world)
    assert job is not None
    facts = {"storage_probe": {"uid": job["metadata"]["uid"], "said": said}}
    world.session().ledger.record("wait_platform", 1, "result", facts)


@pytest.fixture
def ready(world: World) -> World:
    world.accepted()
    world.platform()
    return world


@pytest.fixture
def pools(ready: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """An environment with a node pool: its file, and the object in the cluster, Ready."""
    folder = tmp_path / "repo" / "include"
    linked = folder / "manifests"
    files = {path.name: path.read_text() for path in linked.glob("*.yaml")}
    linked.unlink()
    (linked / "node-pools").mkdir(parents=True)
    for name, text in files.items():
        (linked / name).write_text(text)
    one = pool()
    (linked / "node-pools" / "g5.yaml").write_text(yaml.safe_dump_all([{"kind": "EC2NodeClass"}, one]))
    monkeypatch.setattr(capacity, "pool_names", lambda environment: ["g5"])
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    ready.cluster.put({"apiVersion": "karpenter.sh/v1", **one, "status": status})
    return ready


def test_every_check_is_told(ready: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    checks = verify(ready)
    assert list(checks) == NAMES
    assert {one["outcome"] for one in checks.values()} == {"ok", "not-applicable"}
    assert [name for name in NAMES if f"{name}: {checks[name]['outcome']}: " not in caplog.text] == []


def test_all_that_fails_is_told_at_once_by_the_slug_of_the_first(ready: World) -> None:
    ready.cluster.objects.clear()
    ready.cluster.rejects = {"NIMService": "unknown field spec.x"}
    with pytest.raises(PlatformNotReady) as refused:
        verify(ready)
    assert (refused.value.reason, refused.value.layer) == ("crds-missing", "api-server")
    assert refused.value.message.startswith("3 checks failed: crds: nimcaches.apps.nvidia.com")
    assert "| storage: the cluster has no storage class efs-sc-dynamic. Name one" in refused.value.message
    assert "| dry-run: apply NIMService: unknown field spec.x" in refused.value.message


def test_a_quota_alone_waits_for_a_person(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nim_rollouts.hooks.quotas.limits", lambda environment, codes: dict.fromkeys(codes, 0.0))
    with pytest.raises(QuotaTooSmall, match="request-service-quota-increase"):
        verify(ready)
    ready.cluster.rejects = {"Job": "no"}
    with pytest.raises(NeedsHumanError, match="2 checks failed: quota: .*dry-run: ") as refused:
        verify(ready)
    assert refused.value.reason == "vcpu-quota"


def test_what_nobody_tells_is_recorded_as_unknown(
    ready: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    denied = "the worker's role lacks ec2:DescribeInstances"
    monkeypatch.setattr("nim_rollouts.hooks.quotas.running", lambda environment: denied)
    checks = verify(ready)
    assert checks["quota"]["outcome"] == "unknown" and denied in checks["quota"]["seen"]
    assert [one.levelname for one in caplog.records if one.getMessage().startswith("quota: unknown")] == ["WARNING"]
    assert ready.session().facts("verify_platform")["quotas"]["unknown"] == [denied]


def test_an_api_server_that_is_away_is_asked_again(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise ClusterUnavailable("no answer")

    monkeypatch.setattr(ready.cluster, "apply", away)
    with pytest.raises(ClusterUnavailable):
        verify(ready)
    ready.cluster.objects.pop(("StorageClass", None, "efs-sc-dynamic"))
    with pytest.raises(PlatformNotReady) as refused:
        verify(ready)
    assert refused.value.reason == "storage-class-missing", "what is wrong for good is not tried again"


def test_a_webhook_that_does_not_answer_the_dry_run_is_final(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ClusterUnavailable('apply NIMCache: 500: failed calling webhook "v.nvidia.com": connection refused')

    monkeypatch.setattr(ready.cluster, "apply", broken)
    with pytest.raises(PlatformNotReady, match="failed calling webhook") as refused:
        verify(ready)
    assert refused.value.reason == "webhook-unavailable"


# --- the storage probe -----------------------------------------------------------------------------------------------


def test_the_probe_is_the_deployments_own_pod_in_small(ready: World) -> None:
    assert applied(ready)["image"] == "public.ecr.aws/docker/library/busybox:1.37"
    job = probe(ready)
    assert job is not None
    pod = job["spec"]["template"]["spec"]
    who = {field: pod["securityContext"][field] for field in ("runAsUser", "runAsGroup", "fsGroup")}
    assert who == {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 2000}
    claim = pod["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["accessModes"]) == ("efs-sc-dynamic", ["ReadWriteMany"])
    assert "nvidia.com/gpu" not in str(pod), "it starts no GPU"
    assert "Job/" + name_of(job) in [subject.ref for subject in plan_for("wait_platform", ready.session()).subjects]


@pytest.mark.parametrize("said", ["written and read by 1000:2000", "write refused: Permission denied", ""])
def test_the_probe_is_removed_whatever_it_has_found(ready: World, said: str) -> None:
    applied(ready)
    answered(ready, said)
    if said.startswith("written"):
        assert verify(ready)["storage"]["outcome"] == "ok"
    else:
        with pytest.raises(PlatformNotReady):
            verify(ready)
    assert probe(ready) is None


def test_the_probe_is_removed_when_a_check_breaks(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    applied(ready)

    def broken(*_: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr("nim_rollouts.core.checks.webhooks", broken)
    with pytest.raises(RuntimeError):
        verify(ready)
    assert probe(ready) is None


def test_an_answer_counts_for_the_job_that_gave_it(ready: World) -> None:
    applied(ready)
    answered(ready, "written and read by 1000:2000")
    assert [one.kind for one in plan_for("wait_platform", ready.session()).subjects] == ["CustomResourceDefinition"]
    storage_probe.remove(ready.stage("verify_platform"))
    applied(ready)
    assert "Job" in [one.kind for one in plan_for("wait_platform", ready.session()).subjects]
    with pytest.raises(PlatformNotReady, match="left no word"):
        verify(ready)


@pytest.mark.parametrize("condition", ["Failed", "Complete"])
def test_a_probe_that_has_ended_makes_room(ready: World, condition: str) -> None:
    first = applied(ready)
    job = probe(ready)
    assert job is not None
    ready.cluster.put({**job, "status": {"conditions": [{"type": condition, "status": "True"}]}})
    assert applied(ready)["uid"] != first["uid"]


def test_a_wait_that_gives_up_leaves_no_probe(ready: World) -> None:
    applied(ready)
    session, said = ready.session(), []
    assert jobs.stop("wait_platform", session, said.append) is True
    assert probe(ready) is None and "-probe-" in said[0]
    assert jobs.stop("wait_platform", session, said.append) is False


# --- node pools, fit -------------------------------------------------------------------------------------------------


def test_the_pools_of_the_cluster_are_checked(pools: World) -> None:
    checks = verify(pools)
    assert checks["node-pools"] == {"name": "node-pools", "outcome": "ok", "seen": "g5-gpu-karpenter are Ready"}
    assert checks["gpu-fit"]["seen"].startswith(
        "service on g5-gpu-karpenter: g5.12xlarge, g5.24xlarge, g5.48xlarge; cache on g5-gpu-karpenter: g5.xlarge"
    )
    assert "g5.12xlarge on-demand (48 vCPUs) for service" in checks["quota"]["seen"]


def test_a_pool_of_families_that_are_not_known_is_neither_yes_nor_no(
    pools: World, caplog: pytest.LogCaptureFixture
) -> None:
    from nim_rollouts.operators import validate

    strange = pool("g5-gpu-karpenter", requirement("karpenter.k8s.aws/instance-family", "In", "g7e"))
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    pools.cluster.put({"apiVersion": "karpenter.sh/v1", **strange, "status": status})
    checks = verify(pools)
    said = "service: g5-gpu-karpenter may start g7e, of which nothing is known here"
    assert checks["gpu-fit"]["outcome"] == "unknown" and said in checks["gpu-fit"]["seen"]
    assert checks["quota"]["outcome"] == "unknown"
    pools.include.path("manifests/node-pools/g5.yaml").write_text(yaml.safe_dump(strange))
    caplog.clear()
    session = pools.session()
    facts = validate._capacity(session, session.deployment)
    assert facts["node_pools"] == {"service": [], "cache": []}
    assert said in [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


def test_an_instance_type_that_is_not_known_is_taken_to_fit(ready: World, caplog: pytest.LogCaptureFixture) -> None:
    from nim_rollouts.operators import validate

    file = ready.include.path("environments/test.yaml")
    file.write_text(file.read_text().replace("[g5.12xlarge]", "[g5.xlarge, g7e.12xlarge]"))
    session = ready.session()
    assert validate._gpu_fit(session, session.deployment) == ["g7e.12xlarge"]
    assert "nothing is known here of g7e.12xlarge" in caplog.text
    assert validate._capacity(session, session.deployment)["quotas"]["outcome"] == "unknown"


@pytest.mark.parametrize(("whose", "refused"), [("meta-llama3-8b-instruct", False), ("other", True)])
def test_a_node_with_another_deployments_pods_is_not_free(
    pools: World, monkeypatch: pytest.MonkeyPatch, whose: str, refused: bool
) -> None:
    """Quota for one node, which runs: enough for the one whose node it is."""
    running = [Running("g5.12xlarge", "on-demand", 48, ours=True, id="i-1")]
    monkeypatch.setattr("nim_rollouts.hooks.quotas.running", lambda environment: running)
    monkeypatch.setattr(
        "nim_rollouts.hooks.quotas.limits",
        lambda environment, codes: {code: 48.0 if code == "L-DB2E81BA" else 0.0 for code in codes},
    )
    node = {"name": "n", "labels": {"karpenter.sh/nodepool": "g5-gpu-karpenter"}}
    pools.cluster.put({"kind": "Node", "metadata": node, "spec": {"providerID": "aws:///us-west-2a/i-1"}})
    pod = {"name": f"{whose}-0a1b2c3d-5f-x", "namespace": "nim-service"}
    pools.cluster.put({"kind": "Pod", "metadata": pod, "spec": {"nodeName": "n"}})
    if not refused:
        assert verify(pools)["quota"]["outcome"] == "ok"
        return
    with pytest.raises(QuotaTooSmall, match="is 48, 48 in use"):
        verify(pools)


def test_a_pool_that_is_not_there_is_told_twice_in_one_error(pools: World) -> None:
    pools.cluster.objects.pop(("NodePool", None, "g5-gpu-karpenter"))
    with pytest.raises(PlatformNotReady) as refused:
        verify(pools)
    assert refused.value.reason == "node-pool-not-ready"
    assert "NodePool/g5-gpu-karpenter does not exist" in refused.value.message
    assert "gpu-fit: no node pool can start a node for service" in refused.value.message


def test_validation_refuses_what_fits_into_no_pool(
    pools: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is made, from the files."""
    from nim_rollouts.operators import validate

    session = pools.session()
    facts = validate._capacity(session, session.deployment)
    assert facts["node_pools"]["service"] == ["g5-gpu-karpenter: g5.12xlarge, g5.24xlarge, g5.48xlarge"]
    assert facts["quotas"]["outcome"] == "ok"
    file = pools.include.path("manifests/node-pools/g5.yaml")
    file.write_text(yaml.safe_dump(pool("g6-gpu-karpenter")))
    with pytest.raises(GpuFit, match="g6-gpu-karpenter: its nodes have instanceType=g6-gpu-karpenter"):
        validate._capacity(session, session.deployment)
    file.write_text("kind: EC2NodeClass\n")
    with pytest.raises(SpecError, match="holds no NodePool"):
        validate._capacity(session, session.deployment)
    file.unlink()
    with pytest.raises(SpecError, match="no file include/manifests/node-pools/g5.yaml"):
        validate._capacity(session, session.deployment)


def test_validation_refuses_a_quota_that_is_too_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = ValidateOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.image_tag, operator.strategy, operator.skip_benchmark = "", "replace", "False"
    monkeypatch.setattr("nim_rollouts.clients.include.Include", lambda: world.include)
    for place, value in (("validate._ngc", {}), ("validate._benchmark_image", {}), ("validate.check_tools", {})):
        monkeypatch.setattr(f"nim_rollouts.operators.{place}", lambda *_, value=value: value)
    monkeypatch.setattr("nim_rollouts.hooks.quotas.limits", lambda environment, codes: dict.fromkeys(codes, 8.0))
    with pytest.raises(QuotaTooSmall, match=r"\(L-DB2E81BA\) is 8, 0 in use"):
        operator.execute(world.context("validate"))
    assert [key for key in world.session().store.list("") if key.startswith("claims/")] == []
