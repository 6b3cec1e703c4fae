"""The machines' side: what an instance is told at launch, and the Node that it becomes."""

from __future__ import annotations

from typing import Any

import pytest

from rehearsal.karpenter import catalogue
from rehearsal.nodes import userdata
from rehearsal.nodes.node import node_object

LABELS = {"karpenter.sh/nodepool": "g5", "note": 'a "quoted" one'}
TAINTS = [
    {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
    {"key": "team", "value": "a:b", "effect": "NoExecute"},
    {"key": "team", "value": "c", "effect": "NoSchedule"},
]


def instance(**changes: Any) -> dict[str, Any]:
    return {
        "InstanceId": "i-0123456789abcdef0",
        "InstanceType": "g5.12xlarge",
        "PrivateDnsName": "ip-10-0-0-5.us-west-2.compute.internal",
        "Placement": {"AvailabilityZone": "us-west-2b"},
        **changes,
    }


def test_user_data_come_back_as_they_were_given() -> None:
    told = userdata.parse(userdata.render("cluster", LABELS, TAINTS))
    assert (told.cluster, told.labels, list(told.taints)) == ("cluster", LABELS, TAINTS)


@pytest.mark.parametrize("text", ["", "#!/bin/bash\n", "[settings]\n", "[settings.kubernetes]\n"])
def test_other_user_data_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no settings of Bottlerocket's"):
        userdata.parse(text)


def test_a_node_has_the_instances_name_and_says_where_its_kubelet_is() -> None:
    bootstrap = userdata.Bootstrap("cluster", LABELS, TAINTS)
    made = node_object(instance(), bootstrap, catalogue.load(), disk_gib=300, port=1234)
    assert made["metadata"]["name"] == "ip-10-0-0-5.us-west-2.compute.internal"
    assert made["spec"]["providerID"] == "aws:///us-west-2b/i-0123456789abcdef0"
    assert made["spec"]["taints"] == TAINTS
    assert made["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 1234
    assert {"type": "InternalIP", "address": "127.0.0.1"} in made["status"]["addresses"]
    labels = made["metadata"]["labels"]
    assert labels["topology.kubernetes.io/zone"] == "us-west-2b"
    assert labels["topology.kubernetes.io/region"] == "us-west-2"
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-A10G" and labels["karpenter.sh/nodepool"] == "g5"
    assert made["status"]["capacity"]["nvidia.com/gpu"] == "4"
    assert made["status"]["allocatable"]["cpu"] == "47810m"


def test_a_type_that_nobody_knows_becomes_a_small_node() -> None:
    made = node_object(
        instance(InstanceType="x9.large"), userdata.Bootstrap("c", {}, []), catalogue.load(), disk_gib=50, port=1
    )
    assert made["status"]["capacity"]["cpu"] == "2" and "nvidia.com/gpu" not in made["status"]["capacity"]
