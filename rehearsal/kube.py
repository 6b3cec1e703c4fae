"""A small asynchronous Kubernetes client that the stand-ins share: raw paths, plain dicts.

It is deliberately not the product's client: a fault in one must not hide in the other.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import aiohttp
import yaml

from rehearsal.config import Rehearsal

if TYPE_CHECKING:
    from rehearsal.cache import Cache

log = logging.getLogger(__name__)

Obj = dict[str, Any]
Objs = list[Obj]
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
# Kinds whose plural is not kind.lower() + "s".
PLURALS = {
    "Endpoints": "endpoints",
    "NetworkPolicy": "networkpolicies",
    "Ingress": "ingresses",
    "StorageClass": "storageclasses",
    "EndpointSlice": "endpointslices",
    "EC2NodeClass": "ec2nodeclasses",
    "NIMCache": "nimcaches",
    "Logs": "logs",
    "ClusterLogs": "clusterlogs",
}
CLUSTER_SCOPED = {
    "Namespace", "Node", "PersistentVolume", "StorageClass", "ClusterRole", "ClusterRoleBinding", "CSIDriver",
    "CSINode", "CustomResourceDefinition", "PriorityClass", "ClusterPortForward", "ClusterExec", "ClusterLogs",
    "NodePool", "NodeClaim", "EC2NodeClass",
}  # fmt: skip


class ApiError(Exception):
    """The API server refused: HTTP status, machine-readable reason, message."""

    def __init__(self, status: int, reason: str, message: str, body: Any = None):
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message, self.body = status, reason, message, body


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """409: already exists, or changed meanwhile; `reason` tells which."""


def path_of(
    api_version: str, kind: str, namespace: str | None = None, name: str | None = None, subresource: str | None = None
) -> str:
    """The API path of a kind's collection, or of one object of it."""
    prefix = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    plural = PLURALS.get(kind, kind.lower() + "s")
    parts = [prefix]
    if namespace and kind not in CLUSTER_SCOPED:
        parts.append(f"namespaces/{namespace}")
    parts += [part for part in (plural, name, subresource) if part]
    return "/".join(parts)


def path(obj: Obj, subresource: str | None = None) -> str:
    """An object's own path, from its apiVersion, kind and metadata."""
    meta = obj["metadata"]
    return path_of(obj["apiVersion"], obj["kind"], meta.get("namespace"), meta["name"], subresource)


def key_of(obj: Obj) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def now_rfc3339(*, micro: bool = False) -> str:
    moment = datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


class Kube:
    """A connection to one API server. Use as an async context manager."""

    def __init__(self, server: str, token: str, ca_data: str, *, token_file: Path | None = None):
        self.server = server.rstrip("/")
        self._token, self._token_file = token, token_file
        self._ssl = ssl.create_default_context(cadata=ca_data)
        self._session: aiohttp.ClientSession | None = None
        self._events: dict[tuple[str, ...], tuple[str, int]] = {}

    @classmethod
    def from_rehearsal(cls, r: Rehearsal) -> Kube:
        return cls(r.url("apiserver"), r.admin_token, r.ca.read_text())

    @classmethod
    def from_kubeconfig(cls, file: Path | str) -> Kube:
        config = yaml.safe_load(Path(file).read_text())
        context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
        cluster = next(c["cluster"] for c in config["clusters"] if c["name"] == context["cluster"])
        user = next(u["user"] for u in config["users"] if u["name"] == context["user"])
        if "certificate-authority-data" in cluster:
            ca_data = base64.b64decode(cluster["certificate-authority-data"]).decode()
        else:
            ca_data = Path(cluster["certificate-authority"]).read_text()
        return cls(cluster["server"], user["token"], ca_data)

    @classmethod
    def in_cluster(cls) -> Kube:
        server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
        token_file = SERVICE_ACCOUNT / "token"
        return cls(server, "", (SERVICE_ACCOUNT / "ca.crt").read_text(), token_file=token_file)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._ssl, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    def _headers(self, content_type: str | None = None) -> dict[str, str]:
        # A projected token is renewed in its file, so it is read afresh.
        token = self._token_file.read_text().strip() if self._token_file else self._token
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        return headers

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = 30,
        raw: bool = False,
        **query: Any,
    ) -> Any:
        """One request. `timeout` in seconds. Raises `ApiError` on a refusal, aiohttp's errors on a lost connection."""
        assert self._session, "use Kube as an async context manager"
        query = {k: v for k, v in query.items() if v is not None}
        url = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body)
        headers = self._headers(content_type if body is not None else None)
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=5)
        async with self._session.request(method, url, data=data, headers=headers, timeout=limit) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise _error(answer.status, text)
            return text if raw else (json.loads(text) if text else None)

    async def get(self, path: str, **query: Any) -> Obj:
        return await self.request("GET", path, **query)

    async def text(self, path: str, **query: Any) -> str:
        """A body that is not JSON, such as a pod's log."""
        return await self.request("GET", path, raw=True, **query)

    async def list(self, path: str, *, label_selector: str | None = None, field_selector: str | None = None) -> Objs:
        return (await self._list(path, label_selector, field_selector))[0]

    async def _list(self, path: str, label_selector: str | None, field_selector: str | None) -> tuple[Objs, str]:
        answer = await self.request("GET", path, labelSelector=label_selector, fieldSelector=field_selector)
        kind = answer["kind"].removesuffix("List")
        items = [{"apiVersion": answer["apiVersion"], "kind": kind, **item} for item in answer["items"] or []]
        return items, answer["metadata"]["resourceVersion"]

    async def create(self, path: str, obj: Obj, **query: Any) -> Obj:
        return await self.request("POST", path, body=obj, **query)

    async def replace(self, path: str, obj: Obj, **query: Any) -> Obj:
        return await self.request("PUT", path, body=obj, **query)

    async def delete(self, path: str, body: Obj | None = None, **query: Any) -> Obj | None:
        return await self.request("DELETE", path, body=body, **query)

    async def patch(
        self, path: str, patch: Any, *, kind: str = "merge", field_manager: str | None = None, force: bool = False
    ) -> Obj:
        query: dict[str, Any] = {"fieldManager": field_manager}
        if kind == "apply":
            query["force"] = "true" if force else "false"
        return await self.request("PATCH", path, body=patch, content_type=PATCHES[kind], **query)

    async def watch(
        self, path: str, *, label_selector: str | None = None, field_selector: str | None = None
    ) -> AsyncIterator[tuple[str, Obj]]:
        """ADDED, MODIFIED and DELETED, for ever. Starts from a list; after a lost connection or a 410 it lists
        again and reports the difference, so a consumer never misses a deletion."""
        known: dict[tuple[str, str], Obj] = {}
        pause = 0.1
        while True:
            try:
                items, version = await self._list(path, label_selector, field_selector)
                fresh = {key_of(item): item for item in items}
                for key in [key for key in known if key not in fresh]:
                    yield "DELETED", known.pop(key)
                for key, item in fresh.items():
                    old = known.get(key)
                    known[key] = item
                    if old is None:
                        yield "ADDED", item
                    elif old["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                        yield "MODIFIED", item
                yield "SYNCED", {}
                async for type_, item in self._stream(path, version, label_selector, field_selector):
                    pause = 0.1
                    if type_ == "DELETED":
                        known.pop(key_of(item), None)
                    else:
                        known[key_of(item)] = item
                    yield type_, item
            except (aiohttp.ClientError, TimeoutError, OSError, ApiError) as error:
                if not (isinstance(error, ApiError) and error.status in (404, 410)):
                    log.warning("watch of %s broken, listing again in %.1f s: %s", path, pause, error)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, 5)

    async def _stream(
        self, path: str, version: str, label_selector: str | None, field_selector: str | None
    ) -> AsyncIterator[tuple[str, Obj]]:
        assert self._session
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "300"}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        url = f"{self.server}{path}?{urlencode(query)}"
        limit = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=310)
        # The default line limit of 64 KiB is too small for a ConfigMap or a CRD.
        async with self._session.get(
            url, headers=self._headers(), timeout=limit, read_bufsize=1 << 20, max_line_size=1 << 20
        ) as answer:
            if answer.status >= 400:
                raise _error(answer.status, await answer.text())
            buffer = b""
            async for chunk in answer.content.iter_any():
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    if not line:
                        continue
                    event = json.loads(line)
                    if event["type"] == "BOOKMARK":
                        continue
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
                    yield event["type"], event["object"]

    async def event(
        self, obj: Obj, *, type_: str = "Normal", reason: str, message: str, component: str, host: str | None = None
    ) -> None:
        """A core/v1 Event about an object; a repeated one counts up, as client-go's recorder does."""
        meta = obj["metadata"]
        namespace = meta.get("namespace") or "default"
        key = (meta.get("uid", ""), meta["name"], type_, reason, message, component)
        moment = now_rfc3339()
        try:
            if key in self._events:
                name, count = self._events[key]
                self._events[key] = (name, count + 1)
                target = path_of("v1", "Event", namespace, name)
                await self.patch(target, {"count": count + 1, "lastTimestamp": moment})
                return
            name = f"{meta['name']}.{random.getrandbits(60):015x}"
            source = {"component": component} | ({"host": host} if host else {})
            body = {
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
                "involvedObject": {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"],
                                   "namespace": meta.get("namespace"), "uid": meta.get("uid"),
                                   "resourceVersion": meta.get("resourceVersion")},
                "type": type_, "reason": reason, "message": message, "source": source, "count": 1,
                "firstTimestamp": moment, "lastTimestamp": moment, "reportingComponent": component,
                "reportingInstance": host or "",
            }  # fmt: skip
            await self.create(path_of("v1", "Event", namespace), body)
            self._events[key] = (name, 1)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            # Events are best effort in Kubernetes too; a namespace on its way out refuses them.
            self._events.pop(key, None)
            log.info("event %s for %s not written: %s", reason, meta["name"], error)

    def cache(self, path: str, **selectors: str | None) -> Cache:
        from rehearsal.cache import Cache

        return Cache(self, path, **selectors)


def _error(status: int, text: str) -> ApiError:
    reason, message, body = "", text[:256], None
    with contextlib.suppress(ValueError, AttributeError):
        body = json.loads(text)
        reason, message = body.get("reason", ""), body.get("message", message)
    cls = {404: NotFound, 409: Conflict}.get(status, ApiError)
    return cls(status, reason, message, body)
