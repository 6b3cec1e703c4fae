"""Do all services of a NIMPipeline serve what it asks for?

Its Ready is a sum of its services' states and says nothing about their specs: since 3.1 the operator makes a service
and then never carries a change of the pipeline over to it. So each enabled service is compared with what the pipeline
asks for, and judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nim_rollouts.core.quantity import parse_quantity
from nim_rollouts.core.verdicts import gone as gone_verdict
from nim_rollouts.core.verdicts import service as service_verdict
from nim_rollouts.core.verdicts.model import (
    Blocker,
    Object,
    Snapshot,
    State,
    Verdict,
    failed,
    healthy,
    progressing,
    stuck,
)
from nim_rollouts.core.verdicts.objects import count, find, is_deleting, name_of, owned, owned_by, status
from nim_rollouts.core.verdicts.pods import STARTING
from nim_rollouts.core.verdicts.service import Desired

KINDS = ("NIMPipeline", *service_verdict.KINDS)
# Named lists of which the operator adds entries of its own; every other list is carried over whole.
_GROWING = ("env",)


def judge(objects: Snapshot, name: str, now: datetime) -> Verdict:
    """The verdict on the NIMPipeline of that name."""
    pipeline = find(objects, "NIMPipeline", name)
    if pipeline is None:
        return gone_verdict.judge(objects, "NIMPipeline", name, None, now)
    if is_deleting(pipeline):
        return progressing("deleting", "the NIMPipeline is being deleted", [f"NIMPipeline/{name} deletionTimestamp"])
    state = str(status(pipeline).get("state") or "")
    evidence = [f"NIMPipeline/{name} state={state or 'none'}"]
    # The stage while something is missing: a Ready shown meanwhile is that of the spec before.
    stage = "stale-ready" if state == "Ready" else "rollout-in-progress"
    asked = [
        one for one in (pipeline.get("spec") or {}).get("services") or () if one.get("enabled") and one.get("name")
    ]

    behind = _behind(objects, pipeline, asked)
    if behind is not None:
        return progressing(stage, behind.message, evidence, behind)
    verdicts = [(str(one["name"]), _of_service(objects, one, now)) for one in asked]
    bad = next((pair for pair in verdicts if pair[1].state in (State.FAILED, State.STUCK)), None)
    if bad is not None:
        ending = failed if bad[1].state is State.FAILED else stuck
        return ending(bad[1].reason, f"NIMService {bad[0]}: {bad[1].message}", [*evidence, *bad[1].evidence])
    waiting = [pair for pair in verdicts if pair[1].state is not State.HEALTHY]
    if waiting:
        service, verdict = max(waiting, key=lambda pair: _weight(pair[1]))
        message = f"{len(asked) - len(waiting)} of {len(asked)} services are ready; {service}: {verdict.message}"
        if verdict.reason.startswith("image-pull-"):
            return progressing(verdict.reason, message, [*evidence, *verdict.evidence], verdict.blocker)
        return progressing(stage, message, evidence, _blocker(verdict))
    return _all_serve(state, verdicts, status(pipeline).get("states") or {}, evidence)


def _all_serve(
    state: str, verdicts: list[tuple[str, Verdict]], states: Mapping[str, Any], evidence: list[str]
) -> Verdict:
    evidence = [*evidence, *(f"NIMService/{name} {verdict.reason}" for name, verdict in verdicts)]
    if state == "Ready" and all(states.get(name) == "Ready" for name, _ in verdicts):
        return healthy("ready", f"all {len(verdicts)} services serve", evidence)
    if any(verdict.reason == "serving-degraded-status" for _, verdict in verdicts):
        return healthy("serving-degraded-status", "all services serve; the state is bad because of a cache", evidence)
    return progressing("rollout-in-progress", "all services serve, the pipeline's state does not say so yet", evidence)


def _of_service(objects: Snapshot, asked: Mapping[str, Any], now: datetime) -> Verdict:
    spec = asked.get("spec") or {}
    image = spec.get("image") or {}
    wanted = Desired(str(asked["name"]), f"{image.get('repository')}:{image.get('tag')}", count(spec, "replicas", 1))
    return service_verdict.judge(objects, wanted, now)


def _weight(verdict: Verdict) -> int:
    """How much the verdict on one service tells of why the pipeline is not there yet."""
    if verdict.reason.startswith("image-pull-"):
        return 3
    if verdict.blocker is None:
        return 0
    return 1 if verdict.blocker.reason == STARTING else 2


def _blocker(verdict: Verdict) -> Blocker | None:
    """What a service hangs on is what the pipeline hangs on."""
    if verdict.blocker is not None:
        return verdict.blocker
    if verdict.reason in ("rollout-in-progress", "stale-ready", "deleted"):
        return None
    return Blocker(verdict.reason, verdict.message, verdict.evidence)


def _behind(objects: Snapshot, pipeline: Object, asked: list[Mapping[str, Any]]) -> Blocker | None:
    """The first service that is not what the pipeline asks for: another spec, another's, or one too many."""
    name = name_of(pipeline)
    for one in asked:
        service = find(objects, "NIMService", str(one["name"]))
        if service is None:
            continue
        where = f"NIMService/{one['name']}"
        if not owned_by(service, pipeline):
            message = f"NIMService {one['name']} does not belong to the pipeline, which leaves it alone"
            return Blocker("service-not-owned", message, [f"{where} ownerReferences"])
        differs = _difference(one.get("spec") or {}, service.get("spec") or {}, "spec")
        if differs is not None:
            message = f"NIMService {one['name']} is not what NIMPipeline {name} asks for: {differs}"
            return Blocker("update-not-propagated", message, [f"{where} {differs}"])
    names = {one["name"] for one in asked}
    for service in owned(objects, "NIMService", pipeline):
        if name_of(service) not in names and not is_deleting(service):
            message = f"NIMService {name_of(service)} is there, the pipeline does not ask for it any more"
            return Blocker("update-not-propagated", message, [f"NIMService/{name_of(service)}"])
    return None


def _difference(asked: Any, found: Any, path: str) -> str | None:
    """Where a service differs from what is asked. The operator adds defaults and drops what is empty (false and zero
    are empty to it), so only what is asked for counts, and what is missing only where something was."""
    if isinstance(asked, Mapping) and isinstance(found, Mapping):
        for key, value in asked.items():
            if value in (None, "", {}, []):
                continue
            if found.get(key) is not None:
                differs = _difference(value, found[key], f"{path}.{key}")
            else:
                differs = f"{path}.{key} is missing" if _says_something(value) else None
            if differs is not None:
                return differs
        return None
    if isinstance(asked, list) and isinstance(found, list):
        return _list_difference(asked, found, path)
    return None if _same(asked, found) else f"{path} is {found}, asked is {asked}"


def _says_something(value: Any) -> bool:
    """False for what Go's `omitempty` leaves out, and for maps of nothing else."""
    return any(_says_something(one) for one in value.values()) if isinstance(value, Mapping) else bool(value)


def _list_difference(asked: list[Any], found: list[Any], path: str) -> str | None:
    if path.rpartition(".")[2] in _GROWING:
        by_name = {one.get("name"): one for one in found}
        pairs = [(one, by_name.get(one.get("name"))) for one in asked]
    elif len(asked) != len(found):
        return f"{path} has {len(found)} entries, asked are {len(asked)}"
    else:
        pairs = list(zip(asked, found, strict=True))
    for number, (one, other) in enumerate(pairs):
        differs = f"{path}[{number}] is missing" if other is None else _difference(one, other, f"{path}[{number}]")
        if differs is not None:
            return differs
    return None


def _same(asked: Any, found: Any) -> bool:
    if asked == found or str(asked) == str(found):
        return True
    try:
        return parse_quantity(str(asked)) == parse_quantity(str(found))
    except ValueError:
        return False
