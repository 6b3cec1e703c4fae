"""The benchmark as its Job runs it: the real aiperf against the NIM server stand-in, judged from the log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nim_rollouts.core.report import extract_report, implausible, parse_report
from nim_rollouts.core.slo import Outcome, judge
from rehearsal import toolbox

ROOT = Path(__file__).resolve().parents[2]
HOST, PORT = "127.86.3.5", "8000"
IMAGE, MODEL = "nvcr.io/nim/acme/parrot-7b:2.0.1", "acme/parrot-7b"


@dataclass(frozen=True)
class Slo:
    metric: str
    statistic: str | None = None
    max: float | None = None
    min: float | None = None


OBJECTIVES = [
    Slo("time_to_first_token", "p99", max=2000),
    Slo("inter_token_latency", "avg", max=100),
    Slo("output_token_throughput", "avg", min=200),
    Slo("error_rate", max=0.01),
]


@pytest.fixture
def nim(tmp_path: Path) -> Iterator[Callable[..., None]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**environ: str) -> None:
        env = {**os.environ, "REHEARSAL_IMAGE": IMAGE, "REHEARSAL_LISTEN": HOST, "NIM_HTTP_API_PORT": PORT}
        env |= {"PYTHONPATH": str(ROOT), "NIM_CACHE_PATH": str(tmp_path / "model-store"), "NGC_API_KEY": "k"}
        env |= {"NIM_STANDIN_START_S": "0.1", "NIM_STANDIN_DOWNLOAD_S": "0.1", **environ}
        started.append(subprocess.Popen([sys.executable, "-m", "rehearsal.nim.server"], env=env, cwd=ROOT))
        end = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://{HOST}:{PORT}/v1/health/ready", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                assert started[-1].poll() is None and time.monotonic() < end
                time.sleep(0.05)

    yield start
    for process in started:
        process.terminate()
        assert process.wait(10) == 0


def benchmark(tmp_path: Path) -> tuple[int, str, float]:
    """Run the Job's program as the pod does; returns (exit code, log, wall seconds)."""
    folder = toolbox.aiperf_executable().parent
    mount = tmp_path / "opt"
    mount.mkdir()
    sources = ROOT / "include" / "benchmarks"
    for file in [sources / "run.py", *(sources / "tokenizer").iterdir()]:
        (mount / file.name).symlink_to(file)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "BENCH_URL": f"http://{HOST}:{PORT}", "BENCH_MODEL": MODEL}
    env |= {"BENCH_ARTIFACT_DIR": str(tmp_path / "artifacts"), "BENCH_DEADLINE_S": "120", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    # Not the interpreter of the tests: the program runs with the benchmark image's own.
    done = subprocess.run([folder / "python3", mount / "run.py"], env=env, capture_output=True, text=True, timeout=150)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def test_a_run_of_100_requests_passes(nim: Callable[..., None], tmp_path: Path) -> None:
    nim()
    code, log, seconds = benchmark(tmp_path)
    assert code == 0, log
    report = parse_report(extract_report(log))
    assert (report.tool, report.complete, report.requested, report.done, report.errors) == ("aiperf", True, 100, 100, 0)
    assert implausible(report) == []
    assert judge(report, OBJECTIVES, 100).outcome is Outcome.PASS
    # What the server was set to: 120 ms and 10 ms; the client adds some of its own.
    assert 115 <= (report.value("time_to_first_token") or 0) < 250
    assert 9.5 <= (report.value("inter_token_latency") or 0) < 15
    assert report.value("output_sequence_length", "min") == report.value("output_sequence_length", "max") == 100
    assert report.value("input_sequence_length") == pytest.approx(200, rel=0.1)
    # 13 s on an idle machine with two cores.
    assert seconds < 60


@pytest.mark.slow
def test_errors_are_rejected_with_their_number(nim: Callable[..., None], tmp_path: Path) -> None:
    nim(NIM_STANDIN_ERROR_PERCENT="30")
    code, log, _ = benchmark(tmp_path)
    assert code == 0, log
    verdict = judge(parse_report(extract_report(log)), OBJECTIVES, 100)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("error rate 30 % misses <= 1 % (30 of 100 requests failed: 30 x 500")
