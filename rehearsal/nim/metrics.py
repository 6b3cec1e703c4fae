"""The server's Prometheus metrics, in NIM's names, order and buckets.

Names and help: "Observability for NVIDIA NIM for LLMs"; buckets, label names and the order as a NIM 1.x prints
them at /v1/metrics. Written by hand: a token costs one bisect, and no library has to be in the environment.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TPOT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
E2E = (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
TOKENS = tuple(float(m * 10**e) for e in range(5) for m in (1, 2, 5)) + (100000.0,)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Cumulative buckets as Prometheus wants them, counted per bucket and summed up on printing."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, labels: str) -> list[str]:
        total, result = 0, []
        for bound, count in zip((*self.bounds, None), self._counts, strict=True):
            total += count
            edge = "+Inf" if bound is None else str(bound)
            result.append(f'{name}_bucket{{le="{edge}",{labels}}} {float(total)}')
        return [*result, f"{name}_count{{{labels}}} {float(total)}", f"{name}_sum{{{labels}}} {self._sum!r}"]


class Metrics:
    """All series of one served model."""

    def __init__(self, model: str, slots: int, kv_tokens: int) -> None:
        self._labels = f'model_name="{model}"'
        self._slots, self._kv_tokens = slots, kv_tokens
        self.running = 0
        self.waiting = 0
        self.tokens_held = 0  # tokens of running requests, for the KV cache's use
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.ttft = Histogram(TTFT)
        self.tpot = Histogram(TPOT)
        self.e2e = Histogram(E2E)
        self.prompt_sizes = Histogram(TOKENS)
        self.generation_sizes = Histogram(TOKENS)
        self.finished: dict[str, int] = {}

    def finish(self, reason: str, seconds: float, prompt_tokens: int, generated: int) -> None:
        """One request has ended: `stop` and `length` count as success, anything else as failure (as NIM says)."""
        self.finished[reason] = self.finished.get(reason, 0) + 1
        if reason in ("stop", "length"):
            self.e2e.observe(seconds)
            self.prompt_sizes.observe(prompt_tokens)
            self.generation_sizes.observe(generated)

    def text(self) -> str:
        good = sum(n for reason, n in self.finished.items() if reason in ("stop", "length"))
        bad = sum(self.finished.values()) - good
        out: list[str] = []

        def one(name: str, kind: str, about: str, value: float) -> None:
            head(name, kind, about)
            out.append(f"{name}{{{self._labels}}} {float(value)}")

        def head(name: str, kind: str, about: str) -> None:
            out.extend((f"# HELP {name} {about}", f"# TYPE {name} {kind}"))

        one("num_requests_running", "gauge", "Number of requests currently running on GPU.", self.running)
        one("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", self.waiting)
        one("num_request_max", "gauge", "Max number of concurrently running requests.", self._slots)
        used = min(1.0, self.tokens_held / self._kv_tokens)
        one("gpu_cache_usage_perc", "gauge", "GPU KV-cache usage. 1 means 100 percent usage.", used)
        one("prompt_tokens_total", "counter", "Number of prefill tokens processed.", self.prompt_tokens)
        one("generation_tokens_total", "counter", "Number of generation tokens processed.", self.generation_tokens)
        histograms: Mapping[str, tuple[str, Histogram]] = {
            "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", self.ttft),
            "time_per_output_token_seconds": ("Histogram of time per output token in seconds.", self.tpot),
            "e2e_request_latency_seconds": ("Histogram of end to end request latency in seconds.", self.e2e),
            "request_prompt_tokens": ("Number of prefill tokens processed.", self.prompt_sizes),
            "request_generation_tokens": ("Number of generation tokens processed.", self.generation_sizes),
        }
        for name, (about, histogram) in histograms.items():
            head(name, "histogram", about)
            out.extend(histogram.lines(name, self._labels))
        head("request_finish_total", "counter", "Count of finished requests, differentiated by finish reason as label.")
        for reason, count in sorted(self.finished.items()):
            out.append(f'request_finish_total{{finished_reason="{reason}",{self._labels}}} {float(count)}')
        one("request_success_total", "counter", "Count of successful requests.", good)
        one("request_failure_total", "counter", "Count of failed requests.", bad)
        return "\n".join(out) + "\n"
