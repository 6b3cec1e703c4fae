"""Looking things up in a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from nim_rollouts.core.verdicts.model import Object, Snapshot


def find(objects: Snapshot, kind: str, name: str) -> Object | None:
    """The object of that kind and name."""
    return next((one for one in objects.get(kind, ()) if name_of(one) == name), None)


def name_of(obj: Object) -> str:
    """metadata.name"""
    return str(obj["metadata"]["name"])


def uid_of(obj: Object) -> str | None:
    """metadata.uid"""
    value = obj["metadata"].get("uid")
    return None if value is None else str(value)


def is_deleting(obj: Object) -> bool:
    """True once deletionTimestamp is set."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def status(obj: Object) -> Mapping[str, Any]:
    """status, or an empty mapping."""
    return obj.get("status") or {}


def count(fields: Mapping[str, Any], name: str, default: int = 0) -> int:
    """A number among fields; the default where it is missing or null."""
    value = fields.get(name)
    return default if value is None else int(value)


def labels(obj: Object) -> Mapping[str, str]:
    """metadata.labels, or an empty mapping."""
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: Object) -> Mapping[str, str]:
    """metadata.annotations, or an empty mapping."""
    return obj["metadata"].get("annotations") or {}


def has_ended(pod: Object) -> bool:
    """True for a pod that has succeeded or failed: it runs nothing and holds nothing any more."""
    return status(pod).get("phase") in ("Succeeded", "Failed")


def time_of(text: object) -> datetime | None:
    """A time as the API server writes it, to the second or finer; None where it is missing or is none."""
    try:
        moment = datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def times_seen(event: Object) -> int:
    """How often an Event has happened: kubelets count in `count`, newer recorders in `series`."""
    return max(count(event, "count", 1), count(event.get("series") or {}, "count", 1))


def condition(obj: Object, type_: str) -> Mapping[str, Any]:
    """The condition of that type, or an empty mapping."""
    return next((one for one in status(obj).get("conditions") or () if one.get("type") == type_), {})


def is_true(obj: Object, type_: str) -> bool:
    """True when the condition of that type has status True."""
    return condition(obj, type_).get("status") == "True"


def owners(obj: Object) -> list[Mapping[str, Any]]:
    """metadata.ownerReferences"""
    return obj["metadata"].get("ownerReferences") or []


def owned_by(obj: Object, owner: Object) -> bool:
    """True when the object refers to exactly this owner, by uid."""
    uid = uid_of(owner)
    return uid is not None and any(reference.get("uid") == uid for reference in owners(obj))


def owned(objects: Snapshot, kind: str, owner: Object) -> list[Object]:
    """The objects of a kind that this owner has."""
    return [one for one in objects.get(kind, ()) if owned_by(one, owner)]


def selected(objects: Snapshot, kind: str, wanted: Mapping[str, str]) -> list[Object]:
    """The objects of a kind that carry all these labels."""
    return [one for one in objects.get(kind, ()) if wanted and wanted.items() <= labels(one).items()]


def events_of(objects: Snapshot, obj: Object) -> Iterator[Object]:
    """core/v1 Events about an object."""
    kind, name, uid = obj.get("kind"), name_of(obj), uid_of(obj)
    for event in objects.get("Event", ()):
        involved = event.get("involvedObject") or {}
        if involved.get("kind") == kind and involved.get("name") == name and involved.get("uid") in (uid, None, ""):
            yield event


def moment_of(event: Object, *, first: bool = False) -> str:
    """When an Event happened last, or first, as the API server writes it: such texts sort as their times do."""
    series = event.get("series") or {}
    began, last = event.get("firstTimestamp"), event.get("lastTimestamp") or series.get("lastObservedTime")
    said = (began if first else last) or event.get("eventTime")
    return str(said or event["metadata"].get("creationTimestamp") or "")


def claims_of(pod: Object) -> list[str]:
    """Names of the volume claims that a pod mounts."""
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    sources = [volume.get("persistentVolumeClaim") or {} for volume in volumes]
    return [str(source["claimName"]) for source in sources if source.get("claimName")]


def images(obj: Object) -> list[str]:
    """Images of the containers of a pod, or of a workload's pod template."""
    spec = obj.get("spec") or {}
    spec = (spec.get("template") or {}).get("spec") or spec
    return [str(one.get("image")) for one in spec.get("containers") or ()]


def ref(obj: Object, fallback_kind: str = "") -> str:
    """`Kind/name`"""
    return f"{obj.get('kind') or fallback_kind}/{name_of(obj)}"
