"""The platform's verification on a real control plane, with its storage probe run as a pod: bound, written, read;
refused; never bound; a webhook with nobody behind it; and nothing left, whatever it came to.

Without Airflow: the tasks' own code in a run whose ledger is a folder.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.include import Include
from nim_rollouts.core.errors import ClusterUnavailable, NimRolloutsError, PlatformNotReady, WaitStuck
from nim_rollouts.hooks import jobs
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators import storage_probe
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.platform import ApplyPlatformOperator
from nim_rollouts.operators.verify import VerifyPlatformOperator
from nim_rollouts.operators.waits import WaitPlatformOperator
from nim_rollouts.triggers.plans import plan_for
from nim_rollouts.triggers.watching import Outcome, wait_in_worker, watch_until
from rehearsal import faults
from rehearsal.karpenter import local
from tests.rehearsal.plane import Plane, admin, standing
from tests.unit.operators.conftest import ROOT, World

pytestmark = pytest.mark.slow

PARTS = {
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "cluster-setup", "kwok",
    "aws", "nodes", "karpenter", "storage", "runner",
}  # fmt: skip
TIMING = {"node_start": 0.3, "node_empty": 60.0, "volume_provision": 0.1, "volume_retry_max": 1.0, "image_pull": 0.1}
ENVIRONMENT = """
apiVersion: nim-rollouts/v1
kind: Environment
name: test
region: us-west-2
cluster: {name: test-cluster}
store: {kind: folder, path: STORE}
terraform: {root: terraform/eks, state: {bucket: tf-state, key: test/terraform.tfstate}}
instance_types: [g5.12xlarge]
addons:
  - name: nim-operator
    namespace: nim-operator
    chart: charts/operator
    requires: {crds: [nimcaches.apps.nvidia.com, nimservices.apps.nvidia.com], deployments: [operator]}
node_pools: [g5-gpu-karpenter, x86-cpu-karpenter]
storage_class: efs-sc-dynamic
budgets: {delete_s: 20, operator_s: 20, bind_s: 3}
"""
OPERATOR = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: operator, namespace: nim-operator}
spec:
  selector: {matchLabels: {app: operator}}
  template:
    metadata: {labels: {app: operator}}
    spec: {containers: [{name: manager, image: example.com/operator}]}
"""
WEBHOOK = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: left-behind}
webhooks:
  - name: vnimcache.example.com
    admissionReviewVersions: [v1]
    sideEffects: None
    timeoutSeconds: 1
    clientConfig: {service: {namespace: nim-operator, name: webhook-service, path: /validate}}
    rules: [{apiGroups: [apps.nvidia.com], apiVersions: [v1alpha1], operations: [CREATE], resources: [nimcaches]}]
"""


class Live(World):
    """A run in a folder's ledger, with a real cluster."""

    access: ClusterAccess

    def session(self, deployment: str = "meta-llama3-8b-instruct", run_id: str | None = None) -> Session:
        session = super().session(deployment, run_id)
        session.__dict__["access"] = self.access
        return session

    def do(self, name: str, work: Callable[[Stage], Facts]) -> Facts:
        """One task: its work, and its record."""
        stage = self.stage(name)
        facts = work(stage)
        stage.session.ledger.record(name, 1, "result", facts)
        return facts


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with standing(tmp_path_factory.mktemp("plane"), PARTS, TIMING) as plane:
        yield plane


@pytest.fixture(scope="module")
def access(plane: Plane) -> ClusterAccess:
    return admin(plane.r)


@pytest.fixture(scope="module")
def file_system(plane: Plane) -> str:
    return plane.file_system("verify")


@pytest.fixture(scope="module")
def cluster(access: ClusterAccess) -> Cluster:
    """With the add-on's definitions and its Deployment, which the runner makes available."""
    cluster = Cluster(access)
    for file in sorted((ROOT / "rehearsal" / "charts" / "k8s-nim-operator" / "crds").glob("*.yaml")):
        cluster.apply(yaml.safe_load(file.read_text()))
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nim-operator"}})
    cluster.apply(yaml.safe_load(OPERATOR))
    return cluster


@pytest.fixture
def run(
    plane: Plane,
    cluster: Cluster,
    access: ClusterAccess,
    file_system: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Live]:
    """A run of its own, whose verification finds everything else in order, and leaves nothing."""
    include = tmp_path / "repo" / "include"
    (include / "environments").mkdir(parents=True)
    for folder in ("deployments", "manifests", "benchmarks", "terraform", "helm"):
        (include / folder).symlink_to(ROOT / "include" / folder)
    (include / "environments" / "test.yaml").write_text(ENVIRONMENT.replace("STORE", str(tmp_path / "store")))
    monkeypatch.setattr("nim_rollouts.hooks.quotas.limits", lambda environment, codes: dict.fromkeys(codes, 768.0))
    monkeypatch.setattr("nim_rollouts.hooks.quotas.running", lambda environment: [])
    live = Live(Include(include), run_id=f"manual__{request.node.name}")
    live.cluster, live.access = cluster, access  # type: ignore[assignment]
    live.accepted()
    outputs = {"efs_file_system_id": file_system, "node_role_name": local.ROLE, "discovery_tag": local.TAG}
    live.session().ledger.record("terraform_outputs", 1, "result", {"outputs": outputs})
    yield live
    faults.clear(plane.r)
    for kind, version in (("Job", "batch/v1"), ("Pod", "v1"), ("PersistentVolumeClaim", "v1")):
        until(lambda k=kind, v=version: not cluster.list(v, k, "nim-service"), f"no {kind} to be left")
    until(lambda: not cluster.list("v1", "PersistentVolume"), "no volume to be left")


def until(condition: Callable[[], Any], what: str, within_s: float = 20) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {within_s:.0f} s in vain for {what}"
        time.sleep(0.1)
    return found


def waited(run: Live, budget_s: float = 25) -> Facts:
    """What `wait_platform` waits for, watched as its trigger does, and what it records."""
    plan = plan_for("wait_platform", run.session())
    assert "Job/" in " ".join(subject.ref for subject in plan.subjects)
    missing = wait_in_worker(run.access, plan.subjects, budget_s, logging.getLogger("test").info)
    assert missing == [], missing

    def finish(stage: Stage) -> Facts:
        operator = WaitPlatformOperator(task_id="wait_platform")
        return operator.details(stage, operator._look(stage, plan, Outcome([])))

    return run.do("wait_platform", finish)


def verified(run: Live) -> dict[str, dict[str, str]]:
    """The checks. A kind whose definition was applied moments ago answers 429 (storage is (re)initializing): transient,
    so Airflow tries the task again; the probe's Job is gone by then, its answer is not."""

    def attempt() -> Facts | None:
        try:
            return run.do("verify_platform", VerifyPlatformOperator(task_id="verify_platform").run)
        except ClusterUnavailable as error:
            assert "initializing" in error.message
            return None

    return {one["name"]: one for one in until(attempt, "the API server to serve the kinds")["checks"]}


def apply(run: Live) -> Facts:
    return run.do("apply_platform", ApplyPlatformOperator(task_id="apply_platform").run)


def test_a_volume_is_bound_written_and_read_and_nothing_is_left(run: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    probe = apply(run)["storage_probe"]
    assert probe["kind"] == "Job" and probe["became"] == "created"
    # A task that was killed right after it had written runs again, and goes on with the same Job, ended or not.
    assert apply(run)["storage_probe"]["uid"] == probe["uid"]
    assert waited(run)["storage_probe"]["said"].startswith("written and read by ")
    assert apply(run)["storage_probe"]["uid"] == probe["uid"]
    checks = verified(run)
    assert {name: one["outcome"] for name, one in checks.items()} == {
        "crds": "ok", "operators": "ok", "webhooks": "not-applicable", "storage": "ok", "node-pools": "ok",
        "gpu-fit": "ok", "quota": "ok", "dry-run": "ok",
    }  # fmt: skip
    assert "efs-sc-dynamic was bound, written and read" in checks["storage"]["seen"]
    assert "service on g5-gpu-karpenter: g5.12xlarge, g5.24xlarge, g5.48xlarge; " in checks["gpu-fit"]["seen"]
    assert "storage: ok: " in caplog.text and "dry-run: ok: " in caplog.text
    # Cleared by itself, the verification finds the answer in the ledger; the wait has nothing left to wait for.
    assert "Job" not in {subject.kind for subject in plan_for("wait_platform", run.session()).subjects}
    assert verified(run)["storage"]["outcome"] == "ok"


def test_a_volume_that_may_not_be_written_is_told_with_what_to_do(plane: Plane, run: Live) -> None:
    faults.order(plane.r, "volume-not-writable")
    probe = apply(run)["storage_probe"]
    assert "Permission denied" in waited(run)["storage_probe"]["said"]
    # Whoever applies again has repaired something: what was refused then is no answer now.
    assert apply(run)["storage_probe"]["uid"] != probe["uid"]
    assert "Permission denied" in waited(run)["storage_probe"]["said"]
    with pytest.raises(PlatformNotReady) as refused:
        verified(run)
    assert (refused.value.layer, refused.value.reason) == ("volume", "storage-not-writable")
    assert "Permission denied" in refused.value.message and "uid 1000" in refused.value.hint
    # Repaired and begun again: another Job, another volume, another answer.
    faults.clear(plane.r)
    apply(run)
    waited(run)
    assert verified(run)["storage"]["outcome"] == "ok"


def test_a_claim_that_is_not_bound_is_told_in_the_drivers_words_and_leaves_no_job(plane: Plane, run: Live) -> None:
    faults.order(plane.r, "claim-unbound")
    apply(run)
    plan = plan_for("wait_platform", run.session())
    said: list[str] = []
    outcome = asyncio.run(watch_until(run.access, plan, started=datetime.now(UTC), say=said.append))
    ((subject, verdict),) = outcome.missing
    assert (subject.kind, str(verdict.state), verdict.reason) == ("Job", "stuck", "volume-unbound")
    assert "Access Denied. Please ensure you have the right AWS permissions" in verdict.message
    assert verdict.message.endswith("(volume binding may take 3 s)")
    assert any("(volume, volume-unbound)" in line for line in said), "told before its time is over"
    # And as the task's last line has it.
    stage, wait = run.stage("wait_platform"), WaitPlatformOperator(task_id="wait_platform")
    with pytest.raises(WaitStuck) as stuck:
        wait._decide(stage, plan, outcome, outcome, wait._look(stage, plan, outcome))
    assert (stuck.value.layer, stuck.value.reason) == ("volume", "volume-unbound")
    # What the wait does when it gives up, or a user ends it.
    assert jobs.stop("wait_platform", run.session(), logging.getLogger("test").info) is True
    assert jobs.stop("wait_platform", run.session(), logging.getLogger("test").info) is False


def test_a_webhook_with_nobody_behind_it_is_named_beside_what_else_is_wrong(run: Live, cluster: Cluster) -> None:
    webhook = yaml.safe_load(WEBHOOK)
    cluster.apply(webhook)
    try:
        refusal = until(lambda: _refused(run, "left-behind"), "the webhook to be in force")
    finally:
        cluster.delete(webhook)
    assert refusal.reason == "webhook-unavailable"
    assert "nim-operator/webhook-service has no ready endpoint, and its failurePolicy is Fail" in refusal.message
    assert "dry-run: " in refusal.message and "failed calling webhook" in refusal.message
    assert "storage class efs-sc-dynamic" in refusal.message or "storage" not in refusal.message


def _refused(run: Live, name: str) -> NimRolloutsError | None:
    try:
        verified(run)
    except NimRolloutsError as error:
        return error if name in error.message and "dry-run" in error.message else None
    return None


def test_a_filled_cache_is_proof_enough(run: Live, cluster: Cluster) -> None:
    from nim_rollouts.core import manifests

    session = run.session()
    cluster.apply(manifests.namespace(session.manifest_context()))
    cache = cluster.apply(manifests.nim_cache(session.manifest_context(), session.deployment)).obj
    path = f"/apis/apps.nvidia.com/v1alpha1/namespaces/nim-service/nimcaches/{cache['metadata']['name']}/status"
    cluster.rest.json(
        "PATCH",
        path,
        body={"status": {"state": "Ready", "pvc": "one-pvc"}},
        content_type="application/merge-patch+json",
    )
    try:
        assert "is filled, in claim one-pvc" in apply(run)["storage_probe"]["skipped"]
        assert cluster.list("batch/v1", "Job", "nim-service") == []
        assert storage_probe.check(run.stage("verify_platform")).outcome == "not-applicable"
    finally:
        cluster.delete(cache)


def test_what_ours_would_add_to_somebody_elses_pools_is_told_and_not_added(
    run: Live, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The pools of this plane are its Karpenter's: of the same files, without our labels and tags."""
    place = ("karpenter.sh/v1", "NodePool", None, "x86-cpu-karpenter")
    pool = cluster.get(*place)
    assert pool is not None and cluster.patch(pool, {"spec": {"limits": None}}) is not None
    try:
        facts = apply(run)
    finally:
        limitless = cluster.get(*place)
        assert limitless is not None and cluster.patch(limitless, {"spec": {"limits": pool["spec"]["limits"]}})
        storage_probe.remove(run.stage("apply_platform"))
    differs = {(one["kind"], one["name"]): one["differs"] for one in facts["used_as_it_is"]}
    assert differs["NodePool", "x86-cpu-karpenter"] == ["spec.limits"]
    assert differs["NodePool", "g5-gpu-karpenter"] == []
    assert differs["EC2NodeClass", "g5-gpu-karpenter"] == ["spec.tags"]
    assert "EC2NodeClass/g5-gpu-karpenter differs from what we would apply, in spec.tags" in caplog.text
    assert "limits" not in limitless["spec"]
    node_class = cluster.get("karpenter.k8s.aws/v1", "EC2NodeClass", None, "g5-gpu-karpenter")
    assert node_class is not None and "tags" not in node_class["spec"]
