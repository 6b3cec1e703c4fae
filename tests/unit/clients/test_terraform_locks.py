"""Whose lock it is: only that of a process which has certainly ended, on this very worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nim_rollouts.clients.terraform_locks import LockInfo, held_until, owner_of, this_worker, whoami

CREATED = "2026-11-24 02:00:10.5 +0000 UTC"
AT = 1795485610.5


def lock(who: str = "me@here", created: str = CREATED) -> LockInfo:
    return LockInfo("id", "apply", who, created)


def ended(started: float, until: float | None = None) -> dict[str, object]:
    return {"who": "me@here", "started": started, "until": until}


def test_of_several_ended_ones_the_one_that_was_about_to_lock() -> None:
    records = [ended(AT - 500), ended(AT - 1)]
    assert owner_of(lock(), records) is records[1]
    assert owner_of(lock("me@there"), records) is None
    assert owner_of(lock(created="lately"), records) is None
    assert owner_of(lock(), []) is None


@pytest.mark.parametrize(("until", "ours"), [(AT + 1, True), (AT - 1, False), (None, True)])
def test_a_lock_that_was_made_after_ours_was_held_is_another_s(until: float | None, ours: bool) -> None:
    """A person on the same worker who took the lock after ours was gone, within the minute."""
    assert (owner_of(lock(), [ended(AT - 10, until)]) is not None) is ours


def test_when_a_process_had_its_lock_is_told_by_its_first_words(tmp_path: Path) -> None:
    output = tmp_path / "apply.out"
    assert held_until({}, output) is None
    version = {"type": "version", "@timestamp": "2026-11-24T02:00:00.000000Z"}
    output.write_text(json.dumps(version) + "\n")
    assert held_until({}, output) is None
    start = {"type": "apply_start", "@timestamp": "2026-11-24T02:00:10.500000Z"}
    output.write_text(f"{json.dumps(version)}\n{json.dumps(start)}\n{{cut off")
    until = held_until({}, output)
    assert until is not None and AT <= until <= AT + 5


def test_a_worker_says_who_it_is() -> None:
    assert this_worker()["who"] == whoami() and "@" in whoami()
    assert this_worker()["pid_started"] > 0
