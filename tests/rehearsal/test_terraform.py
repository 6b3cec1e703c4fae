"""The terraform client with the real terraform, against the AWS stand-in (the whole root module: test_aws_life.py)."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients.terraform import Terraform
from nim_rollouts.clients.terraform_locks import whoami
from nim_rollouts.clients.terraform_plan import planned_values
from nim_rollouts.core.errors import NeedsHumanError, TerraformFailed, TerraformUnavailable
from nim_rollouts.operators import terraform_root as tf
from nim_rollouts.operators.terraform import TerraformApplyOperator, TerraformPlanOperator
from rehearsal.aws.environment import environment
from rehearsal.config import Rehearsal
from tests.rehearsal.aws_standin import ROOT, client, start
from tests.rehearsal.secrets_watch import forms, in_files
from tests.rehearsal.terraform_lab import (
    BUCKET,
    PASSWORD,
    SMALL_ROOT,
    Door,
    Lab,
    every_command_line,
    wait_until,
)
from tests.unit.operators.conftest import World, world

__all__ = ["world"]
pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")


@pytest.fixture(scope="module")
def r(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    rehearsal, process = start(tmp_path_factory.mktemp("aws"))
    location = {"LocationConstraint": "us-west-2"}
    client(rehearsal, "s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)
    yield rehearsal
    process.terminate()
    process.wait(10)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_from_a_plan_to_no_change_and_what_a_replacement_is_forced_by(r: Rehearsal, tmp_path: Path) -> None:
    lab = Lab(r, tmp_path, "life")
    with every_command_line() as seen:
        terraform = lab.terraform()
        plan = terraform.plan(lab.variables())
        assert (plan.add, plan.serial, plan.lineage != "") == (4, 0, False)
        with pytest.raises(TerraformFailed) as refused:
            terraform.apply(expect_checksum="0" * 64)
        assert refused.value.reason == "plan-changed" and lab.vpcs() == []
        terraform.apply(expect_checksum=plan.checksum)
    assert any("terraform apply" in line for line in seen) and any("-var-file" in line for line in seen)
    assert [line for line in seen for form in forms(PASSWORD) if form in line.encode()] == []
    assert "[4 of 4]" in str(lab.lines) and PASSWORD not in str(lab.lines)

    # The same worker once more: nothing to initialise, nothing to change, in seconds.
    began = time.monotonic()
    again = lab.terraform()
    same = again.plan(lab.variables())
    assert not same.has_changes and time.monotonic() - began < 30
    left = terraform.left()
    assert left is not None and (same.lineage, same.serial) == (left.lineage, left.serial)
    assert left.checksum == plan.checksum and left.serial > 0
    assert again.output() == {"vpc_id": lab.vpcs()[0]}
    assert (again.state_list(lab.vpcs()[0]), again.state_list("vpc-0")) == (["aws_vpc.this"], [])

    other = again.plan(lab.variables(cidr="10.2.0.0/16"))
    assert other.replace == 3 and other.reasons() == {
        "aws_vpc.this": "cannot be changed in place because of cidr_block",
        "aws_security_group.these[0]": "cannot be changed in place because of vpc_id",
        "aws_security_group.these[1]": "cannot be changed in place because of vpc_id",
    }
    assert PASSWORD not in json.dumps(other.as_facts()) + json.dumps(planned_values(again.shown))
    # The plan, and the variables' private file, hold what they must; no log of a command keeps it.
    assert in_files(lab.work / "logs", forms(PASSWORD), skip=[]) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_environments_at_once_and_drift(r: Rehearsal, tmp_path: Path) -> None:
    labs = [Lab(r, tmp_path, name) for name in ("left", "right")]
    threads = [threading.Thread(target=lab.apply) for lab in labs]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [len(lab.vpcs()) for lab in labs] == [1, 1] and labs[0].vpcs() != labs[1].vpcs()
    drift = labs[0].terraform(work="drift").drift(labs[0].variables())
    assert not drift.has_changes
    client(r, "ec2").create_tags(Resources=labs[0].vpcs(), Tags=[{"Key": "Name", "Value": "somebody's"}])
    drift = labs[0].terraform(work="drift").drift(labs[0].variables())
    assert drift.changes == [("aws_vpc.this", "update")] and ("aws_vpc.this", "update") in drift.drift
    assert labs[0].lock() is None
    labs[0].terraform().destroy(labs[0].variables())
    assert labs[0].vpcs() == [] and len(labs[1].vpcs()) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_state_is_encrypted_with_the_key_of_its_bucket(r: Rehearsal, tmp_path: Path) -> None:
    """The root module's own backend, in a bucket that has a key of the customer's, as the bootstrap can make it."""
    s3, key = client(r, "s3"), client(r, "kms").create_key()["KeyMetadata"]["Arn"]
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    s3.create_bucket(Bucket="with-a-key", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.put_bucket_encryption(
        Bucket="with-a-key",
        ServerSideEncryptionConfiguration={"Rules": [{"ApplyServerSideEncryptionByDefault": default}]},
    )
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(ROOT / "include/terraform/eks/versions.tf", root)
    (root / "main.tf").write_text(
        'variable "region" {}\nlocals {\n  tags = {}\n}\noutput "region" {\n  value = var.region\n}\n'
    )
    terraform = Terraform(root, tmp_path / "work", environment(r.url("aws")))
    terraform.init({"bucket": "with-a-key", "key": "state", "region": "us-west-2"})
    terraform.apply(expect_checksum=terraform.plan({"region": "us-west-2"}).checksum)
    kept = s3.head_object(Bucket="with-a-key", Key="state")
    assert (kept["ServerSideEncryption"], kept["SSEKMSKeyId"]) == ("aws:kms", key)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lock_of_somebody_else_is_refused_and_stays(r: Rehearsal, tmp_path: Path) -> None:
    lab = Lab(r, tmp_path, "foreign")
    terraform = lab.terraform()
    info = lab.lock_by("ada@laptop")
    with pytest.raises(TerraformUnavailable) as refused:
        terraform.plan(lab.variables())
    assert refused.value.reason == "state-locked" and "ada@laptop" in refused.value.message
    assert "force-unlock 4a1c" in refused.value.hint
    old = info | {"Created": "2026-01-01T00:00:00Z", "Who": whoami()}
    client(r, "s3").put_object(**lab.lock_file, Body=json.dumps(old).encode())
    with pytest.raises(NeedsHumanError) as stopped:
        terraform.plan(lab.variables())
    assert "2026-01-01" in stopped.value.message and lab.lock() == old
    # A drift check writes nothing, and so has nothing to wait for.
    assert lab.terraform(work="drift").drift(lab.variables()).add == 4 and lab.lock() == old


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_worker_and_terraform_killed_the_lock_is_our_own_and_goes(r: Rehearsal, tmp_path: Path) -> None:
    lab = Lab(r, tmp_path, "killed")
    with lab:
        lab.worker("creating aws_sqs_queue.slow", queues=1)
        wait_until(lab.queues)
    lock = lab.lock()
    assert lock is not None and lock["Who"] == whoami()

    # From another work folder (another worker) it is not ours to take, though the host is the same.
    elsewhere = lab.terraform(work="elsewhere")
    with pytest.raises(TerraformUnavailable, match="locked"):
        elsewhere.plan(lab.variables(queues=1))
    assert lab.lock() == lock

    terraform = lab.terraform()
    plan = terraform.plan(lab.variables(queues=1))
    assert terraform.released_own_lock and lab.lock() is None
    assert any("our own terraform that died" in line for line in lab.lines)
    assert not (lab.work / "ended.json").exists() and plan.serial == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_with_the_state_out_of_reach_loses_nothing(r: Rehearsal, tmp_path: Path) -> None:
    """The worker is told to stop while S3 is gone: terraform ends its calls, and cannot write its state. The file that
    it leaves comes home with the next try, which also releases the lock that it could not."""
    door = Door(r.ports["aws"])
    lab = Lab(r, tmp_path, "stopped", AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{door.port}", AWS_MAX_ATTEMPTS="1")
    with lab:
        worker = lab.worker("creating aws_sqs_queue.slow", queues=1)
        wait_until(lab.vpcs)
        wait_until(lab.queues)
        door.shut()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(300) == -signal.SIGTERM
    left = lab.work / "root" / "errored.tfstate"
    assert left.is_file() and lab.vpcs()[0] in left.read_text()
    assert lab.lock() is not None

    back = Lab(r, tmp_path, "stopped")
    terraform = back.terraform()
    assert any("could not upload" in line for line in back.lines) and not left.exists()
    assert terraform.brought_home == terraform.state_mark()
    addresses = terraform.state_list()
    assert {"aws_vpc.this", "aws_sqs_queue.slow[0]"} <= set(addresses) and len(back.vpcs()) == len(back.queues()) == 1
    plan = terraform.plan(back.variables(queues=1))
    assert {"aws_vpc.this", "aws_sqs_queue.slow[0]"} & {
        one for one, action in plan.changes if action == "create"
    } == set()
    assert back.lock() is None


def _operators(world: World, monkeypatch: pytest.MonkeyPatch, lab: Lab, work: str = "") -> None:
    """The pipeline's operators on the lab's state; `work`: on another worker."""
    folder = lab.work.with_name(work) if work else lab.work

    def opened(*_: Any) -> Terraform:
        return Terraform(SMALL_ROOT, folder, lab.env, progress=lab.lines.append, lock_timeout_s=2)

    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.open_terraform", opened)
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.backend", lambda _: lab.backend)
    # This environment has no cluster, and its connection no AWS.
    monkeypatch.setattr("nim_rollouts.hooks.interrupted._logs", lambda *_: None)


def _run(world: World, monkeypatch: pytest.MonkeyPatch, kind: Any, task: str, number: int = 1) -> dict[str, Any]:
    operator = kind(task_id=task)
    world.prepared(operator, monkeypatch)
    operator.execute(world.context(task, number))
    return world.session().facts(task)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_plan_and_its_provider_travel_and_another_s_change_stops_it(
    r: Rehearsal, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(r, tmp_path, "travels")
    given = lab.variables()
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.variables", lambda _: given)
    world.accepted()
    _operators(world, monkeypatch, lab)
    planned = _run(world, monkeypatch, TerraformPlanOperator, "terraform_plan")
    shutil.rmtree(lab.work)
    _operators(world, monkeypatch, lab, work="second-worker")
    applied = _run(world, monkeypatch, TerraformApplyOperator, "terraform_apply")
    assert applied["add"] == planned["add"] == 4 and len(lab.vpcs()) == 1
    lock = lab.work.with_name("second-worker") / "root" / ".terraform.lock.hcl"
    assert world.session().store.get(planned["plan_key"].replace(".tfplan", ".lock.hcl")) == lock.read_bytes()

    given["groups"] = 3
    planned = _run(world, monkeypatch, TerraformPlanOperator, "terraform_plan", 2)
    assert planned["changes"] == [["aws_security_group.these[2]", "create"]]
    another = lab.terraform(work="somebody")
    another.apply(expect_checksum=another.plan(lab.variables(groups=1)).checksum)
    for number in (2, 3):  # cleared: what somebody left has not become ours by our having met it
        with pytest.raises(NeedsHumanError) as refused:
            _run(world, monkeypatch, TerraformApplyOperator, "terraform_apply", number)
        assert refused.value.reason == "state-moved" and lab.state()["serial"] == another.state_mark().serial


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lock_that_was_in_the_way_changes_nothing_of_what_is_applied(
    r: Rehearsal, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does what becomes of the environment's file meanwhile."""
    lab = Lab(r, tmp_path, "in-the-way")
    given = lab.variables()
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.variables", lambda _: given)
    world.accepted()
    _operators(world, monkeypatch, lab)
    planned = _run(world, monkeypatch, TerraformPlanOperator, "terraform_plan")
    lab.lock_by("ada@laptop")
    with pytest.raises(TerraformUnavailable, match="ada@laptop"):
        _run(world, monkeypatch, TerraformApplyOperator, "terraform_apply")
    client(r, "s3").delete_object(**lab.lock_file)
    given["groups"] = 3
    applied = _run(world, monkeypatch, TerraformApplyOperator, "terraform_apply", 2)
    assert applied["checksum"] == planned["checksum"] and "replanned" not in applied
    assert applied["add"] == planned["add"] == 4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_operators_for_any_root(r: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(r, tmp_path, "any")
    for name, value in lab.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW_CONN_LAB_PASSWORD", json.dumps({"conn_type": "generic", "password": PASSWORD}))
    given: dict[str, Any] = {
        "root": str(SMALL_ROOT), "backend": lab.backend, "plans": f"s3://{BUCKET}/plans", "aws_conn_id": None,
        "region": "us-west-2", "work_dir": str(tmp_path / "work"),
        "secret_variables": {"password": "lab_password"},
    }  # fmt: skip
    told: list[Any] = []

    def run(kind: Any, task: str, **more: Any) -> dict[str, Any]:
        ti = SimpleNamespace(dag_id="any", run_id="manual__1", task_id=task, try_number=1)
        operator = kind(task_id=task, **(given | {"variables": {"name": "any"}} | more))
        result: dict[str, Any] = operator.execute({"ti": ti})
        told.append(result)
        return result

    planned = run(tf.RootPlanOperator, "plan")
    shown = run(tf.RootShowOperator, "show", checksum=planned["checksum"])
    after = {one["address"]: one["after"] for one in shown["resource_changes"]}
    assert after["aws_vpc.this"]["cidr_block"] == "10.1.0.0/16" and "value" not in after["aws_ssm_parameter.hidden"]
    # On a worker without the work folder of the plan.
    applied = run(tf.RootApplyOperator, "apply", checksum=planned["checksum"], work_dir=str(tmp_path / "other"))
    assert applied["add"] == 4 and lab.vpcs() == [run(tf.RootOutputOperator, "output")["vpc_id"]]
    assert run(tf.RootDriftOperator, "drift")["drift"] == "none"
    assert run(tf.RootDestroyOperator, "destroy")["destroy"] == 4 and lab.vpcs() == []
    text = json.dumps(told).encode()
    assert not any(form in text for form in forms(PASSWORD))
