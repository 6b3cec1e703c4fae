"""The judge's verdicts on reports of real runs, as recordings/benchmark/README.md says they must be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.core.report import BenchmarkReport, parse_report
from nim_rollouts.core.slo import Outcome, judge

RUNS = Path(__file__).resolve().parents[2] / "recordings" / "benchmark"


@dataclass(frozen=True)
class Slo:
    metric: str
    statistic: str | None = None
    max: float | None = None
    min: float | None = None


MET = [
    Slo("time_to_first_token", "p99", max=2000),
    Slo("inter_token_latency", max=100),
    Slo("output_token_throughput", min=10),
    Slo("error_rate", max=0.01),
]


def recorded(name: str, **changes: Any) -> BenchmarkReport:
    data = json.loads((RUNS / f"{name}.json").read_text())
    return parse_report({**data, **changes})


@pytest.mark.parametrize(
    ("name", "asked"),
    [("aiperf-concurrency-20", 400), ("aiperf-request-rate", 200), ("genai-perf-concurrency-20", 400)],
)
def test_complete_runs_are_judged_by_their_objectives(name: str, asked: int) -> None:
    report = recorded(name)
    assert judge(report, MET, asked).outcome is Outcome.PASS
    missed = judge(report, [*MET, Slo("request_latency", "p50", max=1.0)], asked)
    assert missed.outcome is Outcome.FAIL
    assert "request_latency p50" in missed.reason and "misses <= 1" in missed.reason


def test_few_samples_leave_a_percentile_open() -> None:
    report = recorded("genai-perf-concurrency-1")
    verdict = judge(report, MET, 40)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "40 requests are too few for p99, which needs 100" in verdict.reason
    assert judge(report, [Slo("time_to_first_token", "p90", max=2000)], 40).outcome is Outcome.PASS
    # A bound that is missed by that much is missed, however few the samples.
    assert judge(report, [Slo("time_to_first_token", "p99", max=1)], 40).outcome is Outcome.FAIL


@pytest.mark.parametrize("objectives", [MET, MET[:3], []])
def test_dropped_requests_fail_whatever_the_latencies_say(objectives: list[Slo]) -> None:
    verdict = judge(recorded("aiperf-mid-stream-drops"), objectives, 60)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("error rate 13.3 % misses <= 1 % (8 of 60 requests failed")


@pytest.mark.parametrize("name", ["aiperf-20-percent-errors", "aiperf-cancelled-by-threshold"])
def test_incomplete_runs_fail_without_a_verdict_on_the_objectives(name: str) -> None:
    verdict = judge(recorded(name), MET, 300)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("the run is incomplete")


@pytest.mark.parametrize("name", ["aiperf-concurrency-20", "genai-perf-concurrency-20"])
def test_the_number_of_requests_must_match(name: str) -> None:
    verdict = judge(recorded(name), MET, 100)
    assert verdict.outcome is Outcome.FAIL
    assert "100 were asked for" in verdict.reason


def test_contradictions_leave_no_verdict() -> None:
    verdict = judge(recorded("aiperf-concurrency-20", output_sequence_length={"unit": "tokens", "avg": 40.0}), MET, 400)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "40.0 tokens" in verdict.reason


def test_a_missing_metric_or_statistic_leaves_no_verdict() -> None:
    report = recorded("aiperf-concurrency-20")
    for objective in (Slo("good_request_fraction", min=0.9), Slo("output_token_throughput", "p99", min=1)):
        verdict = judge(report, [objective], 400)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "not in the report" in verdict.reason


def test_both_bounds_hold() -> None:
    report = recorded("aiperf-concurrency-20")
    assert judge(report, [Slo("request_throughput", min=10, max=100)], 400).outcome is Outcome.PASS
    assert judge(report, [Slo("request_throughput", min=10, max=20)], 400).outcome is Outcome.FAIL
    assert judge(report, [Slo("request_throughput", min=50, max=100)], 400).outcome is Outcome.FAIL


def test_one_line_and_facts() -> None:
    verdict = judge(recorded("aiperf-concurrency-20"), MET, 400)
    assert "\n" not in verdict.reason
    facts = verdict.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert [row["outcome"] for row in facts["objectives"]] == ["pass"] * 4
