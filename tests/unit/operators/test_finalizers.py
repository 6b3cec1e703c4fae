"""What hangs on a finalizer without a controller: asked about, and freed only as far as a person has said yes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from nim_rollouts.core.manifests import DEPLOYMENT_LABEL
from nim_rollouts.operators import teardown, teardown_nodes
from nim_rollouts.operators.finalizers import ApproveFinalizersOperator, free
from tests.unit.operators.conftest import DEPLOYMENT, OURS, World, karpenters, obj, run

NIM_FINALIZER = "finalizer.nimcache.apps.nvidia.com"


def kept_by_nobody(down: World) -> dict[str, Any]:
    """Our cache with its finalizer, in an environment whose operator has a Deployment, which is not there."""
    file = down.include.root / "environments" / "test.yaml"
    file.write_text(
        file.read_text().replace("[nimcaches.apps.nvidia.com]", "[nimcaches.apps.nvidia.com], deployments: [op]")
    )
    cache = down.cluster.objects["NIMCache", "nim-service", "my-nimcache"]
    cache["metadata"]["finalizers"] = [NIM_FINALIZER, "somebody/else"]
    return cache


def approver(down: World) -> ApproveFinalizersOperator:
    operator = ApproveFinalizersOperator(task_id="approve_finalizers")
    operator.deployment = ""
    return operator


def said_yes(down: World, by: str = "ada") -> None:
    """As if the question had been answered."""
    operator, stage = approver(down), down.stage("approve_finalizers", deployment="")
    answer = operator._keep(stage, operator.question(stage), "approved", by=by)
    stage.session.ledger.record("approve_finalizers", 1, "result", {**asdict(answer), "declined": False})


def test_nothing_is_asked_while_the_operator_is_there(down: World) -> None:
    kept_by_nobody(down)
    down.cluster.put(obj("Deployment", "op", "nim-operator"))
    with pytest.raises(AirflowSkipException):
        approver(down).run(down.stage("approve_finalizers", deployment=""))


def test_a_question_names_finalizer_object_whose_it_is_and_the_better_way(
    down: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = kept_by_nobody(down)
    asked: list[Any] = []

    def ask(self: Any, stage: Any, question: Any) -> None:
        asked.append(question)
        raise TimeoutError

    monkeypatch.setattr(ApproveFinalizersOperator, "_ask", ask)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            approver(down).run(down.stage("approve_finalizers", deployment=""))
    question = asked[0]
    for word in ("my-nimcache", NIM_FINALIZER, "the NIM operator", cache["metadata"]["uid"], "install the controller"):
        assert word in question.body
    assert "somebody/else" not in question.body and "their-nimcache" not in question.body
    assert asked[1] == question, "each try asks the same"


def test_without_an_approval_no_finalizer_is_touched(down: World) -> None:
    cache = kept_by_nobody(down)
    run(down, teardown.DeleteCachesOperator, "delete_caches")
    assert cache["metadata"]["finalizers"] == [NIM_FINALIZER, "somebody/else"]
    operator, stage = approver(down), down.stage("approve_finalizers", deployment="")
    answer = operator._keep(stage, operator.question(stage), "rejected", by="ada")
    stage.session.ledger.record("approve_finalizers", 1, "result", {**asdict(answer), "declined": True})
    run(down, teardown.DeleteCachesOperator, "delete_caches")
    assert cache["metadata"]["finalizers"] == [NIM_FINALIZER, "somebody/else"]
    assert not [line for line in down.cluster.log if line.startswith("patch")]


def test_what_was_approved_is_freed_and_only_that(down: World) -> None:
    kept_by_nobody(down)
    said_yes(down)
    other = obj("NIMCache", "a-new-one", "nim-service", {**OURS, DEPLOYMENT_LABEL: DEPLOYMENT})
    other["metadata"]["finalizers"] = [NIM_FINALIZER]
    down.cluster.put(other)
    run(down, teardown.DeleteCachesOperator, "delete_caches")
    left = down.cluster.objects["NIMCache", "nim-service", "my-nimcache"]
    assert left["metadata"]["finalizers"] == ["somebody/else"], "not ours to know"
    new = down.cluster.objects["NIMCache", "nim-service", "a-new-one"]
    assert new["metadata"]["finalizers"] == [NIM_FINALIZER], "nobody was asked about this one"
    freed = down.session(deployment="").ledger.read("delete_caches", "freed")
    assert freed is not None
    assert freed["finalizers"] == [f"NIMCache/my-nimcache: {NIM_FINALIZER}"]
    assert freed["approved_by"] == "ada"


def test_an_operator_that_has_come_back_is_left_to_do_it(down: World) -> None:
    cache = kept_by_nobody(down)
    said_yes(down)
    down.cluster.put(obj("Deployment", "op", "nim-operator"))
    run(down, teardown.DeleteCachesOperator, "delete_caches")
    assert NIM_FINALIZER in cache["metadata"]["finalizers"]


def test_an_approval_of_another_run_frees_nothing(down: World) -> None:
    kept_by_nobody(down)
    said_yes(down)
    again = World(down.include, "manual__9")
    again.cluster = down.cluster
    facts = down.session(deployment="").facts("validate")
    again.session(deployment="").ledger.record("validate", 1, "result", facts)
    request = down.session(deployment="").facts("validate", "request")
    again.session(deployment="").ledger.record("validate", 1, "request", request | {"run_id": "manual__9"})
    stage = again.stage("approve_finalizers", deployment="")
    assert approver(again)._standing(stage, approver(again).question(stage)) is None
    assert free(stage, down.cluster, list(down.cluster.objects.values())) == []


def test_a_node_claim_without_karpenter_is_asked_about_with_what_its_instance_costs(down: World) -> None:
    file = down.include.root / "environments" / "test.yaml"
    requires = "requires: {crds: [nodepools.karpenter.sh], deployments: [karpenter]}"
    karpenter = f"  - {{name: karpenter, namespace: karpenter, chart: charts/operator, {requires}}}"
    file.write_text(file.read_text().replace("addons:", f"addons:\n{karpenter}"))
    karpenters(down, "NodeClaim", "gpu-x1", finalizers=["karpenter.sh/termination"])
    stage = down.stage("approve_finalizers", deployment="")
    question = approver(down).question(stage)
    assert "EC2 instance, which goes on and is paid for" in question.body
    said_yes(down)
    run(down, teardown_nodes.DeleteNodePoolsOperator, "delete_node_pools")
    assert ("NodeClaim", None, "gpu-x1") not in down.cluster.objects
