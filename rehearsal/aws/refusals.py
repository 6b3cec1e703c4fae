"""The fault `aws-error`: a WSGI layer that answers some calls with an error, in the form that the service has."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any
from xml.sax.saxutils import escape

from rehearsal.aws.eks import WsgiApp, signed_for
from rehearsal.aws.operations import model, operation

log = logging.getLogger("rehearsal.aws.refusals")

#: The settings of the fault while it is ordered, else None.
Ordered = Callable[[], Mapping[str, Any] | None]


class Refusing:
    """WSGI application around the stand-in's."""

    def __init__(self, app: WsgiApp, ordered: Ordered) -> None:
        self.app, self.ordered = app, ordered

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        fault = self.ordered()
        signature = signed_for(environ.get("HTTP_AUTHORIZATION", ""))
        if fault is None or signature is None or not fnmatchcase(signature[2], fault["service"]):
            return self.app(environ, start_response)
        service = signature[2]
        asked = _asked(service, environ)
        if asked is None or not fnmatchcase(asked, fault["action"]):
            return self.app(environ, start_response)
        log.info("%s of %s is answered with %s, as ordered", asked, service, fault["code"])
        content_type, body = _body(model(service).metadata["protocol"], asked, fault["code"])
        headers = [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("x-amzn-ErrorType", fault["code"]),
        ]
        start_response(f"{fault['status']} {HTTPStatus(fault['status']).phrase}", headers)
        return [body]


def _asked(service: str, environ: dict[str, Any]) -> str | None:
    """The call; the request's body can be read once more afterwards."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    path = environ.get("REQUEST_URI", environ["PATH_INFO"]).partition("?")[0]
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    return operation(service, environ["REQUEST_METHOD"], path, target, body.decode(errors="replace"))


def _body(protocol: str, asked: str, code: str) -> tuple[str, bytes]:
    message = f"{asked} is refused by an ordered fault"
    if protocol in ("json", "rest-json"):
        return "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message}).encode()
    inner = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
    if protocol == "ec2":
        text = f"<Response><Errors><Error>{inner}</Error></Errors><RequestID>0</RequestID></Response>"
    elif protocol == "rest-xml":
        text = f"<Error>{inner}<RequestId>0</RequestId></Error>"
    else:
        text = f"<ErrorResponse><Error><Type>Sender</Type>{inner}</Error><RequestId>0</RequestId></ErrorResponse>"
    return "text/xml", text.encode()
