"""The objects that are waited for, with the sizes that a real cluster gives them, and the writes that end the waits."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.resources import Ref, path_of
from nim_rollouts.clients.rest import Rest

Object = dict[str, Any]

RECORDING = Path(__file__).resolve().parents[2] / "tests" / "recordings" / "service-ready" / "events.jsonl"
NAMESPACE = "waiting"
_SERVER_SET = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "generateName")


class Writer:
    """Writes, as the operator and the Job controller would."""

    def __init__(self, access: ClusterAccess) -> None:
        self._access = access
        self._own = threading.local()

    @property
    def rest(self) -> Rest:
        if not hasattr(self._own, "rest"):
            self._own.rest = Rest(self._access)
        return self._own.rest

    def create(self, obj: Object) -> Object:
        """The object as it is made; its status is written after it."""
        ref = Ref.of(obj)
        made = self.rest.json("POST", path_of(ref.api_version, ref.kind, ref.namespace), body=obj)
        if obj.get("status"):
            self.status(obj, obj["status"])
        return made

    def status(self, obj: Object, status: Object) -> None:
        self.rest.json(
            "PATCH",
            Ref.of(obj).path + "/status",
            body={"status": status},
            content_type="application/merge-patch+json",
        )

    def many(self, make: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(make, names))


class Services:
    """NIMServices with what belongs to each, all but ready: the state alone is missing."""

    kind = "NIMService"
    resources = (
        "nimservices", "nimcaches", "deployments", "replicasets", "pods", "persistentvolumeclaims", "events",
    )  # fmt: skip

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        latest: dict[str, Object] = {}
        for line in RECORDING.read_text().splitlines():
            obj = json.loads(line)["object"]
            latest[obj["kind"]] = obj  # of each kind the last: of the pods, that of the service
        self._templates = {kind: latest[kind] for kind in ("NIMService", "Deployment", "ReplicaSet", "Pod")}
        # The recording shows a ReplicaSet without its pods' template, which is the Deployment's.
        replicas, pods = self._templates["ReplicaSet"]["spec"], self._templates["Deployment"]["spec"]["template"]
        replicas["template"] = copy.deepcopy(pods)
        replicas["template"]["metadata"]["labels"] = dict(replicas["selector"]["matchLabels"])
        self._old = self._templates["NIMService"]["metadata"]["name"]
        self.image = "{repository}:{tag}".format(**self._templates["NIMService"]["spec"]["image"])

    def make(self, name: str) -> None:
        owner: Object | None = None
        for kind, template in self._templates.items():
            obj = json.loads(json.dumps(template).replace(self._old, name))
            metadata = obj["metadata"]
            for field in (*_SERVER_SET, "finalizers", "ownerReferences"):
                metadata.pop(field, None)
            metadata["namespace"] = NAMESPACE
            if owner is not None:
                metadata["ownerReferences"] = [
                    {
                        "apiVersion": owner["apiVersion"],
                        "kind": owner["kind"],
                        "name": owner["metadata"]["name"],
                        "uid": owner["metadata"]["uid"],
                        "controller": True,
                    }
                ]
            if kind == "NIMService":
                obj["status"] = {"state": "NotReady", "conditions": obj["status"]["conditions"]}
            if kind == "Pod":
                _as_created(obj["spec"])
            if kind == "Deployment":
                # Written by the benchmark, not by a controller: the generation is that of a new object.
                obj["status"]["observedGeneration"] = 1
            owner = {**self.writer.create(obj), "apiVersion": obj["apiVersion"], "kind": kind}

    def is_right(self, event: str) -> bool:
        """True for the event with which a wait is to end."""
        return "'reached': True" in event

    def end(self, name: str) -> None:
        obj = {**self._templates["NIMService"], "metadata": {"name": name, "namespace": NAMESPACE}}
        self.writer.status(obj, {"state": "Ready"})


class Jobs:
    """Jobs without a controller, which the benchmark completes."""

    kind = "Job"
    resources = ("jobs",)
    image = ""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def make(self, name: str) -> None:
        pod = {"restartPolicy": "Never", "containers": [{"name": "base", "image": "example.com/none"}]}
        self.writer.create(_job(name) | {"spec": {"template": {"spec": pod}}})

    def is_right(self, event: str) -> bool:
        """True for the event with which a wait is to end."""
        return "'status': 'success'" in event

    def end(self, name: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [
            {"type": one, "status": "True", "reason": "Done", "lastTransitionTime": now}
            for one in ("SuccessCriteriaMet", "Complete")
        ]
        self.writer.status(
            _job(name), {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": conditions}
        )


def _job(name: str) -> Object:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE}}


def _as_created(spec: Object) -> None:
    """Without what admission adds, and refuses when it is there already."""
    for field in ("nodeName", "serviceAccount", "serviceAccountName", "priority", "preemptionPolicy"):
        spec.pop(field, None)
    spec["volumes"] = [one for one in spec.get("volumes") or () if not one["name"].startswith("kube-api-access")]
    for container in spec["containers"]:
        container["volumeMounts"] = [
            one for one in container.get("volumeMounts") or () if not one["name"].startswith("kube-api-access")
        ]


def prepare(writer: Writer, crds: Path) -> None:
    """Namespace, service account and the operator's kinds."""
    import yaml

    for file in sorted(crds.glob("*.yaml")):
        for definition in yaml.safe_load_all(file.read_text()):
            if definition:
                writer.create(copy.deepcopy(definition))
    writer.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    # Admission wants it for pods; no controller is there to make it.
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": NAMESPACE}}
    writer.create(account)
