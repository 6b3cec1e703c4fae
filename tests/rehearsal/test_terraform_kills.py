"""SIGKILL in the middle of an apply and of a destroy: the next try converges, nothing stands twice, nothing is left
that no state knows, no lock stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rehearsal.aws.inventory import inventory
from rehearsal.config import Rehearsal
from tests.rehearsal.aws_standin import start
from tests.rehearsal.terraform_audit import in_aws, in_state, locks
from tests.rehearsal.terraform_kills import STATE, Ground, Moment, key, moments

pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")

APPLY, DESTROY = ["terraform_plan", "terraform_apply"], ["terraform_destroy"]
KILLS = 10
#: Who is killed at each moment. A terraform without its worker goes on; a worker without its terraform says so.
VICTIMS = ["both", "terraform", "worker", "both", "terraform", "both", "worker", "both", "terraform", "both"]
#: Environments at a time.
LANES = 5


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


def life(ground: Ground, name: str, apply: Moment, destroy: Moment, victims: str) -> None:
    """An environment made and destroyed, each with one kill."""
    ground.environment(name)
    ground.kill(name, APPLY, apply, victims)
    ground.converge(name, APPLY[1:])
    whole(ground, name)
    ground.kill(name, DESTROY, destroy, victims)
    ground.converge(name, DESTROY)
    gone(ground.r, name)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_ten_moments_of_apply_and_of_destroy(ground: Ground) -> None:
    """The real root, whole: its EKS cluster takes a minute to go, which the environments wait for side by side."""
    before = inventory(ground.r)
    ground.environment("clean")
    assert ground.attempt("clean", APPLY)["ok"]
    whole(ground, "clean")
    applies = moments(ground.stream("clean").read_text().splitlines(), KILLS)
    assert ground.attempt("clean", DESTROY)["ok"]
    gone(ground.r, "clean")
    destroys = moments(ground.stream("clean").read_text().splitlines(), KILLS)

    with ThreadPoolExecutor(LANES) as lanes:
        lives = {
            f"kill-{number}": lanes.submit(life, ground, f"kill-{number}", apply, destroy, victims)
            for number, (apply, destroy, victims) in enumerate(zip(applies, destroys, VICTIMS, strict=True))
        }
    failed = {name: error for name, one in lives.items() if (error := one.exception()) is not None}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert locks(ground.r, STATE) == [] and inventory(ground.r) == before
