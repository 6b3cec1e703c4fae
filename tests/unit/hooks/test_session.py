"""What a task or a trigger works with: opened when it is asked for, and by triggers once for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nim_rollouts.clients.include import Include
from nim_rollouts.clients.store import FolderStore
from nim_rollouts.core.environment import Environment
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
