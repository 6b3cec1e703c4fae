"""NGC's registry: may this key pull this image? Asked before anything is made or paid for.

The same two steps as a container runtime takes: a token for the repository from the key, then the tag's manifest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from nim_rollouts.core.errors import (
    NgcEntitlementError,
    NgcForbidden,
    NgcImageNotFound,
    NgcKeyError,
    NgcRateLimited,
    NgcUnavailable,
    redact,
)

if TYPE_CHECKING:
    import requests

DEFAULT_URL = "https://nvcr.io"
USER = "$oauthtoken"
_KEY = re.compile(r"nvapi-[A-Za-z0-9_-]{8,}")
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Digest:
    """What a tag stands for now: `sha256:...`, None when the registry does not say."""

    reference: str
    digest: str | None


def check_key_format(key: str | None) -> str:
    """The key itself.

    :raises NgcKeyError: missing, or not of NGC's form; the key is not repeated
    """
    if not key:
        raise NgcKeyError("the NGC key is missing", reason="ngc-key-missing")
    if key != key.strip():
        raise NgcKeyError("the NGC key has spaces or a line break around it", reason="ngc-key-malformed")
    if not key.startswith("nvapi-"):
        raise NgcKeyError("the NGC key does not begin with nvapi-", reason="ngc-key-malformed")
    if not _KEY.fullmatch(key):
        raise NgcKeyError("the NGC key is too short or has characters that no key has", reason="ngc-key-malformed")
    return key


class Ngc:
    """One registry with one key. Blocking; for workers."""

    def __init__(self, base_url: str, key: str | None, *, timeout_s: float = 20.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._key = check_key_format(key)
        self.timeout_s = timeout_s

    def token(self, repository: str) -> str:
        """A pull token for one repository (path without the registry's host).

        :raises NgcKeyError: the key is refused
        """
        answer = self._send(
            "GET",
            "/proxy_auth",
            params={"account": USER, "scope": f"repository:{repository}:pull"},
            auth=(USER, self._key),
        )
        _check(answer, f"the token for {repository}")
        try:
            body = answer.json()
            token = body.get("token") or body.get("access_token")
        except ValueError:
            token = None
        if not token:
            raise NgcUnavailable(f"NGC gave no token for {repository}")
        return str(token)

    def manifest(self, repository: str, tag: str) -> Digest:
        """The digest of a tag, asked with the key.

        :raises NgcKeyError: the key may not pull it
        :raises NgcImageNotFound: no such repository or tag
        """
        reference = f"{repository}:{tag}"
        answer = self._send(
            "HEAD",
            f"/v2/{repository}/manifests/{tag}",
            headers={"Authorization": f"Bearer {self.token(repository)}", "Accept": _ACCEPT},
        )
        _check(answer, f"the image {reference}")
        return Digest(reference, answer.headers.get("Docker-Content-Digest"))

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> requests.Response:
        import requests

        try:
            with requests.Session() as session:
                # A netrc entry for the host would replace the Authorization header in silence; what else the
                # environment says (proxies, a CA bundle) is taken over by hand.
                session.trust_env = False
                session.proxies.update(requests.utils.get_environ_proxies(self.base_url))
                session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
                return session.request(
                    method, self.base_url + path, params=params, headers=headers, auth=auth, timeout=self.timeout_s
                )
        except requests.RequestException as error:
            raise NgcUnavailable(f"NGC at {self.base_url} does not answer: {redact(str(error))}") from None


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that an answer asks to wait: given as a number or as a date (RFC 9110, 10.2.3); None without."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - (now or datetime.now(UTC))).total_seconds(), 0.0)


def _check(answer: requests.Response, what: str) -> None:
    status = answer.status_code
    if status < 300:
        return
    if status == 401 and "insufficient_scope" not in answer.headers.get("WWW-Authenticate", ""):
        raise NgcKeyError(f"NGC refuses the key for {what} (401)", reason="ngc-key-refused", layer="ngc-auth")
    if status in (401, 403):
        # Wherever it comes: nvcr.io answers 403 at its token step already when the key lacks the scope's right.
        raise NgcForbidden(f"NGC takes the key, but not for {what} ({status})")
    if status == 402:
        raise NgcEntitlementError(f"NGC asks for a subscription for {what} (402)")
    if status == 404:
        raise NgcImageNotFound(f"NGC does not have {what.removeprefix('the ')} (404)")
    if status == 429:
        raise NgcRateLimited(f"NGC answers 429 for {what}", retry_after_s=retry_after(answer.headers))
    if status >= 500:
        raise NgcUnavailable(f"NGC answers {status} for {what}", retry_after_s=retry_after(answer.headers))
    raise NgcUnavailable(f"NGC answers {status} for {what}, which was not expected")


def from_connection(conn_id: str) -> Ngc:
    """With the key and, if given, the address of an Airflow connection (password; schema, host, port).

    :raises NgcKeyError: no connection, no key, or not a key
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = Connection.get(conn_id)
    except AirflowNotFoundException:
        raise NgcKeyError(f"the Airflow connection {conn_id} does not exist", reason="ngc-key-missing") from None
    return Ngc(base_url(connection.schema, connection.host, connection.port), connection.password)


def base_url(schema: str | None, host: str | None, port: int | None) -> str:
    """The registry's address from a connection's parts; nvcr.io when no host is given."""
    if not host:
        return DEFAULT_URL
    if "://" in host:
        return host.rstrip("/")
    return f"{schema or 'https'}://{host}" + (f":{port}" if port else "")
