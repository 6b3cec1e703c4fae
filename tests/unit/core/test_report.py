"""Reports of real runs are read alike; what a log lost on the way is noticed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nim_rollouts.core.report import BEGIN, LINE, ReportError, extract_report, implausible, incomplete, parse_report

ROOT = Path(__file__).resolve().parents[3]
RUNS = ROOT / "tests" / "recordings" / "benchmark"


def recorded(name: str) -> dict[str, Any]:
    return json.loads((RUNS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def job() -> ModuleType:
    """The Job's program, which lies outside every package."""
    spec = importlib.util.spec_from_file_location("bench_run_for_report", ROOT / "include" / "benchmarks" / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(job: ModuleType, capsys: pytest.CaptureFixture[str]) -> str:
    report = recorded("aiperf-concurrency-20")
    job.print_report({"format": 1, "tool": "aiperf", "times": {"measure_s": 12.5}, "report": report})
    return "[   0.0s] asking\n" + capsys.readouterr().out + "benchmark done\n"


def test_reads_aiperf() -> None:
    report = parse_report(recorded("aiperf-concurrency-20"))
    assert (report.tool, report.version, report.complete, report.cancelled) == ("aiperf", "0.13.0", True, False)
    assert (report.requested, report.done, report.errors, report.error_rate) == (400, 400, 0, 0.0)
    assert (report.concurrency, report.request_rate, report.output_tokens) == (20, None, 100.0)
    assert report.model == "meta/llama-3.1-8b-instruct"
    assert report.metrics["time_to_first_token"].unit == "ms"
    assert report.value("time_to_first_token", "p99") == pytest.approx(60.6, abs=0.1)
    assert report.value("time_to_first_token", "p42") is None and report.value("nothing") is None


def test_reads_failed_requests_and_their_causes() -> None:
    report = parse_report(recorded("aiperf-mid-stream-drops"))
    assert (report.done, report.errors) == (52, 8)
    assert report.error_rate == pytest.approx(8 / 60)
    assert "8 x" in report.error_causes[0]
    assert incomplete(report, 60) is None


@pytest.mark.parametrize("name", ["aiperf-20-percent-errors", "aiperf-cancelled-by-threshold"])
def test_sees_that_a_run_was_cut_short(name: str) -> None:
    report = parse_report(recorded(name))
    assert report.cancelled is True and report.complete is False
    assert "incomplete" in (incomplete(report, 300) or "")


@pytest.mark.parametrize("concurrency", [1, 20])
def test_reads_genai_perf(concurrency: int) -> None:
    report = parse_report(recorded(f"genai-perf-concurrency-{concurrency}"))
    asked = {1: 40, 20: 400}[concurrency]
    assert (report.tool, report.complete, report.requested, report.done) == ("genai-perf", None, asked, asked)
    assert (report.concurrency, report.output_tokens) == (concurrency, 100)
    assert incomplete(report, asked) is None
    assert incomplete(report, asked + 60) is not None


@pytest.mark.parametrize(
    "name",
    ["aiperf-concurrency-20", "aiperf-request-rate", "genai-perf-concurrency-1", "genai-perf-concurrency-20"],
)
def test_real_runs_are_plausible(name: str) -> None:
    assert implausible(parse_report(recorded(name))) == []


@pytest.mark.parametrize(
    ("metric", "factor", "says"),
    [
        ("request_latency", 1.3, "Little's law"),
        ("request_latency", 0.3, "did not hold the load"),
        ("output_sequence_length", 1.5, "tokens on average"),
        ("output_token_throughput", 2.0, "tokens/s"),
        ("benchmark_duration", 2.0, "requests in"),
    ],
)
def test_contradictions_are_found(metric: str, factor: float, says: str) -> None:
    data = recorded("aiperf-concurrency-20")
    data[metric]["avg"] *= factor
    assert any(says in line for line in implausible(parse_report(data)))


def test_another_number_of_requests_than_asked_for_is_incomplete() -> None:
    report = parse_report(recorded("aiperf-concurrency-20"))
    assert incomplete(report, 100) == "the report is of a run of 400 requests, 100 were asked for"


@pytest.mark.parametrize(
    "data",
    [{}, {"request_count": {"unit": "requests", "avg": 1}}, {"request_count": 3, "request_latency": {"unit": "ms"}}],
)
def test_something_else_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ReportError):
        parse_report(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", '"12"', "true", "null"])
def test_numbers_must_be_numbers(number: str) -> None:
    data = recorded("aiperf-concurrency-20")
    data["request_latency"]["p99"] = json.loads(number)
    with pytest.raises(ReportError, match="not a number"):
        parse_report(data)


def test_report_comes_back_out_of_a_log(log: str) -> None:
    envelope = extract_report(log)
    assert envelope["report"] == recorded("aiperf-concurrency-20")
    assert parse_report(envelope).times == {"measure_s": 12.5}
    assert all(len(line) < 2000 for line in log.splitlines())


def test_other_lines_and_prefixes_do_not_matter(log: str) -> None:
    noisy = "".join(f"2026-11-23T10:00:00.1Z stderr F {line}\nsomebody else's line\n" for line in log.splitlines())
    assert extract_report(noisy)["tool"] == "aiperf"


def test_the_last_report_counts(log: str, job: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    job.print_report({"format": 1, "tool": "other", "report": {}})
    assert extract_report(log + capsys.readouterr().out)["tool"] == "other"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_cut_log_is_noticed(log: str, share: float) -> None:
    start = log.index(BEGIN) + len(BEGIN)
    with pytest.raises(ReportError) as caught:
        extract_report(log[: start + int((log.rindex(LINE) + 20 - start) * share)])
    assert caught.value.reason == "report-truncated"


def test_a_changed_log_is_noticed(log: str) -> None:
    lines = log.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{LINE} 2/"))
    lines[at] = lines[at][:100] + ("A" if lines[at][100] != "A" else "B") + lines[at][101:]
    with pytest.raises(ReportError) as caught:
        extract_report("\n".join(lines))
    assert caught.value.reason == "report-truncated"


def test_a_log_without_a_report_says_why() -> None:
    with pytest.raises(ReportError, match="aiperf ended with 1") as caught:
        extract_report("[  0.0s] asking\nbenchmark failed: aiperf ended with 1 and left no report\n")
    assert caught.value.reason == "report-missing"
    with pytest.raises(ReportError, match="holds no report"):
        extract_report("")


def test_facts_are_json(log: str) -> None:
    facts = parse_report(extract_report(log)).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["metrics"]["time_to_first_token"]["unit"] == "ms"
    assert facts["done"] == 400
