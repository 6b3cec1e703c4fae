"""One kind of one namespace, followed for as long as anybody waits: a list, then watches, for ever.

An error of the API server is never news about an object: what was last seen stays, and only `problem` tells. Versions
are never compared, except for being the same.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from nim_rollouts.clients.answers import Answer, Gone, NotServed, Refused, lines
from nim_rollouts.clients.resources import api_version_of, path_of
from nim_rollouts.clients.slim import SELECTORS, Object, handles, key_of, owners_of, same, slim
from nim_rollouts.core.errors import redact

if TYPE_CHECKING:
    import aiohttp

    from nim_rollouts.clients.access import ClusterAccess

# The server ends a watch after a time between these, in seconds; apart, so that not all are begun again at once.
_WATCH_S = (300, 600)
# Bookmarks come every minute or a little later (kube-apiserver: 1 to 1.25 min), so a watch that has said nothing for
# this long is dead, or of a kind without bookmarks (Events); either way it is replaced.
_SILENCE_S = 90.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
# A watch that lasted shorter was no success.
_SHORT_S = 5.0
# Not to follow for longer than this is a problem, and told.
_UNSAID_S = 1.0
# How often a kind that the server does not (yet) serve is asked for again.
_NOT_SERVED_PAUSE_S, _LONGEST_NOT_SERVED_PAUSE_S = 5.0, 30.0
# For how long a kind that was served must be away until its objects count as gone, in seconds.
_WAS_SERVED_S = 30.0
# Objects in one answer to a list: what takes the event loop some milliseconds to read.
_PAGE = 100
# Events taken in one turn of the event loop.
_TURN = 20


class Feed:
    """The objects of a kind, as last seen.

    :param namespace: None for cluster-scoped kinds, or for all namespaces
    :param changed: called with the objects that came, went or became another, and True for the first list
    :param troubled: called when following fails and when it goes on again
    """

    def __init__(
        self,
        kind: str,
        namespace: str | None,
        *,
        changed: Callable[[Feed, Iterable[Object], bool], None],
        troubled: Callable[[Feed], None],
    ) -> None:
        self.kind, self.namespace = kind, namespace
        self.problem: str | None = None
        self.objects: dict[tuple[str, str], Object] = {}
        self.children: dict[str, set[str]] = {}
        """Name of an owner -> names of the objects of this kind that it has."""
        self.index: dict[str, dict[tuple[str, str], Object]] = {}
        """Handle (`slim.handles`) -> the objects that have it."""
        self.is_synced = False
        self._api_version = api_version_of(kind)
        self._path = path_of(self._api_version, kind, namespace)
        self._changed, self._troubled = changed, troubled
        self._list_cache: list[Object] | None = None
        self._version: str | None = None
        self._missing_since: float | None = None
        self._is_watching = False

    @property
    def items(self) -> list[Object]:
        """The objects, as one list that is made anew when one has changed."""
        if self._list_cache is None:
            self._list_cache = list(self.objects.values())
        return self._list_cache

    async def follow(
        self, session: Callable[[], Awaitable[aiohttp.ClientSession]], access: Callable[[], ClusterAccess]
    ) -> None:
        """List and watch until cancelled. `session` and `access` are asked for each request."""
        loop = asyncio.get_running_loop()
        backoff, absent_pause = _Backoff(), 0.0
        while True:
            began, wait_s = loop.time(), 0.0
            problem: str | None = None
            try:
                get = _Getter(await session(), access(), self._path)
                if self._version is None:
                    self._version = await self._list(get)
                    absent_pause = 0.0
                await self._watch(get, self._version)
            except Gone:
                self._version = None
            except NotServed:
                self._version = None
                wait_s = absent_pause = _next(absent_pause, _NOT_SERVED_PAUSE_S, _LONGEST_NOT_SERVED_PAUSE_S)
                problem = await self._not_served(get, loop.time())
            except Refused as refused:
                problem = redact(str(refused))
                wait_s = (refused.retry_after_s or 0.0) * random.uniform(1.0, 1.2)
            except Exception as error:
                # Whatever it was, it says nothing about the objects. Silence is no problem yet: the next one will tell.
                if not (isinstance(error, TimeoutError) and loop.time() - began >= _SILENCE_S):
                    problem = redact(f"{type(error).__name__}: {error}")
            watched, self._is_watching = self._is_watching, False
            pause = backoff.after(loop.time() - began, watched=watched)
            wait_s = max(wait_s, pause)
            if watched and problem is None and pause > _UNSAID_S:
                problem = "the API server ends every watch at once"
            # A connection that is cut once is begun again before it is worth a word.
            if problem is not None and (wait_s or not self.is_synced):
                self._note(problem)
            await asyncio.sleep(wait_s)

    async def _list(self, get: _Getter) -> str:
        objects: dict[tuple[str, str], Object] = {}
        query = {"limit": str(_PAGE), **self._selector()}
        while True:
            async with get(query) as answer:
                page = json.loads(await answer.read())
            for count, item in enumerate(page.get("items") or ()):
                obj = self._complete(item)
                objects[key_of(obj)] = obj
                if count % _TURN == _TURN - 1:
                    await asyncio.sleep(0)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query = {**query, "continue": metadata["continue"]}
        self._replace(objects)
        return str(metadata["resourceVersion"])

    async def _watch(self, get: _Getter, version: str) -> None:
        """Follow until the server ends the watch."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*_WATCH_S)),
            **self._selector(),
        }
        async with get(query, silence_s=_SILENCE_S) as answer:
            self._note(None)
            self._missing_since, self._is_watching = None, True
            count = 0
            async for line in lines(answer):
                event = json.loads(line)
                obj = event["object"]
                if event["type"] == "ERROR":
                    if obj.get("code") == 410:
                        raise Gone
                    raise Refused(int(obj.get("code") or 500), str(obj.get("message")))
                if event["type"] != "BOOKMARK":
                    self._take(event["type"], self._complete(obj))
                self._version = str(obj["metadata"]["resourceVersion"])
                count += 1
                if count % _TURN == 0:
                    await asyncio.sleep(0)

    async def _not_served(self, get: _Getter, now: float) -> str | None:
        """No objects of a kind that does not exist: an answer, not an error. But an API server that has just started
        knows no custom kinds for a moment either. Returns what is wrong, if it cannot be believed."""
        try:
            async with get({}, path="/readyz"):
                pass
        except NotServed:
            pass
        except Exception as error:
            return redact(f"not served, and the API server is not ready: {error}")
        self._missing_since = now if self._missing_since is None else self._missing_since
        if self.objects and now - self._missing_since < _WAS_SERVED_S:
            return "not served any more"
        self._replace({})
        self._note(None)
        return None

    def _selector(self) -> dict[str, str]:
        selector = SELECTORS.get(self.kind)
        return {"fieldSelector": selector} if selector else {}

    def _complete(self, item: Object) -> Object:
        item.setdefault("apiVersion", self._api_version)
        item.setdefault("kind", self.kind)
        return slim(item)

    def _replace(self, objects: dict[tuple[str, str], Object]) -> None:
        before, first = self.objects, not self.is_synced
        differing = [one for key, one in objects.items() if not same(before.get(key), one)]
        gone = [one for key, one in before.items() if key not in objects]
        self.objects, self._list_cache = objects, None
        self.children, self.index = {}, {}
        for one in objects.values():
            self._adopt(one)
        self.is_synced = True
        if first or differing or gone:
            self._changed(self, [*differing, *gone], first)

    def _take(self, type_: str, obj: Object) -> None:
        key = key_of(obj)
        before = self.objects.get(key)
        if before is not None:
            self._disown(key, before)
        if type_ == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = obj
            self._adopt(obj)
        self._list_cache = None
        if type_ == "DELETED" or not same(before, obj):
            self._changed(self, [obj], False)

    def _adopt(self, obj: Object) -> None:
        key = key_of(obj)
        for handle in handles(obj):
            self.index.setdefault(handle, {})[key] = obj
        # Events are about objects; nothing is below them.
        if self.kind != "Event":
            for owner in owners_of(obj):
                self.children.setdefault(owner, set()).add(key[1])

    def _disown(self, key: tuple[str, str], obj: Object) -> None:
        for handle in handles(obj):
            _discard(self.index, handle, key)
        for owner in owners_of(obj):
            children = self.children.get(owner, set())
            children.discard(key[1])
            if not children:
                self.children.pop(owner, None)

    def _note(self, problem: str | None) -> None:
        turned = (problem is None) != (self.problem is None)
        self.problem = problem
        if turned:
            self._troubled(self)


def _discard(index: dict[str, dict[tuple[str, str], Object]], handle: str, key: tuple[str, str]) -> None:
    found = index.get(handle, {})
    found.pop(key, None)
    if not found:
        index.pop(handle, None)


class _Getter:
    """GET requests for one kind."""

    def __init__(self, session: aiohttp.ClientSession, access: ClusterAccess, path: str) -> None:
        self._session, self._access, self._path = session, access, path

    def __call__(self, query: Mapping[str, str], *, path: str | None = None, silence_s: float = 30.0) -> Answer:
        return Answer(self._session, self._access, path or self._path, query, silence_s=silence_s)


class _Backoff:
    """How long to wait before the next try. Tries in a row that brought no watch, and watches in a row that were cut
    short, are counted apart: the first cut after a long outage is not waited out like one more of its refusals."""

    def __init__(self) -> None:
        self._failed = self._cut = 0

    def after(self, lasted_s: float, *, watched: bool) -> float:
        """Seconds; none after the first failure or cut."""
        if watched:
            self._failed, self._cut = 0, 1 if lasted_s > _SHORT_S else self._cut + 1
        else:
            self._failed += 1
        tries = self._failed or self._cut
        if tries < 2:
            return 0.0
        return min(_FIRST_PAUSE_S * 2.0 ** min(tries - 2, 10), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)


def _next(pause: float, first: float, longest: float) -> float:
    return min(pause * 2, longest) if pause else first
