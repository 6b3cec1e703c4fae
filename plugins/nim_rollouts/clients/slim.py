"""What is kept of an object in a triggerer, and which names an object has to do with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

# What these events say, the objects say themselves; in a busy namespace they are most of all events. (Not all Normal
# ones go: how often a kubelet has begun to pull tells a blip of the registry from its refusal, and why it ends a
# container, a probe's end from a crash.)
NOISE = (
    "Scheduled", "Pulled", "Created", "Started", "SuccessfulCreate", "SuccessfulDelete", "ScalingReplicaSet",
)  # fmt: skip
SELECTORS = {"Event": ",".join(f"reason!={reason}" for reason in NOISE)}

_EVENT_FIELDS = (
    "apiVersion", "kind", "type", "reason", "message", "involvedObject", "count", "series", "source",
    "firstTimestamp", "lastTimestamp", "eventTime", "reportingComponent",
)  # fmt: skip
_EVENT_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
# Of a pod: where it runs, what runs in it, what it mounts, and how it fares. Of what makes pods: what they run.
_POD_FIELDS = ("nodeName",)
_CONTAINER_FIELDS = ("name", "image", "startupProbe")
_POD_STATUS = ("phase", "reason", "message", "conditions", "initContainerStatuses", "containerStatuses", "startTime")
_CONTAINER_STATUS = ("name", "image", "ready", "started", "restartCount", "state", "lastState")
_WORKLOAD_NOISE = ("strategy", "revisionHistoryLimit")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# Conditions' times other than that of the last transition: of some kinds they change with every heartbeat.
_BEATS = ("lastHeartbeatTime", "lastProbeTime", "lastUpdateTime")
# Longer strings are seldom twice the same.
_SHARED = 100


def slim(obj: Object) -> Object:
    """A copy without what no verdict reads: managedFields, kubectl's copy of the manifest, most of a pod's spec (its
    environment, too) and addresses, schemas of custom resources, images and heartbeats of nodes, all but the facts of
    an event. Equal strings are one string for all objects: names, labels and keys are most of what a dict weighs.
    """
    metadata = obj["metadata"]
    metadata.pop("managedFields", None)
    if (annotations := metadata.get("annotations")) is not None:
        annotations.pop(_LAST_APPLIED, None)
    kind, spec, status = obj["kind"], obj.get("spec") or {}, obj.get("status") or {}
    if kind == "Event":
        obj = {**_only(_EVENT_FIELDS, obj), "metadata": _only(_EVENT_METADATA, metadata)}
    elif kind == "CustomResourceDefinition":
        for version in spec.get("versions") or ():
            version.pop("schema", None)
    elif kind == "Node":
        status.pop("images", None)
    elif kind == "Pod":
        obj = {**obj, "spec": _pod_spec(spec), "status": _pod_status(status)}
    elif isinstance(template := spec.get("template"), dict) and isinstance(template.get("spec"), dict):
        kept = {field: value for field, value in spec.items() if field not in _WORKLOAD_NOISE}
        obj = {**obj, "spec": {**kept, "template": {"spec": _pod_spec(template["spec"])}}}
    for one in status.get("conditions") or ():
        for beat in _BEATS:
            one.pop(beat, None)
    shared: Object = _shared(obj)
    return shared


def _only(fields: tuple[str, ...], obj: Object) -> Object:
    return {field: obj[field] for field in fields if obj.get(field) is not None}


def _pod_spec(spec: Object) -> Object:
    small = _only(_POD_FIELDS, spec)
    for field in ("containers", "initContainers"):
        if field in spec:
            small[field] = [_only(_CONTAINER_FIELDS, one) for one in spec[field]]
    claims = [one for one in spec.get("volumes") or () if "persistentVolumeClaim" in one]
    return {**small, "volumes": claims} if claims else small


def _pod_status(status: Object) -> Object:
    small = _only(_POD_STATUS, status)
    for field in ("initContainerStatuses", "containerStatuses"):
        if field in small:
            small[field] = [_only(_CONTAINER_STATUS, one) for one in small[field]]
    return small


def _shared(value: Any) -> Any:
    """A copy of JSON data in which equal strings are one."""
    if isinstance(value, str):
        return sys.intern(value) if len(value) <= _SHARED else value
    if isinstance(value, dict):
        return {sys.intern(name): _shared(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shared(one) for one in value]
    return value


def same(one: Object | None, other: Object) -> bool:
    """True when two versions of an object differ in nothing that is kept."""
    if one is None or one.keys() != other.keys():
        return False
    if any(one[field] != other[field] for field in one if field != "metadata"):
        return False
    mine, theirs = one["metadata"], other["metadata"]
    return mine.keys() == theirs.keys() and all(
        mine[field] == theirs[field] for field in mine if field != "resourceVersion"
    )


def key_of(obj: Object) -> tuple[str, str]:
    """(namespace or "", name)"""
    return obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def owners_of(obj: Object) -> Iterator[str]:
    """Names of the objects that own this one, or that it is an event about."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        yield reference["name"]
    involved = obj.get("involvedObject")
    if involved:
        yield involved.get("name") or ""


def references_of(obj: Object) -> Iterator[str]:
    """Names of what an object uses: claims, a service's cache, the node of a pod."""
    spec, status = obj.get("spec"), obj.get("status")
    if not isinstance(spec, dict):
        return
    for volume in spec.get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]
    storage = spec.get("storage")
    if isinstance(storage, dict):
        yield (storage.get("nimCache") or {}).get("name") or ""
        yield (storage.get("pvc") or {}).get("name") or ""
    yield spec.get("volumeName") or ""
    if isinstance(status, dict):
        yield status.get("pvc") or ""


def handles(obj: Object) -> set[str]:
    """Every name under which somebody who waits may have to do with the object: its own, those of its owners, of what
    it uses and of its labels, and of each the beginnings up to a dash, since all that operators and controllers make
    is named after what they made it for. Too many rather than too few: one more look costs little."""
    names = {obj["metadata"]["name"], *owners_of(obj), *references_of(obj)}
    labels = obj["metadata"].get("labels") or {}
    names.update(labels[label] for label in ("app", "job-name", "app.kubernetes.io/instance") if label in labels)
    found = set(names)
    for name in names:
        for position, letter in enumerate(name):
            if letter in "-.":
                found.add(name[:position])
    found.discard("")
    return found
