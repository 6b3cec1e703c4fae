"""Node shapes and placing: which pod fits where, what is started, what is refused and in which words."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rehearsal.config import ROOT
from rehearsal.nodes import fit, provisioner, shapes
from rehearsal.nodes.fit import Candidate, place, problem, requests

GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
SHAPES = shapes.load_shapes(ROOT / "rehearsal" / "nodes.yaml")


def pod(name: str = "pod", limits: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "resources": {"requests": limits or {}}}
    return {"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"containers": [container], **spec}}


def node(labels: dict[str, str] | None = None, **free: str) -> Candidate:
    room = {"cpu": "4", "memory": "8Gi", "pods": "10"} | free
    return Candidate(labels or {}, [], shapes.quantities(room), name="node")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", "1"),
        ("500m", "0.5"),
        ("2Gi", str(2 << 30)),
        ("1.5Ki", "1536"),
        ("3k", "3000"),
        ("10u", "0.00001"),
        (2, "2"),
    ],
)
def test_quantities(text: str, value: str) -> None:
    assert shapes.quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "x", "1Zi", "Gi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        shapes.quantity(text)


def test_the_committed_shapes_are_cheapest_first_and_the_blueprints() -> None:
    cpu, gpu = SHAPES
    assert cpu.price < gpu.price
    assert gpu.capacity["nvidia.com/gpu"] == "4" and gpu.capacity["cpu"] == "48" and gpu.capacity["memory"] == "192Gi"
    assert {"key": "nvidia.com/gpu", "effect": "NoSchedule"} in gpu.taints
    assert all(
        shape.room[name] <= shapes.quantity(amount) for shape in SHAPES for name, amount in shape.capacity.items()
    )
    # What the reference deployment asks must fit beside what a kubelet keeps.
    assert gpu.room["cpu"] >= 40


def test_a_shape_that_lacks_something_is_named(tmp_path: Path) -> None:
    file = tmp_path / "nodes.yaml"
    file.write_text("region: r\nzones: [z]\nshapes: [{pool: p, instance_type: t, price: 1}]\n")
    with pytest.raises(ValueError, match="shape p lacks allocatable, capacity"):
        shapes.load_shapes(file)


def test_requests_of_a_pod_count_init_containers_sidecars_and_overhead() -> None:
    spec = {
        "initContainers": [
            {"name": "large", "resources": {"requests": {"cpu": "5"}}},
            {"name": "sidecar", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
        ],
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"nvidia.com/gpu": "2", "cpu": "3"}}},
            {"name": "b", "resources": {"requests": {"cpu": "1"}}},
        ],
        "overhead": {"cpu": "100m"},
    }
    asked = requests({"spec": spec})
    assert asked == {
        "cpu": Decimal("5.1"), "memory": Decimal(1 << 30), "nvidia.com/gpu": Decimal(2), "pods": Decimal(1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("toleration", "taint", "tolerated"),
    [
        (GPU, {"key": "nvidia.com/gpu", "effect": "NoSchedule"}, True),
        ({"operator": "Exists"}, {"key": "any", "effect": "NoExecute"}, True),
        ({"key": "k", "value": "v"}, {"key": "k", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "w"}, {"key": "k", "value": "v", "effect": "NoSchedule"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, {"key": "k", "effect": "NoSchedule"}, False),
        ({"key": "other", "operator": "Exists"}, {"key": "k", "effect": "NoSchedule"}, False),
        ({"key": "other", "operator": "Exists"}, {"key": "k", "effect": "PreferNoSchedule"}, True),
    ],
)
def test_tolerations(toleration: dict[str, str], taint: dict[str, str], tolerated: bool) -> None:
    assert fit.tolerates(pod(tolerations=[toleration]), taint) is tolerated


def affinity(*terms: list[dict[str, Any]]) -> dict[str, Any]:
    selector = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selector}}


@pytest.mark.parametrize(
    ("expressions", "fits"),
    [
        ([{"key": "a", "operator": "In", "values": ["1", "2"]}], True),
        ([{"key": "a", "operator": "NotIn", "values": ["1"]}], False),
        ([{"key": "b", "operator": "NotIn", "values": ["1"]}], True),
        ([{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "DoesNotExist"}], True),
        ([{"key": "b", "operator": "Exists"}], False),
        ([{"key": "a", "operator": "Gt", "values": ["0"]}], True),
        ([{"key": "a", "operator": "Lt", "values": ["1"]}], False),
    ],
)
def test_required_node_affinity(expressions: list[dict[str, Any]], fits: bool) -> None:
    assert (problem(pod(affinity=affinity(expressions)), node({"a": "1"})) is None) is fits
    # Terms are alternatives.
    either = affinity(expressions, [{"key": "a", "operator": "Exists"}])
    assert problem(pod(affinity=either), node({"a": "1"})) is None


def test_anti_affinity_and_host_ports_keep_pods_apart() -> None:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}
    anti = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    first, second = pod("first", affinity=anti), pod("second", affinity=anti)
    for each in (first, second):
        each["metadata"]["labels"] = {"app": "x"}
    plan = place([first, second], [], SHAPES, {})
    assert len(plan.starts) == 2
    ported = [pod(name) for name in ("a", "b")]
    for each in ported:
        each["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 80}]
    assert len(place(ported, [], SHAPES, {}).starts) == 2


def test_two_pods_that_fit_one_node_start_one() -> None:
    pods = [pod(name, {"cpu": "20", "nvidia.com/gpu": "2"}, tolerations=[GPU]) for name in ("a", "b")]
    plan = place(pods, [], SHAPES, {})
    assert [each.shape.instance_type for each in plan.starts if each.shape] == ["g5.12xlarge"]
    assert [target for _, target in plan.nominations] == [plan.starts[0]] * 2
    third = pod("c", {"nvidia.com/gpu": "1"}, tolerations=[GPU])
    assert len(place([*pods, third], [], SHAPES, {}).starts) == 2


def test_what_is_there_or_on_the_way_is_used_first_and_the_cheapest_started() -> None:
    there = node()
    plan = place([pod("small", {"cpu": "1"}), pod("large", {"cpu": "4"})], [there], SHAPES, {})
    assert [(p["metadata"]["name"], t.name) for p, t in plan.nominations] == [("large", "node"), ("small", "")]
    assert plan.starts[0].shape is SHAPES[0]


def test_starts_are_spread_over_zones_unless_the_pod_names_one() -> None:
    zone = "topology.kubernetes.io/zone"
    first, second = SHAPES[0].zones[:2]
    assert place([pod()], [], SHAPES, {first: 1}).starts[0].labels[zone] == second
    chosen = pod(nodeSelector={zone: first})
    assert place([chosen], [], SHAPES, {first: 1}).starts[0].labels[zone] == first


def test_refusals_name_each_pool_and_its_reason() -> None:
    plan = place([pod(limits={"nvidia.com/gpu": "1"}), pod("sel", nodeSelector={"disk": "ssd"})], [], SHAPES, {})
    (_, untolerated), (_, unlabelled) = plan.refused
    assert untolerated.startswith("Failed to schedule pod, incompatible with nodepool ")
    assert 'no instance type satisfied resources {"nvidia.com/gpu":"1","pods":"1"}' in untolerated
    assert "did not tolerate nvidia.com/gpu:NoSchedule" in untolerated
    assert 'label "disk" does not have known values' in unlabelled
    assert plan.starts == []


@pytest.mark.parametrize(
    ("change", "waiting"),
    [
        ({}, True),
        ({"spec": {"nodeName": "n"}}, False),
        ({"metadata": {"deletionTimestamp": "now"}}, False),
        ({"status": {"phase": "Failed"}}, False),
        ({"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}}, False),
        ({"status": {"conditions": []}}, False),
    ],
)
def test_which_pods_wait(change: dict[str, dict[str, Any]], waiting: bool) -> None:
    unschedulable = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    each: dict[str, Any] = {"metadata": {}, "spec": {}, "status": {"phase": "Pending", "conditions": unschedulable}}
    for part, values in change.items():
        each[part] = {**each[part], **values}
    assert provisioner.is_waiting(each) is waiting


def test_pods_of_daemon_sets_and_finished_ones_hold_no_node() -> None:
    assert provisioner.holds_node({"metadata": {}, "status": {"phase": "Running"}})
    assert not provisioner.holds_node({"metadata": {}, "status": {"phase": "Succeeded"}})
    owned = {"metadata": {"ownerReferences": [{"kind": "DaemonSet"}]}, "status": {"phase": "Running"}}
    assert not provisioner.holds_node(owned)


def test_a_node_object_takes_a_free_name_and_says_where_its_kubelet_is() -> None:
    made = shapes.node_object(SHAPES[1], claim="c", zone="us-west-2b", port=1234, taken=set())
    name = made["metadata"]["name"]
    assert name.startswith("ip-10-0-") and name.endswith(".us-west-2.compute.internal")
    assert made["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 1234
    assert {"type": "InternalIP", "address": "127.0.0.1"} in made["status"]["addresses"]
    assert made["metadata"]["labels"]["topology.kubernetes.io/zone"] == "us-west-2b"


def test_a_type_that_the_cloud_refused_is_not_asked_for_again() -> None:
    gpu_pod = pod(limits={"nvidia.com/gpu": "2"}, tolerations=[GPU])
    (_, gpu) = SHAPES
    assert [start.shape for start in place([gpu_pod], [], SHAPES, {}).starts] == [gpu]
    plan = place([gpu_pod], [], SHAPES, {}, short={gpu.instance_type})
    assert plan.starts == []
    ((_, why),) = plan.refused
    assert "(no instance type has the required offering)" in why and gpu.instance_type in why
