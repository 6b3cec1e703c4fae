"""The triggerer's view of a cluster: a list and then a watch of each kind, kept as one snapshot.

An error of the API server is never news about an object: the last snapshot stays, the connection is made again with
jittered back-off, and only `problem` tells. After 410 Gone the kind is listed anew. Versions are never compared.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.resources import api_version_of, is_namespaced, path_of
from nim_rollouts.core.errors import redact
from nim_rollouts.core.verdicts import Snapshot

if TYPE_CHECKING:
    import aiohttp

Object = dict[str, Any]

# The server ends a watch after this time; a connection that died unseen is noticed that late, too.
_WATCH_S = 60
_GRACE_S = 15
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
# How often a kind that the server does not (yet) serve is asked for again.
_NOT_SERVED_PAUSE_S = 5.0


class Watch:
    """A snapshot of some kinds of one namespace that follows the cluster.

    ```
    async with Watch(access, subject.kinds, namespace) as watch:
        while True:
            snapshot = await watch.next(timeout_s=15)     # None when nothing has changed meanwhile
    ```
    """

    def __init__(self, access: ClusterAccess, kinds: Iterable[str], namespace: str | None) -> None:
        self.access, self.namespace = access, namespace
        self.kinds = tuple(dict.fromkeys(kinds))
        self.problem: str | None = None
        """Why the snapshot may be old, in words; None while every kind is being followed."""
        self._objects: dict[str, dict[tuple[str, str], Object]] = {}
        self._problems: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Watch:
        import aiohttp

        context = await asyncio.to_thread(self.access.ssl_context)
        connector = aiohttp.TCPConnector(ssl=context) if context else aiohttp.TCPConnector()
        self._session = aiohttp.ClientSession(connector=connector)
        self._tasks = [asyncio.create_task(self._follow(kind), name=f"watch {kind}") for kind in self.kinds]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    @property
    def is_synced(self) -> bool:
        """True once every kind has been listed."""
        return len(self._objects) == len(self.kinds)

    def snapshot(self) -> Snapshot:
        """The objects as last seen."""
        return {kind: list(objects.values()) for kind, objects in self._objects.items()}

    async def next(self, timeout_s: float) -> Snapshot | None:
        """The snapshot, once it has changed since the last call; None after `timeout_s` seconds without a change.

        The first one comes when every kind has been listed. Changes that came meanwhile are one.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    if self.is_synced:
                        return self.snapshot()
        return None

    async def _follow(self, kind: str) -> None:
        """List and watch one kind, for ever."""
        pause = _FIRST_PAUSE_S
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self._list(kind)
                self._note(kind, None)
                version = await self._watch(kind, version)
                pause = _FIRST_PAUSE_S
            except _Gone:
                version = None
            except _NotServed:
                # No objects of a kind that does not exist: that is an answer, not an error.
                self._set(kind, {})
                version = None
                await asyncio.sleep(_NOT_SERVED_PAUSE_S)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # Whatever it was, it says nothing about the objects.
                self._note(kind, redact(f"{type(error).__name__}: {error}"))
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _list(self, kind: str) -> str:
        objects: dict[tuple[str, str], Object] = {}
        query = {"limit": "500"}
        while True:
            async with self._get(kind, query, total_s=30.0) as answer:
                page = json.loads(await answer.read())
            for item in page.get("items") or ():
                item = {"apiVersion": api_version_of(kind), "kind": kind, **item}
                objects[_key(item)] = _slim(item)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query = {**query, "continue": metadata["continue"]}
        self._set(kind, objects)
        return str(metadata["resourceVersion"])

    async def _watch(self, kind: str, version: str) -> str:
        """Follow until the server ends the watch; returns the version to go on from."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        async with self._get(kind, query, total_s=_WATCH_S + _GRACE_S) as answer:
            async for line in _lines(answer):
                event = json.loads(line)
                obj = event["object"]
                if event["type"] == "ERROR":
                    if obj.get("code") == 410:
                        raise _Gone
                    raise ConnectionError(f"the watch ended: {obj.get('message')}")
                version = str(obj["metadata"]["resourceVersion"])
                if event["type"] != "BOOKMARK":
                    self._take(kind, event["type"], obj)
        return version

    def _get(self, kind: str, query: dict[str, str], *, total_s: float) -> _Answer:
        assert self._session is not None
        namespace = self.namespace if is_namespaced(kind) else None
        url = self.access.endpoint + path_of(api_version_of(kind), kind, namespace)
        return _Answer(self._session, self.access, url, query, total_s)

    def _set(self, kind: str, objects: dict[tuple[str, str], Object]) -> None:
        if self._objects.get(kind) != objects:
            self._objects[kind] = objects
            self._changed.set()

    def _take(self, kind: str, type_: str, obj: Object) -> None:
        objects = self._objects[kind]
        if type_ == "DELETED":
            objects.pop(_key(obj), None)
        else:
            objects[_key(obj)] = _slim({"apiVersion": api_version_of(kind), "kind": kind, **obj})
        self._changed.set()

    def _note(self, kind: str, problem: str | None) -> None:
        if problem is None:
            self._problems.pop(kind, None)
        else:
            self._problems[kind] = problem
        self.problem = "; ".join(f"{kind}: {text}" for kind, text in self._problems.items()) or None


async def snapshots(
    access: ClusterAccess, kinds: Iterable[str], namespace: str | None, *, tick_s: float = 15.0
) -> AsyncIterator[Snapshot | None]:
    """A snapshot at each change, None after every `tick_s` seconds without one (for deadlines and progress lines)."""
    async with Watch(access, kinds, namespace) as watch:
        while True:
            yield await watch.next(tick_s)


class _Gone(Exception):
    """The version is too old to go on from."""


class _NotServed(Exception):
    """The kind is not served."""


class _Answer:
    """A GET as a context, with its refusals told apart."""

    def __init__(
        self, session: aiohttp.ClientSession, access: ClusterAccess, url: str, query: dict[str, str], total_s: float
    ) -> None:
        self._session, self._access, self._url, self._query = session, access, url, query
        self._total_s = total_s
        self._answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        import aiohttp

        # Minting a token may ask AWS: not on the event loop's thread.
        headers = await asyncio.to_thread(self._access.headers)
        timeout = aiohttp.ClientTimeout(total=self._total_s, sock_connect=10.0)
        answer = await self._session.get(self._url, params=self._query, headers=headers, timeout=timeout)
        if answer.status < 400:
            self._answer = answer
            return answer
        text = (await answer.text())[:300]
        answer.release()
        if answer.status == 410:
            raise _Gone
        if answer.status == 404:
            raise _NotServed
        if answer.status == 401:
            self._access.forget_token()
        raise ConnectionError(f"the API server answers {answer.status}: {text}")

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            # Not release(): what is left of a watch would have to be read first.
            self._answer.close()


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length (aiohttp's own reader refuses long ones)."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def _slim(obj: Object) -> Object:
    obj["metadata"].pop("managedFields", None)
    return obj
