"""The cluster as workers see it: server-side apply, get, list, delete, logs, port-forward. Plain dicts, raw paths."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.portforward import PodHttp
from nim_rollouts.clients.resources import Ref, api_version_of, path_of
from nim_rollouts.clients.rest import ApiRefusal, Rest, meaning
from nim_rollouts.core.errors import ApplyConflict, ClusterUnavailable, Superseded, TransientError
from nim_rollouts.core.manifests import GENERATION, MANAGER

Object = dict[str, Any]
OPERATOR_MANAGERS = ("manager",)
"""Field managers whose fields we may take: the NIM Operator re-writes specs with their defaults as `manager`."""
CRD_MANAGERS = (
    *OPERATOR_MANAGERS,
    "helm",
    "crd-apply-tool",
    "kubectl",
    "kubectl-client-side-apply",
    "kubectl-create",
    "kubectl-replace",
)
"""The same of CRDs: whoever else brings a chart's. Helm's first install; the Job of NVIDIA's charts that upgrades them
(`crd-apply-tool`, which names no manager and is known by its program); people who apply, create or replace a chart's
files. Who edits or patches one means something else than the chart, and is told."""

_WRITE_ATTEMPTS = 8
_CONFLICT = re.compile(r'conflict with "([^"]+)"')


@dataclass(frozen=True)
class ApplyResult:
    """`changed`: the object was made, or what it holds besides metadata and status is another than before."""

    obj: Object
    changed: bool
    created: bool


class Cluster:
    """A client of one cluster. Errors: see `rest.meaning`; nothing is retried here but our own lost write races."""

    def __init__(self, access: ClusterAccess, *, timeout_s: float = 30.0) -> None:
        self.access = access
        self.rest = Rest(access, timeout_s)

    def version(self) -> str:
        """The API server's version, `v1.36.3`."""
        return str(self._call("GET", "/version", "version").get("gitVersion"))

    def get(self, api_version: str, kind: str, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        ref = Ref(api_version, kind, name, namespace)
        try:
            return self.rest.json("GET", ref.path)
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return None
            raise meaning(refusal, f"get {ref}") from refusal

    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> list[Object]:
        """The objects of a kind, of all namespaces when none is given; none when the kind is not served."""
        query = {"limit": "500"}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        items: list[Object] = []
        while True:
            try:
                page = self.rest.json("GET", path_of(api_version, kind, namespace), query=query)
            except ApiRefusal as refusal:
                if refusal.status == 404:
                    return []
                raise meaning(refusal, f"list {kind}") from refusal
            items += [{"apiVersion": api_version, "kind": kind, **item} for item in page.get("items") or ()]
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            query = {**query, "continue": token}

    def apply(
        self, obj: Mapping[str, Any], *, force_managers: Collection[str] = OPERATOR_MANAGERS, dry_run: bool = False
    ) -> ApplyResult:
        """Make the object as given, by server-side apply with strict field validation.

        Read first, and written only onto what was read: so an older run cannot overwrite a newer one's object, however
        the two interleave.

        :param force_managers: other managers whose fields may be taken; a conflict with anybody else is an error
        :raises Superseded: the object carries a higher generation than the one to apply
        :raises ApplyConflict: naming manager and field
        :raises ApplyRejected: the API server does not accept the object
        """
        ref = Ref.of(obj)
        for _ in range(_WRITE_ATTEMPTS):
            live = self.get(ref.api_version, ref.kind, ref.namespace, ref.name)
            if live is not None:
                _refuse_older(ref, obj, live)
                if live["metadata"].get("deletionTimestamp"):
                    raise TransientError(
                        f"{ref} is being deleted",
                        layer="cluster",
                        reason="object-terminating",
                        hint="It is made again once it is gone",
                        retry_after_s=15,
                    )
            try:
                new = self._apply(ref, _onto(obj, live), force_managers, dry_run)
            except _Moved:
                continue
            changed = live is None or _content(live) != _content(new)
            return ApplyResult(new, changed, created=live is None)
        raise ClusterUnavailable(f"apply {ref}: it was changed by others {_WRITE_ATTEMPTS} times meanwhile")

    def delete(
        self,
        obj: Mapping[str, Any] | Ref,
        *,
        uid: str | None = None,
        propagation: str = "Background",
        generation: int | None = None,
        resource_version: str | None = None,
    ) -> bool:
        """Order the deletion; False when there is nothing (any more) of that name, or of that uid or version.

        :param generation: the claim's: an object that carries a higher one is not deleted
        :raises Superseded: see `generation`
        """
        ref = obj if isinstance(obj, Ref) else Ref.of(obj)
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if generation is not None:
            live = self.get(ref.api_version, ref.kind, ref.namespace, ref.name)
            if live is None or (uid is not None and live["metadata"]["uid"] != uid):
                return False
            _refuse_older(ref, {"metadata": {"annotations": {GENERATION: str(generation)}}}, live)
            uid = live["metadata"]["uid"]
        wanted = {"uid": uid, "resourceVersion": resource_version}
        bound = {key: value for key, value in wanted.items() if value is not None}
        if bound:
            body["preconditions"] = bound
        try:
            self.rest.json("DELETE", ref.path, body=body)
        except ApiRefusal as refusal:
            # 409: the precondition failed: the name belongs to another object now, or this one has moved on.
            if refusal.status == 404 or (refusal.status == 409 and bound):
                return False
            raise meaning(refusal, f"delete {ref}") from refusal
        return True

    def patch(self, obj: Mapping[str, Any], changes: Mapping[str, Any]) -> Object | None:
        """Merge changes into this very object in this version of it; None when it has gone or moved on since."""
        ref, seen = Ref.of(obj), obj["metadata"]
        bound = {"uid": seen["uid"], "resourceVersion": seen["resourceVersion"]}
        try:
            return self.rest.json(
                "PATCH",
                ref.path,
                query={"fieldManager": MANAGER, "fieldValidation": "Strict"},
                body={**changes, "metadata": {**changes.get("metadata", {}), **bound}},
                content_type="application/merge-patch+json",
            )
        except ApiRefusal as refusal:
            if refusal.status in (404, 409):
                return None
            raise meaning(refusal, f"patch {ref}") from refusal

    def logs(
        self, namespace: str, pod: str, container: str | None = None, *, previous: bool = False, tail: int | None = None
    ) -> str:
        """The container's log, or "" when there is none (not started, no previous run, pod gone)."""
        query = {"previous": "true"} if previous else {}
        if container:
            query["container"] = container
        if tail is not None:
            query["tailLines"] = str(tail)
        path = path_of("v1", "Pod", namespace, pod) + "/log"
        try:
            return self.rest.text("GET", path, query=query)
        except ApiRefusal as refusal:
            if refusal.status in (400, 404):
                return ""
            raise meaning(refusal, f"logs of {pod}") from refusal

    @contextmanager
    def port_forward(self, namespace: str, pod: str, port: int) -> Iterator[PodHttp]:
        """HTTP to a pod's port, through the API server: no route to the pod's network is needed."""
        yield PodHttp(self.access, namespace, pod, port)

    def _apply(self, ref: Ref, obj: Object, force_managers: Collection[str], dry_run: bool) -> Object:
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        what = f"apply {ref}"
        for force in ("false", "true"):
            try:
                return self.rest.json(
                    "PATCH",
                    ref.path,
                    query={**query, "force": force},
                    body=obj,
                    content_type="application/apply-patch+yaml",
                )
            except ApiRefusal as refusal:
                if refusal.status != 409:
                    raise _rejected(refusal, what) from refusal
                conflicts = _conflicts(refusal)
                if not conflicts:
                    raise _Moved from refusal
                strangers = {manager for manager, _ in conflicts} - set(force_managers)
                if strangers or force == "true":
                    shown = ", ".join(f"{field} is owned by {manager}" for manager, field in conflicts)
                    raise ApplyConflict(f"{what}: {shown}") from refusal
        raise AssertionError("unreachable")

    def _call(self, method: str, path: str, what: str) -> Object:
        try:
            return self.rest.json(method, path)
        except ApiRefusal as refusal:
            raise meaning(refusal, what) from refusal


class _Moved(Exception):
    """The object is another than the one that was read."""


def _rejected(refusal: ApiRefusal, what: str) -> Exception:
    if refusal.status == 404:
        # The namespace or the kind: both come with an earlier stage.
        return TransientError(
            f"{what}: {refusal.text or 'the kind is not served'}",
            layer="cluster",
            reason="not-served",
            hint="Check that the namespace exists and that the add-on with this kind is installed",
        )
    return meaning(refusal, what)


def _conflicts(refusal: ApiRefusal) -> list[tuple[str, str]]:
    """(manager, field) of each field that somebody else owns."""
    found = []
    for cause in refusal.details.get("causes") or ():
        match = _CONFLICT.search(str(cause.get("message")))
        if cause.get("reason") == "FieldManagerConflict" and match:
            found.append((match.group(1), str(cause.get("field"))))
    return found


def _refuse_older(ref: Ref, obj: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    ours, theirs = _generation(obj), _generation(live)
    if ours is not None and theirs is not None and theirs > ours:
        raise Superseded(
            f"{ref} belongs to generation {theirs} of the claim, this run has {ours}",
            hint="Trigger a new run instead of clearing tasks of an old one; if the newest run is told this, the store"
            f" has lost its claims: remove the annotation {GENERATION} from the object",
        )


def _generation(obj: Mapping[str, Any]) -> int | None:
    value = (obj["metadata"].get("annotations") or {}).get(GENERATION)
    return int(value) if value is not None and str(value).isdigit() else None


def _onto(obj: Mapping[str, Any], live: Mapping[str, Any] | None) -> Object:
    """The object, bound to the version that was read."""
    if live is None:
        return dict(obj)
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}


def _content(obj: Mapping[str, Any]) -> Object:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status", "apiVersion", "kind")}


def ref(kind: str, name: str, namespace: str | None = None) -> Ref:
    """A reference to one of the kinds that we use."""
    return Ref(api_version_of(kind), kind, name, namespace)
