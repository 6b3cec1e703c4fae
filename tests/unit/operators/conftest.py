"""A run without Airflow and without a cluster: a real store in a folder, the real include files, a small API server."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nim_rollouts.clients import claims
from nim_rollouts.clients.cluster import ApplyResult
from nim_rollouts.clients.include import Include
from nim_rollouts.core.errors import ApplyRejected
from nim_rollouts.core.manifests import DEPLOYMENT_LABEL, ENVIRONMENT_LABEL, MANAGED_BY, MANAGER
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators.base import Stage, StageOperator

ROOT = Path(__file__).resolve().parents[3]
DEPLOYMENT = "meta-llama3-8b-instruct"
ENVIRONMENT = "test"

_ENVIRONMENT_FILE = """
apiVersion: nim-rollouts/v1
kind: Environment
name: test
region: us-west-2
cluster: {name: test-cluster}
store: {kind: folder, path: STORE}
terraform: {root: terraform/eks, state: {bucket: tf-state, key: test/terraform.tfstate}}
instance_types: [g5.12xlarge]
addons:
  - {name: nim-operator, namespace: nim-operator, chart: charts/operator, requires: {crds: [nimcaches.apps.nvidia.com]}}
storage_class: efs-sc-dynamic
budgets: {delete_s: 5}
"""


class FakeCluster:
    """Objects by (kind, namespace, name). Deletes at once what has no finalizer, the rest when the last one goes."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str | None, str], dict[str, Any]] = {}
        self.log: list[str] = []
        self.rejects: dict[str, str] = {}
        self.text = ""
        self.answers: Callable[..., Any] = lambda *_, **__: None
        self._uids = itertools.count(1)

    def put(self, obj: dict[str, Any]) -> dict[str, Any]:
        obj = copy.deepcopy(obj)
        metadata = obj["metadata"]
        metadata.setdefault("uid", f"uid-{next(self._uids)}")
        metadata.setdefault("resourceVersion", "1")
        self.objects[obj["kind"], metadata.get("namespace"), metadata["name"]] = obj
        return obj

    def apply(self, obj: dict[str, Any], *, dry_run: bool = False, **_: Any) -> ApplyResult:
        key = (obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"])
        if why := self.rejects.get(obj["kind"]):
            raise ApplyRejected(f"apply {obj['kind']}: {why}")
        live = self.objects.get(key)
        if dry_run:
            new = _merged(live or {}, obj)
            return ApplyResult(new, live is None or new.get("spec") != live.get("spec"), live is None)
        self.log.append(f"apply {obj['kind']}/{obj['metadata']['name']}")
        kept = {name: live["metadata"][name] for name in ("uid",)} if live else {}
        new = self.put({**obj, "metadata": {**obj["metadata"], **kept}, "status": (live or {}).get("status", {})})
        return ApplyResult(new, live is None or live.get("spec") != new.get("spec"), live is None)

    def get(self, api_version: str, kind: str, namespace: str | None, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, namespace, name))

    def list(
        self, api_version: str, kind: str, namespace: str | None = None, *, label_selector: str | None = None, **_: Any
    ) -> list[dict[str, Any]]:
        wanted = dict(one.split("=") for one in label_selector.split(",")) if label_selector else {}
        return [
            obj
            for (k, ns, _), obj in sorted(self.objects.items(), key=lambda item: item[0][2])
            if k == kind
            and (namespace is None or ns == namespace)
            and wanted.items() <= (obj["metadata"].get("labels") or {}).items()
        ]

    def delete(
        self, obj: dict[str, Any], *, uid: str | None = None, resource_version: str | None = None, **_: Any
    ) -> bool:
        key = (obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"])
        live = self.objects.get(key)
        if live is None or (uid and live["metadata"]["uid"] != uid):
            return False
        if resource_version and live["metadata"]["resourceVersion"] != resource_version:
            return False
        self.log.append(f"delete {obj['kind']}/{obj['metadata']['name']}")
        if live["metadata"].get("finalizers"):
            live["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        else:
            del self.objects[key]
        return True

    def patch(self, obj: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any] | None:
        key = (obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"])
        live = self.objects.get(key)
        seen = [obj["metadata"][name] for name in ("uid", "resourceVersion")]
        if live is None or [live["metadata"][name] for name in ("uid", "resourceVersion")] != seen:
            return None
        self.log.append(f"patch {obj['kind']}/{obj['metadata']['name']}")
        new = _merged(live, changes)
        new["metadata"]["resourceVersion"] = str(int(live["metadata"]["resourceVersion"]) + 1)
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            del self.objects[key]
            return new
        return self.put(new)

    def logs(self, namespace: str, pod: str, container: str | None = None, **_: Any) -> str:
        return self.text

    @contextmanager
    def port_forward(self, namespace: str, pod: str, port: int) -> Iterator[Any]:
        yield SimpleNamespace(request=self.answers)


def _merged(live: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396)."""
    merged = dict(live)
    for name, value in changes.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name) or {}, value) if isinstance(value, dict) else value
    return merged


class World:
    """One run: what its tasks would find."""

    def __init__(self, include: Include, run_id: str = "manual__1") -> None:
        self.include, self.run_id = include, run_id
        self.cluster = FakeCluster()
        self.events: dict[Any, Any] = {}

    def session(self, deployment: str = DEPLOYMENT, run_id: str | None = None) -> Session:
        session = Session(ENVIRONMENT, deployment, run_id or self.run_id, include=self.include)
        session.__dict__["cluster"] = self.cluster
        session.__dict__["access"] = SimpleNamespace(endpoint="https://cluster")
        return session

    def context(self, task_id: str, try_number: int = 1, run_id: str | None = None) -> dict[str, Any]:
        ti = SimpleNamespace(
            dag_id="nim_deploy", run_id=run_id or self.run_id, task_id=task_id, try_number=try_number, map_index=-1
        )

        class Events(dict):  # type: ignore[type-arg]
            def __missing__(events, asset: Any) -> Any:  # noqa: N805
                return self.events.setdefault(asset.name, SimpleNamespace(extra=None))

        return {
            "ti": ti,
            "dag_run": SimpleNamespace(triggering_user_name="ada", run_type="manual"),
            "outlet_events": Events(),
        }

    def stage(self, name: str, try_number: int = 1, **session: Any) -> Stage:
        return Stage(name, self.session(**session), self.context(name, try_number), logging.getLogger("test"))

    def accepted(self, run_id: str | None = None, **changes: Any) -> None:
        """Put the run where validation leaves it: claims taken, request written."""
        session = self.session(run_id=run_id)
        holder = claims.Holder("nim_deploy", run_id or self.run_id)
        taken = [
            claims.acquire(session.store, scope, holder, is_ended=lambda _: True)
            for scope in (claims.environment_scope(ENVIRONMENT), claims.deployment_scope(ENVIRONMENT, DEPLOYMENT))
        ]
        session.ledger.record(
            "validate",
            1,
            "claims",
            {
                "dag_id": holder.dag_id,
                "run_id": holder.run_id,
                "taken": [{"scope": one.scope, "generation": one.generation} for one in taken],
            },
        )
        spec = self.include.deployment(DEPLOYMENT)
        if benchmarkless := changes.pop("spec", None):
            spec = spec.model_copy(update=benchmarkless)
        request = {
            "environment": ENVIRONMENT,
            "deployment": DEPLOYMENT,
            "dag_id": holder.dag_id,
            "run_id": holder.run_id,
            "rollout_id": session.rollout,
            "generation": taken[1].generation,
            "environment_generation": taken[0].generation,
            "spec": spec.model_dump(mode="json", by_alias=True),
            **changes,
        }
        session.ledger.record("validate", 1, "request", request)

    def platform(self) -> None:
        """Put into the cluster what an installed platform has: the add-on's definition and the storage class."""
        established = {"conditions": [{"type": "Established", "status": "True"}]}
        crd = {"kind": "CustomResourceDefinition", "metadata": {"name": "nimcaches.apps.nvidia.com"}}
        self.cluster.put({"apiVersion": "apiextensions.k8s.io/v1", **crd, "status": established})
        self.cluster.put({"apiVersion": "v1", "kind": "StorageClass", "metadata": {"name": "efs-sc-dynamic"}})

    def prepared(self, operator: StageOperator, monkeypatch: pytest.MonkeyPatch, run_id: str | None = None) -> None:
        """Make the operator work in this world, with its fields as Airflow would have rendered them."""
        monkeypatch.setattr("nim_rollouts.hooks.session.Session", self._session_class())
        operator.environment, operator.deployment = ENVIRONMENT, DEPLOYMENT
        operator.run_id = run_id or self.run_id

    def _session_class(self) -> Any:
        def make(environment: str, deployment: str, run_id: str, shared: bool = False) -> Session:
            session = Session(environment, deployment, run_id, include=self.include)
            session.__dict__["cluster"] = self.cluster
            return session

        return make


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh run in an environment whose store is a folder of this test."""
    include = tmp_path / "repo" / "include"
    (include / "environments").mkdir(parents=True)
    for folder in ("deployments", "manifests", "benchmarks", "terraform", "helm", "prices"):
        (include / folder).symlink_to(ROOT / "include" / folder)
    (include / "environments" / "test.yaml").write_text(_ENVIRONMENT_FILE.replace("STORE", str(tmp_path / "store")))
    chart = tmp_path / "repo" / "charts" / "operator"
    chart.mkdir(parents=True)
    (chart / "Chart.yaml").write_text("name: operator\nversion: 0.1.0\n")
    return World(Include(include))


@pytest.fixture(autouse=True)
def a_generous_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS is not asked: every quota is large, and nothing runs."""
    monkeypatch.setattr("nim_rollouts.hooks.quotas.limits", lambda environment, codes: dict.fromkeys(codes, 768.0))
    monkeypatch.setattr("nim_rollouts.hooks.quotas.running", lambda environment: [])
    # And EKS has written no log group again.
    monkeypatch.setattr("nim_rollouts.hooks.interrupted._logs", lambda environment, client, say: None)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Waiting for a disappearance asks the fake at once, instead of watching an API server."""
    if "world" not in request.fixturenames:
        return
    world = request.getfixturevalue("world")

    def gone(stage: Stage, subjects: list[Any], budget_s: float) -> None:
        for subject in subjects:
            assert (subject.kind, subject.namespace, subject.name) not in world.cluster.objects
            world.cluster.log.append(f"gone {subject.ref}")

    monkeypatch.setattr("nim_rollouts.operators.model.wait_gone", gone)
    # There is no AWS either, with anything in it.
    monkeypatch.setattr("nim_rollouts.hooks.remains.look", lambda session, cloud, removed: [])


# --- teardowns ------------------------------------------------------------------------------------------------------

OURS = {MANAGED_BY: MANAGER, ENVIRONMENT_LABEL: "test"}
CRD = "nimcaches.apps.nvidia.com"


def obj(kind: str, name: str, namespace: str | None = None, labels: Any = None, **rest: Any) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels or {}, **place}, **rest}


def run(world: World, cls: type, name: str) -> dict[str, Any]:
    operator = cls(task_id=name)
    operator.deployment = ""
    facts = operator.run(world.stage(name, deployment=""))
    world.session(deployment="").ledger.record(name, 1, "result", facts)
    return facts


def karpenters(
    down: World, kind: str, name: str, labels: Any = None, status: Any = None, **metadata: Any
) -> dict[str, Any]:
    made = obj(kind, name, labels=labels, status=status or {})
    made["metadata"].update(metadata)
    return down.cluster.put(made)


@pytest.fixture
def down(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A validated teardown of the whole platform, on a cluster with one deployment and a neighbour's objects."""
    from nim_rollouts.operators import teardown

    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: True)
    monkeypatch.setattr("nim_rollouts.operators.teardown.check_tools", lambda session, problems: {})
    operator = teardown.ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.deployment, operator.scope, operator.confirm = "", "everything", ENVIRONMENT
    operator.execute(world.context("validate"))
    mine = {**OURS, DEPLOYMENT_LABEL: DEPLOYMENT}
    for kind in ("NIMService", "Service", "Job", "ConfigMap", "NIMCache"):
        world.cluster.put(obj(kind, f"my-{kind.lower()}", "nim-service", mine))
        world.cluster.put(obj(kind, f"their-{kind.lower()}", "elsewhere"))
    return world


@pytest.fixture
def helm(down: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Helm's calls, and the CRD of its chart in the cluster."""
    calls: list[str] = []
    fake = SimpleNamespace(
        crds=lambda addon: [{"metadata": {"name": CRD}}],
        uninstall=lambda addon, wait_s: calls.append(f"uninstall {addon.name}") or True,
    )
    monkeypatch.setattr("nim_rollouts.clients.helm.Helm", lambda cluster, include: fake)
    names = {"group": "apps.nvidia.com", "names": {"kind": "NIMCache"}, "versions": [{"name": "v1", "served": True}]}
    down.cluster.put(obj("CustomResourceDefinition", CRD, spec=names))
    return calls
