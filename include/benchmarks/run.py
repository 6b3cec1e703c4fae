"""The benchmark Job's program: prove the Service's path, measure with aiperf, print the report into the log.

Standard library only: it runs with the python3 of the benchmark image, mounted from a ConfigMap beside the
tokenizer's files. Settings come from the environment (`Settings`). The worker reads the report from the pod's log,
so it is printed between two marker lines, packed, in short numbered lines, with its SHA-256 (`print_report`).

Exit codes: 0 measured and printed (whether it is good enough is not decided here), 1 a defect, 2 settings, 3 the
Service does not answer or does not serve the model, 4 aiperf failed or left no report, 5 out of time, 143 SIGTERM.
The last line of a failed run begins with `benchmark failed:` and says why.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

FORMAT = 1
BEGIN, END, LINE = "-----BEGIN NIM BENCHMARK REPORT-----", "-----END NIM BENCHMARK REPORT-----", "NIM-BENCHMARK-REPORT"
# Container runtimes cut log lines at 16 KiB; shorter ones also survive other people's log collectors.
CHUNK = 1500
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
REPORT_FILE = "profile_export_aiperf.json"
# With either of these set aiperf takes a tokenizer's folder for the name of a model on the hub, and fails.
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
PROBE_TIMEOUT_S = 5.0
STOP_GRACE_S = 10.0


class Failed(Exception):
    """The run ends with this exit code and this one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


@dataclass(frozen=True)
class Settings:
    """What to measure: field `x` comes from the environment variable `BENCH_X`. Times in seconds, lengths in tokens."""

    url: str
    model: str
    requests: int = 100
    concurrency: int = 20
    input_tokens: int = 200
    output_tokens: int = 100
    warmup: int = 20  # requests before the measured ones
    streaming: bool = True
    request_rate: float = 0.0  # requests per second; 0: as fast as `concurrency` allows
    deadline_s: float = 900.0  # for everything, from the program's start
    service_wait_s: float = 60.0  # how long the Service may take to answer
    request_timeout_s: float = 120.0
    seed: int = 20240607  # the same prompts in every run
    tokenizer_dir: str = ""  # default: the folder of this file
    tokenizer: str = ""  # a hub name instead of the folder; needs a network
    server_metrics_url: str = ""  # NIM's own metrics (…/v1/metrics); empty: not collected, which saves seconds
    artifact_dir: str = "/artifacts"

    @classmethod
    def read(cls, environ: dict[str, str]) -> Settings:
        """Raises Failed(2) naming every variable that is missing or wrong."""
        values: dict[str, object] = {}
        wrong: list[str] = []
        for name, kind in cls.__annotations__.items():
            raw = environ.get(f"BENCH_{name.upper()}", "").strip()
            if not raw:
                continue
            try:
                values[name] = _convert(kind, raw)
            except ValueError:
                wrong.append(f"BENCH_{name.upper()}={raw!r} is no {kind}")
        wrong += [f"BENCH_{name.upper()} is not set" for name in ("url", "model") if name not in values and not wrong]
        for name in ("requests", "concurrency", "input_tokens", "output_tokens"):
            if isinstance(values.get(name), int) and values[name] < 1:  # type: ignore[operator]
                wrong.append(f"BENCH_{name.upper()} must be at least 1")
        if "url" in values and not str(values["url"]).startswith(("http://", "https://")):
            wrong.append("BENCH_URL must begin with http:// or https://")
        if wrong:
            raise Failed(2, "; ".join(wrong))
        return cls(**values)  # type: ignore[arg-type]


def _convert(kind: str, raw: str) -> object:
    if kind == "int":
        return int(raw)
    if kind == "float":
        return float(raw)
    if kind == "bool":
        return {"true": True, "1": True, "false": False, "0": False}.get(raw.lower()) if _is_flag(raw) else int("no")
    return raw


def _is_flag(raw: str) -> bool:
    return raw.lower() in ("true", "false", "1", "0")


class Clock:
    """Time since the start, and what is left of the deadline."""

    def __init__(self, deadline_s: float) -> None:
        self._start = time.monotonic()
        self._deadline_s = deadline_s

    def passed(self) -> float:
        return time.monotonic() - self._start

    def left(self) -> float:
        return self._deadline_s - self.passed()


def say(clock: Clock, text: str) -> None:
    print(f"[{clock.passed():6.1f}s] {text}", flush=True)


def prove_service(settings: Settings, clock: Clock) -> None:
    """Step 0: the Service's own address, from inside the cluster, lists the model. Raises Failed(3)."""
    url = settings.url.rstrip("/") + "/v1/models"
    until = min(settings.service_wait_s, clock.left())
    problem = "no answer"
    say(clock, f"asking {url} for {settings.model}")
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as answer:
                listed = [entry["id"] for entry in json.load(answer)["data"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            # HTTPError and URLError are OSErrors. All of these may pass: a Service's endpoints come and go.
            problem = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        else:
            if settings.model in listed:
                say(clock, f"the Service lists {settings.model}")
                return
            raise Failed(3, f"{url} serves {', '.join(listed) or 'no model'}, not {settings.model}")
        if clock.passed() >= until:
            raise Failed(3, f"{url} did not answer within {until:.0f} s: {problem}")
        time.sleep(1.0)


def copy_tokenizer(settings: Settings, work: Path) -> str:
    """aiperf wants a plain folder; a ConfigMap's is read-only and made of links. Returns aiperf's --tokenizer."""
    if settings.tokenizer:
        return settings.tokenizer
    source = Path(settings.tokenizer_dir or Path(__file__).absolute().parent)
    target = work / "tokenizer"
    target.mkdir()
    missing = [name for name in TOKENIZER_FILES if not (source / name).is_file()]
    if missing:
        raise Failed(2, f"the tokenizer's files are not in {source}: {', '.join(missing)}")
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)
    return str(target)


def command(settings: Settings, tokenizer: str, artifacts: Path) -> list[str]:
    """aiperf's command line: number of requests and output length are pinned, everything unneeded is off."""
    pin = {"ignore_eos": True, "min_tokens": settings.output_tokens}
    line = ["aiperf", "profile", "--model", settings.model, "--url", settings.url, "--endpoint-type", "chat"]
    line += ["--tokenizer", tokenizer, "--use-server-token-count"]
    line += ["--request-count", str(settings.requests), "--concurrency", str(settings.concurrency)]
    line += ["--num-prompts", str(settings.requests), "--random-seed", str(settings.seed)]
    line += ["--synthetic-input-tokens-mean", str(settings.input_tokens), "--synthetic-input-tokens-stddev", "0"]
    line += ["--output-tokens-mean", str(settings.output_tokens), "--output-tokens-stddev", "0"]
    line += ["--extra-inputs", json.dumps(pin), "--request-timeout-seconds", f"{settings.request_timeout_s:g}"]
    line += ["--artifact-dir", str(artifacts), "--ui", "none", "--no-gpu-telemetry", "--export-level", "summary"]
    if settings.streaming:
        line.append("--streaming")
    if settings.warmup:
        line += ["--warmup-request-count", str(settings.warmup)]
    if settings.request_rate:
        line += ["--request-rate", f"{settings.request_rate:g}", "--arrival-pattern", "constant"]
    if settings.server_metrics_url:
        line += ["--server-metrics", settings.server_metrics_url]
    else:
        line.append("--no-server-metrics")
    return line


def stop(process: subprocess.Popen[bytes]) -> None:
    """End aiperf with all its services: they are one process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def measure(settings: Settings, clock: Clock, work: Path, artifacts: Path) -> int:
    """Run aiperf and return its exit code. Raises Failed(4) when it cannot be started, Failed(5) at the deadline."""
    environment = {k: v for k, v in os.environ.items() if k not in OFFLINE_SWITCHES}
    environment |= {
        "HOME": str(work),
        "HF_HOME": str(work / "hf"),
        "TMPDIR": str(work),
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    line = command(settings, copy_tokenizer(settings, work), artifacts)
    say(clock, f"measuring: {settings.requests} requests, {settings.concurrency} at once")
    with (artifacts / "aiperf.out").open("wb") as out:
        try:
            process = subprocess.Popen(
                line, env=environment, cwd=work, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise Failed(4, f"aiperf cannot be started: {error}") from error
        try:
            while True:
                try:
                    return process.wait(max(0.1, min(10.0, clock.left())))
                except subprocess.TimeoutExpired:
                    if clock.left() <= 0:
                        raise Failed(5, f"not done within {settings.deadline_s:g} s: aiperf was stopped") from None
                    say(clock, f"still measuring, {clock.left():.0f} s left")
        finally:
            stop(process)


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of aiperf's output that say something."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def cause(lines: list[str]) -> str:
    """The line of aiperf's output that most likely says why it failed, without its time and place in the source."""
    for word in (" ERROR ", " CRITICAL ", "Error", "error"):
        found = [line for line in lines if word in line]
        if found:
            text = found[-1].partition(word)[2] if word.isupper() else found[-1]
            return re.sub(r" \(\w+\.py:\d+\)$", "", text).strip(" │|")[:400]
    return lines[-1][:400] if lines else "it printed nothing"


def ask_once(settings: Settings) -> str:
    """One small request of our own, when all of aiperf's have failed: its output does not say with what."""
    body = {"model": settings.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    body["stream"] = settings.streaming
    request = urllib.request.Request(
        settings.url.rstrip("/") + "/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as answer:
            return f"a single request is answered HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"a single request is answered HTTP {error.code} {error.read(300).decode(errors='replace')}"
    except OSError as error:
        return f"a single request fails: {error}"


def print_report(envelope: dict[str, object]) -> None:
    """Marker with the number of lines and the SHA-256 of what is packed; numbered lines; marker.

    gzip + base64, so that no character of a report can be mangled on the way, and 30 KB become a few lines.
    """
    plain = json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode()
    digest = hashlib.sha256(plain).hexdigest()
    packed = base64.b64encode(gzip.compress(plain, mtime=0)).decode()
    chunks = [packed[at : at + CHUNK] for at in range(0, len(packed), CHUNK)]
    print(f"{BEGIN} format={FORMAT} encoding=gzip+base64 lines={len(chunks)} bytes={len(plain)} sha256={digest}")
    for number, chunk in enumerate(chunks, 1):
        print(f"{LINE} {number}/{len(chunks)} {chunk}")
    print(f"{END} sha256={digest}", flush=True)


def run(settings: Settings, clock: Clock) -> None:
    prove_service(settings, clock)
    proven = clock.passed()
    artifacts = Path(settings.artifact_dir) / "aiperf"
    shutil.rmtree(artifacts, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            artifacts.mkdir(parents=True)
        except OSError as error:
            raise Failed(2, f"BENCH_ARTIFACT_DIR={settings.artifact_dir!r} cannot be written: {error}") from error
        code = measure(settings, clock, Path(folder), artifacts)
    measured = clock.passed() - proven
    lines = tail(artifacts / "aiperf.out", 40)
    try:
        report = json.loads((artifacts / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print("\n".join(lines), flush=True)
        gone = isinstance(error, FileNotFoundError)
        what = "left no report" if gone else f"left a report that cannot be read ({error})"
        why = cause(lines)
        if "request(s) failed" in why:
            why += f" {ask_once(settings)}"
        raise Failed(4, f"aiperf ended with {code} and {what}: {why}") from error
    say(clock, f"aiperf ended with {code} after {measured:.1f} s")
    print_report(
        {
            "format": FORMAT,
            "tool": "aiperf",
            "exit_code": code,
            "settings": asdict(settings),
            "times": {"service_s": round(proven, 3), "measure_s": round(measured, 3)},
            "report": report,
        }
    )
    if code:
        print("\n".join(lines), flush=True)
        raise Failed(4, f"aiperf ended with {code}: {cause(lines)}")


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    signal.signal(signal.SIGTERM, _terminated)  # so that `finally` stops aiperf, which is in a group of its own
    try:
        settings = Settings.read(dict(os.environ))
        run(settings, Clock(settings.deadline_s))
    except Failed as failed:
        print(f"benchmark failed: {failed}", flush=True)
        return failed.code
    except Exception as error:
        traceback.print_exc()
        print(f"benchmark failed: {type(error).__name__} {error}", flush=True)
        return 1
    print("benchmark done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
