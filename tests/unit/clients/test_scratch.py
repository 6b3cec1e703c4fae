"""A temporary folder goes with its process, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nim_rollouts.clients.scratch import scratch

_HOLDER = """
import sys, time
from nim_rollouts.clients.scratch import scratch
with scratch("one") as folder:
    (folder / "token").write_text("secret")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def age(folder: Path) -> None:
    before = time.time() - 3600
    os.utime(folder, (before, before))


def test_it_is_private_and_goes(place: Path) -> None:
    with scratch("one") as folder:
        assert folder.parent == place and folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_held_stays(place: Path) -> None:
    command = [sys.executable, "-c", _HOLDER]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        left = Path(process.stdout.readline().strip())
        age(left)
        try:
            with scratch("one"):
                assert (left / "token").exists(), "its process lives"
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            with scratch("two"):
                assert (left / "token").exists(), "of another purpose"
            with scratch("one") as folder:
                assert list(place.iterdir()) == [folder]
        finally:
            process.kill()


def test_a_folder_that_is_about_to_be_held_stays(place: Path) -> None:
    young = place / "nim-rollouts-one-young"
    young.mkdir()
    with scratch("one"):
        assert young.exists()
    age(young)
    with scratch("one"):
        assert not young.exists()


def test_what_belongs_to_others_stays(place: Path) -> None:
    theirs, elsewhere = place / "nim-rollouts-one-theirs", place / "elsewhere"
    theirs.mkdir()
    elsewhere.mkdir()
    age(theirs)
    age(elsewhere)
    link = place / "nim-rollouts-one-link"
    link.symlink_to(elsewhere)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        with scratch("one"):
            assert theirs.exists()
    with scratch("one"):
        assert not theirs.exists() and link.is_symlink() and elsewhere.exists()
