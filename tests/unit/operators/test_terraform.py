"""Apply does what was planned and nothing else, whatever happened between the two."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.approvals import Answer, write_answer
from nim_rollouts.clients.terraform import StateMark
from nim_rollouts.clients.terraform_locks import whoami
from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary
from nim_rollouts.core.errors import (
    NeedsHumanError,
    NimRolloutsError,
    Superseded,
    TerraformFailed,
    TerraformUnavailable,
)
from nim_rollouts.hooks import interrupted as interrupted_hook
from nim_rollouts.hooks.interrupted import interrupted
from nim_rollouts.operators.terraform import TerraformApplyOperator, TerraformDriftOperator, TerraformPlanOperator
from tests.unit.operators.conftest import World


class FakeTerraform:
    """Plans what it is told to, and notes what is applied."""

    def __init__(self, folder: Path, *plans: list[tuple[str, str]]) -> None:
        self.folder, self.plans, self.calls = folder, list(plans), []
        self.fails: list[BaseException] = []
        self.began = False
        self.state, self.released_own_lock = StateMark("l-1", 7), False
        self.after: StateMark | None = None
        self.brought_home: StateMark | None = None
        self.locks: list[bytes | None] = []
        self.given: list[dict[str, Any]] = []
        self.destroyed: list[bool] = []
        # What the search for the leavings of an interrupted apply looks into: nothing was made.
        self.work_dir, self.copy, self.shown = folder, folder, dict[str, Any]()

    def init(self, backend: Any, *, lock_file: bytes | None = None) -> None:
        self.calls.append("init")
        self.locks.append(lock_file)

    def plan(self, variables: Any, destroy: bool = False, *, explain: bool | None = None) -> PlanSummary:
        changes = self.plans.pop(0)
        self.given.append(variables)
        self.destroyed += [True] if destroy else []
        file = self.folder / "plan.tfplan"
        file.write_text(str(changes))
        self.calls.append("plan")
        add, change, replace, destroy = (
            sum(action == one for _, action in changes) for one in ("create", "update", "replace", "delete")
        )
        return PlanSummary(
            changes, add, change, replace, destroy, f"sum{len(self.calls)}", bool(changes), plan_file=str(file),
            lineage=self.state.lineage, serial=self.state.serial,
        )  # fmt: skip

    def drift(self, variables: Any) -> PlanSummary:
        return self.plan(variables)

    def lock_file(self) -> bytes | None:
        return b"versions"

    def left(self) -> StateMark | None:
        return self.after

    @contextmanager
    def saved_plan(self, content: bytes) -> Iterator[Path]:
        file = self.folder / "saved.tfplan"
        file.write_bytes(content)
        yield file

    def apply(self, plan_file: Any = None, *, expect_checksum: str | None = None) -> ApplySummary:
        self.began = True
        if self.fails:
            error = self.fails.pop(0)
            self.began = getattr(error, "reason", "") not in ("plan-stale", "plan-changed", "state-locked")
            raise error
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
    assert refused.value.reason == "state-moved" and "Trigger a new run" in refused.value.hint
    assert not [call for call in terraform.calls if call.startswith("apply")]


REFUSALS = [
    TerraformUnavailable("somebody holds the lock", reason="state-locked"),
    TerraformFailed("tampered with", reason="plan-changed"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: error.reason)
def test_what_terraform_has_not_begun_is_applied_as_it_was_planned(
    refusal: NimRolloutsError, world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as the files say by then: that nobody has seen, or approved."""
    terraform.plans = [VPC]
    terraform.fails = [refusal]
    planned = plan(world, monkeypatch)
    with pytest.raises(type(refusal)):
        apply(world, monkeypatch)
    assert world.session().facts("terraform_apply", "intent")["refused"] == refusal.reason
    assert interrupted(world.session()) is None, "nothing was made that a later plan would have to look for"
    assert apply(world, monkeypatch, 2)["changed"] is True
    assert terraform.calls.count("plan") == 1 and terraform.calls[-1] == f"apply {VPC} {planned['checksum']}"


def test_a_saved_plan_that_is_not_there_begins_nothing(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [VPC]
    planned, store = plan(world, monkeypatch), world.session().store
    saved = store.get(planned["plan_key"])
    store.delete(planned["plan_key"])
    with pytest.raises(TerraformFailed) as refused:
        apply(world, monkeypatch)
    assert saved and refused.value.reason == "plan-missing"
    store.put(planned["plan_key"], saved)
    assert apply(world, monkeypatch, 2)["changed"] is True
    assert terraform.calls[-1] == f"apply {VPC} {planned['checksum']}"


def test_a_try_that_was_killed_before_terraform_told_anything_may_have_begun(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [VPC, VPC]
    terraform.fails = [KeyboardInterrupt()]
    plan(world, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        apply(world, monkeypatch)
    assert interrupted(world.session()) is not None
    terraform.plans = [VPC]
    monkeypatch.setattr(interrupted_hook, "plan", lambda terraform, *_, **__: terraform.plan({}))
    assert apply(world, monkeypatch, 2)["changed"] is True
    assert terraform.calls[-2:] == [
        "plan",
        f"apply own {world.session().facts('terraform_apply', 'intent')['applies']}",
    ]


def test_nothing_left_to_do_is_success_whatever_the_state_is(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the lock was gone and before it was noted which state is left; or at work on another worker."""
    cut_off(world, terraform, monkeypatch)
    terraform.plans, terraform.state = [[]], StateMark("l-1", 9)
    assert apply(world, monkeypatch, 2)["changed"] is False


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


TWO = [*VPC, ("aws_subnet.a", "create")]


def cut_off(world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of two things, whose apply was killed."""
    terraform.plans = [TWO, [("aws_subnet.a", "create")]]
    terraform.fails = [TerraformUnavailable("killed", reason="terraform-killed")]
    plan(world, monkeypatch)
    with pytest.raises(TerraformUnavailable):
        apply(world, monkeypatch)


def test_the_intent_says_who_applies_what_on_which_state(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(world, terraform, monkeypatch)
    intent = world.session().facts("terraform_apply", "intent")
    assert (intent["lineage"], intent["serial"], intent["run_id"]) == ("l-1", 7, world.run_id)
    assert intent["checksum"] == intent["applies"] and intent["who"] == whoami() and intent["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("after", "held", "goes_on"),
    [
        (StateMark("l-1", 9, "sum2"), False, True),  # the shell that outlived the worker noted it
        (StateMark("l-1", 9, "another plan's"), False, False),
        (StateMark("l-1", 8, "sum2"), False, False),  # and somebody went on from there
        (None, True, True),  # our dead terraform still had the lock
        (None, False, False),
    ],
)
def test_a_retry_goes_on_only_from_the_state_that_we_left(
    after: StateMark | None, held: bool, goes_on: bool,
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cut_off(world, terraform, monkeypatch)
    terraform.state, terraform.after, terraform.released_own_lock = StateMark("l-1", 9), after, held
    if goes_on:
        assert apply(world, monkeypatch, 2)["changed"] is True
        return
    with pytest.raises(NeedsHumanError) as refused:
        apply(world, monkeypatch, 2)
    assert refused.value.reason == "state-moved" and "serial 7 was planned on, it is 9" in refused.value.message
    assert not [call for call in terraform.calls if call.startswith("apply")]


def test_what_a_failed_try_left_is_remembered_for_a_try_on_another_worker(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.after = StateMark("l-1", 8, "sum2")
    cut_off(world, terraform, monkeypatch)
    terraform.state, terraform.after = StateMark("l-1", 8), None
    assert apply(world, monkeypatch, 2)["changed"] is True


def test_a_state_that_we_could_not_upload_then_is_ours(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(world, terraform, monkeypatch)
    terraform.state = terraform.brought_home = StateMark("l-1", 8)
    assert apply(world, monkeypatch, 2)["changed"] is True


def answer(world: World, checksum: str, given: str) -> None:
    kept = Answer(checksum=checksum, answer=given, by="ada", at="2026-11-24T03:00:00+00:00", policy="x", reason="y")
    write_answer(world.session().store, "test", kept)


@pytest.mark.parametrize(
    ("policy", "given", "changes", "applied"),
    [
        ("always", None, VPC, False),
        ("always", "approved", VPC, True),
        ("always", "rejected", VPC, False),
        ("on-destroy", None, VPC, True),
        ("on-destroy", None, [("aws_vpc.this", "replace")], False),
        ("on-destroy", "none", [("aws_vpc.this", "replace")], False),
        ("never", None, [("aws_vpc.this", "delete")], True),
        ("never", "rejected", VPC, False),
    ],
)
def test_only_an_approved_plan_is_applied(
    policy: str, given: str | None, changes: list[tuple[str, str]], applied: bool,
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("nim_rollouts.operators.terraform._policy", lambda stage: policy)
    terraform.plans = [changes]
    planned = plan(world, monkeypatch)
    if given is not None:
        answer(world, planned["checksum"], given)
    if applied:
        assert apply(world, monkeypatch)["changed"] is True
        return
    answer(world, "another-plan", "approved")
    with pytest.raises(NeedsHumanError) as refused:
        apply(world, monkeypatch)
    assert refused.value.reason == "not-approved"
    assert not [call for call in terraform.calls if call.startswith("apply")]


def test_the_provider_versions_of_the_plan_are_those_of_the_apply(
    world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    terraform.plans = [VPC]
    plan(world, monkeypatch)
    apply(world, monkeypatch)
    assert terraform.locks == [None, b"versions"]


@pytest.mark.parametrize("fail", [False, True])
def test_drift_is_none_or_listed(
    fail: bool, world: World, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> dict[str, Any]:
        operator = TerraformDriftOperator(task_id="drift", fail=fail)
        world.prepared(operator, monkeypatch)
        operator.execute(world.context("drift"))
        return world.session().facts("drift")

    terraform.plans = [[]]
    assert look()["drift"] == "none"
    terraform.plans = [[("aws_vpc.this", "update")]]
    if fail:
        with pytest.raises(TerraformFailed, match="1 to update") as caught:
            look()
        assert caught.value.reason == "drift"
    else:
        assert look()["changes"] == [["aws_vpc.this", "update"]]
