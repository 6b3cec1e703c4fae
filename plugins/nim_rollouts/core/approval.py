"""Whether a person must say yes to a plan, and what that person is shown.

A question's text holds nothing that differs between two tries of it: Airflow keeps the text of a task's first question
(a later one of the same task shows the old words), so a text that differs means that something else would be asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nim_rollouts.core.cost import Change, Estimate, Line

ALWAYS, ON_DESTROY, NEVER = "always", "on-destroy", "never"
APPROVED, REJECTED, NONE = "approved", "rejected", "none"

#: What takes something away comes first. Any action that is not known here is asked about.
_ORDER = ("delete", "replace", "forget", "update", "import", "create")
_HARMLESS = ("create", "update", "import", "move", "read")
_VERBS = {"delete": "destroy", "forget": "forget (it stays in AWS, and terraform lets go of it)"}
# A page that somebody reads to its end: of what takes something away, and of what does not.
_SHOWN, _SHOWN_HARMLESS = 40, 15


@dataclass(frozen=True)
class Need:
    """Whether to ask, and why (not)."""

    needed: bool
    why: str


@dataclass(frozen=True)
class Question:
    """What is asked of a person, and of what: `checksum` names the very thing that an answer is for."""

    checksum: str
    subject: str
    body: str
    needed: bool
    why: str
    policy: str = ALWAYS
    changes: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Asking:
    """Who asks for what, and where."""

    triggered_by: str
    environment: str
    region: str
    deployment: str
    image: str = ""
    approvers: Sequence[str] = ()
    timeout_s: int = 3600


def need(policy: str, changes: Iterable[Sequence[str]]) -> Need:
    """The policy's word on a plan. A plan without changes is never asked about."""
    counts = Counter(action for _, action in changes)
    if not counts:
        return Need(False, "the plan changes no resource")
    if policy == NEVER:
        return Need(False, f"policy {NEVER}: no plan is asked about")
    if policy == ALWAYS:
        return Need(True, f"policy {ALWAYS}: every plan that changes something is asked about")
    grave = [action for action in (*_ORDER, *sorted(counts)) if action not in _HARMLESS and counts[action]]
    if not grave:
        return Need(False, f"policy {ON_DESTROY}: the plan destroys and replaces nothing")
    told = ", ".join(f"{counts[action]} to {_verb(action)}" for action in dict.fromkeys(grave))
    return Need(True, f"policy {ON_DESTROY}: {told}")


def plan_question(
    facts: Mapping[str, Any],
    policy: str,
    asking: Asking,
    cost: Estimate,
    *,
    title: str = "Apply this plan",
    besides: str = "",
) -> Question:
    """The question about a terraform plan, from the facts that the stage `terraform_plan` records.

    :param besides: what else a yes means, as Markdown
    """
    changes = [(str(address), str(action)) for address, action in facts["changes"]]
    verdict = need(policy, changes)
    reasons = {str(address): str(why) for address, why in (facts.get("reasons") or {}).items()}
    parts = [
        _who(asking),
        f"**Asked because of** {verdict.why}.",
        _deadline(asking),
        *([besides] if besides else []),
        f"### What it costs\n\n{cost_text(cost)}",
        f"### {title}: {counted(changes)}\n\n{_changes(changes, reasons)}",
    ]
    return Question(
        checksum=str(facts["checksum"]),
        subject=f"{asking.environment}: {counted(changes)} ({asking.deployment or 'the whole environment'})",
        body="\n\n".join(parts),
        needed=verdict.needed,
        why=verdict.why,
        policy=policy,
        changes=[list(change) for change in changes],
    )


def counted(changes: Iterable[Sequence[str]]) -> str:
    """`2 to destroy, 1 to create`."""
    counts = Counter(action for _, action in changes)
    known = [action for action in (*_ORDER, *sorted(counts)) if counts[action]]
    return ", ".join(f"{counts[action]} to {_verb(action).split(' (')[0]}" for action in dict.fromkeys(known)) or (
        "nothing to change"
    )


def cost_text(cost: Estimate) -> str:
    """The estimate as Markdown."""
    table = cost.table
    if table is None:
        return "Unknown: there is no price table for this region (include/prices/)."
    rows = [_row(line) for line in cost.adds]
    if cost.gpu:
        what = f"{cost.gpu.what} for the service (the cheapest that fits, on demand, all month; if it does not run yet)"
        rows.append(_row(cost.gpu, what))
    head = [f"| a month adds | {table.currency} |", "|---|---:|"]
    total = f"| **together** | **{cost.added:,.2f}** |"
    lines = [*head, *rows, total] if rows else ["Nothing that has a price by the month is added."]
    if cost.ends:
        lines += ["", f"| and ends | {table.currency} |", "|---|---:|", *(_row(line) for line in cost.ends)]
        lines += [f"| **together** | **{cost.ended:,.2f}** |"]
    notes = [f"List prices of {table.as_of.isoformat()} for {table.region}, {table.hours_per_month} hours a month."]
    if cost.unpriced:
        notes.append(f"**Not priced, and not free for that:** {', '.join(cost.unpriced)}.")
    if cost.usage:
        notes.append("Not counted, because it depends on use:\n\n" + "\n".join(f"- {text}" for text in cost.usage))
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes)


def _row(line: Line, what: str | None = None) -> str:
    return f"| {line.count} x {_cell(what or line.what)} | {line.monthly:,.2f} |"


def _who(asking: Asking) -> str:
    what = f"`{asking.deployment}`" if asking.deployment else "the whole environment"
    image = f", image `{_cell(asking.image)}`" if asking.image else ""
    return (
        f"**{_cell(asking.triggered_by)}** asks for it: {what} in environment `{asking.environment}` "
        f"({asking.region}){image}."
    )


def _deadline(asking: Asking) -> str:
    who = f" Only these may answer: {', '.join(_cell(user) for user in asking.approvers)}." if asking.approvers else ""
    return f"**No answer within {duration(asking.timeout_s)} of the asking means no.**{who}"


def duration(seconds: int) -> str:
    """`90 s`, `45 min`, `2 h`, `3 days`: in the largest unit in which it is a whole number from 2 on."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds % size == 0 and seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _changes(changes: list[Change], reasons: Mapping[str, str]) -> str:
    if not changes:
        return "Nothing."
    ordered = sorted(changes, key=lambda change: (_rank(change[1]), change[0]))
    grave = [change for change in ordered if change[1] not in _HARMLESS]
    others = ordered[len(grave) :]
    listed = grave[:_SHOWN] + others[:_SHOWN_HARMLESS]
    rows = [
        f"| {_verb(action)} | `{_cell(address)}` | {_cell(reasons.get(address, ''))} |" for address, action in listed
    ]
    cut = Counter(action for _, action in grave[_SHOWN:] + others[_SHOWN_HARMLESS:])
    more = ", ".join(f"{count} to {_verb(action)}" for action, count in cut.items())
    tail = [f"\n... and {sum(cut.values())} more ({more}): the log of the plan's task has all of them."] if cut else []
    return "\n".join(["| action | resource | reason |", "|---|---|---|", *rows, *tail])


def _rank(action: str) -> int:
    return _ORDER.index(action) if action in _ORDER else -1


def _verb(action: str) -> str:
    return _VERBS.get(action, action)


def _cell(text: str) -> str:
    """As a table's cell, whatever is in it: an address may hold any key, and a name is somebody's choice."""
    return "".join(letter for letter in text if letter.isprintable()).replace("|", "\\|").replace("`", "'")
