"""vCPU quotas: which one counts, whether there is room, and what is said where there is none or nobody tells."""

from __future__ import annotations

from typing import Any

import pytest

from nim_rollouts.core.errors import NeedsHumanError, QuotaTooSmall
from nim_rollouts.core.quota import Candidate, Running, findings, judge, quota_of, usable_again

G_ON_DEMAND, G_SPOT = "L-DB2E81BA", "L-3819A6DF"
ON_DEMAND = Candidate("service", "g5.12xlarge", 1, "on-demand", 48)
SPOT = Candidate("service", "g5.12xlarge", 1, "spot", 48)


@pytest.mark.parametrize(
    ("instance_type", "on_demand", "spot"),
    [
        ("g5.12xlarge", G_ON_DEMAND, G_SPOT),
        ("g6e.xlarge", G_ON_DEMAND, G_SPOT),
        ("gr6.4xlarge", G_ON_DEMAND, G_SPOT),
        ("p5.48xlarge", "L-417A185B", "L-C4BD4855"),
        ("p5en.48xlarge", "L-417A185B", "L-C4BD4855"),
        ("p4d.24xlarge", "L-417A185B", "L-7212CCBC"),
        ("p3.2xlarge", "L-417A185B", "L-7212CCBC"),
        ("inf2.xlarge", "L-1945791B", "L-B5D1601B"),
        ("trn1.32xlarge", "L-2C3B7624", "L-6B0D517C"),
        ("m6i.2xlarge", "L-1216C47A", "L-34B43A08"),
        ("im4gn.large", "L-1216C47A", "L-34B43A08"),
        ("t3.large", "L-1216C47A", "L-34B43A08"),
    ],
)
def test_each_family_has_its_quotas(instance_type: str, on_demand: str, spot: str) -> None:
    codes = [quota.code for each in ("on-demand", "spot") if (quota := quota_of(instance_type, each))]
    assert codes == [on_demand, spot]


def test_p5_on_spot_does_not_count_against_the_older_ones_quota() -> None:
    """Two quotas on spot, one on demand, for which both count."""
    older = Running("p4d.24xlarge", "spot", 96)
    one = Candidate("service", "p5.48xlarge", 1, "spot", 192)
    (met,) = findings([one], {"L-C4BD4855": 192.0, "L-7212CCBC": 96.0}, [older])
    assert met.is_met is True and met.used == 0
    assert "All P5 Spot Instance Requests (L-C4BD4855) is 192, 0 in use" in met.in_words
    same = Candidate("service", "p5.48xlarge", 1, "on-demand", 192)
    (met,) = findings([same], {"L-417A185B": 192.0}, [Running("p4d.24xlarge", "on-demand", 96)])
    assert met.is_met is False and met.used == 96


def test_of_a_newer_generation_the_quota_on_spot_is_not_known() -> None:
    assert quota_of("p6-b200.48xlarge", "spot") is None
    assert str(quota_of("p6-b200.48xlarge", "on-demand")).endswith("(L-417A185B)")


@pytest.mark.parametrize("instance_type", ["u-6tb1.metal", "mac2.metal", "hpc7a.96xlarge"])
def test_some_families_have_none(instance_type: str) -> None:
    assert quota_of(instance_type, "on-demand") is None


def test_room_for_one_way_is_enough() -> None:
    found = findings([ON_DEMAND, SPOT], {G_ON_DEMAND: 0.0, G_SPOT: 64.0}, [])
    decided = judge(found, "us-west-2")
    assert decided is not None and decided.candidate is SPOT
    assert decided.in_words == (
        "1 x g5.12xlarge spot (48 vCPUs) for service: All G and VT Spot Instance Requests (L-3819A6DF) is 64, 0 in use"
    )


def test_no_room_is_refused_with_both_numbers_and_the_command() -> None:
    running = [Running("g6.4xlarge", "on-demand", 16), Running("m6i.large", "on-demand", 2)]
    found = findings([ON_DEMAND, SPOT], {G_ON_DEMAND: 48.0, G_SPOT: 0.0}, running)
    with pytest.raises(QuotaTooSmall) as refused:
        judge(found, "us-west-2")
    assert isinstance(refused.value, NeedsHumanError)
    assert (refused.value.layer, refused.value.reason) == ("quota", "vcpu-quota")
    assert "(L-DB2E81BA) is 48, 16 in use" in refused.value.message
    assert "(L-3819A6DF) is 0, 0 in use" in refused.value.message
    assert refused.value.hint.endswith(
        "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-DB2E81BA "
        "--desired-value 64 --region us-west-2"
    )


OURS = Running("g5.12xlarge", "on-demand", 48, ours=True, id="i-1")


def test_a_node_of_the_standing_revision_is_not_needed_twice() -> None:
    decided = judge(findings([ON_DEMAND], {G_ON_DEMAND: 48.0}, [OURS], {"i-1": True}), "us-west-2")
    assert decided is not None and decided.is_met is True
    with pytest.raises(QuotaTooSmall, match="is 48, 48 in use"):
        judge(findings([ON_DEMAND], {G_ON_DEMAND: 48.0}, [Running("g5.12xlarge", "on-demand", 48)]), "us-west-2")
    # Its quota is another's: a spot node frees nothing on demand.
    spot = Running("g5.12xlarge", "spot", 48, ours=True, id="i-1")
    with pytest.raises(QuotaTooSmall):
        judge(findings([ON_DEMAND], {G_ON_DEMAND: 40.0}, [spot], {"i-1": True}), "us-west-2")


def test_a_node_of_another_deployment_is_not_free() -> None:
    with pytest.raises(QuotaTooSmall, match="is 48, 48 in use"):
        judge(findings([ON_DEMAND], {G_ON_DEMAND: 48.0}, [OURS], {"i-1": False}), "us-west-2")
    # One smaller of its own beside it frees no more than that.
    small = Running("g5.4xlarge", "on-demand", 16, ours=True, id="i-2")
    again = {"i-1": False, "i-2": True}
    with pytest.raises(QuotaTooSmall, match="is 80, 64 in use"):
        judge(findings([ON_DEMAND], {G_ON_DEMAND: 80.0}, [OURS, small], again), "us-west-2")
    decided = judge(findings([ON_DEMAND], {G_ON_DEMAND: 96.0}, [OURS, small], again), "us-west-2")
    assert decided is not None and decided.is_met is True


def test_before_the_cluster_can_be_asked_a_node_of_ours_is_neither_free_nor_taken() -> None:
    decided = judge(findings([ON_DEMAND], {G_ON_DEMAND: 48.0}, [OURS]), "us-west-2")
    assert decided is not None and decided.is_met is None
    assert decided.in_words.endswith(
        "is 48, 48 in use (enough only where nodes that run for this cluster can be used again)"
    )
    # With room beside it there is no question, and where it would not do there is none either.
    roomy = judge(findings([ON_DEMAND], {G_ON_DEMAND: 96.0}, [OURS]), "us-west-2")
    assert roomy is not None and roomy.is_met is True and roomy.in_words.endswith("is 96, 48 in use")
    with pytest.raises(QuotaTooSmall):
        judge(findings([ON_DEMAND], {G_ON_DEMAND: 40.0}, [OURS]), "us-west-2")


def node(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"providerID": f"aws:///us-west-2a/i-{name}"}}


def pod(name: str, on: str, *, space: str = "nim-service", owner: str = "ReplicaSet", phase: str = "Running") -> Any:
    metadata = {"name": name, "namespace": space, "ownerReferences": [{"kind": owner}]}
    return {"metadata": metadata, "spec": {"nodeName": on}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("pods", "may"),
    [
        ([], True),
        ([pod("llama-0a1b2c3d-6f5-x2", "a")], True),
        ([pod("llama-0a1b2c3d-pod", "a"), pod("llama-0a1b2c3d-job-7x", "a", owner="Job")], True),
        ([pod("other-0a1b2c3d-6f5-x2", "a")], False),
        # A longer name is another deployment's, and another namespace is another's.
        ([pod("llama-big-0a1b2c3d-6f5-x2", "a")], False),
        ([pod("llama-0a1b2c3d-6f5-x2", "a", space="elsewhere")], False),
        # Side by side with another's: its own place there is free again.
        ([pod("llama-0a1b2c3d-6f5-x2", "a"), pod("other-0a1b2c3d-6f5-x2", "a")], True),
        # What is on every node, or has ended, takes none.
        ([pod("plugin-x", "a", space="kube-system", owner="DaemonSet")], True),
        ([pod("other-0a1b2c3d-job-x", "a", owner="Job", phase="Succeeded")], True),
        ([pod("other-0a1b2c3d-6f5-x2", "b")], True),
    ],
)
def test_whose_node_may_be_used_again(pods: list[Any], may: bool) -> None:
    assert usable_again("llama", "nim-service", [node("a")], pods) == {"i-a": may}


@pytest.mark.parametrize(
    ("limits", "running"),
    [
        ({G_ON_DEMAND: "the worker's role lacks servicequotas:GetServiceQuota", G_SPOT: 0.0}, []),
        ({G_ON_DEMAND: 0.0, G_SPOT: 0.0}, "the worker's role lacks ec2:DescribeInstances"),
    ],
)
def test_what_nobody_tells_is_neither_yes_nor_no(limits: dict[str, float | str], running: list[Running] | str) -> None:
    decided = judge(findings([ON_DEMAND, SPOT], limits, running), "us-west-2")
    assert decided is not None and decided.is_met is None
    assert "is not known (the worker's role lacks" in decided.in_words


def test_the_first_that_has_room_decides_though_another_is_unknown() -> None:
    found = findings([ON_DEMAND, SPOT], {G_ON_DEMAND: "denied", G_SPOT: 48.0}, [])
    decided = judge(found, "us-west-2")
    assert decided is not None and decided.candidate is SPOT and decided.is_met is True


def test_without_candidates_there_is_nothing_to_decide() -> None:
    assert judge(findings([Candidate("service", "u-6tb1.metal", 1, "on-demand", 448)], {}, []), "us-west-2") is None
