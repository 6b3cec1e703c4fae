"""terraform's `-json` events: what they say to a reader, and which error they amount to. Pure.

The failure patterns are those of the AWS API and of terraform's own messages; reference: the provider's and terraform's
sources, and the failure reports that they caused (a lock left by a dead worker, an interrupted apply, quotas).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nim_rollouts.clients.terraform_locks import LockInfo
from nim_rollouts.core.errors import (
    AccessDenied,
    NeedsHumanError,
    NimRolloutsError,
    TerraformFailed,
    TerraformUnavailable,
)

#: A lock younger than this is taken for one in use: an EKS apply or destroy takes 10 to 25 minutes.
LOCK_IN_USE_S = 45 * 60
#: Between two tries to get a lock of our own terraform on another worker: Airflow's four last until it is that old.
_OURS_ELSEWHERE_S = 10 * 60

_VERBS = {
    "create": ("creating", "created"),
    "update": ("updating", "updated"),
    "delete": ("destroying", "destroyed"),
    "replace": ("replacing", "replaced"),
    "read": ("reading", "read"),
}


@dataclass(frozen=True)
class Diagnostic:
    severity: str
    summary: str
    detail: str = ""
    address: str = ""

    def text(self) -> str:
        """Summary, place and the first paragraph of the detail, on one line."""
        first = " ".join(self.detail.strip().split("\n\n")[0].split())
        place = f" ({self.address})" if self.address and self.address not in self.summary else ""
        return f"{self.summary.rstrip('.:')}{place}" + (f": {first.rstrip('.')}" if first else "")


@dataclass
class Progress:
    """Follows one command's events. `total`: number of steps of the plan that is applied, 0 if unknown; `started`:
    terraform has said that it begins one, or that it has applied (imports and outputs are no steps)."""

    total: int = 0
    started: bool = False
    done: list[tuple[str, str, float]] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    planned: list[dict[str, Any]] = field(default_factory=list)
    drifted: list[tuple[str, str]] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)

    def line(self, raw: str) -> str | None:
        """Take one line of output; the text to show for it, or None where it says nothing new to a reader."""
        try:
            event = json.loads(raw)
        except ValueError:
            return None
        if not isinstance(event, dict):
            return None
        kind = event.get("type", "")
        if kind == "diagnostic":
            return self._diagnostic(event.get("diagnostic", {}))
        if kind in ("apply_start", "apply_progress", "apply_complete", "apply_errored"):
            return self._step(kind, event.get("hook", {}))
        if kind == "change_summary":
            changes = event.get("changes", {})
            self.started = self.started or changes.get("operation") == "apply"
            self.counts = {key: value for key, value in changes.items() if isinstance(value, int)}
            return str(event.get("@message", "")) or None
        self._plan(kind, event)
        return None

    def _plan(self, kind: str, event: dict[str, Any]) -> None:
        """Take what a plan says it would do. Values are not in these events; a sensitive output's name is no secret."""
        change = event.get("change") or {}
        if kind == "planned_change":
            self.planned.append(change)
        elif kind == "resource_drift":
            self.drifted.append((change.get("resource", {}).get("addr", "?"), change.get("action", "")))
        elif kind == "outputs":
            self.outputs = {name: one.get("action", "noop") for name, one in event.get("outputs", {}).items()}

    @property
    def errors(self) -> list[Diagnostic]:
        return [diagnostic for diagnostic in self.diagnostics if diagnostic.severity == "error"]

    def _diagnostic(self, body: dict[str, Any]) -> str:
        diagnostic = Diagnostic(
            severity=body.get("severity", "error"),
            summary=body.get("summary", ""),
            detail=body.get("detail", ""),
            address=body.get("address", ""),
        )
        self.diagnostics.append(diagnostic)
        return f"{diagnostic.severity}: {diagnostic.text()}"

    def _step(self, kind: str, hook: dict[str, Any]) -> str | None:
        address = hook.get("resource", {}).get("addr", "?")
        action = hook.get("action", "")
        doing, did = _VERBS.get(action, (action, action))
        seconds = float(hook.get("elapsed_seconds", 0))
        self.started = True
        if action == "read":
            return None
        if kind == "apply_start":
            return f"{self._count(len(self.done))}{doing} {address}"
        if kind == "apply_progress":
            return f"{self._count(len(self.done))}still {doing} {address} after {seconds:.0f} s"
        if kind == "apply_errored":
            return f"{self._count(len(self.done))}failed {doing} {address} after {seconds:.0f} s"
        self.done.append((address, action, seconds))
        return f"{self._count(len(self.done))}{did} {address} in {seconds:.0f} s"

    def _count(self, done: int) -> str:
        return f"[{done} of {self.total}] " if self.total else ""


_THROTTLED = r"Throttl|RequestLimitExceeded|TooManyRequests|SlowDown|Rate exceeded"
_NETWORK = (
    r"connection refused|connection reset|i/o timeout|no such host|TLS handshake timeout|request send failed"
    r"|context deadline exceeded|StatusCode: 5\d\d|InternalError|InternalFailure|ServiceUnavailable|ExpiredToken"
)
_QUOTA = (
    r"LimitExceeded|QuotaExceeded|exceeds? (?:the|your) (?:limit|quota)|maximum number of \S+ (?:has been|is) reached"
)
_DENIED = (
    r"AccessDenied|UnauthorizedOperation|not authorized to perform|InvalidClientTokenId|SignatureDoesNotMatch"
    r"|UnrecognizedClient|No valid credential sources|AuthFailure|StatusCode: 403"
)
_EXISTS = r"AlreadyExists|already exists|ResourceInUseException|already in use|InvalidGroup\.Duplicate"


def lock_info(diagnostics: list[Diagnostic]) -> LockInfo | None:
    """The holder, if the command failed because the state is locked."""
    for diagnostic in diagnostics:
        if "acquiring the state lock" in diagnostic.summary and "Lock Info:" in diagnostic.detail:
            found = dict(re.findall(r"^\s*(ID|Operation|Who|Created):[ \t]*(.*?)\s*$", diagnostic.detail, re.MULTILINE))
            if found.get("ID"):
                operation = found.get("Operation", "").removeprefix("OperationType").lower()
                return LockInfo(found["ID"], operation, found.get("Who", ""), found.get("Created", ""))
    return None


def failure(
    command: str,
    errors: list[Diagnostic],
    stderr: str,
    status: int,
    now: float,
    *,
    where: str = "",
    holders: Mapping[str, str] | None = None,
) -> NimRolloutsError:
    """The error of ours for a command that ended with `status`; its class says whether a retry helps.

    :param now: seconds since the epoch: tells a lock that is in use from one that was left
    :param where: what a person types before `terraform` to reach this state
    :param holders: user@host -> what is known of a work of ours there, and why its lock is not ours to take
    """
    stderr = _plain(stderr)
    errors = errors or diagnostics_of(stderr)
    if not errors:
        text = " ".join(stderr.split()) or f"ended with status {status} and said nothing"
        errors = [Diagnostic("error", text[-600:])]
    message = f"terraform {command}: " + "; ".join(diagnostic.text() for diagnostic in errors[:3])
    if len(errors) > 3:
        message += f"; and {len(errors) - 3} more"
    said = "\n".join(f"{diagnostic.summary}\n{diagnostic.detail}" for diagnostic in errors)
    lock = lock_info(errors)
    if lock is None:
        return _classify(message, said, errors)
    return _locked(lock, now, where, (holders or {}).get(lock.who, ""))


def _locked(lock: LockInfo, now: float, where: str, known: str) -> NimRolloutsError:
    created = lock.created_epoch()
    message = f"The terraform state is locked: {lock.text()}" + (f"; {known}" if known else "")
    remedy = (
        f"if that process is certainly dead, run `{where}terraform force-unlock {lock.id}`"
        f"{'' if where else ' in the root module'}, then clear this task"
    )
    if created is not None and now - created < LOCK_IN_USE_S:
        hint = f"That operation is probably under way, and this task is tried again; {remedy}"
        again = _OURS_ELSEWHERE_S if known else 60
        return TerraformUnavailable(message, reason="state-locked", hint=hint, retry_after_s=again)
    hint = f"Let that operation end; {remedy}"
    return NeedsHumanError(message, layer="terraform", reason="state-locked", hint=hint)


def diagnostics_of(stderr: str) -> list[Diagnostic]:
    """The diagnostics of a command that knows no `-json`: blocks of `Error: summary`, an empty line, the detail."""
    found = []
    for block in re.split(r"^[^\w\n]*Error: ", _plain(stderr), flags=re.MULTILINE)[1:]:
        summary, _, detail = block.partition("\n")
        # The lines that quote the source stand before the detail.
        detail = re.sub(r"^\s*(on \S+ line \d+.*|\d+:.*)$", "", detail, flags=re.MULTILINE).strip()
        found.append(Diagnostic("error", summary.strip(), detail))
    return found


#: Types that are imported by the name which the provider puts in brackets into its message.
_IMPORTED_BY_NAME = (
    "aws_cloudwatch_log_group",
    "aws_cloudwatch_event_rule",
    "aws_eks_cluster",
    "aws_iam_instance_profile",
    "aws_iam_role",
    "aws_kms_alias",
)


def import_blocks(errors: list[Diagnostic]) -> str:
    """One `import` block for each thing that exists already; its id as far as the message tells it."""
    blocks = []
    for error in errors:
        if not error.address or not re.search(_EXISTS, f"{error.summary}\n{error.detail}"):
            continue
        kind = error.address.split("[")[0].split(".")[-2]
        named = re.search(r"\(([^()]+)\)", error.summary)
        by_name = named is not None and kind in _IMPORTED_BY_NAME
        identifier = named[1] if named and by_name else f"<its id: see the import section of {kind} in the provider>"
        blocks.append(f'import {{\n  to = {error.address}\n  id = "{identifier}"\n}}')
    return "\n".join(blocks) or 'import {\n  to = <address>\n  id = "<id>"\n}'


def _plain(text: str) -> str:
    """Without colours, and without the bar that stands beside a boxed message."""
    return re.sub(r"^[│╷╵] ?", "", re.sub(r"\x1b\[[0-9;]*m", "", text), flags=re.MULTILINE)


def _classify(message: str, said: str, errors: list[Diagnostic]) -> NimRolloutsError:
    if "Saved plan is stale" in said or "plan file can no longer be applied" in said:
        return TerraformFailed(
            message, reason="plan-stale", hint="The state has changed since the plan was made: clear the plan task"
        )
    if re.search(_THROTTLED, said):
        return TerraformUnavailable(message, reason="aws-throttled", retry_after_s=60)
    if "DependencyViolation" in said:
        return TerraformUnavailable(
            message,
            reason="dependency-violation",
            retry_after_s=60,
            hint="Something that terraform does not manage (a load balancer, a network interface, a security group of a"
            " controller) still uses it: remove the cluster's Services and nodes first",
        )
    if re.search(_NETWORK, said):
        return TerraformUnavailable(message, reason="aws-unreachable")
    if re.search(_DENIED, said):
        return AccessDenied(
            message, layer="terraform", hint="Check the AWS connection and grant its identity what the message names"
        )
    if re.search(_QUOTA, said):
        return NeedsHumanError(
            message, layer="aws", reason="quota", hint="Ask for a higher service quota in this region, or free some"
        )
    if re.search(_EXISTS, said):
        return TerraformFailed(
            message,
            reason="already-exists",
            hint="Something outside of this state has that name. Remove it, choose another name, or take it over with"
            f" this in a .tf file of the root:\n{import_blocks(errors)}",
        )
    return TerraformFailed(message, hint="Read the whole output in the log above; correct the root or its variables")
