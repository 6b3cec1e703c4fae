"""What is kept of an object in a triggerer, and which names an object has to do with."""

from __future__ import annotations

import json
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
_POD_FIELDS = ("nodeName", "nodeSelector", "serviceAccountName", "imagePullSecrets", "restartPolicy")
_CONTAINER_FIELDS = ("name", "image", "command", "args", "resources", "startupProbe")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def parse(text: bytes) -> Any:
    """JSON, with one copy of each key for all objects: keys are most of what a dict of strings weighs."""
    return json.loads(text, object_pairs_hook=_interned)


def _interned(pairs: list[tuple[str, Any]]) -> Object:
    return {sys.intern(key): value for key, value in pairs}


def slim(obj: Object) -> Object:
    """The object without what no verdict reads: managedFields, kubectl's copy of the manifest, most of a pod's spec
    (its environment, too), schemas of custom resources, images and heartbeats of nodes, all but the facts of an event.
    """
    metadata = obj["metadata"]
    metadata.pop("managedFields", None)
    if (annotations := metadata.get("annotations")) is not None:
        annotations.pop(_LAST_APPLIED, None)
    kind = obj["kind"]
    if kind == "Event":
        small = {field: obj[field] for field in _EVENT_FIELDS if obj.get(field) is not None}
        return {**small, "metadata": {field: metadata[field] for field in _EVENT_METADATA if field in metadata}}
    if kind == "CustomResourceDefinition":
        for version in (obj.get("spec") or {}).get("versions") or ():
            version.pop("schema", None)
    elif kind == "Node":
        status = obj.get("status") or {}
        status.pop("images", None)
        for one in status.get("conditions") or ():
            one.pop("lastHeartbeatTime", None)
    else:
        _slim_pod(obj)
    return obj


def _slim_pod(obj: Object) -> None:
    """Of a pod, and of the pods that a workload makes: where it may run, what it runs, and what it mounts."""
    spec = obj.get("spec") or {}
    template = spec.get("template")
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        template["spec"] = _pod_spec(template["spec"])
    elif obj["kind"] == "Pod":
        obj["spec"] = _pod_spec(spec)


def _pod_spec(spec: Object) -> Object:
    small = {field: spec[field] for field in _POD_FIELDS if field in spec}
    for field in ("containers", "initContainers"):
        if field in spec:
            small[field] = [{name: one[name] for name in _CONTAINER_FIELDS if name in one} for one in spec[field]]
    claims = [one for one in spec.get("volumes") or () if "persistentVolumeClaim" in one]
    return {**small, "volumes": claims} if claims else small


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
