"""What the EKS extension knows of each cluster beyond moto, and the errors in EKS's own shapes.

Names, status codes and fields are those of the EKS API, version 2017-11-01 (botocore's service model).
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class EksError(Exception):
    """An error answer: HTTP status, the exception's name in the EKS API, a message and the fields that go with it."""

    def __init__(self, status: int, name: str, message: str, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.body: Json = {"message": message, **fields}


def not_found(message: str, **fields: str) -> EksError:
    return EksError(404, "ResourceNotFoundException", message, **fields)


def in_use(message: str, **fields: str) -> EksError:
    return EksError(409, "ResourceInUseException", message, **fields)


def invalid(message: str, **fields: str) -> EksError:
    return EksError(400, "InvalidParameterException", message, **fields)


def now() -> float:
    """EKS's JSON carries times as seconds since the epoch."""
    return round(time.time(), 3)


@dataclass
class Caller:
    """Account and region that a request was signed for."""

    account: str
    region: str


@dataclass
class Call:
    """One request to the extension; path segments are decoded one by one, so that an ARN may hold slashes."""

    method: str
    segments: list[str]
    query: dict[str, list[str]]
    body: Json
    caller: Caller

    def page(self, key: str, items: list[Any]) -> Json:
        """A list answer, cut to `maxResults` (EKS: 1-100) with the offset as its token."""
        start = int(self.query.get("nextToken", ["0"])[0] or 0)
        size = int(self.query.get("maxResults", ["100"])[0])
        answer: Json = {key: items[start : start + size]}
        if start + size < len(items):
            answer["nextToken"] = str(start + size)
        return answer


@dataclass
class AccessEntry:
    """An access entry as EKS describes it, and the policies associated with it by their ARN."""

    description: Json
    policies: dict[str, Json] = field(default_factory=dict)


@dataclass
class ClusterState:
    """One cluster's extension state. It goes when the cluster goes."""

    name: str
    caller: Caller
    settings: Json
    security_group_id: str
    access_entries: dict[str, AccessEntry] = field(default_factory=dict)
    addons: dict[str, Json] = field(default_factory=dict)
    pod_identities: dict[str, Json] = field(default_factory=dict)
    updates: dict[str, Json] = field(default_factory=dict)

    def arn(self, kind: str, *parts: str) -> str:
        path = "/".join((self.name, *parts))
        return f"arn:aws:eks:{self.caller.region}:{self.caller.account}:{kind}/{path}"

    def record_update(self, kind: str, **scope: str) -> Json:
        """A finished update, kept for DescribeUpdate: the stand-in changes things at once."""
        update: Json = {
            "id": str(uuid.uuid4()),
            "status": "Successful",
            "type": kind,
            "params": [],
            "createdAt": now(),
            "errors": [],
        }
        self.updates[update["id"]] = update
        return {"update": update}


class Clusters:
    """All clusters of the process, by account, region and name. One lock serialises the extension's changes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._clusters: dict[tuple[str, str, str], ClusterState] = {}

    def add(self, cluster: ClusterState) -> None:
        self._clusters[(cluster.caller.account, cluster.caller.region, cluster.name)] = cluster

    def get(self, caller: Caller, name: str) -> ClusterState:
        """Raises ResourceNotFoundException where no such cluster stands."""
        cluster = self._clusters.get((caller.account, caller.region, name))
        if cluster is None:
            raise not_found(f"No cluster found for name: {name}.", clusterName=name)
        return cluster

    def find(self, caller: Caller, name: str) -> ClusterState | None:
        return self._clusters.get((caller.account, caller.region, name))

    def remove(self, caller: Caller, name: str) -> ClusterState | None:
        return self._clusters.pop((caller.account, caller.region, name), None)

    def clear(self) -> None:
        self._clusters.clear()

    def in_region(self, caller: Caller) -> list[ClusterState]:
        return [
            c
            for (account, region, _), c in self._clusters.items()
            if (account, region) == (caller.account, caller.region)
        ]

    def tagged(self, arn: str) -> Json | None:
        """The description whose ARN this is, if it is one that the extension (not moto) holds."""
        for cluster in self._clusters.values():
            for entry in cluster.access_entries.values():
                if entry.description["accessEntryArn"] == arn:
                    return entry.description
            for addon in cluster.addons.values():
                if addon["addonArn"] == arn:
                    return addon
            for association in cluster.pod_identities.values():
                if association["associationArn"] == arn:
                    return association
        return None
