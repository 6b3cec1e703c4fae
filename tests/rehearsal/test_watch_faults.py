"""The shared watch and the waits on it against a real API server, through a proxy that makes trouble."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.clients import feed
from nim_rollouts.clients import watch as shared
from nim_rollouts.clients.access import ClusterAccess, Token
from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.watch import Watch
from nim_rollouts.core.verdicts import Subject, job
from nim_rollouts.triggers import watching
from nim_rollouts.triggers.plans import Plan
from nim_rollouts.triggers.watching import Outcome, watch_until
from rehearsal.config import Rehearsal
from tests.rehearsal.fault_proxy import FaultProxy
from tests.rehearsal.plane import compact
from tests.rehearsal.test_clients import Plane, access, cluster, namespace, plane, r  # noqa: F401


@pytest.fixture
async def proxy(r: Rehearsal) -> AsyncIterator[FaultProxy]:  # noqa: F811
    async with FaultProxy(r.url("apiserver"), r.ca.read_text()) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: FaultProxy, access: ClusterAccess) -> ClusterAccess:  # noqa: F811
    return replace(access, endpoint=proxy.url, name="test")


def account(namespace: str, name: str, **annotations: str) -> dict[str, Any]:  # noqa: F811
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace, **({"annotations": annotations} if annotations else {})},
    }


async def until(check: Callable[[], Any], within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not check():
            await asyncio.sleep(0.02)


def names(watch: Watch) -> set[str]:
    return {one["metadata"]["name"] for one in watch.snapshot().get("ServiceAccount", ())}


async def test_many_waits_are_one_list_and_one_watch_and_none_is_left(
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
) -> None:
    kinds = ("ServiceAccount", "Pod")
    watches = [Watch(through, kinds, namespace, about=[f"a{number}"]) for number in range(200)]
    for watch in watches:
        await watch.__aenter__()
    await asyncio.gather(*(watch.next(20) for watch in watches))
    await until(lambda: proxy.watches == 2)
    assert len(proxy.asked) == 4
    late = Watch(through, kinds, namespace)
    await late.__aenter__()
    assert await late.next(0.5) is not None, "who comes late sees at once what is there"
    assert len(proxy.asked) == 4
    for watch in watches[7:9]:
        while await watch.next(0.3):
            """Until the namespace's own first objects are through."""
    await asyncio.to_thread(cluster.apply, account(namespace, "a7-made-for-it"))
    assert await watches[7].next(5) is not None
    assert await watches[8].next(0.3) is None, "what does not concern it does not wake it"
    assert "a7-made-for-it" not in names(watches[8]), "nor does it have to look at it"
    assert "a7-made-for-it" in names(late), "who waits for everything sees everything"
    for watch in (*watches, late):
        await watch.__aexit__()
    await until(lambda: proxy.watches == 0, 5)
    assert not shared._hubs.get(asyncio.get_running_loop())
    assert len(proxy.asked) == 4


async def test_a_cut_loses_nothing_and_lists_nothing(
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
) -> None:
    async with Watch(through, ("ServiceAccount",), namespace) as watch:
        await until(lambda: watch.is_synced and proxy.watches == 1)
        for number in range(3):
            proxy.cut()
            await asyncio.to_thread(cluster.apply, account(namespace, f"after-cut-{number}"))
            await until(lambda n=number: f"after-cut-{n}" in names(watch), 10)
            await until(lambda: proxy.watches == 1, 10)
    assert proxy.lists("/serviceaccounts") == 1


@pytest.mark.slow
async def test_a_storm_is_told_and_survived_and_retry_after_is_honoured(
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
) -> None:
    async with Watch(through, ("ServiceAccount",), namespace) as watch:
        await until(lambda: watch.is_synced and proxy.watches == 1)
        for status in (429, 500):
            before = names(watch)
            proxy.refuse = (status, {"Retry-After": "2"})
            proxy.cut()
            await until(lambda text=str(status): text in (watch.problem or ""))
            asked = len(proxy.asked)
            await asyncio.to_thread(cluster.apply, account(namespace, f"meanwhile-{status}"))
            await asyncio.sleep(4.5)  # for nothing to happen in
            assert names(watch) >= before, "an error is no news about an object"
            assert len(proxy.asked) - asked <= 3, "not sooner than the server asks for"
            proxy.refuse = None
            await until(lambda name=f"meanwhile-{status}": name in names(watch) and watch.problem is None, 10)


async def test_silence_is_noticed(
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "_SILENCE_S", 2.0)
    async with Watch(through, ("ServiceAccount",), namespace) as watch:
        await until(lambda: watch.is_synced and proxy.watches == 1)
        proxy.swallow = True
        await asyncio.to_thread(cluster.apply, account(namespace, "unheard"))
        await asyncio.sleep(0.5)
        assert "unheard" not in names(watch)
        proxy.swallow = False  # of the connections that come
        await until(lambda: "unheard" in names(watch), 5)
    assert proxy.lists("/serviceaccounts") == 1


async def test_compaction_and_a_restart_list_anew(
    plane: Plane,  # noqa: F811
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
) -> None:
    async with Watch(through, ("ServiceAccount", "NIMCache"), namespace) as watch:
        await asyncio.to_thread(cluster.apply, account(namespace, "old"))
        await until(lambda: watch.is_synced and "old" in names(watch))
        proxy.refuse = (503, {})
        proxy.cut()
        await until(lambda: watch.problem is not None)
        await asyncio.to_thread(cluster.apply, account(namespace, "new"))
        await asyncio.to_thread(cluster.delete, account(namespace, "old"))
        await asyncio.to_thread(plane.end, "kube-apiserver", signal.SIGKILL)
        await asyncio.to_thread(compact, plane.r)
        proxy.refuse = None
        assert "old" in names(watch) and "new" not in names(watch)
        plane.start()  # on this thread: the part ends with the thread that started it
        await until(lambda: "new" in names(watch) and "old" not in names(watch), 40)
        await until(lambda: watch.problem is None, 40)
    assert proxy.lists("/serviceaccounts") >= 2
    assert any(status == 410 or "watch" in query for _, query, status in proxy.asked)


async def test_an_expired_token_is_replaced_once_for_all_kinds(
    proxy: FaultProxy,
    through: ClusterAccess,
    r: Rehearsal,  # noqa: F811
    namespace: str,  # noqa: F811
) -> None:
    minted: list[float] = []

    def mint() -> str:
        minted.append(time.monotonic())
        return r.admin_token if len(minted) > 1 else "expired"

    proxy.tokens = {r.admin_token}
    kinds = ("ServiceAccount", "Pod", "Secret", "ConfigMap", "Job", "Deployment")
    async with Watch(replace(through, token=Token(mint)), kinds, namespace) as watch:
        assert await watch.next(10) is not None
        assert watch.problem is None
    assert len(minted) == 2


async def test_a_wait_goes_on_through_all_of_it_and_says_so(
    plane: Plane,  # noqa: F811
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
) -> None:
    """One wait for a Job through a cut, a storm, and a restart of the API server; no verdict but the true one."""
    said: list[str] = []
    job = Subject("Job", "it", namespace)
    await asyncio.to_thread(cluster.apply, _job(namespace))
    plan = Plan((job,), 120, "test")
    wait = asyncio.create_task(watch_until(through, plan, started=datetime.now(UTC), say=said.append))
    await until(lambda: said)
    proxy.cut()
    proxy.refuse = (429, {"Retry-After": "1"})
    proxy.cut()
    await until(lambda: any("not following" in line and "429" in line for line in said))
    proxy.refuse = None
    await until(lambda: "not following" not in said[-1])
    await asyncio.to_thread(plane.end, "kube-apiserver", signal.SIGKILL)
    await until(lambda: "not following" in said[-1])
    assert not wait.done()
    plane.start()
    await until(lambda: "not following" not in said[-1], 60)
    assert not wait.done() and len(said) < 12, said
    await asyncio.to_thread(_complete, cluster, namespace)
    outcome: Outcome = await asyncio.wait_for(wait, 10)  # an API server that has just started may be slow to tell
    assert outcome.reached and not outcome.overdue
    already = await asyncio.wait_for(watch_until(through, plan, started=datetime.now(UTC), say=said.append), 1.0)
    assert already.reached, "what is there already is seen within a second"


async def _deadline_in_an_outage(
    proxy: FaultProxy, through: ClusterAccess, writes: Cluster, name: str, *, ends: bool
) -> tuple[Outcome, list[str]]:
    """A wait whose deadline passes while nothing answers; its Job completes meanwhile."""
    said: list[str] = []
    await asyncio.to_thread(writes.apply, _job(name))
    plan = Plan((Subject("Job", "it", name),), 3, "test")
    wait = asyncio.create_task(watch_until(through, plan, started=datetime.now(UTC), say=said.append))
    await until(lambda: said and proxy.watches == len(job.KINDS))
    proxy.refuse = (503, {})
    proxy.cut()
    await asyncio.to_thread(_complete, writes, name)
    await asyncio.sleep(3)  # for the deadline to pass in
    if ends:
        assert not wait.done()
        proxy.refuse = None
    return await asyncio.wait_for(wait, 20), said


async def test_a_deadline_in_an_outage_is_no_verdict(
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "_GRACE_S", 2.0)
    outcome, said = await _deadline_in_an_outage(proxy, through, cluster, namespace, ends=False)
    assert outcome.is_unseen and not outcome.reached
    assert outcome.missing[0][1].overdue().reason == "cluster-unavailable" and "503" in said[-1]


async def test_what_has_come_meanwhile_is_seen_after_the_outage(
    proxy: FaultProxy,
    through: ClusterAccess,
    cluster: Cluster,  # noqa: F811
    namespace: str,  # noqa: F811
) -> None:
    outcome, _ = await _deadline_in_an_outage(proxy, through, cluster, namespace, ends=True)
    assert outcome.reached and not outcome.is_unseen


def _job(namespace: str) -> dict[str, Any]:  # noqa: F811
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "example.com/none"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "it", "namespace": namespace},
        # Another's Job for the Job controller: it must not write the status meanwhile.
        "spec": {"template": {"spec": pod}, "managedBy": "example.com/test"},
    }


def _complete(cluster: Cluster, namespace: str) -> None:  # noqa: F811
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {"type": one, "status": "True", "reason": "Test", "lastTransitionTime": now}
        for one in ("SuccessCriteriaMet", "Complete")
    ]
    cluster.rest.json(
        "PATCH",
        f"/apis/batch/v1/namespaces/{namespace}/jobs/it/status",
        body={"status": {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": conditions}},
        content_type="application/merge-patch+json",
    )
