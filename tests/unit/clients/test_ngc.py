"""NGC: two requests, and what each refusal means."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.clients.ngc import Ngc, base_url, check_key_format, retry_after
from nim_rollouts.core.errors import (
    NgcEntitlementError,
    NgcForbidden,
    NgcImageNotFound,
    NgcKeyError,
    NgcRateLimited,
    NgcUnavailable,
    NimRolloutsError,
    is_retryable,
)

KEY = "nvapi-canary-0123456789"


class _Registry(http.server.BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, dict[str, str]]]
    seen: list[tuple[str, str, str | None]]

    def do_GET(self) -> None:
        self._answer({"token": "short-lived"})

    def do_HEAD(self) -> None:
        self._answer(None)

    def _answer(self, body: Any) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        status, headers = self.answers.get(self.command, (200, {}))
        data = json.dumps(body).encode() if body is not None and status == 200 else b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def registry() -> Iterator[Any]:
    handler = type("Registry", (_Registry,), {"answers": {}, "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_token_then_manifest(registry: Any) -> None:
    registry.answers["HEAD"] = (200, {"Docker-Content-Digest": "sha256:abc"})
    assert Ngc(registry.url, KEY).manifest("nim/meta/m", "1.3.3").digest == "sha256:abc"
    (get, path, basic), (head, manifest, bearer) = registry.seen
    assert (get, head) == ("GET", "HEAD")
    assert path == "/proxy_auth?account=%24oauthtoken&scope=repository%3Anim%2Fmeta%2Fm%3Apull"
    assert base64.b64decode(basic.removeprefix("Basic ")).decode() == f"$oauthtoken:{KEY}"
    assert (manifest, bearer) == ("/v2/nim/meta/m/manifests/1.3.3", "Bearer short-lived")


@pytest.mark.parametrize(
    ("step", "status", "error", "reason"),
    [
        ("GET", 401, NgcKeyError, "ngc-key-refused"),
        ("GET", 403, NgcKeyError, "ngc-key-forbidden"),
        ("HEAD", 401, NgcKeyError, "ngc-key-refused"),
        ("HEAD", 402, NgcEntitlementError, "ngc-not-entitled"),
        ("HEAD", 403, NgcForbidden, "ngc-key-forbidden"),
        ("HEAD", 404, NgcImageNotFound, "ngc-image-not-found"),
        ("HEAD", 429, NgcUnavailable, "ngc-rate-limited"),
        ("HEAD", 503, NgcUnavailable, "ngc-unavailable"),
    ],
)
def test_refusals(registry: Any, step: str, status: int, error: type[NimRolloutsError], reason: str) -> None:
    registry.answers[step] = (status, {"Retry-After": "7"})
    with pytest.raises(error) as caught:
        Ngc(registry.url, KEY).manifest("nim/m", "9.9.9")
    assert caught.value.reason == reason
    assert KEY not in str(caught.value)
    if isinstance(caught.value, NgcUnavailable):
        assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("step", "status", "headers", "error", "layer", "retryable"),
    [
        ("GET", 401, {}, NgcKeyError, "ngc-auth", False),
        ("GET", 402, {}, NgcEntitlementError, "entitlement", False),
        ("GET", 403, {}, NgcForbidden, "entitlement", False),
        ("GET", 429, {}, NgcRateLimited, "rate-limit", True),
        ("HEAD", 401, {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}, NgcForbidden, "entitlement", False),
        ("HEAD", 403, {}, NgcForbidden, "entitlement", False),
        ("HEAD", 404, {}, NgcImageNotFound, "ngc", False),
        ("HEAD", 429, {}, NgcRateLimited, "rate-limit", True),
    ],
)
def test_each_refusal_is_its_own(
    registry: Any,
    step: str,
    status: int,
    headers: dict[str, str],
    error: type[NimRolloutsError],
    layer: str,
    retryable: bool,
) -> None:
    registry.answers[step] = (status, headers)
    with pytest.raises(error) as caught:
        Ngc(registry.url, KEY).manifest("nim/m", "1")
    assert (type(caught.value), caught.value.layer) == (error, layer)
    assert is_retryable(caught.value) is retryable
    assert caught.value.hint or retryable


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after({"Retry-After": "12"}) == 12
    assert retry_after({"Retry-After": "Thu, 01 Jan 2026 00:00:30 GMT"}, now) == 30
    assert retry_after({"Retry-After": "Wed, 31 Dec 2025 00:00:00 GMT"}, now) == 0
    assert retry_after({}) is None
    assert retry_after({"Retry-After": "soon"}) is None


def test_nobody_there() -> None:
    with pytest.raises(NgcUnavailable, match="does not answer") as caught:
        Ngc("http://127.0.0.1:9", KEY).token("nim/m")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, "ngc-key-missing"),
        ("", "ngc-key-missing"),
        ("   ", "ngc-key-malformed"),
        (KEY + "\n", "ngc-key-malformed"),
        ("abcdefghijkl", "ngc-key-malformed"),
        ("nvapi-", "ngc-key-malformed"),
        ("nvapi-has spaces in it", "ngc-key-malformed"),
    ],
)
def test_keys_that_are_none(key: str | None, reason: str) -> None:
    with pytest.raises(NgcKeyError) as caught:
        check_key_format(key)
    assert caught.value.reason == reason
    assert not key or not key.strip() or key.strip() not in str(caught.value) or key == "nvapi-"


def test_addresses() -> None:
    assert base_url(None, None, None) == "https://nvcr.io"
    assert base_url("http", "127.0.0.1", 80) == "http://127.0.0.1:80"
    assert base_url(None, "mirror.example.com", None) == "https://mirror.example.com"
    assert base_url("", "http://a:1/", None) == "http://a:1"
