"""What a plan would do and what an apply did, as data. Pure: reads terraform's JSON, runs nothing.

The shapes are terraform's own: the machine-readable UI (`-json`, version 1.2) and `terraform show -json` (format 1.x).
The first comes with the plan for nothing; the second takes seconds more, and tells what forces a replacement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.cost import sizes

if TYPE_CHECKING:
    from nim_rollouts.clients.terraform_events import Progress

Change = tuple[str, str]
"""(resource address, action), where the action is create, update, replace, delete or forget."""

#: What takes something away. A replacement destroys what stood there.
DESTRUCTIVE = ("delete", "replace")

#: terraform's slugs for why, in words; any other is shown with spaces.
_REASONS = {
    "cannot_update": "cannot be changed in place",
    "tainted": "its creation did not end well",
    "requested": "asked for by -replace",
    "replace_triggered_by": "replaced with what it depends on",
    "delete_because_no_resource_config": "no longer in the configuration",
    "delete_because_no_module": "its module is no longer in the configuration",
    "delete_because_wrong_repetition": "count or for_each was added or taken away",
    "delete_because_count_index": "count is lower now",
    "delete_because_each_key": "its key is no longer in for_each",
    "delete_because_no_move_target": "moved to an address that does not exist",
}


@dataclass(frozen=True)
class PlanSummary:
    """A saved plan. `checksum` is the SHA-256 of the plan file: an approval names it, an apply checks it.

    `details`: one entry a change: `address`, `action`, `type` of resource, `reason` (a slug of terraform's, or empty)
    and `forced_by`: the attributes that cannot change in place (only where the plan was looked into).
    `lineage`, `serial`: the state that the plan starts from; serial 0 where there was none. `imports`: addresses of
    what exists already and is taken over into the state. `destruction`: it was planned to destroy everything.
    """

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
    details: list[dict[str, Any]] = field(default_factory=list)
    lineage: str = ""
    serial: int | None = None
    imports: list[str] = field(default_factory=list)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    destruction: bool = False

    @property
    def steps(self) -> int:
        """How many single actions an apply reports: a replacement is two."""
        return self.add + self.change + self.destroy + 2 * self.replace

    @property
    def destructive(self) -> list[Change]:
        """What would be destroyed, also to be made again."""
        return [change for change in self.changes if change[1] in DESTRUCTIVE]

    def within(self, approved: Iterable[tuple[str, str] | list[str]]) -> bool:
        """True when every change of this plan is among the approved ones (a retry plans again after its own
        interrupted apply, and may go on only then)."""
        return not self.beyond(approved)

    def beyond(self, approved: Iterable[tuple[str, str] | list[str]]) -> list[Change]:
        """The changes that are not among the approved ones.

        A replacement that was cut off between its two halves is the creation of what is gone, or the deletion of what
        was to go: both were approved with it. What was to be created, and is taken over instead, may be completed;
        and what stands there half made, because its creation was cut off, may be made again.
        """
        allowed = {(address, action) for address, action in approved}
        tainted = {one["address"] for one in self.details if one["reason"] == "tainted"}
        allowed |= {(address, "replace") for address in tainted if (address, "create") in allowed}
        for address in self.imports:
            if (address, "create") in allowed:
                allowed |= {(address, "import"), (address, "update")}
        for address, action in list(allowed):
            if action == "replace" and address not in tainted:
                allowed |= {(address, "create"), (address, "delete")}
        return [change for change in self.changes if change not in allowed]

    def text(self) -> str:
        """One line for the log."""
        if not self.has_changes:
            return "no changes"
        if not self.changes and not self.imports:
            return f"only outputs change: {', '.join(self.output_changes)}"
        counts = ((len(self.imports), "take over"), (self.add, "create"), (self.change, "update"),
                  (self.replace, "replace"), (self.destroy, "destroy"))  # fmt: skip
        told = ", ".join(f"{count} to {verb}" for count, verb in counts if count)
        return told or ", ".join(f"{action} {address}" for address, action in self.changes)

    def reasons(self) -> dict[str, str]:
        """Address -> why, in words, of the changes that terraform gives a reason for."""
        told = {one["address"]: why(one).strip(" ()") for one in self.details}
        return {address: text for address, text in told.items() if text}

    def lines(self) -> list[str]:
        """One line a change for people, what takes something away first."""
        ordered = sorted(self.details or _bare(self.changes), key=lambda one: one["action"] not in DESTRUCTIVE)
        return [f"{one['action']} {one['address']}{why(one)}" for one in ordered]

    def as_facts(self) -> dict[str, Any]:
        """The summary as ledger facts."""
        pairs = {key: [list(change) for change in getattr(self, key)] for key in ("changes", "drift")}
        return asdict(self) | pairs

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> PlanSummary:
        """The inverse of `as_facts`; facts of an older version lack fields, and get their defaults."""
        known = {name: facts[name] for name in cls.__dataclass_fields__ if name in facts}
        pairs = {key: [(address, action) for address, action in facts.get(key, [])] for key in ("changes", "drift")}
        return cls(**{**known, **pairs})


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


def why(detail: dict[str, Any]) -> str:
    """The reason of one change in words, with its attributes, in brackets; empty where terraform gives none."""
    reason, forced = detail.get("reason", ""), detail.get("forced_by") or []
    said = _REASONS.get(reason, reason.replace("_", " "))
    parts = [part for part in (said, f"because of {', '.join(forced)}" if forced else "") if part]
    return f" ({' '.join(parts)})" if parts else ""


def summarise(shown: dict[str, Any], *, checksum: str, plan_file: str) -> PlanSummary:
    """The summary of a plan from `terraform show -json <plan file>`."""
    details = [
        _detail(
            one["address"], _action(one["change"]["actions"]), one.get("type", ""), _shown_reason(one), _forced(one)
        )
        for one in shown.get("resource_changes", [])
    ]
    drifted = [(one["address"], _action(one["change"]["actions"])) for one in shown.get("resource_drift", [])]
    outputs = {name: change.get("actions") for name, change in shown.get("output_changes", {}).items()}
    changed = [name for name, actions in outputs.items() if actions != ["no-op"]]
    imports = [one["address"] for one in shown.get("resource_changes", []) if one["change"].get("importing")]
    return _summary(details, drifted, changed, checksum, plan_file, imports)


def from_events(progress: Progress, *, checksum: str, plan_file: str) -> PlanSummary:
    """The summary of a plan from the events of `terraform plan -json`: all but what forces a replacement."""
    details = []
    for change in progress.planned:
        resource = change.get("resource", {})
        kind, action = resource.get("resource_type", ""), str(change.get("action", ""))
        details.append(_detail(resource.get("addr", "?"), action, kind, str(change.get("reason", "")), []))
    changed = [name for name, action in progress.outputs.items() if action != "noop"]
    imports = [one.get("resource", {}).get("addr", "?") for one in progress.planned if one.get("importing")]
    return _summary(details, progress.drifted, changed, checksum, plan_file, imports)


def explained(summary: PlanSummary, shown: dict[str, Any]) -> PlanSummary:
    """The same summary, with the attributes that force each replacement, and what prices need to know."""
    forced = {one["address"]: _forced(one) for one in shown.get("resource_changes", [])}
    details = [{**one, "forced_by": forced.get(one["address"], [])} for one in summary.details]
    return replace(summary, details=details, sizes=sizes(shown))


def planned_values(shown: dict[str, Any]) -> dict[str, Any]:
    """What each changed resource will be and was, from `terraform show -json`: `resource_changes` with address, type,
    action, before and after. Sensitive values are left out; so is what is known only after the apply."""
    found = []
    for one in shown.get("resource_changes", []):
        change = one["change"]
        if (action := _action(change["actions"])) in ("no-op", "read"):
            continue
        found.append({
            "address": one["address"], "type": one.get("type", ""), "action": action,
            "before": _open(change.get("before"), change.get("before_sensitive")),
            "after": _open(change.get("after"), change.get("after_sensitive")),
        })  # fmt: skip
    return {"resource_changes": found}


def _summary(
    details: list[dict[str, Any]],
    drifted: list[Change],
    outputs: list[str],
    checksum: str,
    plan_file: str,
    imports: list[str],
) -> PlanSummary:
    details = sorted(
        (one for one in details if one["action"] not in ("no-op", "noop", "read")), key=lambda one: one["address"]
    )
    actions = [one["action"] for one in details]
    addresses = {one["address"] for one in details}
    return PlanSummary(
        changes=[(one["address"], one["action"]) for one in details],
        add=actions.count("create"),
        change=actions.count("update"),
        replace=actions.count("replace"),
        destroy=actions.count("delete"),
        checksum=checksum,
        has_changes=bool(details or outputs or imports),
        output_changes=sorted(outputs),
        # A refresh also finds what AWS has filled in by itself; only what the plan would undo is of interest.
        drift=sorted(one for one in drifted if one[0] in addresses and one[1] not in ("no-op", "noop", "read")),
        plan_file=plan_file,
        details=details,
        imports=sorted(imports),
    )


def _detail(address: str, action: str, kind: str, reason: str, forced: list[str]) -> dict[str, Any]:
    return {"address": address, "action": action, "type": kind, "reason": reason, "forced_by": forced}


def _bare(changes: Iterable[Change]) -> list[dict[str, Any]]:
    return [_detail(address, action, "", "", []) for address, action in changes]


def _action(actions: list[str]) -> str:
    return "replace" if len(actions) == 2 else actions[0]


def _shown_reason(one: dict[str, Any]) -> str:
    """`action_reason` of `show` in the words of the events."""
    reason = str(one.get("action_reason") or "")
    by_request = {"replace_by_request": "requested", "replace_by_triggers": "replace_triggered_by"}
    return by_request.get(reason, reason.removeprefix("replace_because_"))


def _forced(one: dict[str, Any]) -> list[str]:
    """`replace_paths` as people write them: `subnet_ids`, `scaling_config[0].min_size`."""
    found = []
    for path in one["change"].get("replace_paths") or []:
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
        found.append(text.removeprefix("."))
    return sorted(found)


def _open(value: Any, sensitive: Any) -> Any:
    """The value without what is marked sensitive."""
    if sensitive is True:
        return None
    if isinstance(value, dict):
        marks = sensitive if isinstance(sensitive, dict) else {}
        return {name: _open(one, marks.get(name)) for name, one in value.items() if marks.get(name) is not True}
    if isinstance(value, list):
        marked = sensitive if isinstance(sensitive, list) else []
        return [_open(one, marked[n] if n < len(marked) else None) for n, one in enumerate(value)]
    return value
