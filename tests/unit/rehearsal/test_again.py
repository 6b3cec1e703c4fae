"""A call that is asked again because its answer was lost: told again, not done again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from rehearsal.aws.again import Again


class Aws:
    """Counts the calls that it does; answers with what it is set to."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self.status = "200 OK"

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.done.append(environ["wsgi.input"].read())
        start_response(self.status, [("Content-Type", "text/xml")])
        return [b"number ", str(len(self.done)).encode()]


def ask(app: Again, call: str | None, method: str = "POST") -> tuple[str, bytes]:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "wsgi.input": io.BytesIO(b"Action=CreateVpc")}
    environ |= {"CONTENT_LENGTH": "16"} | ({"HTTP_AMZ_SDK_INVOCATION_ID": call} if call else {})
    statuses: list[str] = []
    body = b"".join(app(environ, lambda status, headers, exc_info=None: statuses.append(status)))
    assert environ["wsgi.input"].read() == b""
    return statuses[0], body


def test_the_same_call_is_done_once() -> None:
    aws = Aws()
    app = Again(aws)
    assert ask(app, "one") == ask(app, "one") == ("200 OK", b"number 1")
    assert ask(app, "two") == ("200 OK", b"number 2") and aws.done == [b"Action=CreateVpc"] * 2


@pytest.mark.parametrize(("call", "method"), [(None, "POST"), ("one", "GET")])
def test_reading_and_calls_without_an_id_are_done_anew(call: str | None, method: str) -> None:
    app = Again(Aws())
    ask(app, call, method)
    assert ask(app, call, method)[1] == b"number 2"


def test_an_error_is_tried_anew() -> None:
    aws = Aws()
    app = Again(aws)
    aws.status = "503 Service Unavailable"
    assert ask(app, "one")[0] == "503 Service Unavailable"
    aws.status = "200 OK"
    assert ask(app, "one") == ("200 OK", b"number 2")


def test_old_answers_are_forgotten() -> None:
    app = Again(Aws())
    ask(app, "first")
    for number in range(1000):
        ask(app, str(number))
    assert ask(app, "first")[1] == b"number 1002"
