"""``python -m rehearsal.ngc``: a stand-in for nvcr.io: NGC's token exchange and the registry's manifests.

It knows one key, the rehearsal's own (``<state>/ngc-key``), and the repositories of ``rehearsal/registry.yaml``.
Neither the key nor an Authorization header is ever logged. The fault ``registry`` makes it refuse an image.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import logging
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from aiohttp import web

from rehearsal import config, faults
from rehearsal.config import Rehearsal

log = logging.getLogger(__name__)

ACCOUNT = "$oauthtoken"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
TOKEN_SECONDS = 300
_AT_THE_TOKEN = {
    401: ("UNAUTHORIZED", "authentication required"),
    402: ("DENIED", "Payment Required"),
    403: ("DENIED", "Access Denied"),
}
_SCOPE = re.compile(r"^repository:(?P<repository>[^:]+):(?P<actions>[a-z,]+)$")


def load_registry(file: Path) -> dict[str, list[str]]:
    """Repositories and their tags. Raises ValueError naming the entry that is wrong."""
    data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    registry = {}
    for repository, tags in data.items():
        if not isinstance(tags, list) or not tags:
            raise ValueError(f"{file}: {repository} needs a list of tags")
        registry[str(repository)] = [str(tag) for tag in tags]
    return registry


def manifest(repository: str, tag: str) -> bytes:
    """An image manifest that is the same at every start, so its digest is too."""
    seed = f"{repository}:{tag}"
    digest = hashlib.sha256(seed.encode()).hexdigest()
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": 7023,
            "digest": f"sha256:{digest}",
        },
        "layers": [],
    }
    return json.dumps(body, indent=3).encode()


def digest_of(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error as a registry words it."""
    body = {"errors": [{"code": code, "message": message, "detail": None}]}
    return web.json_response(body, status=status, headers=headers)


@dataclass
class Ngc:
    """The stand-in's state: tokens that it gave, in memory only."""

    r: Rehearsal
    registry: dict[str, list[str]]
    key: Callable[[], str]
    clock: Callable[[], float] = time.monotonic
    tokens: dict[str, tuple[frozenset[str], float]] = field(default_factory=dict)

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self.healthz),
                web.get("/v2/", self.challenge),
                web.get("/proxy_auth", self.exchange),
                # aiohttp serves HEAD with the handler of GET.
                web.get("/v2/{repository:.+}/manifests/{reference}", self.manifests),
                web.get("/v2/{repository:.+}/tags/list", self.tags),
            ]
        )
        return app

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def challenge(self, request: web.Request) -> web.Response:
        if self._granted(request) is not None:
            return web.json_response({})
        return self._unauthorized(request, None)

    async def exchange(self, request: web.Request) -> web.Response:
        """A bearer token for the asked scopes, against the account's name and key."""
        if not self._knows(request):
            return refusal(401, "UNAUTHORIZED", "Invalid username or password")
        repositories = set()
        for scope in request.query.getall("scope", []):
            match = _SCOPE.match(scope)
            if match is None:
                return refusal(400, "DENIED", "malformed scope")
            if "pull" in match["actions"].split(","):
                repositories.add(match["repository"])
        for repository in repositories:
            # What the key may not do shows here: nvcr.io gives no token for such a repository (402 and 403 are
            # reported of its proxy_auth, by containerd, podman and BuildKit alike).
            status = faults.refused_image(self.r, repository)
            if status in _AT_THE_TOKEN:
                return refusal(status, *_AT_THE_TOKEN[status])
        now = self.clock()
        self.tokens = {token: grant for token, grant in self.tokens.items() if grant[1] > now}
        token = secrets.token_urlsafe(48)
        self.tokens[token] = (frozenset(repositories), now + TOKEN_SECONDS)
        return web.json_response({"token": token, "expires_in": TOKEN_SECONDS})

    async def manifests(self, request: web.Request) -> web.Response:
        repository, reference = request.match_info["repository"], request.match_info["reference"]
        if (refused := self._refuse(request, repository, reference)) is not None:
            return refused
        for tag in self.registry.get(repository, []):
            body = manifest(repository, tag)
            if reference in (tag, digest_of(body)):
                headers = {"Docker-Content-Digest": digest_of(body), "Docker-Distribution-Api-Version": "registry/2.0"}
                return web.Response(body=body, content_type=MANIFEST_TYPE, headers=headers)
        if repository not in self.registry:
            return refusal(404, "NAME_UNKNOWN", f"repository name not known to registry: {repository}")
        return refusal(404, "MANIFEST_UNKNOWN", f"manifest unknown: {repository}:{reference}")

    async def tags(self, request: web.Request) -> web.Response:
        repository = request.match_info["repository"]
        if (refused := self._refuse(request, repository, "")) is not None:
            return refused
        if repository not in self.registry:
            return refusal(404, "NAME_UNKNOWN", f"repository name not known to registry: {repository}")
        return web.json_response({"name": repository, "tags": self.registry[repository]})

    def _refuse(self, request: web.Request, repository: str, reference: str) -> web.Response | None:
        granted = self._granted(request)
        if granted is None:
            return self._unauthorized(request, repository)
        if repository not in granted:
            return self._unauthorized(request, repository, error="insufficient_scope")
        status = faults.refused_image(self.r, f"{repository}:{reference}" if reference else repository)
        if status == 401:
            return self._unauthorized(request, repository)
        if status in (402, 403):
            return refusal(status, *_AT_THE_TOKEN[status])
        if status == 429:
            wait = int((faults.get(self.r, "registry") or {}).get("retry_after_s", 0))
            headers = {"Retry-After": str(wait)} if wait else None
            return refusal(429, "TOOMANYREQUESTS", "Too Many Requests", headers)
        if status == 404:
            return refusal(404, "MANIFEST_UNKNOWN", f"manifest unknown: {repository}:{reference}")
        return None

    def _knows(self, request: web.Request) -> bool:
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return False
        try:
            account, _, key = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return account == ACCOUNT and hmac.compare_digest(key.encode(), self.key().encode())

    def _granted(self, request: web.Request) -> frozenset[str] | None:
        """The repositories that the request's token opens; None without a valid token."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        grant = self.tokens.get(token) if kind.lower() == "bearer" else None
        return grant[0] if grant and grant[1] > self.clock() else None

    def _unauthorized(self, request: web.Request, repository: str | None, *, error: str = "") -> web.Response:
        parts = [f'Bearer realm="{request.scheme}://{request.host}/proxy_auth"']
        if repository:
            parts.append(f'scope="repository:{repository}:pull"')
        if error:
            parts.append(f'error="{error}"')
        return refusal(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": ",".join(parts)})


@web.middleware
async def log_requests(request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
    """One line a request: its path and status, never its headers."""
    response = await handler(request)  # type: ignore[misc]
    if request.path != "/healthz":
        log.info("%s %s %d", request.method, request.path, response.status)
    return response  # type: ignore[no-any-return]


async def main() -> None:
    r = config.load()
    # Read at each use, so that a test may change the key of a rehearsal that is up.
    ngc = Ngc(r, load_registry(r.root / "rehearsal" / "registry.yaml"), lambda: r.ngc_key_file.read_text().strip())
    app = ngc.application()
    app.middlewares.append(log_requests)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", r.ports["ngc"]).start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.suppress(asyncio.CancelledError):
        await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main())
