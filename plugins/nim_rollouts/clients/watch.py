"""The triggerer's view of a cluster, shared by all that wait in it.

There is one list and watch per event loop, environment, kind and namespace, however many wait: begun by the first who
asks, ended with the last. It is level-triggered: who comes late sees at once what is there. Everyone reads the same
objects, and is woken by, and shown, only those that may have to do with what it waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.feed import Feed
from nim_rollouts.clients.resources import is_namespaced
from nim_rollouts.clients.slim import Object, handles, owners_of, references_of
from nim_rollouts.core.verdicts import Snapshot

if TYPE_CHECKING:
    import aiohttp

# Who waits is woken in groups, so that a thousand that look at once do not hold up the event loop.
_WOKEN_PER_TURN = 20


class Watch:
    """A snapshot of some kinds of one namespace that follows the cluster.

    ```
    async with Watch(access, subject.kinds, namespace, about=[subject.name]) as watch:
        while True:
            snapshot = await watch.next(timeout_s=15)     # None when nothing has changed meanwhile
    ```

    :param namespace: None for cluster-scoped kinds
    :param about: names of what is waited for; what has nothing to do with them (`slim.handles`) is not in the
        snapshot and wakes nobody. None: everything is. The objects belong to everybody: they are not to be altered.
    """

    def __init__(
        self,
        access: ClusterAccess,
        kinds: Iterable[str],
        namespace: str | None,
        *,
        about: Iterable[str] | None = None,
    ) -> None:
        self.access, self.namespace = access, namespace
        self.kinds = tuple(dict.fromkeys(kinds))
        self.about = None if about is None else frozenset(about)
        self.handles: set[str] = set()
        self._changed = asyncio.Event()
        self._hub: Hub | None = None
        self._feeds: dict[str, Feed] = {}

    async def __aenter__(self) -> Watch:
        self._hub = Hub.of(self.access)
        self._feeds = self._hub.join(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._hub is not None:
            await self._hub.leave(self)

    @property
    def problem(self) -> str | None:
        """Why the snapshot may be old, in words; None while every kind is being followed."""
        kinds: dict[str, list[str]] = {}
        for kind, feed in self._feeds.items():
            if feed.problem:
                kinds.setdefault(feed.problem, []).append(kind)
        return "; ".join(f"{', '.join(names)}: {text}" for text, names in kinds.items()) or None

    @property
    def is_synced(self) -> bool:
        """True once every kind has been listed."""
        return all(feed.is_synced for feed in self._feeds.values())

    def snapshot(self) -> Snapshot:
        """The objects as last seen."""
        return {kind: self._of(feed) for kind, feed in self._feeds.items() if feed.is_synced}

    def _of(self, feed: Feed) -> list[Object]:
        if self.about is None or is_for_all(self, feed.kind):
            return feed.items
        found: dict[tuple[str, str], Object] = {}
        for name in self.handles:
            found.update(feed.index.get(name, ()))
        return list(found.values())

    async def next(self, timeout_s: float) -> Snapshot | None:
        """The snapshot, once it has changed since the last call; None after `timeout_s` seconds without a change.

        The first one comes when every kind has been listed. Changes that came meanwhile are one. That following fails,
        or goes on again, is a change as well.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    if self.is_synced:
                        return self.snapshot()
        return None

    def wake(self) -> None:
        """There is something new to see."""
        self._changed.set()


def is_for_all(watch: Watch, kind: str) -> bool:
    """Who waits in a namespace sees all that is cluster-scoped: a node has to do with any pod, whatever its name."""
    return watch.namespace is not None and not is_namespaced(kind)


class Hub:
    """The feeds of one cluster in one event loop, and who waits for what of them."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self.feeds: dict[tuple[str, str | None], Feed] = {}
        self._tasks: dict[Feed, asyncio.Task[None]] = {}
        self._watches: dict[Feed, set[Watch]] = {}
        # Who is woken by every change of a feed, and who by changes of its feeds that have to do with a name.
        self._by_any: dict[Feed, set[Watch]] = {}
        self._by_handle: dict[str, set[Watch]] = {}
        self._to_wake: dict[Watch, None] = {}
        self._session: asyncio.Task[aiohttp.ClientSession] | None = None

    @classmethod
    def of(cls, access: ClusterAccess) -> Hub:
        """The running event loop's hub for a cluster, made when there is none."""
        hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
        hub = hubs.get(access.identity)
        if hub is None:
            hub = hubs[access.identity] = cls(access)
        elif any(feed.problem for feed in hub.feeds.values()):
            # Perhaps it is our way in that is old: the newcomer has just asked AWS for it.
            hub.access = access
        return hub

    def join(self, watch: Watch) -> dict[str, Feed]:
        """The feeds of a watch, which from now on is woken."""
        feeds = {kind: self._feed(kind, watch.namespace if is_namespaced(kind) else None) for kind in watch.kinds}
        for kind, feed in feeds.items():
            self._watches[feed].add(watch)
            if watch.about is None or is_for_all(watch, kind):
                self._by_any[feed].add(watch)
        watch._feeds = feeds
        for name in watch.about or ():
            self._attach(watch, name)
        if all(feed.is_synced for feed in feeds.values()):
            self._wake([watch])
        return feeds

    async def leave(self, watch: Watch) -> None:
        """Ends every feed that nobody waits for any more, and with the last one the connections."""
        feeds = list(watch._feeds.values())
        ended = []
        for feed in feeds:
            self._by_any[feed].discard(watch)
            self._watches[feed].discard(watch)
            if not self._watches[feed]:
                ended.append(self._end(feed))
        for name in watch.handles:
            self._detach(watch, name)
        self._to_wake.pop(watch, None)
        session = None
        if not self.feeds and self._session is not None:
            session, self._session = self._session, None
            hubs = _hubs.get(asyncio.get_running_loop(), {})
            if hubs.get(self.access.identity) is self:
                del hubs[self.access.identity]
        if ended or session:
            # To its end, also when the one who leaves is being cancelled.
            await asyncio.shield(asyncio.ensure_future(_close(ended, session)))

    def _feed(self, kind: str, namespace: str | None) -> Feed:
        feed = self.feeds.get((kind, namespace))
        if feed is None:
            feed = Feed(kind, namespace, changed=self._on_change, troubled=self._on_trouble)
            self.feeds[kind, namespace] = feed
            self._watches[feed], self._by_any[feed] = set(), set()
            self._tasks[feed] = asyncio.create_task(
                feed.follow(self._connections, lambda: self.access), name=f"watch {kind}"
            )
        return feed

    async def _connections(self) -> aiohttp.ClientSession:
        if self._session is None or (self._session.done() and self._session.exception() is not None):
            self._session = asyncio.create_task(_open(self.access), name="connections")
        return await asyncio.shield(self._session)

    def _end(self, feed: Feed) -> asyncio.Task[None]:
        del self.feeds[feed.kind, feed.namespace], self._watches[feed], self._by_any[feed]
        task = self._tasks.pop(feed)
        task.cancel()
        return task

    def _attach(self, watch: Watch, name: str) -> None:
        """Wake the watch by what has to do with a name, and with what belongs to the object of that name."""
        if not name or name in watch.handles:
            return
        watch.handles.add(name)
        self._by_handle.setdefault(name, set()).add(watch)
        for feed in watch._feeds.values():
            for child in tuple(feed.children.get(name, ())):
                # What is named after its owner is found by its name.
                if not child.startswith(f"{name}-"):
                    self._attach(watch, child)
            if watch.about and name in watch.about:
                found = feed.objects.get((feed.namespace or "", name))
                for reference in references_of(found) if found else ():
                    self._attach(watch, reference)

    def _detach(self, watch: Watch, name: str) -> None:
        watches = self._by_handle.get(name)
        if watches is not None:
            watches.discard(watch)
            if not watches:
                del self._by_handle[name]

    def _on_change(self, feed: Feed, objects: Iterable[Object], first: bool) -> None:
        woken = set(self._watches[feed] if first else self._by_any[feed])
        for obj in objects:
            for name in handles(obj):
                for watch in tuple(self._by_handle.get(name, ())):
                    if watch._feeds.get(feed.kind) is feed:
                        woken.add(watch)
                        self._learn(watch, obj)
        self._wake(woken)

    def _learn(self, watch: Watch, obj: Object) -> None:
        name = obj["metadata"]["name"]
        if watch.about and name in watch.about:
            for reference in references_of(obj):
                self._attach(watch, reference)
        elif obj["kind"] != "Event" and name not in watch.handles:
            owners = [owner for owner in owners_of(obj) if owner in watch.handles]
            if owners and not any(name.startswith(f"{owner}-") for owner in owners):
                self._attach(watch, name)

    def _on_trouble(self, feed: Feed) -> None:
        self._wake(self._watches[feed])

    def _wake(self, watches: Iterable[Watch]) -> None:
        idle = not self._to_wake
        self._to_wake.update(dict.fromkeys(watches))
        if idle and self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _wake_some(self) -> None:
        for watch in list(self._to_wake)[:_WOKEN_PER_TURN]:
            del self._to_wake[watch]
            watch.wake()
        if self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_some)


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Hashable, ...], Hub]] = WeakKeyDictionary()


async def _open(access: ClusterAccess) -> aiohttp.ClientSession:
    import aiohttp

    context = await asyncio.to_thread(access.ssl_context)
    connector = aiohttp.TCPConnector(ssl=context, limit=0) if context else aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, headers={"User-Agent": "nim-rollouts"})


async def _close(tasks: list[asyncio.Task[None]], session: asyncio.Task[aiohttp.ClientSession] | None) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
    if session is not None:
        with suppress(Exception):
            await (await session).close()


async def snapshots(
    access: ClusterAccess,
    kinds: Iterable[str],
    namespace: str | None,
    *,
    tick_s: float = 15.0,
    about: Iterable[str] | None = None,
) -> AsyncGenerator[Snapshot | None, None]:
    """A snapshot at each change, None after every `tick_s` seconds without one (for deadlines and progress lines)."""
    async with Watch(access, kinds, namespace, about=about) as watch:
        while True:
            yield await watch.next(tick_s)
