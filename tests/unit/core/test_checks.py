"""The checks of a platform, each from objects alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.core import checks, storageprobe

NOW = datetime(2026, 11, 24, tzinfo=UTC)
GROUPS = ("apps.nvidia.com", "karpenter.sh")


def conditions(**given: str) -> dict[str, Any]:
    return {"conditions": [{"type": name, "status": value} for name, value in given.items()]}


def definition(name: str, **given: str) -> dict[str, Any]:
    return {"kind": "CustomResourceDefinition", "metadata": {"name": name}, "status": conditions(**given)}


def test_definitions_are_established_or_named() -> None:
    found = {"CustomResourceDefinition": [definition("a.x", Established="True"), definition("b.x")]}
    assert checks.definitions(found, ["a.x"], NOW) == checks.ok("crds", "a.x are established")
    bad = checks.definitions(found, ["a.x", "b.x", "c.x"], NOW)
    assert (bad.outcome, bad.reason, bad.layer) == ("failed", "crds-missing", "api-server")
    assert "b.x: b.x is not established yet; c.x: c.x does not exist" in bad.seen
    assert checks.definitions(found, [], NOW).outcome == "not-applicable"


@pytest.mark.parametrize(
    ("observed", "available", "outcome"), [(2, 1, "ok"), (1, 1, "failed"), (2, 0, "failed")]
)  # fmt: skip
def test_an_operator_counts_in_its_newest_generation(observed: int, available: int, outcome: str) -> None:
    state = {"observedGeneration": observed, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available}
    one = {"kind": "Deployment", "metadata": {"name": "operator", "generation": 2, "uid": "u"},
           "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "operator"}}}, "status": state}  # fmt: skip
    snapshots = {"nim-operator": {"Deployment": [one], "ReplicaSet": [], "Pod": [], "Event": []}}
    assert checks.operators(snapshots, [("nim-operator", "operator")], NOW).outcome == outcome


def hook(
    name: str = "one", *, policy: str = "Fail", bundle: str = "Q0E=", group: str = "apps.nvidia.com", url: str = ""
) -> dict[str, Any]:
    service = {"namespace": "nim-operator", "name": "webhook"}
    client = {"url": url} if url else {"service": service, "caBundle": bundle}
    return {
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": f"of-{name}"},
        "webhooks": [
            {"name": name, "failurePolicy": policy, "clientConfig": client, "rules": [{"apiGroups": [group]}]}
        ],
    }


def slices(*ready: bool | None) -> list[dict[str, Any]]:
    endpoints = [{"conditions": {} if one is None else {"ready": one}} for one in ready]
    labels = {"kubernetes.io/service-name": "webhook"}
    return [{"metadata": {"namespace": "nim-operator", "name": "webhook-x", "labels": labels}, "endpoints": endpoints}]


@pytest.mark.parametrize(
    ("configuration", "endpoints", "outcome", "says"),
    [
        (hook(), slices(True), "ok", "one answer"),
        (hook(), slices(None), "ok", "one answer"),
        (hook(), slices(False), "failed",
         "ValidatingWebhookConfiguration/of-one one: service nim-operator/webhook has no ready endpoint, "
         "and its failurePolicy is Fail"),
        (hook(), [], "failed", "has no ready endpoint"),
        (hook(bundle=""), slices(True), "failed", "its CA bundle is empty"),
        (hook(policy="Ignore"), [], "ok", "its failurePolicy lets pass"),
        (hook(group="example.com"), [], "not-applicable", "none looks"),
        (hook(group="*"), [], "failed", "no ready endpoint"),
        (hook(group="karpenter.sh"), [], "failed", "no ready endpoint"),
        (hook(url="https://127.0.0.1:1/"), [], "ok", "one answer"),
    ],
)  # fmt: skip
def test_a_webhook_needs_somebody_behind_it(
    configuration: dict[str, Any], endpoints: list[dict[str, Any]], outcome: str, says: str
) -> None:
    one = checks.webhooks([configuration], endpoints, GROUPS)
    assert one.outcome == outcome and says in one.seen, one
    assert (one.reason == "webhook-unavailable") is (outcome == "failed")


def pool(name: str, *, status: dict[str, Any]) -> dict[str, Any]:
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"}
    spec = {"template": {"spec": {"nodeClassRef": reference}}}
    return {"kind": "NodePool", "metadata": {"name": name}, "spec": spec, "status": status}


def node_class(status: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "EC2NodeClass", "metadata": {"name": "gpu"}, "status": status}


READY = conditions(Ready="True")
NO_SUBNETS = {
    "conditions": [
        {"type": "SubnetsReady", "status": "False", "reason": "SubnetsNotFound", "message": "Selector matched none"},
        {"type": "SecurityGroupsReady", "status": "True"},
        {"type": "Ready", "status": "False", "reason": "UnhealthyDependents", "message": "SubnetsReady=False"},
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    ("pools", "classes", "says"),
    [
        ([pool("g5", status=READY)], [node_class(READY)], ""),
        ([], [node_class(READY)], "NodePool/g5 does not exist"),
        ([pool("g5", status=READY)], [], "EC2NodeClass/gpu does not exist"),
        ([pool("g5", status={})], [node_class(READY)], "NodePool/g5 is not Ready: it has no conditions yet"),
        ([pool("g5", status=conditions(Ready="False", NodeClassReady="False"))], [node_class(NO_SUBNETS)],
         "EC2NodeClass/gpu is not Ready: SubnetsReady=False (Selector matched none)"),
    ],
)  # fmt: skip
def test_node_pools_and_their_classes_are_ready(pools: list[Any], classes: list[Any], says: str) -> None:
    one = checks.node_pools({"NodePool": pools, "EC2NodeClass": classes}, ["g5"])
    assert one.outcome == ("failed" if says else "ok")
    assert one.seen.startswith(says) if says else one.seen == "g5 are Ready"
    assert (one.reason == "node-pool-not-ready") is bool(says)


def test_without_node_pools_there_is_nothing_to_check() -> None:
    assert checks.node_pools({}, []).outcome == "not-applicable"


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        ("written and read by 1000:2000, owner 1000:2000", "ok", ""),
        ("write refused: sh: can't create /model-store/.x: Permission denied", "failed", "storage-not-writable"),
        ("write refused: sh: 3: cannot create .x: Operation not permitted", "failed", "storage-not-writable"),
        ("read differs: ", "failed", "storage-unusable"),
        ("write refused: No space left on device", "failed", "storage-unusable"),
        ("", "failed", "storage-unusable"),
    ],
)
def test_what_the_probe_says_is_judged(answer: str, outcome: str, reason: str) -> None:
    one = storageprobe.judged(answer, "efs-sc-dynamic")
    assert (one.outcome, one.reason) == (outcome, reason)
    assert "efs-sc-dynamic" in one.seen and (answer in one.seen)


def test_the_last_word_is_that_of_the_jobs_own_pod() -> None:
    job = {"kind": "Job", "metadata": {"name": "probe", "uid": "j"}}
    pods = [
        {"kind": "Pod", "metadata": {"name": name, "ownerReferences": [{"kind": "Job", "name": "probe", "uid": uid}]},
         "status": {"containerStatuses": [{"state": {"terminated": {"message": f"{name}\n"}}}]}}
        for name, uid in (("another", "x"), ("mine", "j"))
    ]  # fmt: skip
    assert storageprobe.said({"Pod": pods}, job) == "mine"
    assert storageprobe.said({"Pod": []}, job) == ""


def test_a_line_says_what_to_do_and_holds_no_key() -> None:
    one = checks.failed("storage", "nvapi-abcdefgh refused", "Do this", "storage-unusable", "volume")
    assert one.line == "storage: failed: nvapi-*** refused (layer=volume reason=storage-unusable). Do this"
    assert one.to_dict()["seen"] == "nvapi-*** refused"
