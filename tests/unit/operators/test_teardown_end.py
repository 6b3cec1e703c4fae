"""The infrastructure goes by a plan that was confirmed, and only "nothing is left" is success."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients.approvals import read_answer
from nim_rollouts.core.errors import (
    AccessDenied,
    LeftoversFound,
    TerraformUnavailable,
)
from nim_rollouts.core.inventory import Finding, Inventory, Unseen
from nim_rollouts.hooks.inventory import networks
from nim_rollouts.operators import inventory, teardown_terraform
from tests.unit.operators.conftest import ENVIRONMENT, World, run

LEFT = Finding("EFS file system", "fs-1", "", ("tag nim-rollouts/environment",), "us (terraform)", (), "", going=False)
BLIND = Unseen("volume", "AWS refuses ec2:DescribeVolumes (AccessDenied)", "ec2:DescribeVolumes")


@pytest.fixture
def gone(down: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(terraform's state, AWS's leftovers, what AWS does not tell) -> the facts of verify_gone."""

    def verify(state: list[str], left: tuple[Finding, ...] = (), unseen: tuple[Unseen, ...] = ()) -> dict[str, Any]:
        fake = SimpleNamespace(init=lambda backend: None, state_list=lambda: state)
        monkeypatch.setattr("nim_rollouts.hooks.infrastructure.open_terraform", lambda *_: fake)
        taken = Inventory(left, unseen, ("EFS file system",))
        monkeypatch.setattr("nim_rollouts.hooks.inventory.take", lambda environment, store, say: taken)
        return run(down, teardown_terraform.VerifyGoneOperator, "verify_gone")

    return verify


@pytest.mark.parametrize(("state", "aws", "text"), [([], (), None), (["aws_vpc.this"], (), "aws_vpc.this"),
                                                    ([], (LEFT,), "fs-1")])  # fmt: skip
def test_only_empty_is_success(
    down: World, gone: Any, state: list[str], aws: tuple[Finding, ...], text: str | None
) -> None:
    if text is None:
        facts = gone(state, aws)
        assert {"state": "empty", "aws": "empty"}.items() <= facts.items()
        assert facts["answer"] == "empty" and facts["looked_at"] == ["EFS file system", "terraform state"]
        return
    with pytest.raises(LeftoversFound, match=text):
        gone(state, aws)
    written = down.session(deployment="").facts("verify_gone", "inventory")
    assert (written["answer"], len(written["leftovers"])) == ("leftovers", 1)


def test_what_cannot_be_seen_is_no_success(down: World, gone: Any) -> None:
    with pytest.raises(AccessDenied, match="ec2:DescribeVolumes"):
        gone([], (), (BLIND,))
    written = down.session(deployment="").facts("verify_gone", "inventory")
    assert written["answer"] == "unknown" and written["unknown"][0]["action"] == "ec2:DescribeVolumes"


def test_a_state_that_cannot_be_read_hides_nothing_of_aws(
    down: World, gone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(self: Any, stage: Any, purpose: str | None = None) -> Any:
        raise TerraformUnavailable("the state is locked")

    monkeypatch.setattr(teardown_terraform.VerifyGoneOperator, "terraform", unreadable)
    with pytest.raises(LeftoversFound, match="fs-1.*terraform state: it cannot be read: the state is locked"):
        gone([], (LEFT,))


def test_an_inventory_without_a_claim_works_in_a_folder_of_its_own(
    down: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a deploy's terraform, whose import blocks and left state lie in the environment's own folder."""
    folders: list[str] = []

    def opened(environment: Any, include: Any, say: Any, *, purpose: str = "terraform") -> Any:
        folders.append(purpose)
        return SimpleNamespace(init=lambda backend: None, state_list=list)

    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.open_terraform", opened)
    monkeypatch.setattr("nim_rollouts.hooks.inventory.take", lambda environment, store, say: Inventory((), (), ()))
    run(down, inventory.InventoryOperator, "look")
    run(down, teardown_terraform.VerifyGoneOperator, "verify_gone")
    assert folders == ["inventory", "terraform"]


def test_destroy_remembers_the_network_and_names_what_holds_it(
    down: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def apply(self: Any, stage: Any) -> Any:
        raise TerraformUnavailable("vpc-00000001: DependencyViolation", reason="dependency-violation")

    stage = down.stage("plan_destroy", deployment="")
    asked: list[dict[str, Any]] = []
    fake = SimpleNamespace(
        output=lambda: {"vpc_id": "vpc-00000001"},
        state_list=lambda identifier: {"vpc-00000001": ["aws_vpc.this"]}[identifier],
        plan=lambda values, **how: asked.append(how),
    )
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.variables", lambda environment: {})
    monkeypatch.setattr("nim_rollouts.hooks.inventory.strangers", lambda environment, store: ["instance i-1"])
    teardown_terraform.PlanDestroyOperator(task_id="plan_destroy").plan(stage, fake)
    assert asked == [{"destroy": True, "explain": None}]
    monkeypatch.setattr("nim_rollouts.operators.terraform.TerraformApplyOperator.run", apply)
    monkeypatch.setattr(
        "nim_rollouts.hooks.inventory.holders",
        lambda environment, store, ids: dict.fromkeys(ids, ("network interface eni-1",)),
    )
    with pytest.raises(TerraformUnavailable, match="vpc-00000001 is held by network interface eni-1"):
        run(down, teardown_terraform.TerraformDestroyOperator, "terraform_destroy")
    assert "terraform cannot remove what this is in: instance i-1" in caplog.text
    session = down.session(deployment="")
    assert networks(session.environment, session.store) == ["vpc-00000001"]


def test_a_destruction_that_was_killed_after_its_last_step_leaves_no_mark(
    down: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next deploy would look all over AWS for what an apply of long ago may have made."""
    from nim_rollouts.hooks import interrupted

    left = [SimpleNamespace(has_changes=True), SimpleNamespace(has_changes=False)]
    monkeypatch.setattr(teardown_terraform, "_plan", lambda stage, terraform: left.pop(0))
    stage = down.stage("terraform_destroy", deployment="")
    with pytest.raises(KeyboardInterrupt), interrupted.applying(stage.session, "sum1", SimpleNamespace(began=True)):  # type: ignore[arg-type]
        raise KeyboardInterrupt
    destroy = teardown_terraform.TerraformDestroyOperator(task_id="terraform_destroy")
    destroy.plan(stage, SimpleNamespace())  # type: ignore[arg-type]
    assert interrupted.interrupted(stage.session), "something is left to destroy"
    destroy.plan(stage, SimpleNamespace())  # type: ignore[arg-type]
    assert interrupted.interrupted(stage.session) is None


def planned(down: World, *changes: str, checksum: str = "sum1") -> None:
    facts = {"checksum": checksum, "changes": [[address, "delete"] for address in changes], "plan_key": "x"}
    down.session(deployment="").ledger.record("plan_destroy", 1, "result", facts)


def approve(down: World, **policies: Any) -> Any:
    file = down.include.root / "environments" / "test.yaml"
    file.write_text(file.read_text() + f"policies: {policies}\n")
    operator = teardown_terraform.ApproveDestroyOperator(task_id="approve_destroy")
    operator.deployment = ""
    return operator.run(down.stage("approve_destroy", deployment=""))


def test_the_typed_name_approves_the_plan_of_the_destruction_and_is_kept_with_who_typed_it(down: World) -> None:
    planned(down, "aws_vpc.this")
    assert approve(down)["declined"] is False
    kept = read_answer(down.session().store, ENVIRONMENT, "sum1")
    assert kept is not None
    assert (kept.answer, kept.by, kept.asked) == ("approved", "ada", False)
    assert ENVIRONMENT in kept.reason and "typed" in kept.reason
    assert kept.changes == [["aws_vpc.this", "delete"]]


@pytest.mark.parametrize(
    ("policies", "asks"),
    [
        ({"approvers": ["grace"]}, True),
        ({"approvers": ["grace", "ada"]}, False),
        ({"four_eyes": True}, True),
        ({"four_eyes": True, "approval": "never"}, False),
    ],
)
def test_who_may_not_approve_a_plan_does_not_approve_a_destruction_by_typing(
    down: World, monkeypatch: pytest.MonkeyPatch, policies: dict[str, Any], asks: bool
) -> None:
    planned(down, "aws_vpc.this")

    def ask(self: Any, stage: Any, question: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(teardown_terraform.ApproveDestroyOperator, "_ask", ask)
    if not asks:
        assert approve(down, **policies)["declined"] is False
        return
    with pytest.raises(TimeoutError):
        approve(down, **policies)
    assert read_answer(down.session().store, ENVIRONMENT, "sum1") is None


def test_the_policy_always_asks_besides(down: World, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(down, "aws_vpc.this")
    asked: list[Any] = []

    def ask(self: Any, stage: Any, question: Any) -> None:
        asked.append(question)
        raise TimeoutError

    monkeypatch.setattr(teardown_terraform.ApproveDestroyOperator, "_ask", ask)
    with pytest.raises(TimeoutError):
        approve(down, approval="always")
    assert "aws_vpc.this" in asked[0].body
    assert asked[0].subject == "test: 1 to destroy (the whole environment)"
    head = asked[0].body.partition("### What it costs")[0]
    assert "services and caches of `meta-llama3-8b-instruct`" in head, "a yes means these too, and before"
    assert read_answer(down.session().store, ENVIRONMENT, "sum1") is None
