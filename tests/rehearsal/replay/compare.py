"""What a replay must have in common with the recording, and what may differ by a race."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from tests.rehearsal.replay.scenario import CUSTOM

Obj = dict[str, Any]
Trace = list[Obj]

RACE_S = {"Pending": 2.0, "NotReady": 0.25}
"""A state that lasts shorter is one side of a race: Pending shows if the operator looks between the end of the Job's
pod and the Job controller's last word on it, or before its first; NotReady, if a reconcile meets its own writes too
soon."""
FLAPPING, FLAPS = "(flapping)", ("Failed", "InProgress", "Pending")
RECONCILE_FAILED = "NIM_CACHE_RECONCILE_FAILED"
SUBJECTS = (
    *CUSTOM,
    "Job",
    "Pod",
    "Deployment",
    "ReplicaSet",
    "PersistentVolumeClaim",
    "Service",
    "HorizontalPodAutoscaler",
)
LOST = ("NIM_CACHE_PVC_CREATED", "NIM_CACHE_JOB_CREATED")
"""Conditions of which the reference says that they can be lost by a status written from a stale cache."""
UNTOLD = ("NIM_CACHE_JOB_PENDING",)
"""A condition whose values depend on whether the Job's first and last steps were seen as one: it must only be there."""


def differences(recorded: Trace, replayed: Trace) -> list[str]:
    """What differs, one line each; empty when the replay matches."""
    found = []
    for key in sorted({k for trace in (recorded, replayed) for k in _versions(trace, CUSTOM)}):
        want, got = (_versions(trace, CUSTOM).get(key, []) for trace in (recorded, replayed))
        found += _differ(f"{key} states", states(want), states(got))
        for type_ in sorted({t for versions in (want, got) for t in _condition_types(versions)} - set(LOST + UNTOLD)):
            found += _differ(f"{key} condition {type_}", condition(want, type_), condition(got, type_))
        for type_ in UNTOLD:
            found += _differ(f"{key} condition {type_} ever", _ever(want, type_), _ever(got, type_))
        if want and got:
            found += _differ(f"{key} end", end(want[-1]), end(got[-1]))
    found += _objects(recorded, replayed)
    found += _differ("events of the operator", _operator_events(recorded), _operator_events(replayed))
    return found


def _differ(what: str, want: Any, got: Any) -> list[str]:
    return [] if want == got else [f"{what}: recorded {want!r}, replayed {got!r}"]


def _versions(trace: Trace, kinds: tuple[str, ...]) -> dict[str, Trace]:
    """Entries by Kind/name; generated parts of names are left out, incarnations stand one after the other."""
    result: dict[str, Trace] = {}
    for entry in trace:
        if entry["object"]["kind"] in kinds:
            result.setdefault(f"{entry['object']['kind']}/{entry['object']['metadata']['name']}", []).append(entry)
    return result


def state_of(obj: Obj) -> str:
    """The state; the error of a selection pod that the operator's cache does not know yet counts as none: whether it
    shows, and stays until the pod runs, is a race."""
    state = str(obj.get("status", {}).get("state", ""))
    failed = _conditions(obj).get(RECONCILE_FAILED, {})
    return "" if state == "NotReady" and _is_pod_race(obj, failed) else state


def _is_pod_race(obj: Obj, failed: Obj) -> bool:
    return obj["kind"] == "NIMCache" and failed.get("message") == f'Pod "{obj["metadata"]["name"]}-pod" not found'


def states(versions: Trace) -> list[str]:
    """The states in order, without those that a race alone brings: short ones, and how often a retried Job makes the
    state flap before it is Ready, which is a matter of how many of the Job's steps one reconcile sees as one."""
    spans: list[tuple[str, float]] = []
    for entry in versions:
        state = "(gone)" if entry["type"] == "DELETED" else state_of(entry["object"])
        if not spans or spans[-1][0] != state:
            spans.append((state, entry["t"]))
    last = versions[-1]["t"] + 3600 if versions else 0.0
    kept: list[str] = []
    for (state, begin), (_, until) in zip(spans, [*spans[1:], ("", last)], strict=True):
        short = until - begin < RACE_S.get(state, 0.0)
        if not short and (not kept or kept[-1] != state):
            kept.append(state)
    return _without_flapping(kept) if versions and versions[0]["object"]["kind"] == "NIMCache" else kept


def _without_flapping(kept: list[str]) -> list[str]:
    """What follows the first Failed of a download that is not Ready yet is one flapping."""
    result: list[str] = []
    ready = False
    for state in kept:
        ready = state == "Ready" or (ready and state == "Failed")
        if result and result[-1] == FLAPPING and state in FLAPS and not ready:
            continue
        result.append(FLAPPING if state == "Failed" and not ready else state)
    return result


def _conditions(obj: Obj) -> dict[str, Obj]:
    return {c["type"]: c for c in obj.get("status", {}).get("conditions") or []}


def _condition_types(versions: Trace) -> set[str]:
    return {type_ for entry in versions for type_ in _conditions(entry["object"])}


def condition(versions: Trace, type_: str) -> list[tuple[str, str]]:
    """(status, reason) of a condition in order; without the creation race's error and what follows from it."""
    result: list[tuple[str, str]] = []
    for entry in versions:
        found = _conditions(entry["object"]).get(type_)
        if found is None:
            continue
        if type_ == RECONCILE_FAILED:
            if _is_pod_race(entry["object"], found) or (found["status"] == "False" and not result):
                continue
        value = (found["status"], found["reason"])
        if not result or result[-1] != value:
            result.append(value)
    return result


def _ever(versions: Trace, type_: str) -> bool:
    return bool(condition(versions, type_))


def end(entry: Obj) -> Obj:
    """The object as it was at last: spec, finalizers, and of the status what does not vary from run to run."""
    obj = entry["object"]
    status = copy.deepcopy(obj.get("status", {}))
    status.pop("conditions", None)
    status["state"] = state_of(obj)
    never_ready = obj["kind"] == "NIMCache" and "pvc" not in status
    if never_ready and status["state"] in FLAPS and "NIM_CACHE_JOB_COMPLETED" in _conditions(obj):
        status["state"] = FLAPPING
    if "model" in status:
        status["model"].pop("clusterEndpoint", None)
    return {"spec": obj["spec"], "finalizers": obj["metadata"].get("finalizers"), "status": status}


_GENERATED_LABELS = ("controller-uid", "batch.kubernetes.io/controller-uid", "pod-template-hash")
_SERVER_SPEC = {
    "Service": ("clusterIP", "clusterIPs"),
    "PersistentVolumeClaim": ("volumeName",),
    "Job": ("selector",),
    "Pod": ("nodeName", "hostname"),
}


def _name(obj: Obj) -> str:
    """A name without generated parts: a pod is called after its owner, a ReplicaSet after its Deployment."""
    owner = next((ref for ref in obj["metadata"].get("ownerReferences") or [] if ref.get("controller")), None)
    if obj["kind"] == "ReplicaSet" or (obj["kind"] == "Pod" and owner and owner["kind"] in ("ReplicaSet", "Job")):
        assert owner
        name = owner["name"]
        return f"{name.rsplit('-', 1)[0]}-?" if owner["kind"] == "ReplicaSet" else f"{name}-?"
    return str(obj["metadata"]["name"])


def _clean(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        fresh = {
            k: _clean(v, k)
            for k, v in value.items()
            if k not in _GENERATED_LABELS and k not in ("uid", "resourceVersion")
        }
        if str(fresh.get("name", "")).startswith("kube-api-access-"):
            fresh["name"] = "kube-api-access-?"
        return fresh
    return [_clean(item) for item in value] if isinstance(value, list) else value


def shape(obj: Obj) -> Obj:
    """What of an object must be the same: name, labels, annotation keys, owner, spec at its creation."""
    meta = obj["metadata"]
    spec = {} if obj["kind"] == "ReplicaSet" else copy.deepcopy(obj.get("spec", {}))
    for field in _SERVER_SPEC.get(obj["kind"], ()):
        spec.pop(field, None)
    return {
        "name": _name(obj),
        "labels": _clean(meta.get("labels") or {}),
        "annotations": sorted(meta.get("annotations") or {}),
        "owners": [
            (ref["kind"], ref["name"] if ref["kind"] != "ReplicaSet" else "?")
            for ref in meta.get("ownerReferences") or []
        ],
        "spec": _clean(spec),
    }


def _made(trace: Trace) -> list[tuple[str, Obj]]:
    """The objects that came, in a fixed order; how many pods of a template there were counts too."""
    added = [
        (e["object"]["kind"], shape(e["object"]))
        for e in trace
        if e["type"] == "ADDED" and e["object"]["kind"] in SUBJECTS
    ]
    return sorted(added, key=lambda item: (item[0], item[1]["name"], str(item[1])))


def _objects(recorded: Trace, replayed: Trace) -> list[str]:
    want, got = _made(recorded), _made(replayed)
    found = _differ("objects made", [(k, s["name"]) for k, s in want], [(k, s["name"]) for k, s in got])
    if not found:
        for (kind, expected), (_, actual) in zip(want, got, strict=True):
            for part in expected:
                found += _differ(f"{kind}/{expected['name']} {part}", expected[part], actual[part])
    return found


def present(trace: Trace, until: float = float("inf")) -> Counter[str]:
    """What there is at a time: how many objects of a kind and name, without generated parts."""
    live: dict[str, str] = {}
    for entry in trace:
        obj = entry["object"]
        if entry["t"] <= until and obj["kind"] in SUBJECTS:
            if entry["type"] == "DELETED":
                live.pop(obj["metadata"]["uid"], None)
            else:
                live[obj["metadata"]["uid"]] = f"{obj['kind']}/{_name(obj)}"
    return Counter(live.values())


def states_between(trace: Trace, begin: float = float("inf"), end_: float = float("inf")) -> dict[str, set[str]]:
    """The states of each custom resource from one time to another, by Kind/name."""
    result: dict[str, set[str]] = {}
    for entry in trace:
        obj = entry["object"]
        key = f"{obj['kind']}/{obj['metadata']['name']}"
        if obj["kind"] not in CUSTOM or entry["t"] > end_:
            continue
        if entry["type"] == "DELETED":
            # Gone within the span: its states up to then stay.
            if entry["t"] <= begin:
                result.pop(key, None)
        elif entry["t"] <= begin:
            result[key] = {state_of(obj)}
        else:
            result.setdefault(key, set()).add(state_of(obj))
    return result


def _operator_events(trace: Trace) -> set[tuple[str, str, str]]:
    """(kind, type, reason) of the Events that the operator wrote, without those that come and go with a race."""
    result = set()
    for entry in trace:
        obj = entry["object"]
        if obj["kind"] != "Event" or not str(obj.get("source", {}).get("component", "")).startswith("nim"):
            continue
        racing = obj["reason"] in ("PVC-Created", "Pending") or str(obj.get("message", "")).endswith('-pod" not found')
        if not racing:
            result.add((obj["involvedObject"]["kind"], obj["type"], obj["reason"]))
    return result
