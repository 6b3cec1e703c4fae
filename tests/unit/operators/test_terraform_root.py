"""The operators for any root: kept plans, retries, secrets that stay out of what Airflow shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients.terraform import StateMark
from nim_rollouts.core.errors import NeedsHumanError, NimRolloutsError, TerraformFailed, TerraformUnavailable
from nim_rollouts.hooks.terraform import TerraformHook
from nim_rollouts.operators import terraform_root as tf
from tests.unit.operators.test_terraform import REFUSALS, VPC, FakeTerraform

CREATE_TWO = [*VPC, ("aws_subnet.a", "create")]


@pytest.fixture
def terraform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTerraform:
    fake = FakeTerraform(tmp_path)
    monkeypatch.setattr(TerraformHook, "client", lambda self, progress, purpose="terraform": fake)
    return fake


def run(kind: Any, tmp_path: Path, **given: Any) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="any", run_id="manual__1", task_id="t", try_number=1)
    operator = kind(
        task_id="t", root=str(tmp_path / "root"), backend={"key": "x"}, plans=str(tmp_path / "plans"), **given
    )
    told: dict[str, Any] = operator.execute({"ti": ti})
    return json.loads(json.dumps(told))  # as XCom would keep it


def test_a_plan_is_kept_and_exactly_it_is_applied(tmp_path: Path, terraform: FakeTerraform) -> None:
    terraform.plans = [VPC]
    planned = run(tf.RootPlanOperator, tmp_path)
    assert planned["changes"] == [["aws_vpc.this", "create"]] and planned["checksum"] in planned["plan_key"]
    Path(planned["plan_file"]).unlink()  # the apply may run on another worker
    applied = run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])
    assert applied["changed"] is True and terraform.calls[-1] == f"apply {VPC} {planned['checksum']}"
    assert terraform.locks == [None, b"versions"]
    with pytest.raises(TerraformFailed) as refused:
        run(tf.RootApplyOperator, tmp_path, checksum="0" * 64)
    assert refused.value.reason == "plan-missing"


def test_a_plan_without_changes_starts_nothing(tmp_path: Path, terraform: FakeTerraform) -> None:
    terraform.plans = [[]]
    planned = run(tf.RootPlanOperator, tmp_path)
    before = len(terraform.calls)
    assert run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])["changed"] is False
    assert terraform.calls[before:] == []


@pytest.mark.parametrize(
    ("rest", "state", "held", "reason"),
    [
        ([("aws_subnet.a", "create")], 9, True, None),
        ([], 9, True, None),
        ([], 9, False, None),  # nothing left to do: no matter which state that is
        ([("aws_subnet.a", "delete")], 9, True, "plan-changed"),
        ([("aws_subnet.a", "create")], 9, False, "state-moved"),
    ],
)
def test_a_retry_after_its_own_interrupted_apply(
    rest: list[tuple[str, str]], state: int, held: bool, reason: str | None, tmp_path: Path, terraform: FakeTerraform
) -> None:
    terraform.plans = [CREATE_TWO, rest]
    planned = run(tf.RootPlanOperator, tmp_path)
    terraform.fails = [TerraformUnavailable("killed")]
    with pytest.raises(TerraformUnavailable):
        run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])
    terraform.state, terraform.released_own_lock = StateMark("l-1", state), held
    if reason is None:
        assert run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])["changed"] is bool(rest)
        return
    with pytest.raises((TerraformFailed, NeedsHumanError)) as refused:
        run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])
    assert refused.value.reason == reason  # type: ignore[attr-defined]
    assert not [call for call in terraform.calls if call.startswith("apply")]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: error.reason)
def test_what_terraform_has_not_begun_is_applied_as_it_was_planned(
    refusal: NimRolloutsError, tmp_path: Path, terraform: FakeTerraform
) -> None:
    terraform.plans = [VPC]
    planned = run(tf.RootPlanOperator, tmp_path)
    terraform.fails = [refusal]
    with pytest.raises(type(refusal)):
        run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])
    assert run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])["changed"] is True
    assert terraform.calls.count("plan") == 1 and terraform.calls[-1] == f"apply {VPC} {planned['checksum']}"


@pytest.mark.parametrize("ours", [True, False])
def test_a_third_try_knows_the_state_that_the_second_one_s_terraform_left(
    ours: bool, tmp_path: Path, terraform: FakeTerraform
) -> None:
    """The second try's worker died, its terraform ended with an error: it noted the plan of the rest, not the first."""
    terraform.plans = [CREATE_TWO, CREATE_TWO[1:], CREATE_TWO[1:]]
    planned = run(tf.RootPlanOperator, tmp_path)
    for _ in range(2):
        terraform.fails = [TerraformUnavailable("the worker died")]
        with pytest.raises(TerraformUnavailable):
            run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])
    rest = f"sum{len(terraform.calls)}"
    terraform.state = StateMark("l-1", 9)
    terraform.after = StateMark("l-1", 9, rest if ours else "somebody-elses")
    if ours:
        assert run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])["changed"] is True
        return
    with pytest.raises(NeedsHumanError) as refused:
        run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])
    assert refused.value.reason == "state-moved"


def test_a_stale_plan_is_somebody_else_s_doing(tmp_path: Path, terraform: FakeTerraform) -> None:
    terraform.plans = [VPC]
    planned = run(tf.RootPlanOperator, tmp_path)
    terraform.fails = [TerraformFailed("stale", reason="plan-stale")]
    with pytest.raises(NeedsHumanError, match="since it was planned on"):
        run(tf.RootApplyOperator, tmp_path, checksum=planned["checksum"])


def test_a_task_that_is_stopped_before_it_has_a_terraform_begins_none(tmp_path: Path, terraform: FakeTerraform) -> None:
    stopped: list[str] = []
    terraform.stop = lambda: stopped.append("stop")  # type: ignore[attr-defined]
    operator = tf.RootPlanOperator(task_id="t", root="r", backend={}, plans=str(tmp_path / "plans"))
    operator.on_kill()
    terraform.plans = [VPC]
    operator.execute({"ti": SimpleNamespace(dag_id="any", run_id="manual__1", task_id="t", try_number=1)})
    assert stopped == ["stop"]


def test_destroy_applies_a_kept_plan_of_destruction(tmp_path: Path, terraform: FakeTerraform) -> None:
    terraform.plans = [[("aws_vpc.this", "delete")]]
    assert run(tf.RootDestroyOperator, tmp_path)["changed"] is True
    assert terraform.destroyed == [True]
    terraform.plans = [[]]
    assert run(tf.RootDestroyOperator, tmp_path)["changed"] is False


def test_drift(tmp_path: Path, terraform: FakeTerraform) -> None:
    terraform.plans = [[], [("aws_vpc.this", "update")], [("aws_vpc.this", "update")]]
    assert run(tf.RootDriftOperator, tmp_path)["drift"] == "none"
    assert run(tf.RootDriftOperator, tmp_path)["changes"] == [["aws_vpc.this", "update"]]
    with pytest.raises(TerraformFailed, match="drifted"):
        run(tf.RootDriftOperator, tmp_path, fail=True)


def test_a_secret_variable_is_a_name_to_airflow_and_a_value_to_terraform_alone(
    tmp_path: Path, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({"conn_type": "generic", "password": "sesame-open-9"}))
    terraform.plans = [VPC]
    told = run(tf.RootPlanOperator, tmp_path, variables={"name": "x"}, secret_variables={"password": "db"})
    assert terraform.given == [{"name": "x", "password": "sesame-open-9"}]
    assert "sesame-open-9" not in json.dumps(told)
    operator = tf.RootPlanOperator(
        task_id="t", root="r", backend={}, plans="p", variables={"name": "x"}, secret_variables={"password": "db"}
    )
    shown = {name: getattr(operator, name) for name in operator.template_fields}
    assert shown["variables"] == {"name": "x"} and "sesame" not in str(shown)
    kept = b"".join(file.read_bytes() for file in (tmp_path / "plans").rglob("*") if file.is_file())
    assert b"aws_vpc" in kept and b"sesame" not in kept


def test_two_states_of_one_root_share_nothing(tmp_path: Path) -> None:
    ids = {TerraformHook(str(tmp_path), {"key": key}, "plans").state_id for key in ("a", "b")}
    assert len(ids) == 2
