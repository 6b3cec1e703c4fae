"""Verification of an EKS token: a presigned GetCallerIdentity URL that carries the cluster's name as a signed header.

The rules are those of aws-iam-authenticator, which EKS runs: only the STS endpoint, only this action, only known
parameters, `x-k8s-aws-id` among the signed headers, at most 15 minutes old. The signature itself, which AWS's STS would
check, is checked here wherever the secret of the access key is known.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlsplit

PREFIX = "k8s-aws-v1."
CLUSTER_HEADER = "x-k8s-aws-id"
MAX_AGE = timedelta(minutes=15)
MAX_SKEW = timedelta(minutes=5)
_PARAMETERS = {
    "action",
    "version",
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
    "x-amz-user-agent",
}
_STS_HOST = re.compile(r"^sts(-fips)?(\.[a-z0-9-]+)?\.amazonaws\.com(\.cn)?$")


class BadToken(ValueError):
    """The token is not one that EKS would accept; the message says why."""


@dataclass(frozen=True)
class Presigned:
    """A presigned GetCallerIdentity request out of a token."""

    host: str
    query: dict[str, str]
    signed_headers: list[str]
    access_key: str
    credential: str
    region: str

    def signature_for(self, cluster: str, secret: str) -> str:
        """The SigV4 signature this request has if it was signed for `cluster` with `secret`."""
        date, region, service, _ = self.credential.split("/")[1:]
        values = {"host": self.host, CLUSTER_HEADER: cluster}
        canonical = "\n".join(
            [
                "GET",
                "/",
                "&".join(
                    f"{_escape(key)}={_escape(value)}"
                    for key, value in sorted(self.query.items())
                    if key != "X-Amz-Signature"
                ),
                *(f"{name}:{values.get(name, '')}" for name in self.signed_headers),
                "",
                ";".join(self.signed_headers),
                hashlib.sha256(b"").hexdigest(),
            ]
        )
        scope = f"{date}/{region}/{service}/aws4_request"
        text = "\n".join(
            ["AWS4-HMAC-SHA256", self.query["X-Amz-Date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )
        key = f"AWS4{secret}".encode()
        for part in (date, region, service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()

    def is_signed_for(self, cluster: str, secret: str) -> bool:
        return hmac.compare_digest(self.signature_for(cluster, secret), self.query.get("X-Amz-Signature", ""))


def parse(token: str, endpoint_hosts: set[str], now: datetime | None = None) -> Presigned:
    """The presigned request in a token. `endpoint_hosts` are the stand-in's own host:port, taken besides AWS's STS.

    Raises `BadToken`.
    """
    if not token.startswith(PREFIX):
        raise BadToken(f"token does not begin with {PREFIX}")
    encoded = token.removeprefix(PREFIX)
    try:
        url = urlsplit(base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True).decode())
    except (binascii.Error, ValueError) as error:
        raise BadToken("token is not the base64 of a URL") from error
    own = url.netloc in endpoint_hosts
    if not own and not (url.scheme == "https" and _STS_HOST.match(url.netloc)):
        raise BadToken(f"unexpected hostname {url.netloc!r} in presigned URL")
    if url.path not in ("", "/"):
        raise BadToken(f"unexpected path {url.path!r} in presigned URL")
    pairs = parse_qsl(url.query, keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise BadToken("a parameter occurs twice in the presigned URL")
    unknown = sorted(key for key in query if key.lower() not in _PARAMETERS)
    if unknown:
        raise BadToken(f"non-whitelisted query parameter {unknown[0]!r}")
    if query.get("Action") != "GetCallerIdentity":
        raise BadToken("unexpected action parameter in presigned URL")
    signed_headers = query.get("X-Amz-SignedHeaders", "").split(";")
    if CLUSTER_HEADER not in signed_headers:
        raise BadToken(f"client did not sign the {CLUSTER_HEADER} header in the presigned URL")
    _check_age(query, now or datetime.now(UTC))
    credential = query.get("X-Amz-Credential", "")
    scope = credential.split("/")
    if len(scope) != 5 or scope[3] != "sts" or scope[4] != "aws4_request":
        raise BadToken(f"unexpected credential scope {credential!r}")
    return Presigned(url.netloc, query, signed_headers, scope[0], credential, scope[2])


def _check_age(query: dict[str, str], now: datetime) -> None:
    try:
        made = datetime.strptime(query.get("X-Amz-Date", ""), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        expires = int(query.get("X-Amz-Expires", ""))
    except ValueError as error:
        raise BadToken("X-Amz-Date or X-Amz-Expires is missing or malformed") from error
    if not 0 <= expires <= MAX_AGE.total_seconds():
        raise BadToken(f"invalid X-Amz-Expires parameter: {expires}")
    # EKS goes by the date alone; clients sign with an X-Amz-Expires of 60 and use the token for 14 minutes.
    if made + MAX_AGE < now:
        raise BadToken("X-Amz-Date is more than 15 minutes old: token expired")
    if made > now + MAX_SKEW:
        raise BadToken("X-Amz-Date lies in the future")


def _escape(text: str) -> str:
    return quote(text, safe="-_.~")
