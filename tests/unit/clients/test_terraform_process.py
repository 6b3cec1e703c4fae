"""terraform's process with a small program in its place: stops, kills, workers that die, what is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nim_rollouts.clients.terraform import Terraform
from nim_rollouts.clients.terraform_locks import own_lock
from nim_rollouts.core.errors import TerraformFailed, TerraformUnavailable
from tests.unit.clients.terraform_fake import (
    BACKEND,
    VARIABLES,
    Setup,
    hanging_apply,
    outlived,
    setup,
    wait_until,
    worker,
)

__all__ = ["setup"]


def test_stop_sends_one_sigint_and_waits_for_the_end(setup: Setup) -> None:
    terraform, thread, caught = hanging_apply(setup)
    for _ in range(3):
        terraform.stop()
    thread.join(20)
    assert [error.reason for error in caught] == ["terraform-interrupted"]
    assert (setup.folder / "sigints").read_text() == "1"
    assert not (setup.folder / "work" / "running.json").exists()


def test_a_stop_between_two_commands_is_not_forgotten(setup: Setup) -> None:
    """Airflow kills the worker seconds later: what was begun in them would be watched by nobody."""
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    terraform.stop()
    with pytest.raises(TerraformUnavailable) as stopped:
        terraform.apply()
    assert stopped.value.reason == "terraform-interrupted"
    assert not [call for call in setup.calls() if call["args"][0] == "apply"]  # type: ignore[index]


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN], ids=["in-front", "in-a-background-job"])
def inherited(request: pytest.FixtureRequest) -> Iterator[None]:
    """How the worker was started: below a shell's background job SIGINT is ignored, also in what it starts."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("inherited")
def test_a_stop_while_a_command_is_being_started_reaches_it(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "hang").touch()
    start = subprocess.Popen
    begun: list[subprocess.Popen[bytes]] = []

    def stopped_meanwhile(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        begun.append(start(*args, **kwargs))
        terraform.stop()
        return begun[0]

    monkeypatch.setattr("nim_rollouts.clients.terraform_process.subprocess.Popen", stopped_meanwhile)
    caught: list[TerraformUnavailable] = []

    def apply() -> None:
        with pytest.raises(TerraformUnavailable) as stopped:
            terraform.apply()
        caught.append(stopped.value)

    thread = threading.Thread(target=apply)
    thread.start()
    thread.join(20)
    if thread.is_alive():
        os.killpg(begun[0].pid, signal.SIGKILL)
        thread.join()
    assert (setup.folder / "sigints").read_text() == "1", "it was killed, or has ended before it could listen"
    assert [error.reason for error in caught] == ["terraform-interrupted"]


def test_an_exception_in_the_worker_stops_terraform_too(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "hang").touch()

    def fail(line: str) -> None:
        if "creating" in line:
            raise KeyboardInterrupt

    terraform.say = fail
    with pytest.raises(KeyboardInterrupt):
        terraform.apply()
    assert (setup.folder / "sigints").read_text() == "1"


def test_sigterm_of_the_worker_is_handed_on_as_one_sigint(setup: Setup, root: Path) -> None:
    process = worker(setup, root)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    assert (setup.folder / "sigints").read_text() == "1"


def in_background(terraform: Terraform) -> tuple[threading.Thread, list[Exception | None]]:
    """An init in a thread of its own, and how it will have ended."""
    ended: list[Exception | None] = []

    def init() -> None:
        try:
            terraform.init(BACKEND)
            ended.append(None)
        except TerraformUnavailable as error:
            ended.append(error)

    thread = threading.Thread(target=init)
    thread.start()
    return thread, ended


def test_terraform_outlives_a_killed_worker_and_the_next_waits_for_it(
    setup: Setup, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than for somebody's lock: its apply may have another 20 minutes to go. Told meanwhile in its own words."""
    monkeypatch.setattr("nim_rollouts.clients.terraform_earlier._TELL_S", 1.0)
    record = outlived(setup, root)
    waiting = setup.terraform()
    assert waiting.lock_timeout_s < 3 < waiting.patience_s
    thread, ended = in_background(waiting)
    wait_until(lambda: sum("is still at work: creating aws_vpc.this" in line for line in setup.lines) == 3)
    assert ended == [] and f"(pid {record['pid']})" in setup.lines[0]
    os.killpg(record["pid"], signal.SIGINT)
    thread.join(20)
    assert ended == [None] and (setup.folder / "sigints").exists()
    assert not (setup.folder / "work" / "running.json").exists()


def test_an_earlier_terraform_that_does_not_end_is_named(setup: Setup, root: Path) -> None:
    assert Terraform(setup.root, setup.folder / "other", {}).patience_s >= 45 * 60
    record = outlived(setup, root)
    with pytest.raises(TerraformUnavailable) as caught:
        setup.terraform(patience_s=0).init(BACKEND)
    assert caught.value.reason == "terraform-busy" and str(record["pid"]) in caught.value.message
    os.killpg(record["pid"], signal.SIGINT)
    wait_until((setup.folder / "sigints").exists)


def test_a_stop_ends_the_wait_and_not_what_is_waited_for(setup: Setup, root: Path) -> None:
    record = outlived(setup, root)
    waiting = setup.terraform()
    thread, ended = in_background(waiting)
    wait_until(lambda: any("waiting for an earlier terraform apply" in line for line in setup.lines))
    waiting.stop()
    thread.join(4)  # Airflow kills after five seconds
    assert [getattr(one, "reason", "") for one in ended] == ["terraform-interrupted"]
    assert not (setup.folder / "sigints").exists()
    os.killpg(record["pid"], signal.SIGINT)
    wait_until((setup.folder / "sigints").exists)


@pytest.mark.timeout(60)
def test_plugins_that_a_killed_terraform_left_are_ended(
    setup: Setup, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold the guard: without this every later try would find it busy."""
    monkeypatch.setattr("nim_rollouts.clients.terraform_earlier._PROCESSES_S", 0.5)
    (setup.folder / "plugin").touch()
    process = worker(setup, root)
    noted = setup.folder / "plugin-pid"
    wait_until(lambda: noted.exists() and noted.read_text() != "")
    plugin = psutil.Process(int(noted.read_text()))
    process.kill()
    process.wait(20)
    record = json.loads((setup.folder / "work" / "running.json").read_text())
    for one in psutil.Process(record["pid"]).children(recursive=True):
        if one != plugin:
            one.kill()
    assert plugin.is_running()
    setup.terraform().init(BACKEND)
    assert not plugin.is_running() and any(f"killed (pid {plugin.pid})" in line for line in setup.lines)
    assert not (setup.folder / "work" / "running.json").exists()


@pytest.mark.parametrize(
    ("who", "created", "ours"),
    [("me@here", 1000.5, True), ("me@here", 2000.0, False), ("me@there", 1000.5, False), ("me@here", None, False)],
)
def test_only_the_lock_of_our_own_dead_process_is_ours(who: str, created: float | None, ours: bool) -> None:
    assert own_lock({"who": "me@here", "started": 1000.0}, who, created) is ours
    assert not own_lock(None, who, created)


def test_a_terraform_that_was_killed_is_remembered_until_the_lock_is_known_to_be_free(setup: Setup, root: Path) -> None:
    process = worker(setup, root)
    record = json.loads((setup.folder / "work" / "running.json").read_text())
    os.killpg(record["pid"], signal.SIGKILL)
    assert process.wait(20) != 0
    [ended] = json.loads((setup.folder / "work" / "ended.json").read_text())
    assert (ended["pid"], ended["name"]) == (record["pid"], "apply")
    (setup.folder / "hang").unlink()
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.drift(VARIABLES)
    assert (setup.folder / "work" / "ended.json").exists()  # neither takes the lock: nothing is known yet
    terraform.plan(VARIABLES)
    assert "-lock-timeout=0s" in setup.last("plan")
    assert not (setup.folder / "work" / "ended.json").exists()
    terraform.plan(VARIABLES)
    assert "-lock-timeout=1s" in setup.last("plan")


@pytest.mark.parametrize(
    ("fails", "began"),
    [("at once", False), ("half-way", True), ("at the end", True)],  # an import has no steps
)
def test_whether_a_failed_apply_has_begun(setup: Setup, fails: str, began: bool) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "fails").write_text(fails)
    with pytest.raises(TerraformFailed):
        terraform.apply()
    assert terraform.began is began
    assert (terraform.left() is not None) is began, "a state that we did not leave is not noted as ours"


def test_a_killed_apply_may_have_begun_and_a_plan_that_is_not_the_one_has_not(setup: Setup) -> None:
    terraform, thread, caught = hanging_apply(setup)
    os.killpg(json.loads((setup.folder / "work" / "running.json").read_text())["pid"], signal.SIGKILL)
    thread.join(20)
    assert caught and terraform.began
    with pytest.raises(TerraformFailed, match="another than"):
        terraform.apply(expect_checksum="0" * 64)
    assert not terraform.began


def test_what_a_killed_terraform_amounts_to(setup: Setup) -> None:
    _, thread, caught = hanging_apply(setup)
    os.killpg(json.loads((setup.folder / "work" / "running.json").read_text())["pid"], signal.SIGKILL)
    thread.join(20)
    assert [error.reason for error in caught] == ["terraform-killed"]


@pytest.mark.parametrize("command", ["show", "output", "state_mark"])
def test_values_are_never_on_disk(setup: Setup, command: str) -> None:
    """What lies there at a moment is what a SIGKILL would leave: `state pull` tells the whole state."""
    secret = "sesame-open-9"
    terraform = setup.terraform(FAKE_SECRET=secret)
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "hang-telling").touch()
    caught: list[str] = []

    def ask() -> None:
        with pytest.raises(TerraformUnavailable) as killed:
            getattr(terraform, command)()
        caught.append(f"{killed.value.reason} {killed.value}")

    def found() -> list[Path]:
        files = (one for one in (setup.folder / "work").rglob("*") if one.is_file())
        return [one for one in files if secret.encode() in one.read_bytes()]

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until((setup.folder / "told").exists)
    assert found() == []
    os.killpg(json.loads((setup.folder / "work" / "running.json").read_text())["pid"], signal.SIGKILL)
    thread.join(20)
    assert caught and caught[0].startswith("terraform-killed") and secret not in caught[0] and found() == []
