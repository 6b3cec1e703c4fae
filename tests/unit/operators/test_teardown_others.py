"""What others have in the cluster is told before anything is deleted, and what is ours, or made for ours, is not."""

from __future__ import annotations

from typing import Any

import pytest

from nim_rollouts.clients import claims
from nim_rollouts.core.errors import ClusterUnavailable, LeftoversFound, SpecError
from nim_rollouts.hooks.session import Session
from nim_rollouts.operators import teardown
from nim_rollouts.operators.teardown_others import inhabitants, others
from tests.unit.operators.conftest import CRD, DEPLOYMENT, ENVIRONMENT, OURS, World, karpenters, obj

SELECTOR = ",".join(f"{name}={value}" for name, value in OURS.items())


def owned(down: World, made: dict[str, Any], owner: dict[str, Any]) -> dict[str, Any]:
    reference = {"kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
    made["metadata"]["ownerReferences"] = [reference]
    return down.cluster.put(made)


@pytest.fixture
def ground(down: World) -> World:
    """A namespace of ours with a service that has its pods, and nobody else anywhere."""
    for key in [key for key in down.cluster.objects if key[1] == "elsewhere"]:
        del down.cluster.objects[key]
    names = {"group": "apps.nvidia.com", "names": {"kind": "NIMCache"}, "versions": [{"name": "v1", "served": True}]}
    down.cluster.put(obj("CustomResourceDefinition", CRD, spec=names))
    down.cluster.put(obj("Namespace", "nim-service", labels=OURS))
    service = down.cluster.objects["NIMService", "nim-service", "my-nimservice"]
    deployment = owned(down, obj("Deployment", "my-nimservice", "nim-service"), service)
    replicas = owned(down, obj("ReplicaSet", "my-nimservice-1", "nim-service"), deployment)
    owned(down, obj("Pod", "my-nimservice-1-x", "nim-service"), replicas)
    cache = down.cluster.objects["NIMCache", "nim-service", "my-nimcache"]
    owned(down, obj("PersistentVolumeClaim", "my-nimcache-pvc", "nim-service"), cache)
    pool = karpenters(down, "NodePool", "gpu", OURS)
    owned(down, obj("NodeClaim", "gpu-x1"), pool)
    return down


def told(ground: World, *, whole: bool = True) -> list[str]:
    found = others(ground.cluster, ground.session().environment, SELECTOR, whole=whole)  # type: ignore[arg-type]
    return [error.message for error in found]


def test_of_ours_and_what_is_made_for_it_nothing_is_told(ground: World) -> None:
    assert told(ground) == []


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (obj("NodePool", "theirs"), "these node pools are not ours: NodePool/theirs"),
        (obj("NIMCache", "hers", "team-b"),
         "others need the operator of the add-on nim-operator: NIMCache/hers in team-b"),
        (obj("StatefulSet", "db", "nim-service"),
         "namespace nim-service is not deleted, others live there: StatefulSet/db in nim-service"),
        (obj("NIMService", "at-zero", "nim-service"),
         "namespace nim-service is not deleted, others live there: NIMService/at-zero in nim-service"),
        (obj("Service", "web", "team-b", spec={"type": "LoadBalancer"}),
         "these load balancers are not ours, and would hold the network: Service/web in team-b"),
    ],
)  # fmt: skip
def test_what_is_somebody_elses_is_named(ground: World, made: dict[str, Any], text: str) -> None:
    ground.cluster.put(made)
    assert told(ground) == [text]


def test_where_the_network_stays_load_balancers_do(ground: World) -> None:
    ground.cluster.put(obj("Service", "web", "team-b", spec={"type": "LoadBalancer"}))
    assert told(ground, whole=False) == []


def test_what_is_on_its_way_out_holds_nobody_up(ground: World) -> None:
    for made in (obj("NodePool", "theirs"), obj("NIMCache", "hers", "team-b"), obj("Deployment", "d", "nim-service")):
        made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        ground.cluster.put(made)
    assert told(ground) == []


def test_an_inhabitant_is_told_by_whom_it_belongs_to(ground: World) -> None:
    stranger = ground.cluster.put(obj("Deployment", "web", "nim-service"))
    replicas = owned(ground, obj("ReplicaSet", "web-1", "nim-service"), stranger)
    for number in range(3):
        owned(ground, obj("Pod", f"web-1-{number}", "nim-service"), replicas)
    assert told(ground) == ["namespace nim-service is not deleted, others live there: Deployment/web in nim-service"]
    unknown = {"kind": "Rollout", "metadata": {"name": "r", "uid": "nobody-knows"}}
    owned(ground, obj("Pod", "of-an-unknown", "nim-service"), unknown)
    roots = {one["metadata"]["name"]: root for one, root in inhabitants(ground.cluster, "nim-service")}  # type: ignore[arg-type]
    assert roots["of-an-unknown"] is None
    assert roots["my-nimservice-1-x"] is not None
    assert roots["my-nimservice-1-x"]["metadata"]["name"] == "my-nimservice"


def test_a_circle_of_owners_ends(ground: World) -> None:
    first = ground.cluster.put(obj("Pod", "a", "nim-service"))
    second = owned(ground, obj("Pod", "b", "nim-service"), first)
    owned(ground, obj("Pod", "a", "nim-service") | {}, second)["metadata"]["uid"] = first["metadata"]["uid"]
    assert {one["metadata"]["name"]: root for one, root in inhabitants(ground.cluster, "nim-service")}["a"] is None  # type: ignore[arg-type]


def validate(world: World, monkeypatch: pytest.MonkeyPatch, scope: str) -> None:
    operator = teardown.ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch, run_id="manual__2")
    whole = scope != "deployment"
    operator.deployment = "" if whole else DEPLOYMENT
    operator.scope, operator.confirm = scope, ENVIRONMENT if whole else ""
    operator.execute(world.context("validate", run_id="manual__2"))


def holder(world: World) -> str:
    held = claims.held_by(world.session().store, claims.deployment_scope(ENVIRONMENT, DEPLOYMENT))
    assert held is not None
    return held.run_id


@pytest.mark.parametrize(("reason", "goes_on"), [("cluster-not-active", True), ("cluster-unavailable", False)])
def test_in_a_cluster_that_is_being_made_nobody_is_looked_for(
    ground: World, monkeypatch: pytest.MonkeyPatch, reason: str, goes_on: bool
) -> None:
    """The plan, which comes next, waits for it; one that does not answer may have anybody in it."""

    def unavailable(self: Session) -> Any:
        raise ClusterUnavailable("EKS cluster lab is CREATING", reason=reason)

    monkeypatch.setattr(Session, "cluster_if_any", unavailable)
    if goes_on:
        validate(ground, monkeypatch, "everything")
        return
    with pytest.raises(ClusterUnavailable):
        validate(ground, monkeypatch, "everything")


def test_validation_refuses_before_it_takes_a_claim(ground: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ground.cluster.put(obj("NodePool", "theirs"))
    with pytest.raises(LeftoversFound, match="NodePool/theirs"):
        validate(ground, monkeypatch, "platform")
    ground.cluster.put(obj("StatefulSet", "db", "nim-service"))
    with pytest.raises(SpecError, match="2 problems: .*NodePool/theirs.*StatefulSet/db"):
        validate(ground, monkeypatch, "everything")
    assert holder(ground) == "manual__1"
    validate(ground, monkeypatch, "deployment")
    assert holder(ground) == "manual__2", "one deployment alone concerns none of them"
    assert ground.cluster.log == []
