"""A benchmark's report: taken out of the Job's log, read into one shape whatever tool wrote it, and doubted.

aiperf (0.13) and genai-perf (0.0.16) name their metrics alike and give latencies in ms. aiperf says whether a run
is complete and how many requests failed; its exit code does not (it is 0 for a cancelled run and for 50 % errors).
genai-perf has neither: it writes no report at all when a request fails, so a report of its stands for no errors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nim_rollouts.core.errors import BenchmarkFailed

BEGIN, END, LINE = "-----BEGIN NIM BENCHMARK REPORT-----", "-----END NIM BENCHMARK REPORT-----", "NIM-BENCHMARK-REPORT"
FORMAT = 1
MAX_BYTES = 16 * 2**20

_HEAD = re.compile(
    re.escape(BEGIN)
    + r" format=(?P<format>\d+) encoding=(?P<encoding>\S+) lines=(?P<lines>\d+) bytes=\d+ sha256=(?P<sha>[0-9a-f]{64})"
)
_CHUNK = re.compile(re.escape(LINE) + r" (?P<number>\d+)/(?P<count>\d+) (?P<data>[A-Za-z0-9+/=]+)")
_FAILED = re.compile(r"benchmark failed: (?P<why>.+)")

# Tolerances of the sanity checks, as shares.
SAME = 0.05  # two figures of one report that say the same thing may differ by rounding and by the run's edges
HELD = 0.5  # a client that kept fewer than half of the asked requests in flight did not put the asked load on


class ReportError(BenchmarkFailed):
    """The report is missing, cut or not one. `reason`: report-missing, report-truncated, report-malformed."""

    default_reason = "report-malformed"
    default_hint = "Look at the benchmark pod's log; clear apply_benchmark to measure again"


def extract_report(log_text: str) -> dict[str, Any]:
    """The envelope that the Job's program printed: `tool`, `settings`, `times`, `exit_code` and the tool's `report`.

    The last report of the log counts. Other lines in between, and prefixes such as timestamps, do not matter.
    Raises ReportError when there is none, when lines are missing, or when its SHA-256 does not match.
    """
    heads = list(_HEAD.finditer(log_text))
    if not heads:
        why = _FAILED.findall(log_text)
        if BEGIN in log_text:
            raise ReportError("the benchmark's report is cut in its first line", reason="report-truncated")
        said = f": {why[-1].strip()}" if why else ""
        raise ReportError(f"the benchmark's log holds no report{said}", reason="report-missing")
    head = heads[-1]
    if int(head["format"]) != FORMAT or head["encoding"] != "gzip+base64":
        raise ReportError(f"the benchmark's report has format {head['format']} ({head['encoding']}), not {FORMAT}")
    wanted = int(head["lines"])
    chunks = {int(m["number"]): m["data"] for m in _CHUNK.finditer(log_text, head.end())}
    missing = [number for number in range(1, wanted + 1) if number not in chunks]
    if missing:
        raise ReportError(
            f"the benchmark's report is cut: {len(missing)} of {wanted} lines are missing, the first is {missing[0]}",
            reason="report-truncated",
        )
    plain = _unpack("".join(chunks[number] for number in range(1, wanted + 1)))
    if hashlib.sha256(plain).hexdigest() != head["sha"]:
        raise ReportError("the benchmark's report does not match its SHA-256", reason="report-truncated")
    envelope = json.loads(plain)
    if not isinstance(envelope, dict) or not isinstance(envelope.get("report"), dict):
        raise ReportError("the benchmark's log holds something that is not a report")
    return envelope


def _unpack(packed: str) -> bytes:
    try:
        unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        plain = unzip.decompress(base64.b64decode(packed, validate=True), MAX_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ReportError(f"the benchmark's report is damaged: {error}", reason="report-truncated") from error
    if not unzip.eof:
        raise ReportError(f"the benchmark's report is cut, or larger than {MAX_BYTES} bytes", reason="report-truncated")
    return plain


@dataclass(frozen=True)
class Metric:
    """One metric: its unit and its statistics (avg, min, max, std, p1 ... p99; aggregates have avg alone)."""

    unit: str
    statistics: Mapping[str, float]

    def get(self, statistic: str) -> float | None:
        return self.statistics.get(statistic)


@dataclass(frozen=True)
class BenchmarkReport:
    """What a run measured. None means that the tool does not say."""

    tool: str
    version: str | None
    complete: bool | None
    cancelled: bool | None
    requested: int | None
    done: int
    errors: int
    concurrency: int | None
    request_rate: float | None
    output_tokens: float | None
    metrics: Mapping[str, Metric]
    incomplete_reason: str | None = None
    error_causes: tuple[str, ...] = ()
    model: str | None = None
    times: Mapping[str, float] = field(default_factory=dict)

    @property
    def made(self) -> int:
        """Requests that came to an end, well or not."""
        return self.done + self.errors

    @property
    def error_rate(self) -> float:
        """Failed requests as a share (0 to 1) of those made."""
        return self.errors / self.made if self.made else 0.0

    def value(self, metric: str, statistic: str = "avg") -> float | None:
        found = self.metrics.get(metric)
        return None if found is None else found.get(statistic)

    def facts(self) -> dict[str, Any]:
        """The figures that a ledger record and a summary show."""
        shown: dict[str, Any] = {}
        for name in SHOWN:
            metric = self.metrics.get(name)
            if metric is not None:
                picked = {
                    s: round(metric.statistics[s], 3) for s in ("avg", "p50", "p90", "p99") if s in metric.statistics
                }
                shown[name] = {"unit": metric.unit, **picked}
        return {
            "tool": self.tool,
            "tool_version": self.version,
            "model": self.model,
            "requested": self.requested,
            "done": self.done,
            "errors": self.errors,
            "error_rate": round(self.error_rate, 6),
            "concurrency": self.concurrency,
            "metrics": shown,
            "times": dict(self.times),
        }


SHOWN = (
    "time_to_first_token",
    "inter_token_latency",
    "request_latency",
    "output_token_throughput",
    "request_throughput",
    "output_sequence_length",
    "input_sequence_length",
    "benchmark_duration",
)


def parse_report(data: Mapping[str, Any]) -> BenchmarkReport:
    """Read a report of aiperf or genai-perf, or the envelope of `extract_report` around one. Raises ReportError."""
    times: Mapping[str, float] = {}
    if isinstance(data.get("report"), Mapping):
        times = data.get("times") or {}
        data = data["report"]
    metrics = {name: metric for name, value in data.items() if (metric := _metric(name, value)) is not None}
    if "request_count" not in metrics or "request_latency" not in metrics:
        raise ReportError(
            "the report has no request_count or no request_latency: it is neither aiperf's nor genai-perf's"
        )
    try:
        if "aiperf_version" in data:
            return _aiperf(data, metrics, times)
        return _genai_perf(data, metrics, times)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"the report cannot be read: {type(error).__name__} {error}") from error


def _metric(name: str, value: Any) -> Metric | None:
    """A metric is an object with a unit; every number of it must be one. Raises ReportError."""
    if not isinstance(value, Mapping) or not isinstance(value.get("unit"), str):
        return None
    numbers = {k: v for k, v in value.items() if k != "unit"}
    for statistic, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ReportError(f"{name} {statistic} of the report is {number!r}, not a number")
    return Metric(value["unit"], {k: float(v) for k, v in numbers.items()})


def _count(metrics: Mapping[str, Metric], name: str) -> int:
    metric = metrics.get(name)
    return 0 if metric is None else round(metric.statistics["avg"])


def _aiperf(data: Mapping[str, Any], metrics: Mapping[str, Metric], times: Mapping[str, float]) -> BenchmarkReport:
    config = data.get("input_config") or {}
    phases = config.get("phases") or []
    phase: Mapping[str, Any] = next((p for p in phases if p.get("kind") == "profiling"), {})
    prompts = (config.get("datasets") or [{}])[0].get("prompts") or {}
    models = (config.get("models") or {}).get("items") or [{}]
    causes = []
    for entry in data.get("error_summary") or []:
        details = entry["error_details"]
        causes.append(
            f"{entry['count']} x {details.get('code') or ''} {details.get('type') or 'error'}".replace("  ", " ")
        )
    return BenchmarkReport(
        tool="aiperf",
        version=data["aiperf_version"],
        complete=data.get("is_complete"),
        cancelled=data.get("was_cancelled"),
        requested=phase.get("requests"),
        done=_count(metrics, "request_count"),
        errors=_count(metrics, "error_request_count"),
        concurrency=phase.get("concurrency"),
        request_rate=phase.get("rate"),
        output_tokens=(prompts.get("osl") or {}).get("mean"),
        metrics=metrics,
        incomplete_reason=data.get("incomplete_reason"),
        error_causes=tuple(causes),
        model=models[0].get("name"),
        times=times,
    )


def _genai_perf(data: Mapping[str, Any], metrics: Mapping[str, Metric], times: Mapping[str, float]) -> BenchmarkReport:
    config = data["input_config"]
    analyzer = config.get("perf_analyzer") or {}
    measurement = analyzer.get("measurement") or {}
    stimulus = analyzer.get("stimulus") or {}
    return BenchmarkReport(
        tool="genai-perf",
        version=None,
        complete=None,
        cancelled=None,
        requested=measurement.get("num") if measurement.get("mode") == "request_count" else None,
        done=_count(metrics, "request_count"),
        errors=0,
        concurrency=stimulus.get("concurrency"),
        request_rate=stimulus.get("request_rate"),
        output_tokens=((config.get("input") or {}).get("output_tokens") or {}).get("mean"),
        metrics=metrics,
        model=(config.get("model_names") or [None])[0],
        times=times,
    )


class Doubt(StrEnum):
    """Why a report is not to be believed."""

    INCOMPLETE = "incomplete"  # the run did not do what was asked: no figure of it counts
    IMPLAUSIBLE = "implausible"  # its figures contradict each other or what was asked


def incomplete(report: BenchmarkReport, expected_requests: int) -> str | None:
    """What is missing of the run that was asked for, or None."""
    if report.cancelled or report.complete is False:
        why = f" ({report.incomplete_reason.rstrip('.')})" if report.incomplete_reason else ""
        return f"the run is incomplete: {report.made} of {expected_requests} requests were made{why}"
    if report.requested is not None and report.requested != expected_requests:
        return f"the report is of a run of {report.requested} requests, {expected_requests} were asked for"
    if report.made != expected_requests:
        return f"{report.made} requests were made, {expected_requests} were asked for"
    return None


def implausible(report: BenchmarkReport) -> list[str]:
    """What contradicts itself in a complete report; empty when nothing does."""
    found = [*_little(report), *_lengths(report)]
    duration, rate = report.value("benchmark_duration"), report.value("request_throughput")
    if duration and rate and not _same(report.done / duration, rate):
        found.append(f"{report.done} requests in {duration:.2f} s are not the reported {rate:.2f} requests/s")
    return found


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * max(abs(one), abs(other))


def _little(report: BenchmarkReport) -> list[str]:
    """Little's law: mean requests in flight = throughput x mean latency; it must fit the load that was asked for."""
    rate, latency = report.value("request_throughput"), report.value("request_latency")
    if rate is None or latency is None or report.concurrency is None:
        return []
    flying = rate * latency / 1000
    text = f"{flying:.1f} requests were in flight by Little's law, {report.concurrency} were asked for"
    if flying > report.concurrency * (1 + SAME):
        return [text]
    # With a set rate the concurrency is a ceiling only. Failed requests are in flight too, but in neither figure.
    if not report.request_rate and flying < report.concurrency * HELD * (1 - report.error_rate):
        return [f"{text}: the client did not hold the load"]
    return []


def _lengths(report: BenchmarkReport) -> list[str]:
    """The answers must have the length that was pinned, and the token throughput must follow from it."""
    length, rate = report.value("output_sequence_length"), report.value("request_throughput")
    found = []
    if length is not None and report.output_tokens and not _same(length, report.output_tokens):
        found.append(f"answers had {length:.1f} tokens on average, {report.output_tokens:g} were asked for")
    mismatches = _count(report.metrics, "osl_mismatch_count")
    if mismatches > SAME * max(1, report.done):
        found.append(f"{mismatches} of {report.done} answers had another length than asked for")
    tokens = report.value("output_token_throughput")
    if length and rate and tokens and not _same(length * rate, tokens):
        found.append(f"{rate:.2f} requests/s of {length:.1f} tokens are not the reported {tokens:.1f} tokens/s")
    return found
