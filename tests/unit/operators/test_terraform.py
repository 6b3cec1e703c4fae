"""Apply does what was planned and nothing else, whatever happened between the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.terraform import StateMark
from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary
from nim_rollouts.core.errors import NeedsHumanError, Superseded, TerraformFailed
from nim_rollouts.hooks.infrastructure import principal
from nim_rollouts.operators.terraform import TerraformApplyOperator, TerraformPlanOperator
from tests.unit.operators.conftest import World


class FakeTerraform:
    """Plans what it is told to, and notes what is applied."""

    def __init__(self, folder: Path, *plans: list[tuple[str, str]]) -> None:
        self.folder, self.plans, self.calls = folder, list(plans), []
        self.fails: list[Exception] = []
        self.state, self.released_own_lock = StateMark("l-1", 7), False
        self.after: StateMark | None = None
        self.locks: list[bytes | None] = []

    def init(self, backend: Any, *, lock_file: bytes | None = None) -> None:
        self.calls.append("init")
        self.locks.append(lock_file)

    def plan(self, variables: Any, destroy: bool = False, *, explain: bool | None = None) -> PlanSummary:
        changes = self.plans.pop(0)
        file = self.folder / "plan.tfplan"
        file.write_text(str(changes))
        self.calls.append("plan")
        counts = [sum(action == one for _, action in changes) for one in ("create", "update", "replace", "delete")]
        return PlanSummary(
            changes, *counts, f"sum{len(self.calls)}", bool(changes), plan_file=str(file),
            lineage=self.state.lineage, serial=self.state.serial,
        )  # fmt: skip

    def lock_file(self) -> bytes | None:
        return b"versions"

    def left(self) -> StateMark | None:
        return self.after

    def apply(self, plan_file: Any = None, *, expect_checksum: str | None = None) -> ApplySummary:
        if self.fails:
            raise self.fails.pop(0)
        self.calls.append(f"apply {Path(plan_file).read_text() if plan_file else 'own'} {expect_checksum}")
        return ApplySummary([("aws_vpc.this", "create", 1.0)], 1, 0, 0, 1.0)

    def state_serial(self) -> int:
        return self.state.serial


@pytest.fixture
def terraform(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTerraform:
    fake = FakeTerraform(tmp_path)
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.open_terraform", lambda *_, **__: fake)
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.variables", lambda environment: {})
    world.accepted()
    return fake


def plan(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    operator = TerraformPlanOperator(task_id="terraform_plan")
    world.prepared(operator, monkeypatch)
    operator.execute(world.context("terraform_plan"))
    return world.session().facts("terraform_plan")


def apply(world: World, monkeypatch: pytest.MonkeyPatch, number: int = 1) -> dict[str, Any]:
    operator = TerraformApplyOperator(task_id="terraform_apply")
    world.prepared(operator, monkeypatch)
    operator.execute(world.context("terraform_apply", number))
    return world.session().facts("terraform_apply")


VPC = [("aws_vpc.this", "create")]


def test_without_changes_terraform_is_not_even_started(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [[]]
    plan(world, monkeypatch)
    assert apply(world, monkeypatch)["changed"] is False
    assert terraform.calls == ["init", "plan"]


def test_the_stored_plan_is_what_is_applied(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [VPC]
    planned = plan(world, monkeypatch)
    Path(planned["plan_file"]).unlink()  # the apply may run on another worker
    assert apply(world, monkeypatch)["changed"] is True
    assert terraform.calls[-1] == f"apply {VPC} {planned['checksum']}"


def test_a_plan_that_was_applied_is_made_again_when_cleared(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [VPC, []]
    plan(world, monkeypatch)
    apply(world, monkeypatch)
    before = len(terraform.calls)
    assert apply(world, monkeypatch, 2)["changed"] is False
    assert terraform.calls[before:] == ["init", "plan"]


def test_after_an_interrupted_apply_the_rest_of_the_plan_goes_on(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [[*VPC, ("aws_subnet.a", "create")], [("aws_subnet.a", "create")]]
    terraform.fails = [TerraformFailed("killed")]
    plan(world, monkeypatch)
    with pytest.raises(TerraformFailed):
        apply(world, monkeypatch)
    assert apply(world, monkeypatch, 2)["changed"] is True


def test_a_state_that_somebody_else_moved_since_the_plan_is_refused(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """terraform calls the plan stale, and no try of ours has begun to apply it. Even if a new plan were within the
    first: somebody is at work there."""
    terraform.plans = [VPC, VPC]
    terraform.fails = [TerraformFailed("stale", reason="plan-stale")]
    plan(world, monkeypatch)
    with pytest.raises(NeedsHumanError) as refused:
        apply(world, monkeypatch)
    assert refused.value.reason == "state-moved" and "terraform_plan" in refused.value.hint
    assert not [call for call in terraform.calls if call.startswith("apply")]


def test_a_retry_goes_on_only_within_what_was_planned(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [VPC, [("aws_vpc.this", "delete")]]
    terraform.fails = [TerraformFailed("killed")]
    plan(world, monkeypatch)
    with pytest.raises(TerraformFailed, match="killed"):
        apply(world, monkeypatch)
    with pytest.raises(TerraformFailed, match="delete aws_vpc.this") as refused:
        apply(world, monkeypatch, 2)
    assert refused.value.reason == "plan-changed"
    assert not [call for call in terraform.calls if call.startswith("apply")]


def test_a_run_that_lost_the_environment_does_not_touch_it(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [VPC]
    plan(world, monkeypatch)
    world.accepted(run_id="manual__2")
    with pytest.raises(Superseded):
        apply(world, monkeypatch)


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ("arn:aws:sts::123456789012:assumed-role/airflow/i-0abc", "arn:aws:iam::123456789012:role/airflow"),
        ("arn:aws:sts::123456789012:user/ada", "arn:aws:iam::123456789012:user/ada"),
        ("arn:aws:iam::123456789012:user/ada", "arn:aws:iam::123456789012:user/ada"),
        ("arn:aws-cn:sts::123456789012:assumed-role/a/b", "arn:aws-cn:iam::123456789012:role/a"),
    ],
)
def test_an_access_entry_names_the_role_not_its_session(identity: str, named: str) -> None:
    assert principal(identity) == named
