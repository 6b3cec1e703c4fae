"""The EKS extension: a WSGI layer in front of moto that answers the EKS calls moto lacks and passes on all others."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, unquote

from rehearsal.aws import eks_access, eks_addons, eks_cluster, eks_nodegroups
from rehearsal.aws.eks_cluster import ApiServer
from rehearsal.aws.eks_state import Call, Caller, Clusters, EksError, Json, not_found

log = logging.getLogger("rehearsal.aws.eks")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_CREDENTIAL = re.compile(r"Credential=(?P<key>[^/]+)/\d+/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request")

#: (method, path) of the EKS API -> handler; `*` stands for one segment.
_ROUTES: dict[tuple[str, str], Callable[[Clusters, Call], Json]] = {
    ("GET", "cluster-versions"): eks_cluster.versions,
    ("POST", "clusters/*/update-config"): eks_cluster.update_config,
    ("POST", "clusters/*/updates"): eks_cluster.update_version,
    ("GET", "clusters/*/updates"): eks_cluster.list_updates,
    ("GET", "clusters/*/updates/*"): eks_cluster.describe_update,
    ("POST", "clusters/*/node-groups/*/update-version"): eks_nodegroups.update_version,
    ("GET", "access-policies"): eks_access.list_policies,
    ("POST", "clusters/*/access-entries"): eks_access.create,
    ("GET", "clusters/*/access-entries"): eks_access.list_entries,
    ("GET", "clusters/*/access-entries/*"): eks_access.describe,
    ("POST", "clusters/*/access-entries/*"): eks_access.update,
    ("DELETE", "clusters/*/access-entries/*"): eks_access.delete,
    ("POST", "clusters/*/access-entries/*/access-policies"): eks_access.associate_policy,
    ("GET", "clusters/*/access-entries/*/access-policies"): eks_access.list_associated_policies,
    ("DELETE", "clusters/*/access-entries/*/access-policies/*"): eks_access.disassociate_policy,
    ("GET", "addons/supported-versions"): eks_addons.versions,
    ("POST", "clusters/*/addons"): eks_addons.create,
    ("GET", "clusters/*/addons"): eks_addons.list_addons,
    ("GET", "clusters/*/addons/*"): eks_addons.describe,
    ("DELETE", "clusters/*/addons/*"): eks_addons.delete,
    ("POST", "clusters/*/addons/*/update"): eks_addons.update,
    ("POST", "clusters/*/pod-identity-associations"): eks_addons.create_identity,
    ("GET", "clusters/*/pod-identity-associations"): eks_addons.list_identities,
    ("GET", "clusters/*/pod-identity-associations/*"): eks_addons.describe_identity,
    ("POST", "clusters/*/pod-identity-associations/*"): eks_addons.update_identity,
    ("DELETE", "clusters/*/pod-identity-associations/*"): eks_addons.delete_identity,
}

#: Calls that moto answers and the extension completes.
_COMPLETED: dict[tuple[str, str], Callable[..., tuple[int, Json]]] = {
    ("POST", "clusters"): eks_cluster.create,
    ("GET", "clusters/*"): eks_cluster.describe,
    ("DELETE", "clusters/*"): eks_cluster.delete,
    ("POST", "clusters/*/node-groups"): eks_nodegroups.create,
    ("POST", "clusters/*/node-groups/*/update-config"): eks_nodegroups.update_config,
    ("DELETE", "clusters/*/node-groups/*"): eks_nodegroups.delete,
}


def signed_for(authorization: str) -> tuple[str, str, str] | None:
    """(access key, region, service) of a SigV4 Authorization header; None for any other."""
    match = _CREDENTIAL.search(authorization or "")
    return (match["key"], match["region"], match["service"]) if match else None


class EksExtension:
    """WSGI application around moto's. `clusters` is shared with the token webhook."""

    def __init__(self, moto: WsgiApp, clusters: Clusters, api: ApiServer) -> None:
        self.moto, self.clusters, self.api = moto, clusters, api
        self._answered: dict[tuple[str, ...], tuple[int, Json]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/moto-api/reset":
            self.clusters.clear()
            self._answered.clear()
        signature = signed_for(environ.get("HTTP_AUTHORIZATION", ""))
        if signature is None or signature[2] != "eks":
            return self.moto(environ, start_response)
        # PATH_INFO is already decoded, which would tear an ARN with a slash into two segments.
        raw_path, _, raw_query = environ.get("REQUEST_URI", environ["PATH_INFO"]).partition("?")
        segments = [unquote(part) for part in raw_path.strip("/").split("/")]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        from moto.iam.models import get_account_id_from

        caller = Caller(get_account_id_from(signature[0]), signature[1])
        try:
            call = Call(environ["REQUEST_METHOD"], segments, parse_qs(raw_query), _json(body), caller)
            with self.clusters.lock:
                answer = self._answer_once(call, environ)
        except EksError as error:
            return _respond(start_response, error.status, error.body, error.name)
        if answer is None:
            return self.moto(environ, start_response)
        return _respond(start_response, *answer)

    def _answer_once(self, call: Call, environ: dict[str, Any]) -> tuple[int, Json] | None:
        """As on EKS, a call repeated with its token (an SDK that lost the answer) gets that answer, not a conflict."""
        token = call.body.get("clientRequestToken")
        key = (call.caller.account, call.caller.region, call.method, *call.segments, str(token))
        if token and key in self._answered:
            return self._answered[key]
        answer = self._answer(call, environ)
        if token and answer is not None:
            self._answered[key] = answer
        return answer

    def _answer(self, call: Call, environ: dict[str, Any]) -> tuple[int, Json] | None:
        """The extension's answer, or None where the call is moto's alone."""
        if call.segments[0] == "tags":
            return self._tags(call)
        if (completed := _match(_COMPLETED, call)) is not None:
            answer: tuple[int, Json] = completed(
                self.clusters, call, lambda body: self._forward(environ, body), self.api
            )
            return answer
        if (handler := _match(_ROUTES, call)) is not None:
            return 200, handler(self.clusters, call)
        return None

    def _forward(self, environ: dict[str, Any], body: Json | None) -> tuple[int, Json]:
        """Ask moto, with another body if one is given. Raises what moto answered as an error."""
        environ = dict(environ)
        if body is not None:
            data = json.dumps(body).encode()
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(data), str(len(data))
        seen: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
            seen["status"], seen["headers"] = int(status.split()[0]), dict(headers)

        text = b"".join(self.moto(environ, start_response))
        answer = _json(text)
        if seen["status"] >= 300:
            headers = {key.lower(): value for key, value in seen["headers"].items()}
            name = headers.get("x-amzn-errortype", "ServerException")
            message = str(answer.pop("message", text.decode(errors="replace")))
            raise EksError(seen["status"], name, message, **{k: v for k, v in answer.items() if v})
        return seen["status"], answer

    def _tags(self, call: Call) -> tuple[int, Json] | None:
        described = self.clusters.tagged("/".join(call.segments[1:]))
        if described is None:
            if ":cluster/" in call.segments[1] or ":nodegroup/" in call.segments[1]:
                return None
            raise not_found("The specified resource was not found.")
        if call.method == "POST":
            described["tags"].update(call.body.get("tags") or {})
        elif call.method == "DELETE":
            for key in call.query.get("tagKeys", []):
                described["tags"].pop(key, None)
        else:
            return 200, {"tags": described["tags"]}
        return 200, {}


def _match(routes: dict[tuple[str, str], Any], call: Call) -> Any:
    for (method, pattern), handler in routes.items():
        parts = pattern.split("/")
        if method == call.method and len(parts) == len(call.segments):
            if all(part in ("*", segment) for part, segment in zip(parts, call.segments, strict=True)):
                return handler
    return None


def _json(text: bytes) -> Json:
    try:
        value = json.loads(text or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _respond(start_response: Callable[..., Any], status: int, body: Json, error: str | None = None) -> Iterable[bytes]:
    data = json.dumps(body).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
    if error is not None:
        headers.append(("x-amzn-ErrorType", error))
    start_response(f"{status} {'OK' if status < 300 else error or 'Error'}", headers)
    return [data]
