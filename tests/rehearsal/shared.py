"""One rehearsal for all live tests: brought up by the first that asks, ended after the last, and nothing left."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehearsal import config, supervisor
from tests.rehearsal import disorder, own_include
from tests.rehearsal.live import Live, Run
from tests.rehearsal.ports import open_ports
from tests.rehearsal.secrets_watch import CommandLines, forms

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def canary() -> str:
    """The NGC key of the shared rehearsal: of the right shape, and found nowhere else in the world."""
    return "nvapi-canary-" + secrets.token_urlsafe(36)


@pytest.fixture(scope="session")
def command_lines(canary: str) -> Iterator[CommandLines]:
    """Looks for the canary in the command line of every process of the machine, from before `up` to the end."""
    watcher = CommandLines(forms(canary))
    watcher.start()
    yield watcher
    watcher.stop()


@pytest.fixture(scope="session")
def live(canary: str, command_lines: CommandLines, request: pytest.FixtureRequest) -> Iterator[Live]:
    """The shared rehearsal, up, with Airflow; its state folder is kept when a test failed."""
    failed_before = request.session.testsfailed
    own = Path(tempfile.mkdtemp(prefix="nim-rollouts-include-"))
    state = Path(tempfile.mkdtemp(prefix="nim-rollouts-live-"))
    environment = {
        **os.environ,
        "REHEARSAL_STATE": str(state),
        "REHEARSAL_NGC_KEY": canary,
        # moto's own recorder: what was asked of AWS, by action (used through its API, off until a test turns it on).
        "MOTO_RECORDER_FILEPATH": str(state / "moto-recording.jsonl"),
        "PYTHONPATH": str(ROOT),
        "REHEARSAL_DAGS": str(ROOT / "tests" / "rehearsal" / "dags"),
        "REHEARSAL_INCLUDE": str(own_include.make(own)),
    }
    failed = True
    try:
        _command(environment, "up", 300)
        r = config.load(state)
        yield Live(r, environment)
        failed = request.session.testsfailed > failed_before
        _command(environment, "down", 120)
        assert supervisor.leftovers(state) == [], "a process of the rehearsal outlived `down`"
        assert open_ports(r) == [], "a port of the rehearsal is still open"
    finally:
        _command(environment, "down", 120, check=False)
        if failed or os.environ.get("KEEP_STATE"):
            print(f"\nthe rehearsal's logs are kept in {state / 'logs'}", file=sys.stderr)
        else:
            shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture
def deployed(live: Live) -> Run:
    """The first deploy, shared: run by whichever test asks first."""
    if "first" not in live.runs:
        live.nodes_before = {node["metadata"]["uid"] for node in live.objects("nodes")}
        live.runs["first"] = live.run("nim_deploy", live.params())
    return live.runs["first"]


def _command(environment: dict[str, str], verb: str, seconds: float, *, check: bool = True) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rehearsal", verb],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert not check or done.returncode == 0, f"`rehearsal {verb}` failed:\n{done.stdout}\n{done.stderr}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault matrix of the session, if one was played."""
    if disorder.PLAYED:
        terminalreporter.section("fault matrix")
        for line in disorder.table():
            terminalreporter.write_line(line)
