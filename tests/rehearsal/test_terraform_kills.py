"""SIGKILL in the middle of an apply and of a destroy: the next try converges, nothing stands twice, nothing is left
that no state knows, no lock stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from rehearsal.aws.inventory import inventory
from rehearsal.config import Rehearsal
from tests.rehearsal.aws_standin import client, start
from tests.rehearsal.terraform_audit import in_aws, in_state, locks
from tests.rehearsal.terraform_kills import HEAD, STATE, Ground, Moment, key, moments

pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")

APPLY, DESTROY = ["terraform_plan", "terraform_apply"], ["plan_destroy", "terraform_destroy"]
KILLS = 10
#: Who is killed at each moment. A terraform without its worker goes on; a worker without its terraform says so.
VICTIMS = ["both", "terraform", "worker", "both", "terraform", "both", "worker", "both", "terraform", "both"]
#: Environments at a time.
LANES = 5

#: Of the kind that `nim_deploy` applies. The provider watches a VPC for ten seconds: until then no state is written.
SMALL = (
    HEAD
    + """
resource "aws_eip" "this" {
  domain = "vpc"
  tags   = { Name = var.environment }
}
resource "aws_vpc" "this" {
  cidr_block = "10.1.0.0/16"
  tags       = { Name = var.environment }
}
resource "aws_cloudwatch_log_group" "this" {
  name = "/test/${var.environment}"
}
"""
)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    r, process = start(tmp_path)
    try:
        yield Ground(r, tmp_path)
    finally:
        process.terminate()
        process.wait(30)


def whole(ground: Ground, name: str) -> None:
    """All of it is there, known to the state once and only once, and nothing is left to do."""
    again = ground.attempt(name, ["terraform_plan"], run_id="another")
    assert again["ok"] and not again["terraform_plan"]["has_changes"], again
    aws, state = in_aws(ground.r, name), in_state(ground.r, STATE, key(name))
    assert aws == state and set(aws.values()) == {1}, (
        f"{name}: {aws - state} not in the state, {state - aws} not in AWS"
    )


def gone(r: Rehearsal, name: str) -> None:
    assert not in_aws(r, name) and not in_state(r, STATE, key(name))


def life(ground: Ground, name: str, apply: Moment, destroy: Callable[[], Moment], victims: str) -> None:
    """An environment made and destroyed, each with one kill. `destroy` is asked for once the moment must be known."""
    ground.environment(name)
    ground.kill(name, APPLY, apply, victims)
    ground.converge(name, APPLY[1:])
    whole(ground, name)
    ground.kill(name, DESTROY, destroy(), victims)
    ground.converge(name, DESTROY[1:])
    gone(ground.r, name)


@pytest.mark.timeout(600)
def test_worker_and_terraform_killed_with_nothing_in_the_state(ground: Ground) -> None:
    """An address, which has no name to be in the way of a second one, and a log group, which has."""
    ground.root("small", SMALL)
    ground.kill("small", APPLY, Moment("apply_complete", "aws_eip.this"), "both")
    assert in_aws(ground.r, "small")["aws_eip", address(ground.r)] == 1
    ended = ground.converge("small", APPLY[1:])
    assert "to take over" in ended["terraform_apply"]["replanned"], ended["log"]
    aws, state = in_aws(ground.r, "small"), in_state(ground.r, STATE, key("small"))
    assert aws == state and sorted(type_ for type_, _ in aws) == ["aws_cloudwatch_log_group", "aws_eip", "aws_vpc"]
    assert locks(ground.r, STATE) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_worker_and_terraform_killed_once_all_is_done_and_the_lock_is_gone(ground: Ground) -> None:
    """terraform's last words: nobody has noted yet which state it left. It is not taken for somebody else's."""
    ground.root("small", SMALL)
    ground.kill("small", APPLY, Moment("change_summary"), "both")
    assert locks(ground.r, STATE) == [] and not (ground.folder / "work/small/terraform/left").exists()
    ended = ground.converge("small", APPLY[1:])
    assert ended["terraform_apply"]["changed"] is False, ended["log"]
    assert in_aws(ground.r, "small") == in_state(ground.r, STATE, key("small"))


def address(r: Rehearsal) -> str:
    """The only one that there is."""
    (one,) = client(r, "ec2").describe_addresses()["Addresses"]
    return str(one["AllocationId"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_ten_moments_of_apply_and_of_destroy(ground: Ground) -> None:
    """The real root, whole: its EKS cluster takes a minute to go, which the environments wait for side by side."""
    before = inventory(ground.r)
    ground.environment("clean")
    assert ground.attempt("clean", APPLY)["ok"]
    whole(ground, "clean")
    applies = moments(ground.stream("clean").read_text().splitlines(), KILLS)

    def clean_destroy() -> list[Moment]:
        assert ground.attempt("clean", DESTROY)["ok"]
        gone(ground.r, "clean")
        return moments(ground.stream("clean").read_text().splitlines(), KILLS)

    with ThreadPoolExecutor(LANES) as lanes:
        # A minute of waiting, which the first applies need not wait for.
        destroys = lanes.submit(clean_destroy)
        lives = {}
        for number, (apply, victims) in enumerate(zip(applies, VICTIMS, strict=True)):
            destroy = partial(_nth, destroys, number)
            lives[f"kill-{number}"] = lanes.submit(life, ground, f"kill-{number}", apply, destroy, victims)
    failed = {name: error for name, one in lives.items() if (error := one.exception()) is not None}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert locks(ground.r, STATE) == [] and inventory(ground.r) == before


def _nth(found: Future[list[Moment]], number: int) -> Moment:
    return found.result()[number]
