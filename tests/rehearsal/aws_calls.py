"""Which actions of AWS terraform called: moto's recording and the stand-in's log, read as IAM names actions."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qs, urlsplit

from rehearsal.aws.operations import by_path

#: The stand-in's line on one request: time, level, logger, then service, method, path, target, status.
_LOGGED = re.compile(r"INFO rehearsal\.aws: (?P<service>\S+) (?P<method>[A-Z]+) (?P<path>\S+) \S+ \d+$")
_SIGNED_FOR = re.compile(r"Credential=[^/]+/\d+/[^/]+/(?P<service>[^/]+)/aws4_request")


def actions(recorded: Iterable[str], logged: Iterable[str]) -> set[str]:
    """`service:Action` of every call of terraform's AWS provider. EKS is taken from the log, whoever called: the
    stand-in answers it in moto's place.

    S3 is left out: its actions are other words than its calls, and terraform's part of it is the state alone.
    """
    found = set(_recorded(recorded))
    for line in logged:
        match = _LOGGED.search(line.rstrip())
        if match and match["service"] == "eks":
            found.add(f"eks:{_operation('eks', match['method'], match['path'])}")
    return found


def _recorded(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        request = json.loads(line)
        headers = {key.lower(): value for key, value in request["headers"].items()}
        signed = _SIGNED_FOR.search(headers.get("authorization", ""))
        if (
            signed is None
            or signed["service"] in ("s3", "eks")
            or "terraform" not in headers.get("user-agent", "").lower()
        ):
            continue
        service = signed["service"]
        if target := headers.get("x-amz-target"):
            yield f"{service}:{target.rpartition('.')[2]}"
            continue
        body = request.get("body") or ""
        text = base64.b64decode(body).decode(errors="replace") if request.get("body_encoded") else body
        if action := parse_qs(text).get("Action"):
            yield f"{service}:{action[0]}"
        else:
            yield f"{service}:{_operation(service, request['method'], urlsplit(request['url']).path)}"


def _operation(service: str, method: str, path: str) -> str:
    name = by_path(service, method, path)
    assert name is not None, f"{service} has no operation {method} {path}"
    return name
