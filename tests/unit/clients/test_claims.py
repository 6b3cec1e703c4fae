"""Claims: one holder, growing generations, nobody rewinds."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nim_rollouts.clients import claims
from nim_rollouts.clients.claims import Holder
from nim_rollouts.clients.store import FolderStore
from nim_rollouts.core.errors import ClaimHeld, NimRolloutsError, StoreUnavailable, Superseded

SCOPE = claims.deployment_scope("e", "d")
A, B, C = (Holder("nim_deploy", name) for name in ("a", "b", "c"))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def live(_: Holder) -> bool:
    return False


def ended(_: Holder) -> bool:
    return True


def test_the_same_run_gets_the_same_generation(store: FolderStore) -> None:
    first = claims.acquire(store, SCOPE, A, is_ended=live)
    assert first.generation == 1
    assert claims.acquire(store, SCOPE, A, is_ended=live) == first
    claims.release(store, first)
    assert claims.acquire(store, SCOPE, A, is_ended=live) == first
    assert claims.held_by(store, SCOPE) == A


def test_a_live_run_is_named(store: FolderStore) -> None:
    claims.acquire(store, SCOPE, A, is_ended=live)
    with pytest.raises(ClaimHeld, match="nim_deploy / a"):
        claims.acquire(store, SCOPE, B, is_ended=live)
    assert claims.held_by(store, SCOPE) == A


def test_an_ended_or_releasing_run_is_followed(store: FolderStore) -> None:
    first = claims.acquire(store, SCOPE, A, is_ended=live)
    asked = []
    second = claims.acquire(store, SCOPE, B, is_ended=lambda holder: not asked.append(holder))
    assert (second.generation, asked) == (2, [A])
    claims.release(store, second)
    third = claims.acquire(store, SCOPE, C, is_ended=live)
    assert third.generation == 3
    claims.check(store, third)
    for old in (first, second):
        with pytest.raises(Superseded):
            claims.check(store, old)
        claims.release(store, old)
    assert claims.held_by(store, SCOPE) == C


def test_an_older_run_never_comes_back(store: FolderStore) -> None:
    claims.acquire(store, SCOPE, A, is_ended=live)
    newer = claims.acquire(store, SCOPE, B, is_ended=ended)
    claims.release(store, newer)
    with pytest.raises(Superseded, match="generation 1"):
        claims.acquire(store, SCOPE, A, is_ended=ended)
    assert claims.acquire(store, SCOPE, B, is_ended=ended).generation == 2


def test_release_is_repeatable_and_checks_stay_good(store: FolderStore) -> None:
    claim = claims.acquire(store, SCOPE, A, is_ended=live)
    claims.release(store, claim)
    claims.release(store, claim)
    assert claims.held_by(store, SCOPE) is None
    claims.check(store, claim)  # a cleared task of the last run may still write


def test_a_claim_that_vanished(store: FolderStore) -> None:
    claim = claims.acquire(store, SCOPE, A, is_ended=live)
    store.delete(SCOPE)
    claims.release(store, claim)
    with pytest.raises(Superseded, match="no longer exists"):
        claims.check(store, claim)


def test_racing_runs_one_wins(store: FolderStore) -> None:
    held: list[claims.Claim] = []
    refused: list[NimRolloutsError] = []

    def run(number: int) -> None:
        try:
            held.append(claims.acquire(store, SCOPE, Holder("nim_deploy", str(number)), is_ended=live))
        except NimRolloutsError as error:
            refused.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert [error.reason for error in refused] == ["claim-held"] * 11


def test_racing_take_overs_of_an_ended_run_get_different_generations(store: FolderStore) -> None:
    claims.acquire(store, SCOPE, A, is_ended=live)
    generations: list[int] = []

    def run(number: int) -> None:
        generations.append(claims.acquire(store, SCOPE, Holder("d", str(number)), is_ended=ended).generation)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(generations) == [2, 3, 4, 5, 6, 7]


def test_a_lost_answer_does_not_lose_the_claim(store: FolderStore) -> None:
    """The create went through, its answer did not: the client's own retry sees 412, and finds itself the holder."""

    class Lossy(FolderStore):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            return super().create(key, data)

    assert claims.acquire(Lossy(store.root), SCOPE, A, is_ended=live).generation == 1


def test_a_store_that_always_loses(store: FolderStore) -> None:
    class Losing(FolderStore):
        def create(self, key: str, data: bytes) -> bool:
            return False

    with pytest.raises(StoreUnavailable):
        claims.acquire(Losing(store.root), SCOPE, A, is_ended=live)


def test_a_look_ahead_refuses_like_acquire_and_writes_nothing(store: FolderStore) -> None:
    claims.refuse_held(store, SCOPE, A, is_ended=live)
    assert store.get(SCOPE) is None
    claims.acquire(store, SCOPE, A, is_ended=live)
    before = store.get(SCOPE)
    with pytest.raises(ClaimHeld):
        claims.refuse_held(store, SCOPE, B, is_ended=live)
    for holder, is_ended in ((A, live), (B, ended)):
        claims.refuse_held(store, SCOPE, holder, is_ended=is_ended)
    assert store.get(SCOPE) == before


def test_a_cleared_task_of_the_last_run_holds_its_claim_again(store: FolderStore) -> None:
    claim = claims.acquire(store, SCOPE, A, is_ended=live)
    claims.release(store, claim)
    claims.hold_again(store, claim)
    claims.hold_again(store, claim)
    with pytest.raises(ClaimHeld):
        claims.acquire(store, SCOPE, B, is_ended=live)
    claims.acquire(store, SCOPE, B, is_ended=ended)
    with pytest.raises(Superseded):
        claims.hold_again(store, claim)


def test_scopes() -> None:
    assert claims.deployment_scope("e", "d") == "claims/e/d.json"
    assert claims.environment_scope("e") == "claims/e/_environment.json"
