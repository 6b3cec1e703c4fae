"""Status conditions, in the two ways in which the real controllers set them."""

from __future__ import annotations

from datetime import UTC, datetime

from rehearsal.operator.api import Obj


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find(status: Obj, type_: str) -> Obj | None:
    return next((c for c in status.get("conditions") or [] if c["type"] == type_), None)


def update(status: Obj, type_: str, value: str, reason: str, message: str) -> None:
    """NIMCache's way: the transition time is rewritten on every set, also when nothing changes."""
    fresh = {"lastTransitionTime": _now(), "message": message, "reason": reason, "status": value, "type": type_}
    conditions = status.setdefault("conditions", [])
    old = find(status, type_)
    if old is None:
        conditions.append(fresh)
    else:
        conditions[conditions.index(old)] = fresh


def update_if_present(status: Obj, type_: str, value: str, reason: str, message: str) -> None:
    if find(status, type_) is not None:
        update(status, type_, value, reason, message)


def set_(status: Obj, type_: str, value: str, reason: str, message: str) -> None:
    """NIMService's way (apimachinery's): the transition time moves only with the condition's status."""
    old = find(status, type_)
    update(status, type_, value, reason, message)
    if old is not None and old["status"] == value:
        fresh = find(status, type_)
        assert fresh
        fresh["lastTransitionTime"] = old["lastTransitionTime"]
