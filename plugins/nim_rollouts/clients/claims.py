"""Claims: who may write to one deployment, or to the infrastructure of one environment.

A claim is one object in the store: its holder, a generation that grows with each new holder, and who held it before.
The generation outlives the holding: a task of an older run is refused for ever, also long after its claim was released.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from nim_rollouts.clients.store import Store
from nim_rollouts.core.errors import ClaimHeld, StoreUnavailable, Superseded

# A write that lost the race reads again; each loss means that another writer got through.
_ATTEMPTS = 20
# Former holders that are remembered, so that a cleared run of long ago is refused instead of taken for a new one.
_REMEMBERED = 500


@dataclass(frozen=True)
class Holder:
    """A DAG run."""

    dag_id: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.dag_id} / {self.run_id}"


@dataclass(frozen=True)
class Claim:
    """A held claim. `scope` is its key in the store."""

    scope: str
    generation: int
    holder: Holder


def deployment_scope(environment: str, deployment: str) -> str:
    """Scope of one deployment in one environment."""
    return f"claims/{environment}/{deployment}.json"


def environment_scope(environment: str) -> str:
    """Scope of an environment's infrastructure. (`_` cannot begin a deployment's name.)"""
    return f"claims/{environment}/_environment.json"


@dataclass(frozen=True)
class _State:
    generation: int
    holder: Holder
    released: bool
    former: tuple[tuple[int, Holder], ...]

    def generation_of(self, holder: Holder) -> int | None:
        if holder == self.holder:
            return self.generation
        return max((generation for generation, one in self.former if one == holder), default=None)

    def encode(self) -> bytes:
        data = {
            "generation": self.generation,
            "holder": asdict(self.holder),
            "released": self.released,
            "former": [{"generation": generation, **asdict(one)} for generation, one in self.former],
        }
        return json.dumps(data, sort_keys=True, indent=1).encode()

    @classmethod
    def decode(cls, content: bytes) -> _State:
        data = json.loads(content)
        former = tuple((int(one["generation"]), _holder(one)) for one in data["former"])
        return cls(int(data["generation"]), _holder(data["holder"]), bool(data["released"]), former)


def acquire(store: Store, scope: str, holder: Holder, *, is_ended: Callable[[Holder], bool]) -> Claim:
    """Hold the claim. The same run gets the same generation again, however often it asks.

    :param is_ended: whether a holder's run has ended (or no longer exists), asked of Airflow
    :raises ClaimHeld: another run holds it and has not ended
    :raises Superseded: this run held it before, and a newer one has since
    """
    for _ in range(_ATTEMPTS):
        found = store.get_with_etag(scope)
        if found is None:
            first = _State(1, holder, False, ())
            if store.create(scope, first.encode()):
                return Claim(scope, 1, holder)
            continue
        content, etag = found
        state = _State.decode(content)
        wanted = _next(state, scope, holder, is_ended)
        if wanted is state or store.replace(scope, wanted.encode(), etag):
            return Claim(scope, wanted.generation, holder)
    raise StoreUnavailable(f"{scope}: {_ATTEMPTS} other writers were faster")


def refuse_held(store: Store, scope: str, holder: Holder, *, is_ended: Callable[[Holder], bool]) -> None:
    """Nothing, if `acquire` would succeed now. Writes nothing: a run that cannot have all of its claims takes none, and
    moves no generation on.

    :raises ClaimHeld, Superseded: as `acquire`
    """
    content = store.get(scope)
    if content is not None:
        _next(_State.decode(content), scope, holder, is_ended)


def hold_again(store: Store, claim: Claim) -> None:
    """For a cleared task of the last run, whose claim was released when the run ended: hold it again, so that nobody
    else begins meanwhile. It is released with the run's end, or taken over after it.

    :raises Superseded: a newer run has taken the claim
    """
    for _ in range(_ATTEMPTS):
        check(store, claim)
        found = store.get_with_etag(claim.scope)
        if found is None:
            continue
        state = _State.decode(found[0])
        if not state.released or store.replace(claim.scope, replace(state, released=False).encode(), found[1]):
            return
    raise StoreUnavailable(f"{claim.scope}: {_ATTEMPTS} other writers were faster")


def check(store: Store, claim: Claim) -> None:
    """Nothing, if the claim's generation is still the newest.

    :raises Superseded: a newer run has taken the claim
    """
    content = store.get(claim.scope)
    if content is None:
        raise Superseded(f"the claim {claim.scope} no longer exists")
    state = _State.decode(content)
    if state.generation != claim.generation or state.holder != claim.holder:
        raise _superseded(claim.scope, claim.holder, claim.generation, state)


def release(store: Store, claim: Claim) -> None:
    """Give the claim up; fine when it is released already or a newer run has it."""
    for _ in range(_ATTEMPTS):
        found = store.get_with_etag(claim.scope)
        if found is None:
            return
        content, etag = found
        state = _State.decode(content)
        if state.released or state.generation != claim.generation or state.holder != claim.holder:
            return
        if store.replace(claim.scope, replace(state, released=True).encode(), etag):
            return
    raise StoreUnavailable(f"{claim.scope}: {_ATTEMPTS} other writers were faster")


def held_by(store: Store, scope: str) -> Holder | None:
    """The run that holds the claim, or None."""
    content = store.get(scope)
    if content is None:
        return None
    state = _State.decode(content)
    return None if state.released else state.holder


def _next(state: _State, scope: str, holder: Holder, is_ended: Callable[[Holder], bool]) -> _State:
    if state.holder == holder:
        return state if not state.released else replace(state, released=False)
    mine = state.generation_of(holder)
    if mine is not None:
        raise _superseded(scope, holder, mine, state)
    if not state.released and not is_ended(state.holder):
        raise ClaimHeld(f"{scope} is held by the run {state.holder} (generation {state.generation})")
    former = ((state.generation, state.holder), *state.former)[:_REMEMBERED]
    return _State(state.generation + 1, holder, False, former)


def _superseded(scope: str, holder: Holder, generation: int, state: _State) -> Superseded:
    return Superseded(
        f"{scope}: the run {holder} has generation {generation}, "
        f"and the newer run {state.holder} has generation {state.generation}"
    )


def _holder(data: dict[str, Any]) -> Holder:
    return Holder(str(data["dag_id"]), str(data["run_id"]))
