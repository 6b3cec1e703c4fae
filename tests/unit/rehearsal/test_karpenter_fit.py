"""Karpenter's scheduling in the stand-in: which pod fits where, what is started, what is refused and in which words."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rehearsal.config import ROOT
from rehearsal.karpenter import catalogue, disruption, fit, local, offers, provisioner, resources
from rehearsal.karpenter.fit import Candidate, Means, Plan, place, problem, requests

GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
AWS = "karpenter.k8s.aws/"
ZONES = ("us-west-2a", "us-west-2b")
CATALOGUE = catalogue.load()


def offered(*names: str, **changes: Any) -> list[offers.Offer]:
    """What the committed node pools offer; `changes` are put into each pool's spec."""
    classes, pools = {}, []
    for obj in local.pools(ROOT, names or local.POOLS):
        if obj["kind"] == "EC2NodeClass":
            obj["status"] = {"subnets": [{"id": zone, "zone": zone} for zone in ZONES]}
            classes[obj["metadata"]["name"]] = obj
        else:
            obj["spec"] |= changes
            pools.append(obj)
    return offers.offers(pools, classes, CATALOGUE, "us-west-2")


OFFERS = offered()


def start(pods: list[dict[str, Any]], use: dict[str, int] | None = None, **more: Any) -> Plan:
    """Where there is no node yet."""
    return place(pods, [], Means(OFFERS, **more), use or {})


def pod(name: str = "pod", limits: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "resources": {"requests": limits or {}}}
    return {"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"containers": [container], **spec}}


def node(labels: dict[str, str] | None = None, **free: str) -> Candidate:
    room = {"cpu": "4", "memory": "8Gi", "pods": "10"} | free
    return Candidate(labels or {}, [], resources.quantities(room), name="node")


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
    assert resources.quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "x", "1Zi", "Gi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        resources.quantity(text)


def test_the_committed_pools_offer_the_blueprints_types_the_cheapest_first() -> None:
    gpu = [one for one in OFFERS if one.pool == "g5-gpu-karpenter"]
    assert {one.instance_type for one in gpu} == {
        f"g5.{size}xlarge" for size in (2, 4, 8, 12, 16, 24, 48)
    }  # fmt: skip
    assert {one.capacity_type for one in gpu} == {"spot", "on-demand"}
    assert [one.price for one in gpu] == sorted(one.price for one in gpu)
    (large,) = [one for one in gpu if (one.instance_type, one.capacity_type) == ("g5.12xlarge", "on-demand")]
    assert large.capacity["nvidia.com/gpu"] == 4 and large.capacity["cpu"] == 48
    assert large.capacity["memory"] == resources.quantity("192Gi")
    assert {"key": "nvidia.com/gpu", "effect": "NoSchedule"} in large.taints
    assert all(one.room[name] <= amount for one in OFFERS for name, amount in one.capacity.items())
    # What the reference deployment asks must fit beside what a kubelet keeps.
    assert large.room["cpu"] == resources.quantity("47810m")
    neuron = offered("inferentia-inf2", "trainium-trn1")
    assert {one.capacity["aws.amazon.com/neuron"] for one in neuron} == {1, 6, 12, 16}


def test_a_heavier_pool_comes_first_then_the_name() -> None:
    assert [one.pool for one in OFFERS] == sorted(one.pool for one in OFFERS)
    heavy = offered("x86-cpu-karpenter", weight=10) + offered("g5-gpu-karpenter", weight=10)
    assert heavy[0].pool == "x86-cpu-karpenter"


@pytest.mark.parametrize(
    ("requirement", "left"),
    [
        ({"key": AWS + "instance-cpu", "operator": "Gt", "values": ["47"]}, "12 16 24 48"),
        ({"key": AWS + "instance-gpu-count", "operator": "Lt", "values": ["4"]}, "2 4 8 16"),
        ({"key": AWS + "instance-cpu", "operator": "Gte", "values": ["48"]}, "12 16 24 48"),
        ({"key": AWS + "instance-gpu-count", "operator": "Lte", "values": ["4"]}, "2 4 8 12 16 24"),
        ({"key": AWS + "instance-accelerator-count", "operator": "Gte", "values": ["0"]}, ""),
        ({"key": "node.kubernetes.io/instance-type", "operator": "NotIn", "values": ["g5.48xlarge"]}, "2 4 8 12 16 24"),
        ({"key": AWS + "instance-accelerator-name", "operator": "DoesNotExist"}, "2 4 8 12 16 24 48"),
        ({"key": AWS + "instance-accelerator-name", "operator": "Exists"}, ""),
        ({"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-west-2z"]}, ""),
    ],
)  # fmt: skip
def test_requirements_of_a_pool(requirement: dict[str, Any], left: str) -> None:
    node_class, pool = local.pools(ROOT, ("g5-gpu-karpenter",))
    node_class["status"] = {"subnets": [{"id": zone, "zone": zone} for zone in ZONES]}
    pool["spec"]["template"]["spec"]["requirements"].append(requirement)
    found = offers.of_pool(pool, node_class, CATALOGUE, "us-west-2")
    assert {one.instance_type for one in found} == {f"g5.{size}xlarge" for size in left.split()}


def test_a_label_that_the_pool_invents_becomes_the_nodes() -> None:
    node_class, pool = local.pools(ROOT, ("x86-cpu-karpenter",))
    node_class["status"] = {"subnets": [{"id": "s", "zone": ZONES[0]}]}
    pool["spec"]["template"]["spec"]["requirements"].append({"key": "team", "operator": "In", "values": ["a", "b"]})
    found = list(offers.of_pool(pool, node_class, CATALOGUE, "us-west-2"))
    assert {one.labels["team"] for one in found} == {"a", "b"}
    (chosen,) = place([pod(nodeSelector={"team": "b"})], [], Means(found), {}).starts
    assert chosen.labels["team"] == "b"


def test_a_catalogue_that_lacks_something_is_named(tmp_path: Path) -> None:
    file = tmp_path / "types.yaml"
    file.write_text("spot: 0.4\nfamilies: {g5: {sizes: {xlarge: [4, 16, 1, 1.0]}}}\n")
    with pytest.raises(catalogue.CatalogueError, match="g5.xlarge: accelerators and `gpu` or `neuron`"):
        catalogue.load(file)
    file.write_text("spot: 0.4\nfamilies: {g5: {sizes: {xlarge: [4, 16]}}}\n")
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text())
    with pytest.raises(catalogue.CatalogueError, match="g5.xlarge is not"):
        catalogue.load(other)


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
    plan = start([first, second])
    assert len(plan.starts) == 2
    ported = [pod(name) for name in ("a", "b")]
    for each in ported:
        each["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 80}]
    assert len(start(ported).starts) == 2


def test_two_pods_that_fit_one_node_start_one() -> None:
    pods = [pod(name, {"cpu": "20", "nvidia.com/gpu": "2"}, tolerations=[GPU]) for name in ("a", "b")]
    plan = start(pods)
    assert [each.offer.instance_type for each in plan.starts if each.offer] == ["g5.12xlarge"]
    assert [target for _, target in plan.nominations] == [plan.starts[0]] * 2
    third = pod("c", {"nvidia.com/gpu": "1"}, tolerations=[GPU])
    assert len(start([*pods, third]).starts) == 2


def test_what_is_there_or_on_the_way_is_used_first_and_the_cheapest_started() -> None:
    there = node()
    plan = place([pod("small", {"cpu": "1"}), pod("large", {"cpu": "4"})], [there], Means(OFFERS), {})
    assert [(p["metadata"]["name"], t.name) for p, t in plan.nominations] == [("large", "node"), ("small", "")]
    (started,) = plan.starts
    assert started.offer and (started.offer.instance_type, started.offer.capacity_type) == ("c6i.xlarge", "spot")


def test_starts_are_spread_over_zones_unless_the_pod_names_one() -> None:
    zone = "topology.kubernetes.io/zone"
    first, second = ZONES
    assert start([pod()], {first: 1}).starts[0].labels[zone] == second
    chosen = pod(nodeSelector={zone: first})
    assert start([chosen], {first: 1}).starts[0].labels[zone] == first


def test_refusals_name_each_pool_and_its_reason() -> None:
    plan = start([pod(limits={"nvidia.com/gpu": "1"}), pod("sel", nodeSelector={"disk": "ssd"})])
    (_, untolerated), (_, unlabelled) = plan.refused
    assert untolerated.startswith("Failed to schedule pod, incompatible with nodepool ")
    assert 'no instance type satisfied resources {"nvidia.com/gpu":"1","pods":"1"}' in untolerated
    assert "did not tolerate nvidia.com/gpu:NoSchedule" in untolerated
    assert 'label "disk" does not have known values' in unlabelled
    assert plan.starts == []


def test_limits_hold_for_what_a_round_starts_too() -> None:
    left = {"x86-cpu-karpenter": resources.quantities({"cpu": "8"})}
    pods = [pod(name, {"cpu": "3"}) for name in ("a", "b", "c")]
    plan = start(pods, limits=left)
    assert len(plan.starts) == 2 and left["x86-cpu-karpenter"]["cpu"] == 0
    ((_, why),) = plan.refused
    assert 'all available instance types exceed limits for nodepool: "x86-cpu-karpenter"' in why
    assert offers.limits_left({"spec": {"limits": {"cpu": 8}}}, resources.quantities({"cpu": "3"})) == {"cpu": 5}
    assert offers.limits_left({"spec": {}}, {}) is None


def test_room_is_left_for_daemon_sets() -> None:
    import dataclasses

    taken = resources.quantities({"cpu": "3"})
    tight = [dataclasses.replace(one, overhead=taken) for one in offered("x86-cpu-karpenter")]
    (started,) = place([pod(limits={"cpu": "1"})], [], Means(tight), {}).starts
    assert started.offer and started.offer.instance_type == "c6i.2xlarge"


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
    assert disruption.holds_node({"metadata": {}, "status": {"phase": "Running"}})
    assert not disruption.holds_node({"metadata": {}, "status": {"phase": "Succeeded"}})
    owned = {"metadata": {"ownerReferences": [{"kind": "DaemonSet"}]}, "status": {"phase": "Running"}}
    assert not disruption.holds_node(owned)


@pytest.mark.parametrize(
    ("budgets", "nodes", "most"),
    [
        (None, 1, 1),
        (None, 25, 3),
        ([{"nodes": "0"}], 5, 0),
        ([{"nodes": "50%"}, {"nodes": "1"}], 4, 1),
        ([{"nodes": "0", "reasons": ["Drifted"]}], 2, 2),
    ],
)
def test_budgets_of_a_pool(budgets: list[dict[str, Any]] | None, nodes: int, most: int) -> None:
    assert disruption.allowed(budgets, nodes) == most


def test_a_type_that_the_cloud_refused_is_not_asked_for_again() -> None:
    gpu_pod = pod(limits={"nvidia.com/gpu": "2"}, tolerations=[GPU])
    gpus = ("12xlarge", "24xlarge", "48xlarge")
    short = {(f"g5.{size}", zone, kind) for size in gpus for zone in ZONES for kind in ("spot", "on-demand")}
    (other,) = start([gpu_pod], short={one for one in short if one[0] != "g5.24xlarge"}).starts
    assert other.offer and other.offer.instance_type == "g5.24xlarge"
    (dearer,) = start([gpu_pod], short={one for one in short if one[2] == "spot"}).starts
    assert dearer.offer and (dearer.offer.instance_type, dearer.offer.capacity_type) == ("g5.12xlarge", "on-demand")
    plan = start([gpu_pod], short=short)
    assert plan.starts == []
    ((_, why),) = plan.refused
    assert "(no instance type has the required offering)" in why and "g5.12xlarge" in why
