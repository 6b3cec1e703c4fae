"""A WSGI layer that answers a call that is asked again as it was answered before.

Under load a connection now and then breaks after the call was done and before the client has read the answer. AWS's
SDKs then ask again, with the same invocation id; where AWS knows a call by its client token, moto makes a second thing,
and a rehearsal would blame the product for it.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from rehearsal.aws.eks import WsgiApp

log = logging.getLogger("rehearsal.aws.again")

#: Answers kept; an SDK asks again within seconds.
_KEPT = 1000

_Answer = tuple[str, list[tuple[str, str]], bytes]


class Again:
    """WSGI application around the stand-in's. Only what succeeded is told again: an error is meant to be tried anew."""

    def __init__(self, app: WsgiApp) -> None:
        self.app = app
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        call = environ.get("HTTP_AMZ_SDK_INVOCATION_ID")
        if call is None or environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self.app(environ, start_response)
        with self._lock:
            known = self._answers.get(call)
        if known is not None:
            log.warning("asked again (%s): told again", environ.get("HTTP_AMZ_SDK_REQUEST"))
            # What is not read would break this connection as well.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        else:
            known = self._ask(environ)
            if known[0].startswith("2"):
                with self._lock:
                    self._answers[call] = known
                    while len(self._answers) > _KEPT:
                        self._answers.popitem(last=False)
        status, headers, body = known
        start_response(status, headers)
        return [body]

    def _ask(self, environ: dict[str, Any]) -> _Answer:
        from werkzeug.test import run_wsgi_app

        answer, status, headers = run_wsgi_app(self.app, environ, buffered=True)
        return status, headers.to_wsgi_list(), b"".join(answer)
