"""The rehearsal by itself: it comes up, it ends, it names the part that fails, and two do not disturb each other.

These start bare rehearsals (no Airflow) of their own, each in a state folder of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rehearsal import config, supervisor
from tests.rehearsal.ports import open_ports

ROOT = Path(__file__).resolve().parents[2]


def _environment(state: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "REHEARSAL_STATE": str(state), "PYTHONPATH": str(ROOT), **more}


def _command(state: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rehearsal", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=_environment(state, **more), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_two_rehearsals_stand_side_by_side_and_leave_nothing(tmp_path: Path) -> None:
    states = [tmp_path / "one", tmp_path / "two"]
    try:
        for state in states:
            result = _command(state, "up", "--without-airflow")
            assert result.returncode == 0, result.stdout + result.stderr
        known = [config.load(state) for state in states]
        assert known[0].block != known[1].block
        assert not set(known[0].ports.values()) & set(known[1].ports.values())
        assert "apiserver" in open_ports(known[0])

        pid = known[0].supervisor_pid
        again = _command(states[0], "up", "--without-airflow")
        assert again.returncode == 0, again.stderr
        assert config.load(states[0]).supervisor_pid == pid, "a second `up` must find the first one's rehearsal"

        first_down = _command(states[0], "down")
        assert first_down.returncode == 0, first_down.stderr
        assert _command(states[1], "status").returncode == 0, "the other rehearsal was disturbed"
    finally:
        for state in states:
            _command(state, "down")
    for state, r in zip(states, known, strict=True):
        assert supervisor.leftovers(state) == []
        assert open_ports(r) == []
        with pytest.raises(config.NotUp):
            config.load(state)


def test_a_part_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "controlplane"
    broken.write_text("#!/bin/sh\necho this disk is full >&2\nexit 7\n")
    broken.chmod(0o755)
    state = tmp_path / "state"
    result = _command(state, "up", "--without-airflow", CONTROLPLANE=str(broken))
    assert result.returncode == 1
    assert "etcd ended with status 7" in result.stderr
    assert str(state / "logs" / "etcd.log") in result.stderr
    assert "this disk is full" in result.stderr
    assert supervisor.leftovers(state) == []


def test_ctrl_c_while_it_comes_up_ends_everything(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-m", "rehearsal", "up", "--without-airflow"]
    # A shell's background job, such as a CI's, has SIGINT ignored, and so would its children.
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(state), stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout
    first = process.stdout.readline()
    assert first, "nothing came up"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    deadline = time.monotonic() + 5
    while supervisor.leftovers(state) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert supervisor.leftovers(state) == []


def test_a_killed_supervisor_is_cleaned_up_after(tmp_path: Path) -> None:
    state = tmp_path / "state"
    try:
        assert _command(state, "up", "--without-airflow").returncode == 0
        r = config.load(state)
        os.kill(r.supervisor_pid, signal.SIGKILL)
    finally:
        result = _command(state, "down")
    assert result.returncode == 0, result.stderr
    assert supervisor.leftovers(state) == []
    assert open_ports(r) == []


@pytest.mark.slow
def test_a_part_that_dies_later_is_reported_and_ends_nothing_else(tmp_path: Path) -> None:
    state = tmp_path / "state"
    try:
        assert _command(state, "up", "--without-airflow").returncode == 0
        pids = {row[0]: int(row[3]) for row in _rows(_command(state, "status").stdout) if row[2] == "pid"}
        os.kill(pids["ngc"], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while "failed" not in (told := _command(state, "status").stdout) and time.monotonic() < deadline:
            time.sleep(0.1)
        failed = [row[0] for row in _rows(told) if row[1] == "failed"]
        assert failed == ["ngc"]
        assert _command(state, "status").returncode == 1
    finally:
        assert _command(state, "down").returncode == 0


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.slow
def test_one_part_is_restarted_and_comes_back(tmp_path: Path) -> None:
    state = tmp_path / "state"
    try:
        assert _command(state, "up", "--without-airflow").returncode == 0
        r = config.load(state)
        before = _pid(state, "kube-apiserver")
        began = time.monotonic()
        back = _command(state, "restart", "kube-apiserver", "--away", "1.5", "--kill")
        assert back.returncode == 0, back.stderr
        assert time.monotonic() - began >= 1.5
        assert "apiserver" in open_ports(r) and _pid(state, "kube-apiserver") != before
        assert _command(state, "status").returncode == 0, "the other parts bore it"
        unknown = _command(state, "restart", "kube-api")
        assert unknown.returncode == 1 and "kube-apiserver" in unknown.stderr
        assert _command(state, "restart", "cluster-setup").returncode == 1, "a step is no part that runs"
    finally:
        _command(state, "down")
    assert supervisor.leftovers(state) == []
    assert _command(state, "restart", "ngc").returncode == 3


def _pid(state: Path, part: str) -> int:
    return int(json.loads((state / supervisor.PARTS_FILE).read_text())["parts"][part]["pid"])
