"""What a plan would do and what an apply did, as data. Pure: reads terraform's JSON, runs nothing.

The shapes are terraform's own: `terraform show -json` (format 1.x) and the machine-readable UI (`-json`, version 1.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from nim_rollouts.core.cost import sizes

Change = tuple[str, str]
"""(resource address, action), where the action is create, update, replace, delete or forget."""


@dataclass(frozen=True)
class PlanSummary:
    """A saved plan. `checksum` is the SHA-256 of the plan file: an approval names it, an apply checks it."""

    changes: list[Change]
    add: int
    change: int
    replace: int
    destroy: int
    checksum: str
    has_changes: bool
    output_changes: list[str] = field(default_factory=list)
    drift: list[Change] = field(default_factory=list)
    plan_file: str = ""
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many single actions an apply reports: a replacement is two."""
        return self.add + self.change + self.destroy + 2 * self.replace

    def within(self, approved: Iterable[tuple[str, str] | list[str]]) -> bool:
        """True when every change of this plan is among the approved ones (a retry plans again after its own
        interrupted apply, and may go on only then)."""
        allowed = {(address, action) for address, action in approved}
        return all(change in allowed for change in self.changes)

    def text(self) -> str:
        """One line for the log."""
        if not self.has_changes:
            return "no changes"
        if not self.changes:
            return f"only outputs change: {', '.join(self.output_changes)}"
        counts = ((self.add, "create"), (self.change, "update"), (self.replace, "replace"), (self.destroy, "destroy"))
        return ", ".join(f"{count} to {verb}" for count, verb in counts if count)

    def as_facts(self) -> dict[str, Any]:
        """The summary as ledger facts."""
        return asdict(self) | {"changes": [list(change) for change in self.changes]}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> PlanSummary:
        """The inverse of `as_facts`."""
        pairs = {key: [(address, action) for address, action in facts[key]] for key in ("changes", "drift")}
        return cls(**{**facts, **pairs})


@dataclass(frozen=True)
class ApplySummary:
    """What an apply did: (address, action, seconds) in the order of completion."""

    applied: list[tuple[str, str, float]]
    add: int
    change: int
    destroy: int
    elapsed_s: float

    @property
    def changed(self) -> bool:
        return bool(self.applied)

    def text(self) -> str:
        if not self.changed:
            return f"nothing to do ({self.elapsed_s:.1f} s)"
        return f"{self.add} added, {self.change} changed, {self.destroy} destroyed in {self.elapsed_s:.1f} s"

    def as_facts(self) -> dict[str, Any]:
        return asdict(self) | {"applied": [list(step) for step in self.applied]}


def summarise(shown: dict[str, Any], *, checksum: str, plan_file: str) -> PlanSummary:
    """The summary of a plan from `terraform show -json <plan file>`."""
    changes = _changes(shown.get("resource_changes", []))
    outputs = sorted(
        name for name, change in shown.get("output_changes", {}).items() if change.get("actions") != ["no-op"]
    )
    actions = [action for _, action in changes]
    return PlanSummary(
        changes=changes,
        add=actions.count("create"),
        change=actions.count("update"),
        replace=actions.count("replace"),
        destroy=actions.count("delete"),
        checksum=checksum,
        has_changes=bool(changes or outputs),
        output_changes=outputs,
        # A refresh also finds what AWS has filled in by itself; only what the plan would undo is of interest.
        drift=[drifted for drifted in _changes(shown.get("resource_drift", [])) if drifted[0] in dict(changes)],
        plan_file=plan_file,
        sizes=sizes(shown),
    )


def _changes(items: list[dict[str, Any]]) -> list[Change]:
    found = ((item["address"], _action(item["change"]["actions"])) for item in items)
    return sorted((address, action) for address, action in found if action not in ("no-op", "read"))


def _action(actions: list[str]) -> str:
    return "replace" if len(actions) == 2 else actions[0]
