"""Planted leftovers in the AWS stand-in: the inventory finds and names them, deletes none, and a refused call is no
success."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients.include import Include
from nim_rollouts.core.errors import AccessDenied, InventoryUnknown, LeftoversFound, TerraformUnavailable
from nim_rollouts.hooks.inventory import naming_holders, networks, remember_networks
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators.inventory import InventoryOperator
from rehearsal import faults
from rehearsal.aws.environment import environment as variables
from rehearsal.aws.inventory import inventory as everything
from rehearsal.config import Rehearsal
from tests.planted import expected, plant
from tests.rehearsal.aws_standin import client, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_FILE = """
apiVersion: nim-rollouts/v1
kind: Environment
name: lab
region: us-west-2
cluster: {name: lab}
store: {kind: folder, path: STORE}
terraform: {root: terraform/eks, state: {bucket: lab-tfstate, key: lab/terraform.tfstate}}
instance_types: [g5.12xlarge]
storage_class: efs-sc-dynamic
"""


@pytest.fixture(scope="module")
def r(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    rehearsal, process = start(tmp_path_factory.mktemp("aws"))
    yield rehearsal
    process.terminate()
    # How soon it ends is asserted by test_aws; here it has a second of memory to give back on a machine that is busy.
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def planted(r: Rehearsal) -> dict[str, str]:
    of = cache(lambda service: client(r, service))
    plant(of, "lab-2", tag=True)
    return plant(of, "lab")


@pytest.fixture
def session(r: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A teardown of `lab`, whose AWS is the stand-in."""
    for name, value in variables(r.url("aws")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    include = tmp_path / "include"
    (include / "environments").mkdir(parents=True)
    (include / "environments" / "lab.yaml").write_text(_FILE.replace("STORE", str(tmp_path / "store")))
    session = Session("lab", "", "manual__1", include=Include(include))
    monkeypatch.setattr("nim_rollouts.hooks.session.Session", lambda *_: session)
    return session


@pytest.fixture
def verify_gone(session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The task that ends a teardown, with a state that terraform has emptied."""
    session.ledger.record("validate", 1, "claims", {"dag_id": "nim_teardown", "run_id": "manual__1", "taken": []})
    fake = SimpleNamespace(init=lambda backend: None, state_list=list)
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.open_terraform", lambda *_, **__: fake)

    def run(try_number: int = 1) -> None:
        operator = InventoryOperator(task_id="verify_gone")
        operator.environment, operator.deployment, operator.run_id = "lab", "", "manual__1"
        ti = SimpleNamespace(dag_id="nim_teardown", run_id="manual__1", try_number=try_number)
        events = {asset: SimpleNamespace(extra=None) for asset in operator.outlets}
        operator.execute({"ti": ti, "dag_run": SimpleNamespace(run_after=None), "outlet_events": events})

    return run


def records(session: Session, kind: str) -> dict[str, Any]:
    return session.facts("verify_gone", kind)


def test_all_planted_is_found_and_named_and_none_deleted(
    r: Rehearsal, planted: dict[str, str], session: Session, verify_gone: Callable[..., None]
) -> None:
    before = everything(r)
    with pytest.raises(LeftoversFound, match=r"\d+ things are still there"):
        verify_gone()
    assert everything(r) == before, "an inventory changes nothing"
    facts, wanted = records(session, "inventory"), expected("lab", planted)
    found = {f"{one['kind']} {one['id']}": one for one in facts["leftovers"]}
    assert set(found) == set(wanted), "each, and nothing of lab-2"
    for name, (owner, holders) in wanted.items():
        assert found[name]["owner"] == owner and set(holders) <= set(found[name]["held_by"]), name
        assert found[name]["found_by"], name
    assert facts["answer"] == "leftovers" and facts["unknown"] == [] and len(facts["looked_at"]) > 35
    assert records(session, "error")["evidence"]["leftovers"] == facts["leftovers"]


@pytest.mark.parametrize(
    ("order", "error", "kind", "action"),
    [
        ({"service": "ec2", "action": "DescribeVolumes", "code": "UnauthorizedOperation"}, LeftoversFound, "volume",
         "ec2:DescribeVolumes"),
        ({"service": "elasticfilesystem", "code": "AccessDeniedException"}, LeftoversFound, "EFS file system",
         "elasticfilesystem:DescribeFileSystems"),
        ({"service": "eks", "action": "DescribeCluster", "code": "AccessDeniedException"}, LeftoversFound,
         "EKS cluster", "eks:DescribeCluster"),
        ({"service": "secretsmanager", "action": "DescribeSecret", "code": "AccessDeniedException"}, LeftoversFound,
         "secret", "secretsmanager:DescribeSecret"),
        ({"service": "sqs", "status": 500, "code": "InternalFailure"}, LeftoversFound, "SQS queue", None),
        ({"service": "iam", "action": "ListRoles", "status": 400, "code": "Throttling"}, LeftoversFound, "IAM role",
         None),
    ],
    ids=lambda value: value["service"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_call_that_fails_is_told_and_hides_no_other_kind(
    r: Rehearsal, planted: dict[str, str], session: Session, verify_gone: Callable[..., None],
    order: dict[str, Any], error: type[Exception], kind: str, action: str | None,
) -> None:  # fmt: skip
    faults.order(r, "aws-error", **order)
    try:
        with pytest.raises(error):
            verify_gone()
    finally:
        faults.clear(r)
    facts = records(session, "inventory")
    unknown = {one["kind"]: one for one in facts["unknown"]}
    assert unknown[kind]["action"] == action and kind not in facts["looked_at"]
    assert order.get("code", "") in unknown[kind]["why"]
    found = {f"{one['kind']} {one['id']}" for one in facts["leftovers"]}
    hidden = set(expected("lab", planted)) - found
    assert {name for name in hidden if not any(name.startswith(f"{one} ") for one in unknown)} == set()


@pytest.mark.parametrize(
    ("order", "error", "reason"),
    [
        ({"service": "kms", "code": "AccessDeniedException"}, AccessDenied, "inventory-denied"),
        ({"service": "logs", "status": 500, "code": "ServiceUnavailableException"}, InventoryUnknown,
         "inventory-unknown"),
    ],
)  # fmt: skip
def test_unknown_is_not_empty_and_empty_is(
    r: Rehearsal, tmp_path: Path, session: Session, verify_gone: Callable[..., None],
    order: dict[str, Any], error: type[Exception], reason: str,
) -> None:  # fmt: skip
    """With nothing of it left the only reason to fail is what cannot be seen; once it can be, the task succeeds."""
    path = tmp_path / "include" / "environments" / "lab.yaml"
    path.write_text(path.read_text().replace("name: lab", "name: bare"))
    (path.parent / "bare.yaml").write_text(path.read_text())
    bare = Include(tmp_path / "include").environment("bare")
    session.environment = bare
    remember_networks(bare, session.store, {"vpc_id": "vpc-0123456789abcdef0"}, lambda _: ["aws_vpc.this"])
    faults.order(r, "aws-error", **order)
    try:
        with pytest.raises(error) as caught:
            verify_gone()
    finally:
        faults.clear(r)
    assert caught.value.reason == reason  # type: ignore[attr-defined]
    assert records(session, "inventory")["answer"] == "unknown"
    assert networks(bare, session.store) == ["vpc-0123456789abcdef0"]
    verify_gone(2)
    assert records(session, "result")["answer"] == "empty" and networks(bare, session.store) == []
    json.dumps(records(session, "result"))


def test_terraforms_dependency_violation_names_the_holders(
    r: Rehearsal, planted: dict[str, str], session: Session
) -> None:
    error = TerraformUnavailable(
        f"terraform apply: deleting Security Group ({planted['group']}): DependencyViolation: has a dependent object",
        reason="dependency-violation",
    )
    told = naming_holders(session.environment, session.store, error).message
    assert f"{planted['group']} is held by network interface {planted['interface']}" in told
    assert f"network interface {planted['wire']} of instance {planted['node']}" in told
    assert f"load balancer {planted['balancer']} of Service nim-service/llama" in told
