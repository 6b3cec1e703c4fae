"""The account's vCPU quotas, asked of the AWS stand-in as of AWS: room, no room, what runs, a right that is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.include import Include
from nim_rollouts.core.errors import QuotaTooSmall
from nim_rollouts.core.quota import Running
from nim_rollouts.hooks import quotas
from nim_rollouts.operators import capacity
from rehearsal import faults
from rehearsal.aws.environment import environment as variables_of
from rehearsal.config import Rehearsal
from tests.rehearsal.aws_standin import client, start

pytestmark = pytest.mark.slow

G = "L-DB2E81BA"
ENVIRONMENT = Include().environment("rehearsal")
DEPLOYMENT = Include().deployment("meta-llama3-8b-instruct")


@pytest.fixture(scope="module")
def r(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    r, process = start(tmp_path_factory.mktemp("aws"))
    yield r
    process.terminate()
    assert process.wait(10) == 0


@pytest.fixture(autouse=True)
def connected(r: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    variables = variables_of(r.url("aws"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    extra = json.dumps({"endpoint_url": r.url("aws"), "region_name": "us-west-2"})
    keys = {"login": variables["AWS_ACCESS_KEY_ID"], "password": variables["AWS_SECRET_ACCESS_KEY"]}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", **keys, "extra": extra}))
    yield
    faults.clear(r)


@pytest.fixture
def instances(r: Rehearsal) -> Iterator[list[str]]:
    """A GPU node of the environment's cluster, one of somebody else, and one that is stopped."""
    ec2 = client(r, "ec2")
    image = "ami-12345678"
    ours = {"karpenter.sh/nodepool": "g5", f"kubernetes.io/cluster/{ENVIRONMENT.cluster.name}": "owned"}
    made: list[str] = []
    for kind, tags in (("g5.12xlarge", ours), ("m5.large", {"Name": "x"}), ("g5.2xlarge", {"Name": "stopped"})):
        described: list[Any] = [{"Key": key, "Value": value} for key, value in tags.items()]
        answer = ec2.run_instances(
            ImageId=image, InstanceType=kind, MinCount=1, MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": described}],
        )  # fmt: skip
        made.append(answer["Instances"][0]["InstanceId"])
    ec2.stop_instances(InstanceIds=made[-1:])
    yield made
    ec2.terminate_instances(InstanceIds=made)


def test_quotas_and_what_counts_against_them(r: Rehearsal, instances: list[str]) -> None:
    assert quotas.limits(ENVIRONMENT, [G, "L-1216C47A"]) == {G: 768.0, "L-1216C47A": 640.0}
    found = quotas.running(ENVIRONMENT)
    assert isinstance(found, list)
    assert sorted(found, key=lambda one: one.instance_type) == [
        Running("g5.12xlarge", "on-demand", 48, ours=True, id=instances[0]),
        Running("m5.large", "on-demand", 2, id=instances[1]),
    ], "the stopped one does not count; a type that we have no shape of is looked up"
    facts = capacity.quotas(ENVIRONMENT, DEPLOYMENT)
    assert facts["outcome"] == "ok" and facts["seen"] == [
        "1 x g5.12xlarge on-demand (48 vCPUs) for service: Running On-Demand G and VT instances (L-DB2E81BA) is 768, "
        "48 in use"
    ]


def test_a_node_counts_as_free_for_the_deployment_that_stands_on_it_alone(r: Rehearsal, instances: list[str]) -> None:
    faults.order(r, "few-vcpus", code="L-DB*", value=48)
    assert capacity.quotas(ENVIRONMENT, DEPLOYMENT, again={instances[0]: True})["outcome"] == "ok"
    with pytest.raises(QuotaTooSmall, match=r"\(L-DB2E81BA\) is 48, 48 in use.*--desired-value 96"):
        capacity.quotas(ENVIRONMENT, DEPLOYMENT, again={instances[0]: False})
    # Validation cannot look into the cluster.
    facts = capacity.quotas(ENVIRONMENT, DEPLOYMENT)
    assert facts["outcome"] == "unknown" and "can be used again" in facts["unknown"][0]


def test_a_quota_that_is_too_small_is_refused_until_the_command_was_run(r: Rehearsal) -> None:
    faults.order(r, "few-vcpus", code="L-DB*", value=40)
    with pytest.raises(QuotaTooSmall, match=r"\(L-DB2E81BA\) is 40, 0 in use.*--desired-value 48 --region us-west-2"):
        capacity.quotas(ENVIRONMENT, DEPLOYMENT)
    faults.clear(r)
    more = {"ServiceCode": "ec2", "QuotaCode": G}
    client(r, "service-quotas").request_service_quota_increase(**more, DesiredValue=1000)
    assert quotas.limits(ENVIRONMENT, [G]) == {G: 1000.0}


def test_the_pools_capacity_types_count(r: Rehearsal) -> None:
    from nim_rollouts.core.instances import INSTANCES
    from nim_rollouts.core.pools import Fit, Option

    faults.order(r, "few-vcpus", code=G, value=0)
    fitting = Fit([Option("g5", INSTANCES["g5.12xlarge"], 1, ("on-demand", "spot"))])
    facts = capacity.quotas(ENVIRONMENT, DEPLOYMENT, {"service": fitting})
    assert facts["outcome"] == "ok" and "spot" in facts["seen"][0]
    # Nobody can say how many vCPUs a type has that is not known: that is told, and refuses nothing.
    facts = capacity.quotas(ENVIRONMENT, DEPLOYMENT, {"service": fitting, "cache": Fit([], ["x may start y"])})
    assert (facts["outcome"], facts["unknown"]) == ("unknown", ["no instance type is known here for cache"])


def test_a_quota_that_was_never_moved_has_its_default(r: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    service = client(r, "service-quotas")

    def unmoved(**_: Any) -> Any:
        raise service.exceptions.NoSuchResourceException({"Error": {"Code": "NoSuchResourceException"}}, "Get")

    monkeypatch.setattr(service, "get_service_quota", unmoved)
    assert quotas._limit(service, "L-417A185B") == 192.0


@pytest.mark.parametrize("denied", ["service-quotas", "ec2"])
def test_a_right_that_is_missing_is_unknown_and_refuses_nothing(
    r: Rehearsal, denied: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker's role may do all but the one thing."""
    faults.order(r, "few-vcpus", value=0)
    _limited(r, denied, monkeypatch)
    facts = capacity.quotas(ENVIRONMENT, DEPLOYMENT)
    right = {"service-quotas": "servicequotas:GetServiceQuota", "ec2": "ec2:DescribeInstances"}[denied]
    assert facts["outcome"] == "unknown" and facts["unknown"] == [f"the worker's role lacks {right}"]
    assert f"is not known (the worker's role lacks {right}): the rollout goes on" in caplog.text


def _limited(r: Rehearsal, denied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS answers one service with the refusal that a role without the right gets."""
    from botocore.exceptions import ClientError

    whole = quotas._client

    def client_of(environment: Any, service: str) -> Any:
        made = whole(environment, service)
        if service == denied:
            code = "UnauthorizedOperation" if service == "ec2" else "AccessDeniedException"

            def refuse(**_: Any) -> None:
                raise ClientError({"Error": {"Code": code, "Message": "not authorized"}}, "call")

            made.meta.events.register("before-call.*", refuse)
        return made

    monkeypatch.setattr(quotas, "_client", client_of)


def test_an_aws_that_does_not_answer_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quotas, "_PATIENCE", (1, 1))
    extra = json.dumps({"endpoint_url": "http://127.0.0.1:9", "region_name": "us-west-2"})
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "extra": extra}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    facts = capacity.quotas(ENVIRONMENT, DEPLOYMENT)
    assert facts["outcome"] == "unknown"
    assert "Could not connect to the endpoint URL" in facts["unknown"][0]
