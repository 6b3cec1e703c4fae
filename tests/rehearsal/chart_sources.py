"""Where charts come from, on loopback: a classic repository, and an OCI registry as far as Helm speaks to one."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(handler: Any, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """A server on loopback; its `host:port`. `tls`: certificate and key."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def classic(folder: Path) -> Iterator[str]:
    """The URL of a repository that serves the folder: an index.yaml and .tgz files."""
    with serving(partial(_Quiet, directory=str(folder))) as place:
        yield f"http://{place}"


class Registry:
    """What an OCI registry keeps: blobs by digest, manifests by digest, tags."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.tags: dict[str, str] = {}
        self.uploads: dict[str, bytes] = {}

    @contextmanager
    def serve(self, tls: tuple[Path, Path]) -> Iterator[str]:
        """Its `host:port`."""
        with serving(partial(_Oci, self), tls) as place:
            yield place


class _Oci(http.server.BaseHTTPRequestHandler):
    """The distribution specification's pull and push, without authentication."""

    protocol_version = "HTTP/1.1"

    def __init__(self, registry: Registry, *arguments: Any) -> None:
        self.registry = registry
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/v2/":
            return self._answer(200)
        if match := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})", path):
            blob = self.registry.blobs.get(match[2])
            return self._answer(404) if blob is None else self._answer(200, blob, Docker_Content_Digest=match[2])
        if match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            digest = self.registry.tags.get(f"{match[1]}:{match[2]}", match[2])
            if digest not in self.registry.manifests:
                missing = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                return self._answer(404, json.dumps(missing).encode(), Content_Type="application/json")
            kind, manifest = self.registry.manifests[digest]
            return self._answer(200, manifest, Content_Type=kind, Docker_Content_Digest=digest)
        return self._answer(404)

    def do_POST(self) -> None:
        match = re.fullmatch(r"/v2/(.+)/blobs/uploads/", urlsplit(self.path).path)
        if not match:
            return self._answer(404)
        number = uuid.uuid4().hex
        self.registry.uploads[number] = self._body()
        return self._answer(202, Location=f"/v2/{match[1]}/blobs/uploads/{number}")

    def do_PUT(self) -> None:
        url, body = urlsplit(self.path), self._body()
        if match := re.fullmatch(r"/v2/(.+)/blobs/uploads/([0-9a-f]+)", url.path):
            body = self.registry.uploads.pop(match[2], b"") + body
            digest = parse_qs(url.query)["digest"][0]
            if digest != _digest(body):
                return self._answer(400)
            self.registry.blobs[digest] = body
            return self._answer(201, Docker_Content_Digest=digest)
        if match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", url.path):
            digest = _digest(body)
            self.registry.manifests[digest] = (self.headers["Content-Type"], body)
            self.registry.tags[f"{match[1]}:{match[2]}"] = digest
            return self._answer(201, Docker_Content_Digest=digest)
        return self._answer(404)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
