"""The NIM server stand-in as a client sees it: a real process on a loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rehearsal import faults
from rehearsal.nim import image, store

ROOT = Path(__file__).resolve().parents[3]
IMAGE = "nvcr.io/nim/acme/parrot-7b:2.0.1"
MODEL = "acme/parrot-7b"
HOST = "127.86.3.2"


class Nim:
    """One running server."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process, self.log_file = process, log
        self.base = f"http://{HOST}:{port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str) -> tuple[int, Any]:
        return self.call(urllib.request.Request(self.base + path))

    def post(self, path: str, body: object) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call(urllib.request.Request(self.base + path, data=data))

    def call(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        return status, json.loads(text) if text.startswith("{") else text

    def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if condition():
                    return
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s:\n{self.log}")

    def ready(self) -> Nim:
        self.until(lambda: self.get("/v1/health/ready")[0] == 200)
        return self

    def chat(self, **more: Any) -> tuple[int, Any]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **more}
        return self.post("/v1/chat/completions", body)


def fill(folder: Path) -> Path:
    """Put one profile into a model store."""
    profile = image.parse_manifest(image.root_files(IMAGE)[image.MANIFEST_PATH])[0]
    store.download(folder, profile, 0.0, lambda _: None)
    return folder


class Launcher:
    """Starts servers and ends those that still run."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, list[Nim]()

    def __call__(self, model_store: Path, **environ: str) -> Nim:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(environ.get("NIM_HTTP_API_PORT") or probe.getsockname()[1])
        env = {k: v for k, v in os.environ.items() if not k.startswith(("NIM_", "NGC_", "REHEARSAL_"))}
        env |= {
            "PYTHONPATH": str(ROOT),
            "REHEARSAL_IMAGE": IMAGE,
            "REHEARSAL_LISTEN": HOST,
            "NIM_HTTP_API_PORT": str(port),
            "NIM_CACHE_PATH": str(model_store),
            "NIM_STANDIN_START_S": "0.2",
            "NIM_STANDIN_TTFT_MS": "20",
            "NIM_STANDIN_ITL_MS": "2",
            "NIM_STANDIN_DOWNLOAD_S": "0.1",
            **environ,
        }
        log = self._folder / f"server-{len(self._running)}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "rehearsal.nim.server"], env=env, cwd=ROOT, stdout=out, stderr=out, text=True
            )
        self._running.append(Nim(process, port, log))
        return self._running[-1]

    def end(self) -> None:
        for nim in self._running:
            nim.process.kill()
            nim.process.wait()


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A model store with one profile in it."""
    return fill(tmp_path / "model-store")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.end()


@pytest.fixture(scope="module")
def nim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nim]:
    """A server for tests that only ask."""
    folder = tmp_path_factory.mktemp("nim")
    launcher = Launcher(folder)
    yield launcher(fill(folder / "model-store"), NIM_STANDIN_ITL_MS="0.5").ready()
    launcher.end()


async def stream(nim: Nim, **more: Any) -> tuple[int, list[dict[str, Any]], list[float], bool]:
    """(status, chunks, arrival times, whether [DONE] came) of one streamed chat completion."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": True, **more}
    chunks, times, done = [], [], False
    async with aiohttp.ClientSession() as session:
        async with session.post(nim.base + "/v1/chat/completions", json=body) as answer:
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                else:
                    chunks.append(json.loads(line[6:]))
                    times.append(time.monotonic())
            return answer.status, chunks, times, done


def test_starts_in_phases_and_then_serves_its_model(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_START_S="1.5")
    nim.until(lambda: nim.get("/v1/health/live")[0] == 200)
    assert nim.get("/v1/health/ready")[0] == 503
    assert nim.get("/v1/models")[0] == 503
    assert nim.chat()[0] == 503
    nim.ready()
    status, models = nim.get("/v1/models")
    assert status == 200 and [(m["id"], m["root"]) for m in models["data"]] == [(MODEL, MODEL)]
    words = ["Matched profile_id", "Preparing model workspace", "Model workspace is now ready", "Initializing an LLM"]
    at = [nim.log.index(word) for word in [*words, "Engine ready", "API up", "Service is ready"]]
    assert at == sorted(at)
    assert "Download" not in nim.log
    assert nim.get("/v1/metadata")[1]["version"] == "2.0.1"


def test_chat_answers_with_usage(nim: Nim) -> None:
    status, body = nim.chat(max_tokens=1024, stop=["STOP"])
    assert status == 200
    choice, usage = body["choices"][0], body["usage"]
    assert choice["finish_reason"] == "stop"
    assert usage["completion_tokens"] == len(choice["message"]["content"].split())
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert nim.chat(max_tokens=1024)[1]["choices"] == body["choices"]


@pytest.mark.parametrize(
    ("asked", "tokens", "reason"),
    [
        ({"max_tokens": 5}, 5, "length"),
        ({"max_completion_tokens": 7, "max_tokens": 900}, 7, "length"),
        ({"max_tokens": 150, "ignore_eos": True}, 150, "length"),
        ({"max_tokens": 150, "nvext": {"ignore_eos": True}}, 150, "length"),
        ({"max_tokens": 150, "min_tokens": 120}, 120, "stop"),
        ({"max_tokens": 150, "nvext": {"min_tokens": 120}}, 120, "stop"),
    ],
)
async def test_output_length_is_as_asked(nim: Nim, asked: dict[str, Any], tokens: int, reason: str) -> None:
    status, body = nim.chat(**asked)
    assert (status, body["usage"]["completion_tokens"]) == (200, tokens)
    assert body["choices"][0]["finish_reason"] == reason
    _, chunks, _, done = await stream(nim, stream_options={"include_usage": True}, **asked)
    texts = [c["choices"][0]["delta"]["content"] for c in chunks if c["choices"]]
    assert done and len(texts) == tokens
    assert "".join(texts) == body["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == body["usage"]


def test_stop_cuts_in_the_middle_of_a_word(nim: Nim) -> None:
    whole = nim.chat(max_tokens=20)[1]["choices"][0]["message"]["content"]
    mark = whole.split()[3][1:]
    status, body = nim.chat(max_tokens=20, stop=mark)
    assert status == 200
    assert body["choices"][0] == {**body["choices"][0], "finish_reason": "stop"}
    assert body["choices"][0]["message"]["content"] == whole[: whole.index(mark)]


def test_completions(nim: Nim) -> None:
    status, body = nim.post("/v1/completions", {"model": MODEL, "prompt": "Once upon a time"})
    assert (status, body["object"], body["usage"]["completion_tokens"]) == (200, "text_completion", 16)
    assert len(body["choices"][0]["text"].split()) == 16


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        ({}, 400, "model"),
        ({"model": MODEL}, 400, "messages"),
        ({"model": MODEL, "messages": []}, 400, "messages"),
        ({"model": MODEL, "messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0]"),
        ({"model": MODEL, "messages": [{"role": "user", "content": 3}]}, 400, "messages[0]"),
        ({"model": "other", "messages": [{"role": "user", "content": "x"}]}, 404, "model"),
    ],
)
def test_bad_requests_are_refused_in_openai_shape(nim: Nim, body: object, status: int, param: str | None) -> None:
    got, answer = nim.post("/v1/chat/completions", body)
    assert got == status
    assert (answer["error"]["code"], answer["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"max_tokens": 10, "min_tokens": 11},
        {"max_tokens": 10**9},
        {"temperature": 3},
        {"stop": [1]},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"n": 2},
        {"ignore_eos": 1},
        {"nvext": []},
    ],
)
def test_bad_options_are_refused(nim: Nim, wrong: dict[str, Any]) -> None:
    status, answer = nim.chat(**wrong)
    assert status == 400 and answer["error"]["type"] == "BadRequestError"


async def test_many_streams_keep_their_times(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_TTFT_MS="100", NIM_STANDIN_ITL_MS="10").ready()
    began = time.monotonic()
    results = await asyncio.gather(*(stream(nim, max_tokens=60, ignore_eos=True) for _ in range(20)))
    for status, chunks, times, done in results:
        assert (status, len(chunks), done) == (200, 60, True)
        # Due at 100 + 59 x 10 ms; half a second of slack for a busy machine, but no drift of 10 % on top.
        assert 0.69 <= times[-1] - began < 1.2
        assert times[0] - began >= 0.1


async def test_requests_beyond_the_slots_wait_their_turn(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_SLOTS="2", NIM_STANDIN_TTFT_MS="200", NIM_STANDIN_ITL_MS="1").ready()
    tasks = [asyncio.create_task(stream(nim, max_tokens=2, ignore_eos=True)) for _ in range(6)]
    await asyncio.sleep(0.15)
    text = (await asyncio.to_thread(nim.get, "/v1/metrics"))[1]
    assert value(text, "num_requests_running") == 2
    assert value(text, "num_requests_waiting") == 4
    assert value(text, "num_request_max") == 2
    began = time.monotonic()
    assert all(done for _, _, _, done in await asyncio.gather(*tasks))
    assert time.monotonic() - began > 0.35


def value(text: str, name: str, label: str = "") -> float:
    lines = [line for line in text.splitlines() if line.startswith(name + "{") and label in line]
    assert len(lines) == 1, (name, lines)
    return float(lines[0].rsplit(" ", 1)[1])


async def test_metrics_count_what_was_served(start: Launcher, cached: Path) -> None:
    nim = start(cached).ready()
    for _ in range(3):
        assert nim.chat(max_tokens=10, ignore_eos=True)[0] == 200
    await stream(nim, max_tokens=10, ignore_eos=True)
    text = nim.get("/v1/metrics")[1]
    assert value(text, "generation_tokens_total") == 40
    assert value(text, "request_success_total") == 4
    assert value(text, "request_failure_total") == 0
    assert value(text, "request_finish_total", 'finished_reason="length"') == 4
    assert value(text, "num_requests_running") == 0
    for name, count in [("time_to_first_token", 4), ("time_per_output_token", 36), ("e2e_request_latency", 4)]:
        assert value(text, f"{name}_seconds_count") == count
        assert value(text, f"{name}_seconds_bucket", 'le="+Inf"') == count
    assert value(text, "time_to_first_token_seconds_bucket", 'le="0.01"') == 0
    assert value(text, "time_to_first_token_seconds_sum") >= 0.08
    assert value(text, "prompt_tokens_total") == value(text, "request_prompt_tokens_sum") > 0


async def test_a_share_of_streaming_requests_fails_and_nothing_else(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_ERROR_PERCENT="30", NIM_STANDIN_TTFT_MS="1").ready()
    results = [(await stream(nim, max_tokens=1))[0] for _ in range(20)]
    assert results.count(500) == 6 and results.count(200) == 14
    assert {nim.chat(max_tokens=1)[0] for _ in range(10)} == {200}
    assert value(nim.get("/v1/metrics")[1], "request_failure_total") == 6


async def test_the_ordered_fault_applies_and_ends(start: Launcher, cached: Path, tmp_path: Path) -> None:
    class State:
        def path(self, name: str) -> Path:
            (tmp_path / "state" / name).mkdir(parents=True, exist_ok=True)
            return tmp_path / "state" / name

    state = State()
    nim = start(cached, REHEARSAL_STATE=str(tmp_path / "state")).ready()
    assert (await stream(nim, max_tokens=1))[0] == 200
    faults.order(state, "benchmark-errors", percent=100)

    async def answered(wanted: int) -> None:
        end = time.monotonic() + 5
        while (await stream(nim, max_tokens=1))[0] != wanted:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)

    await answered(500)
    assert nim.chat(max_tokens=1)[0] == 200
    faults.clear(state, "benchmark-errors")
    await answered(200)


async def test_streams_are_cut_in_the_middle_when_set(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_DROP_PERCENT="100").ready()
    with pytest.raises(aiohttp.ClientError):
        await stream(nim, max_tokens=20, ignore_eos=True)
    nim.until(lambda: value(nim.get("/v1/metrics")[1], "request_finish_total", '"abort"') == 1)


async def test_a_client_that_leaves_gives_its_slot_back(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_SLOTS="1", NIM_STANDIN_ITL_MS="100").ready()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(stream(nim, max_tokens=900, ignore_eos=True), 0.3)
    status, body = await asyncio.to_thread(lambda: nim.chat(max_tokens=2))
    assert (status, body["usage"]["completion_tokens"]) == (200, 2)


async def test_sigterm_lets_running_requests_end(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_ITL_MS="20").ready()
    task = asyncio.create_task(stream(nim, max_tokens=50, ignore_eos=True))
    await asyncio.sleep(0.3)
    nim.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    with pytest.raises(OSError):
        nim.get("/v1/health/live")
    status, chunks, _, done = await task
    assert (status, len(chunks), done) == (200, 50, True)
    assert await asyncio.to_thread(nim.process.wait, 5) == 0


def test_sigterm_during_the_start(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_START_S="60")
    nim.until(lambda: nim.get("/v1/health/live")[0] == 200)
    nim.process.send_signal(signal.SIGTERM)
    assert nim.process.wait(5) == 0


def test_an_empty_store_without_a_key_ends_it(start: Launcher, tmp_path: Path) -> None:
    nim = start(tmp_path / "empty")
    assert nim.process.wait(10) == 1
    assert "Cache miss" in nim.log and "no NGC key" in nim.log


def test_an_empty_store_with_a_key_is_filled(start: Launcher, tmp_path: Path) -> None:
    nim = start(tmp_path / "empty", NGC_API_KEY="nvapi-not-a-real-one").ready()
    assert "Cache miss" in nim.log and "Downloaded" in nim.log
    assert "nvapi-" not in nim.log
    again = start(tmp_path / "empty").ready()
    assert "Cache miss" not in again.log


def test_an_unknown_profile_ends_it(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_MODEL_PROFILE="0" * 64)
    assert nim.process.wait(10) == 1
    assert "is not in the model manifest" in nim.log


def test_wrong_settings_end_it(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_STANDIN_SLOTS="none")
    assert nim.process.wait(10) == 1
    assert "NIM_STANDIN_SLOTS='none' is no number" in nim.log


def test_a_taken_port_ends_it(start: Launcher, cached: Path) -> None:
    first = start(cached).ready()
    second = start(cached, NIM_HTTP_API_PORT=first.base.rpartition(":")[2])
    assert second.process.wait(10) == 1
    assert "cannot listen" in second.log


def test_json_logs_and_a_served_name(start: Launcher, cached: Path) -> None:
    nim = start(cached, NIM_JSONL_LOGGING="1", NIM_SERVED_MODEL_NAME="one,two").ready()
    assert [m["id"] for m in nim.get("/v1/models")[1]["data"]] == ["one", "two"]
    lines = [json.loads(line) for line in nim.log.splitlines()]
    assert all(line["level"] and line["message"] for line in lines)
