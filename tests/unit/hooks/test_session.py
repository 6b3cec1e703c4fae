"""What a task or a trigger works with: opened when it is asked for, and by triggers once for all of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients.include import Include
from nim_rollouts.clients.store import FolderStore
from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import AccessDenied, ClusterUnavailable
from nim_rollouts.hooks.session import Session

ROOT = Path(__file__).resolve().parents[3]


def test_triggers_share_a_store_and_workers_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_store(environment: Environment) -> FolderStore:
        opened.append(environment.name)
        return FolderStore(tmp_path)

    monkeypatch.setattr("nim_rollouts.hooks.session.open_store", open_store)
    include = Include(ROOT / "include")
    names = [f"run-{number}" for number in range(3)]
    shared = [Session("rehearsal", "d", name, include=include, shared=True) for name in names]
    assert len({id(session.store) for session in shared}) == 1 and opened == ["rehearsal"]
    assert {session.ledger.rollout for session in shared} == {session.rollout for session in shared}
    own = [Session("rehearsal", "d", name, include=include).store for name in names]
    assert len({id(store) for store in own}) == 3


@pytest.mark.parametrize(("somebody", "there"), [(True, True), (False, False)])
def test_a_cluster_that_refuses_us_is_absent_only_where_it_lets_nobody_in(
    somebody: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """terraform makes access entries after the cluster and destroys them before it: cut off in between, it leaves a
    cluster that no teardown can look into, and that must go all the same."""

    def refuses(*_: Any) -> Any:
        raise AccessDenied("the cluster does not accept our identity")

    monkeypatch.setattr("nim_rollouts.hooks.session.lets_somebody_in", lambda environment: somebody)
    session = Session("rehearsal", "d", "run", include=Include(ROOT / "include"))
    session.__dict__["cluster"] = SimpleNamespace(get=refuses)
    assert (session.cluster_if_any() is not None) is there


def test_a_cluster_that_does_not_answer_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any) -> Any:
        raise ClusterUnavailable("no answer")

    monkeypatch.setattr("nim_rollouts.hooks.session.lets_somebody_in", lambda environment: False)
    session = Session("rehearsal", "d", "run", include=Include(ROOT / "include"))
    session.__dict__["cluster"] = SimpleNamespace(get=silent)
    with pytest.raises(ClusterUnavailable):
        session.cluster_if_any()
