"""One HTTP exchange with the API server, and what its refusals mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.core.errors import (
    AccessDenied,
    ApplyRejected,
    ClusterUnavailable,
    NeedsHumanError,
    NimRolloutsError,
    redact,
)

# Enough of a refusal to act on; more could carry what was sent.
_SHOWN = 400


class ApiRefusal(Exception):
    """An answer of 400 and above, as the API server's Status object says it."""

    def __init__(self, status: int, body: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        self.reason = str(body.get("reason") or "")
        self.details: Mapping[str, Any] = body.get("details") or {}
        self.text = redact(str(body.get("message") or ""))[:_SHOWN]
        self.retry_after_s = retry_after_s
        super().__init__(f"{status} {self.reason}: {self.text}")


def meaning(refusal: ApiRefusal, what: str) -> NimRolloutsError:
    """The error of ours for a refusal that the caller has no use for itself."""
    # Server-side apply answers a field that a built-in kind does not have with 500; another try gets the same.
    if refusal.status == 500 and "failed to create typed patch object" in refusal.text:
        return ApplyRejected(f"{what}: {refusal.text}")
    if refusal.status == 429 or refusal.status >= 500:
        return ClusterUnavailable(f"{what}: {refusal}", retry_after_s=refusal.retry_after_s)
    if refusal.status == 401:
        return AccessDenied(f"{what}: the cluster does not accept our identity ({refusal})")
    if refusal.status == 403 and "exceeded quota" in refusal.text:
        return NeedsHumanError(
            f"{what}: {refusal.text}", layer="cluster", reason="quota-exceeded", hint="Raise the ResourceQuota"
        )
    if refusal.status == 403:
        return AccessDenied(f"{what}: {refusal.text}")
    if refusal.status == 409:
        return ClusterUnavailable(f"{what}: {refusal}", reason="write-conflict")
    return ApplyRejected(f"{what}: {refusal.text or refusal}")


class Rest:
    """Requests to one cluster. Blocking; for workers."""

    def __init__(self, access: ClusterAccess, timeout_s: float = 30.0) -> None:
        import urllib3

        self.access = access
        self.timeout_s = timeout_s
        context = access.ssl_context()
        self._pool = urllib3.PoolManager(num_pools=2, ssl_context=context, retries=False, maxsize=4)

    def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The answer's JSON.

        :raises ApiRefusal: status 400 and above
        :raises ClusterUnavailable: no answer
        """
        answer: dict[str, Any] = json.loads(self.text(method, path, query=query, body=body, content_type=content_type))
        return answer

    def text(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> str:
        """The answer's text. Errors as `json`."""
        data = None if body is None else json.dumps(body).encode()
        try:
            return self._once(method, path, query, data, content_type)
        except ApiRefusal as refusal:
            if refusal.status != 401:
                raise
        # A token can be refused because it grew old on the way: one new one, then the answer stands.
        self.access.forget_token()
        return self._once(method, path, query, data, content_type)

    def _once(
        self, method: str, path: str, query: Mapping[str, str] | None, data: bytes | None, content_type: str
    ) -> str:
        import urllib3

        url = f"{self.access.endpoint}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json, */*", **self.access.headers()}
        if data is not None:
            headers["Content-Type"] = content_type
        try:
            answer = self._pool.request(
                method,
                url,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(connect=10.0, read=self.timeout_s),
                redirect=False,
            )
            text = answer.data.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise ClusterUnavailable(f"{method} {path}: the API server does not answer: {error}") from error
        if answer.status < 400:
            return text
        raise ApiRefusal(answer.status, _status_object(text), _seconds(answer.headers.get("Retry-After")))


def _status_object(text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {"message": text}
    return body if isinstance(body, dict) else {"message": text}


def _seconds(value: str | None) -> float | None:
    return float(value) if value and value.isdigit() else None
