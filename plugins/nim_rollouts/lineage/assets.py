"""One Airflow asset a stage: an event says that the stage was done, its extra what it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset

# An extra is a column of the metadata database that the UI loads with every event; the ledger has the whole record.
_EXTRA_LIMIT = 8_000


def stage_asset(stage: str) -> Asset:
    """The asset of a stage."""
    return Asset(name=f"nim-rollouts-{stage}", uri=f"nim-rollouts://stage/{stage}")


def extra(facts: Mapping[str, Any], **identity: str) -> dict[str, Any]:
    """What goes with the event: who and what, and the facts; of a large record only its plain values."""
    plain = _plain(facts)
    whole = {**identity, "facts": plain}
    if len(json.dumps(whole)) <= _EXTRA_LIMIT:
        return whole
    small = {name: value for name, value in plain.items() if not isinstance(value, (dict, list))}
    return {**identity, "facts": small, "shortened": True}


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(facts), default=str)))
