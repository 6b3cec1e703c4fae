"""The ledger: deterministic keys, idempotent puts, no secrets."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nim_rollouts.clients.ledger import Ledger
from nim_rollouts.clients.store import FolderStore
from nim_rollouts.core.errors import LedgerError, SecretLeak
from nim_rollouts.core.spec import Request
from nim_rollouts.core.verdicts import State

KEY = "nvapi-canary-0123456789"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(FolderStore(tmp_path), "e", "d", "r")


def test_keys_and_repeated_records(ledger: Ledger) -> None:
    key = ledger.record("cache", 1, "verdict", {"b": 1, "a": State.HEALTHY})
    assert key == "e/d/r/cache/1/verdict.json"
    before = ledger.store.get(key)
    assert ledger.record("cache", 1, "verdict", {"a": "healthy", "b": 1}) == key
    assert ledger.store.get(key) == before


def test_the_latest_try_counts_as_a_number(ledger: Ledger) -> None:
    for number in (1, 2, 10):
        ledger.record("cache", number, "result", {"try": number})
    ledger.record("cache", 11, "verdict", {"try": 11})
    assert ledger.read("cache", "result") == {"try": 10}
    assert ledger.read("cache", "none") is None
    assert ledger.read("service", "result") is None
    assert [record.try_number for record in ledger.records() if record.kind == "result"] == [1, 10, 2]


def test_a_stage_is_not_its_prefix(ledger: Ledger) -> None:
    ledger.record("cache-refresh", 1, "result", {"x": 1})
    assert ledger.read("cache", "result") is None


def test_what_is_not_asked_for_is_not_fetched(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ledger.record("cache", 1, "result", {"a": 1})
    ledger.record("cache", 1, "intent", {"a": 1})
    fetched: list[str] = []
    get = ledger.store.get
    monkeypatch.setattr(ledger.store, "get", lambda key: fetched.append(key) or get(key))
    assert ledger.read("cache", "result") == {"a": 1}
    assert fetched == [wanted]


def test_the_request(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no request is recorded"):
        ledger.request()
    request = Request(
        environment="e", deployment="d", dag_id="nim_deploy", run_id="r", rollout_id="r", triggered_by="ada"
    )
    ledger.record("validate", 1, "request", request.model_dump(mode="json"))
    assert ledger.request() == request
    ledger.record("validate", 2, "request", {"of": "another version"})
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.request()


@pytest.mark.parametrize("prefix", ["", "$oauthtoken:", "x", "xy"])
def test_what_looks_like_the_key_is_refused(ledger: Ledger, prefix: str) -> None:
    encoded = base64.b64encode((prefix + KEY).encode()).decode()
    for value in (prefix + KEY, encoded, {"deep": [{"in": encoded}]}, "k8s-aws-v1.aHR0cHM6Ly9zdHM"):
        with pytest.raises(SecretLeak) as caught:
            ledger.record("secrets", 1, "result", {"value": value})
        assert KEY not in str(caught.value)
    assert ledger.records() == []


def test_facts_are_data(ledger: Ledger) -> None:
    ledger.record("s", 1, "k", {"at": datetime(2026, 1, 1, tzinfo=UTC), "in": Path("a/b"), "set": {"b", "a"}})
    assert ledger.read("s", "k") == {"at": "2026-01-01T00:00:00+00:00", "in": "a/b", "set": ["a", "b"]}
    with pytest.raises(TypeError, match="no fact"):
        ledger.record("s", 1, "k", {"x": object()})
    with pytest.raises(ValueError, match="is not a key"):
        ledger.record("../s", 1, "k", {})
