"""The seal: what every record of a rollout was when it ended, so that a missing, altered or late one shows."""

from __future__ import annotations

import hashlib
from typing import Any

from nim_rollouts.clients.ledger import Ledger, canonical

SEAL = "seal"


def digests(ledger: Ledger, stage: str) -> dict[str, str]:
    """Key -> SHA-256 of every record, without what the sealing stage itself writes after the seal."""
    found: dict[str, str] = {}
    for key in ledger.store.list(ledger.prefix):
        short = key.removeprefix(ledger.prefix)
        late = short.startswith(f"{stage}/") and not short.endswith("/decision.json")
        content = None if late else ledger.store.get(key)
        if content is not None:
            found[short] = hashlib.sha256(content).hexdigest()
    return found


def seal(ledger: Ledger, stage: str, try_number: int) -> str:
    """Write the seal; returns its own digest, which goes where the store cannot reach: into Airflow's last event."""
    facts: dict[str, Any] = {"algorithm": "sha256", "records": digests(ledger, stage)}
    ledger.record(stage, try_number, SEAL, facts)
    return hashlib.sha256(canonical(facts).encode()).hexdigest()
