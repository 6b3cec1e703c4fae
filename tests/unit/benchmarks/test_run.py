"""The benchmark Job's program around a measuring tool that is not aiperf: how it ends in every case.

The real aiperf runs in tests/rehearsal/test_benchmark_run.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.core.report import extract_report

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "include" / "benchmarks" / "run.py"
MODEL = "acme/parrot-7b"


@pytest.fixture
def service() -> Iterator[str]:
    """Something that lists the model and answers 500 to a completion."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._answer(200, json.dumps({"data": [{"id": MODEL}]}).encode())

        def do_POST(self) -> None:
            self._answer(500, b"out of order")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.86.3.3", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.86.3.3:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class Job:
    """The Job's pod: the ConfigMap's folder as a kubelet mounts it, and a PATH with a tool named aiperf."""

    def __init__(self, folder: Path, tool: str) -> None:
        self.folder = folder
        data = folder / "opt" / "..2026_11_23"
        data.mkdir(parents=True)
        (folder / "opt" / "..data").symlink_to(data.name)
        for file in [PROGRAM, *sorted((PROGRAM.parent / "tokenizer").iterdir())]:
            (data / file.name).write_bytes(file.read_bytes())
            (folder / "opt" / file.name).symlink_to(f"..data/{file.name}")
        data.chmod(0o555)
        (folder / "bin").mkdir()
        executable = folder / "bin" / "aiperf"
        executable.write_text(f"#!{sys.executable}\nimport json, os, pathlib, signal, sys, time\n{tool}\n")
        executable.chmod(0o755)

    def start(self, **environ: str) -> subprocess.Popen[str]:
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "BENCH_MODEL": MODEL,
            "BENCH_ARTIFACT_DIR": str(self.folder / "artifacts"),
            "HF_HUB_OFFLINE": "1",
            **environ,
        }
        line = [sys.executable, str(self.folder / "opt" / "run.py")]
        return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, **environ: str) -> tuple[int, str]:
        process = self.start(**environ)
        log, _ = process.communicate(timeout=60)
        return process.returncode, log


REPORT = """
folder = pathlib.Path(sys.argv[sys.argv.index("--artifact-dir") + 1])
tokenizer = pathlib.Path(sys.argv[sys.argv.index("--tokenizer") + 1])
assert not any((tokenizer / name).is_symlink() for name in os.listdir(tokenizer)) and len(os.listdir(tokenizer)) == 3
assert "HF_HUB_OFFLINE" not in os.environ
(folder / "profile_export_aiperf.json").write_text(json.dumps({"argv": sys.argv[1:], "text": "é" * 20000}))
"""


def last(log: str) -> str:
    return log.rstrip().splitlines()[-1]


def test_prints_the_report(tmp_path: Path, service: str) -> None:
    code, log = Job(tmp_path, REPORT).run(BENCH_URL=service, BENCH_REQUESTS="33", BENCH_WARMUP="0")
    assert (code, last(log)) == (0, "benchmark done"), log
    envelope = extract_report(log)
    assert (envelope["tool"], envelope["exit_code"], envelope["settings"]["requests"]) == ("aiperf", 0, 33)
    argv = " ".join(envelope["report"]["argv"])
    assert "--request-count 33" in argv and "--warmup" not in argv and "--streaming" in argv
    assert '"ignore_eos": true, "min_tokens": 100' in argv
    assert envelope["report"]["text"] == "é" * 20000


def test_options_reach_the_tool(tmp_path: Path, service: str) -> None:
    more = {"BENCH_STREAMING": "false", "BENCH_REQUEST_RATE": "5", "BENCH_WARMUP": "4", "BENCH_TOKENIZER_DIR": ""}
    code, log = Job(tmp_path, REPORT).run(BENCH_URL=service, BENCH_SERVER_METRICS_URL=f"{service}/v1/metrics", **more)
    assert code == 0, log
    argv = " ".join(extract_report(log)["report"]["argv"])
    assert "--streaming" not in argv and "--request-rate 5" in argv and "--warmup-request-count 4" in argv
    assert f"--server-metrics {service}/v1/metrics" in argv and "--no-server-metrics" not in argv


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "BENCH_URL is not set"),
        ({"BENCH_URL": "host:8000"}, "must begin with http://"),
        ({"BENCH_URL": "http://x", "BENCH_REQUESTS": "many"}, "BENCH_REQUESTS='many' is no int"),
        ({"BENCH_URL": "http://x", "BENCH_CONCURRENCY": "0"}, "BENCH_CONCURRENCY must be at least 1"),
        ({"BENCH_URL": "http://x", "BENCH_STREAMING": "maybe"}, "BENCH_STREAMING='maybe' is no bool"),
    ],
)
def test_wrong_settings(tmp_path: Path, environ: dict[str, str], says: str) -> None:
    code, log = Job(tmp_path, REPORT).run(**environ)
    assert code == 2 and says in last(log) and last(log).startswith("benchmark failed: ")


def test_the_service_must_answer(tmp_path: Path) -> None:
    began = time.monotonic()
    code, log = Job(tmp_path, REPORT).run(BENCH_URL="http://127.86.3.4:1", BENCH_SERVICE_WAIT_S="1")
    assert code == 3 and "did not answer within 1 s" in last(log)
    assert time.monotonic() - began < 10


def test_the_service_must_serve_the_model(tmp_path: Path, service: str) -> None:
    code, log = Job(tmp_path, REPORT).run(BENCH_URL=service, BENCH_MODEL="other")
    assert code == 3 and last(log).endswith(f"serves {MODEL}, not other")


def test_a_failed_tool_is_told(tmp_path: Path, service: str) -> None:
    tool = 'print("10:00:00.1 ERROR    the disk is full (exporter.py:12)")\nprint("and so on")\nsys.exit(1)'
    code, log = Job(tmp_path, tool).run(BENCH_URL=service)
    assert code == 4
    assert last(log) == "benchmark failed: aiperf ended with 1 and left no report: the disk is full"


def test_when_all_requests_failed_one_more_says_how(tmp_path: Path, service: str) -> None:
    tool = 'print("10:00:00.1 ERROR    All 9 inference request(s) failed (x.py:1)")\nsys.exit(1)'
    code, log = Job(tmp_path, tool).run(BENCH_URL=service)
    assert code == 4 and "a single request is answered HTTP 500 out of order" in last(log)


def test_a_report_of_a_failed_tool_is_still_printed(tmp_path: Path, service: str) -> None:
    code, log = Job(tmp_path, REPORT + 'print("Error: late")\nsys.exit(3)').run(BENCH_URL=service)
    assert code == 4 and "aiperf ended with 3: Error: late" in last(log)
    assert extract_report(log)["exit_code"] == 3


def test_a_broken_report(tmp_path: Path, service: str) -> None:
    tool = REPORT.replace("json.dumps({", "'{' + str({")
    code, log = Job(tmp_path, tool).run(BENCH_URL=service)
    assert code == 4 and "left a report that cannot be read" in last(log)


def test_no_tool(tmp_path: Path, service: str) -> None:
    job = Job(tmp_path, REPORT)
    (tmp_path / "bin" / "aiperf").unlink()
    code, log = job.run(BENCH_URL=service, PATH=str(tmp_path / "bin"))
    assert code == 4 and "aiperf cannot be started" in last(log)


# Ignores SIGTERM, as a tool does that hangs; and has a child in its group.
HANGS = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    time.sleep(60); os._exit(0)
print(os.getpgid(0), flush=True)
time.sleep(60)
"""


def group_of(job: Job) -> int:
    """The process group of the hanging tool, once it runs."""
    out = job.folder / "artifacts" / "aiperf" / "aiperf.out"
    end = time.monotonic() + 20
    while not (out.is_file() and out.read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return int(out.read_text().split()[0])


def alive(group: int) -> bool:
    """Whether a process of the group still runs (zombies that nobody reaps do not count)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_the_deadline_ends_everything(tmp_path: Path, service: str) -> None:
    job = Job(tmp_path, HANGS.replace("signal.signal(signal.SIGTERM, signal.SIG_IGN)", ""))
    process = job.start(BENCH_URL=service, BENCH_DEADLINE_S="2")
    group = group_of(job)
    log, _ = process.communicate(timeout=30)
    assert process.returncode == 5 and "not done within 2 s" in last(log)
    assert not alive(group)


def test_sigterm_ends_everything(tmp_path: Path, service: str) -> None:
    job = Job(tmp_path, HANGS)
    process = job.start(BENCH_URL=service)
    group = group_of(job)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert not alive(group)


def test_the_committed_tokenizer_knows_every_word_of_the_stand_in() -> None:
    """One token a word, with and without a space before it: so client and server count alike."""
    vocabulary = json.loads((PROGRAM.parent / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    words = (ROOT / "rehearsal" / "nim" / "words.txt").read_text().split()
    assert len(words) > 100
    assert [w for w in words if w not in vocabulary or f"Ġ{w}" not in vocabulary] == []
