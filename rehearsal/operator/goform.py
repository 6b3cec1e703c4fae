"""A spec as the operator's Go structs write it back.

The update that adds the finalizer sends the whole object through those structs. So defaults appear, quantities become
canonical, empty strings, lists and maps vanish, and nested structs without a pointer appear as `{}`. That is why a
custom resource has generation 2 a moment after its creation.
"""

from __future__ import annotations

import copy
from typing import Any

from rehearsal.operator.api import Obj
from rehearsal.operator.quantity import canonical

# Go maps with `omitempty`: an empty one is not written. An empty struct behind a pointer (`emptyDir: {}`) is.
_MAPS = {
    "annotations", "labels", "nodeSelector", "limits", "requests", "matchLabels", "additionalLabels", "parameters",
}  # fmt: skip
_QUANTITY_MAPS = {"limits", "requests"}
_QUANTITIES = {"sizeLimit", "sharedMemorySizeLimit"}
# Numbers of a probe are no pointers: a zero is not written.
_OMITTED_ZEROS = {
    "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold",
}  # fmt: skip


def _prune(value: Any, key: str = "") -> Any:
    if isinstance(value, list):
        return [_prune(item) for item in value]
    if not isinstance(value, dict):
        return canonical(value) if key in _QUANTITIES else value
    if key in _QUANTITY_MAPS:
        return {name: canonical(amount) for name, amount in value.items()}
    if key in _MAPS:
        # An empty string is a value like any other in a map (a label, an annotation).
        return dict(value)
    result = {}
    for name, item in value.items():
        fresh = _prune(item, name)
        if fresh in ("", None, []) or (fresh == {} and name in _MAPS):
            continue
        if name in _OMITTED_ZEROS and fresh == 0:
            continue
        result[name] = fresh
    return result


def _ensure(spec: Obj, *path: str) -> Obj:
    for key in path:
        spec = spec.setdefault(key, {})
    return spec


def nimcache_spec(spec: Obj) -> Obj:
    result: Obj = _prune(copy.deepcopy(spec))
    _ensure(result, "storage", "pvc")
    resources = _ensure(result, "resources")
    for name in ("cpu", "memory"):
        resources[name] = canonical(resources.get(name, "0"))
    return result


def nimservice_spec(spec: Obj) -> Obj:
    result: Obj = _prune(copy.deepcopy(spec))
    for path in (
        ("expose", "service"), ("expose", "ingress", "spec"), ("expose", "router"), ("livenessProbe",),
        ("readinessProbe",), ("startupProbe",), ("metrics", "serviceMonitor"), ("scale", "hpa"),
        ("storage", "nimCache"), ("storage", "pvc"),
    ):  # fmt: skip
        _ensure(result, *path)
    result["scale"]["hpa"].setdefault("maxReplicas", 0)
    return result


def nimpipeline_spec(spec: Obj) -> Obj:
    result: Obj = _prune({key: value for key, value in spec.items() if key != "services"})
    if services := spec.get("services"):
        result["services"] = [
            _prune({key: value for key, value in service.items() if key != "spec"})
            | {"spec": nimservice_spec(service.get("spec") or {})}
            for service in services
        ]
    return result
