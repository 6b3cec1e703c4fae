"""What is left in AWS is found, named with what holds it, and told from what is not ours; nothing is ever changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws

from nim_rollouts.clients.inventory import look, rest
from nim_rollouts.core.inventory import Answer, Finding, Inventory, Scope, in_the_way
from rehearsal.aws import moto_gaps
from tests.planted import ClientOf, expected, plant

LAB = Scope("lab", "lab")


def clients() -> ClientOf:
    """Clients of an account that lives in this process as long as the mock."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return cache(lambda service: boto3.client(service, "us-west-2", **keys))


@pytest.fixture(scope="module")
def account() -> Iterator[tuple[ClientOf, dict[str, str]]]:
    moto_gaps.close()
    with mock_aws():
        of = clients()
        plant(of, "lab-2", tag=True)
        yield of, plant(of, "lab")


def by_ref(inventory: Inventory) -> dict[str, Finding]:
    return {f"{one.kind} {one.id}": one for one in inventory.leftovers}


@pytest.fixture(scope="module")
def whole(account: tuple[ClientOf, dict[str, str]]) -> Inventory:
    """Of lab, with every right."""
    return look.take(account[0], LAB)


def test_all_that_is_left_is_found_with_what_holds_it(
    account: tuple[ClientOf, dict[str, str]], whole: Inventory
) -> None:
    _, planted = account
    inventory = whole
    found, wanted = by_ref(inventory), expected("lab", planted)
    assert set(found) == set(wanted), "and nothing of lab-2, nor the bootstrap's bucket"
    for name, (owner, holders) in wanted.items():
        assert found[name].owner == owner, name
        assert set(holders) <= set(found[name].held_by) and bool(holders) == bool(found[name].held_by), name
    assert inventory.answer is Answer.LEFTOVERS and inventory.unseen == ()


def test_how_it_was_found_is_told(account: tuple[ClientOf, dict[str, str]], whole: Inventory) -> None:
    _, planted = account
    found = by_ref(whole)
    by_network = f"vpc {planted['vpc']}"
    assert found[f"network interface {planted['interface']}"].found_by == (by_network,)
    assert found[f"instance {planted['node']}"].found_by == ("tag kubernetes.io/cluster/lab", by_network)
    assert found["secret lab/grafana"].found_by == ("name",)
    assert found[f"IAM instance profile {planted['profile']}"].found_by == ("its IAM role lab-node",)
    assert found[f"EFS access point {planted['point']}"].found_by == (f"its EFS file system {planted['files']}",)
    assert "deletion scheduled" in found["secret lab/grafana"].text()


def test_nothing_but_reading_calls_is_made(account: tuple[ClientOf, dict[str, str]]) -> None:
    of, planted = account
    called: set[str] = set()
    seen: dict[str, Any] = {}

    def watched(service: str) -> Any:
        if service not in seen:
            seen[service] = of(service)
            seen[service].meta.events.register(
                "before-call.*.*", lambda model, **_: called.add(model.name), unique_id="watch"
            )
        return seen[service]

    look.take(watched, LAB)
    look.held(watched, LAB, [planted["vpc"]])
    assert len(called) > 30 and {one for one in called if not one.startswith(("Describe", "List", "Get"))} == set()


def test_a_network_that_is_only_known_from_before_is_looked_into(account: tuple[ClientOf, dict[str, str]]) -> None:
    """terraform's state is empty and the VPC has lost its tag: the id that was written down still leads there."""
    of, planted = account
    of("ec2").delete_tags(Resources=[planted["vpc"]], Tags=[{"Key": "nim-rollouts/environment"}])
    try:
        blind = by_ref(look.take(of, LAB))
        known = by_ref(look.take(of, Scope("lab", "lab", frozenset([planted["vpc"]]))))
    finally:
        of("ec2").create_tags(Resources=[planted["vpc"]], Tags=[{"Key": "nim-rollouts/environment", "Value": "lab"}])
    assert f"network interface {planted['interface']}" not in blind
    assert {f"VPC {planted['vpc']}", f"network interface {planted['interface']}"} <= set(known)


def test_what_holds_a_group_and_a_network(account: tuple[ClientOf, dict[str, str]]) -> None:
    """For terraform's DependencyViolation: the holder, and what it belongs to."""
    of, planted = account
    held = look.held(of, LAB, [planted["group"], planted["vpc"]])
    assert f"network interface {planted['wire']} of instance {planted['node']}" in held[planted["group"]]
    assert f"load balancer {planted['balancer']} of Service nim-service/llama" in held[planted["vpc"]]


def test_what_would_hold_a_destroy_up_is_told_before_it(account: tuple[ClientOf, dict[str, str]]) -> None:
    """Not what terraform removes itself, nor an interface whose instance is named already."""
    of, p = account
    found = {f"{one.kind} {one.id}" for one in in_the_way(look.network(of, LAB).leftovers)}
    strange = {f"instance {p['node']}", f"network interface {p['interface']}", f"security group {p['group']}"}
    # These two are untagged here; terraform's carry the tag.
    strange |= {f"subnet {p['subnet']}", f"subnet {p['other subnet']}"}
    assert found == strange | {f"load balancer {p['balancer']}", f"classic load balancer {p['classic']}"}


def fails(of: ClientOf, service: str, operation: str, error: Exception) -> tuple[Any, list[int]]:
    """Makes one call of the account fail; returns what ends that, and how often it was made."""
    asked = [0]

    def refuse(**_: Any) -> None:
        asked[0] += 1
        raise error

    named = of(service).meta.service_model.service_id.hyphenize()
    event = f"before-call.{named}.{operation}"
    of(service).meta.events.register(event, refuse)
    return lambda: of(service).meta.events.unregister(event, refuse), asked


def answer(code: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, operation)


@pytest.mark.parametrize(
    ("service", "operation", "code", "kind", "action", "says"),
    [
        ("ec2", "DescribeVolumes", "UnauthorizedOperation", "volume", "ec2:DescribeVolumes", "refuses"),
        ("efs", "DescribeAccessPoints", "AccessDeniedException", "EFS access point",
         "elasticfilesystem:DescribeAccessPoints", "refuses"),
        pytest.param("secretsmanager", "DescribeSecret", "AccessDeniedException", "secret",
                     "secretsmanager:DescribeSecret", "refuses", marks=pytest.mark.slow),
        pytest.param("s3", "GetBucketTagging", "AccessDenied", "S3 bucket", "s3:GetBucketTagging", "refuses",
                     marks=pytest.mark.slow),
        pytest.param("elbv2", "DescribeTags", "AccessDenied", "load balancer",
                     "elasticloadbalancing:DescribeTags", "refuses", marks=pytest.mark.slow),
        pytest.param("iam", "ListRoleTags", "Throttling", "IAM role", None, "throttles iam:ListRoleTags",
                     marks=pytest.mark.slow),
        pytest.param("ec2", "DescribeVpcs", "InternalError", "VPC", None, "DescribeVpcs with InternalError",
                     marks=pytest.mark.slow),
        pytest.param("resourcegroupstaggingapi", "GetResources", "AccessDeniedException", "S3 bucket",
                     "tag:GetResources", "refuses", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_call_that_fails_makes_its_kind_unknown_and_hides_no_other(
    account: tuple[ClientOf, dict[str, str]], whole: Inventory,
    service: str, operation: str, code: str, kind: str, action: str | None, says: str,
) -> None:  # fmt: skip
    of, planted = account
    lines: list[str] = []
    restore, _ = fails(of, service, operation, answer(code, operation))
    try:
        inventory = look.take(of, Scope("lab", "lab", frozenset([planted["vpc"]])), lines.append)
    finally:
        restore()
    unknown = {one.kind: one for one in inventory.unseen}
    assert says in unknown[kind].why and unknown[kind].action == action
    assert set(inventory.looked_at) == set(whole.looked_at) - set(unknown)
    hidden = set(by_ref(whole)) - set(by_ref(inventory))
    assert {name for name in hidden if by_ref(whole)[name].kind not in unknown} == set()
    assert any(kind in line for line in lines) and inventory.as_facts()["unknown"]


def test_empty_only_where_all_was_seen(account: tuple[ClientOf, dict[str, str]]) -> None:
    of, _ = account
    nothing = Scope("never", "never")
    inventory = look.take(of, nothing)
    assert inventory.answer is Answer.EMPTY and len(inventory.looked_at) > 30
    restore, asked = fails(of, "sqs", "ListQueues", answer("AccessDenied", "ListQueues"))
    try:
        inventory = look.take(of, nothing)
    finally:
        restore()
    assert inventory.answer is Answer.UNKNOWN and inventory.denied and asked == [1]


def told_again(of: ClientOf, service: str, operation: str, answer: dict[str, Any]) -> Callable[[], None]:
    """Makes a call answer what it answered before, as a list of AWS's that lags behind; returns what ends that."""
    events = of(service).meta.events
    event = f"before-call.{of(service).meta.service_model.service_id.hyphenize()}.{operation}"

    def stale(**_: Any) -> tuple[Any, dict[str, Any]]:
        return SimpleNamespace(status_code=200), answer

    events.register(event, stale)
    return lambda: events.unregister(event, stale)


def only(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Of all looks those for these kinds."""
    monkeypatch.setattr(look, "LOOKS", tuple(one for one in look.LOOKS if set(one.kinds) & set(kinds)))


@pytest.mark.parametrize(("code", "answer_is"), [(None, Answer.EMPTY), ("AccessDeniedException", Answer.UNKNOWN)])
def test_a_secret_that_the_list_still_shows_is_asked_for_itself(
    account: tuple[ClientOf, dict[str, str]], monkeypatch: pytest.MonkeyPatch, code: str | None, answer_is: Answer
) -> None:
    """It was deleted for good, and the list is minutes behind. Where it may not be asked for, it may be there."""
    of, _ = account
    only(monkeypatch, rest.SECRET)
    scope, secrets = Scope("late", "late"), of("secretsmanager")
    secrets.create_secret(Name="late/grafana", SecretString="not one")
    restore = told_again(of, "secretsmanager", "ListSecrets", secrets.list_secrets())
    allow = fails(of, "secretsmanager", "DescribeSecret", answer(code, "DescribeSecret"))[0] if code else lambda: None
    secrets.delete_secret(SecretId="late/grafana", ForceDeleteWithoutRecovery=True)
    try:
        inventory = look.take(of, scope)
    finally:
        allow()
        restore()
    assert (inventory.answer, inventory.leftovers) == (answer_is, ())
    assert [one.action for one in inventory.unseen] == ["secretsmanager:DescribeSecret"] * bool(code)


def test_a_secret_that_is_there_is_found_as_it_is_now(
    account: tuple[ClientOf, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list shows it untagged, as it was before it became another environment's; only what may count is asked."""
    of, _ = account
    only(monkeypatch, rest.SECRET)
    secrets = of("secretsmanager")
    for name in ("here/grafana", "here/other"):
        secrets.create_secret(Name=name, SecretString="not one")
    scope, listed = Scope("here", "here"), secrets.list_secrets()
    restore, asked = fails(of, "secretsmanager", "DescribeSecret", answer("AccessDeniedException", "DescribeSecret"))
    try:
        assert look.take(of, scope).answer is Answer.UNKNOWN and asked == [1]
    finally:
        restore()
    assert set(by_ref(look.take(of, scope))) == {"secret here/grafana"}
    secrets.tag_resource(SecretId="here/grafana", Tags=[{"Key": "nim-rollouts/environment", "Value": "there"}])
    restore = told_again(of, "secretsmanager", "ListSecrets", listed)
    try:
        assert look.take(of, scope).answer is Answer.EMPTY
    finally:
        restore()


def test_a_bucket_of_the_index_of_tags_is_asked_for_itself(
    account: tuple[ClientOf, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    of, _ = account
    only(monkeypatch, rest.BUCKET, rest.OTHER)
    scope, tag = Scope("index", "index"), {"Key": "nim-rollouts/environment", "Value": "index"}
    for name in ("index-gone", "index-bare", "index-here"):
        of("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    of("s3").put_bucket_tagging(Bucket="index-here", Tagging={"TagSet": [tag]})
    of("s3").delete_bucket(Bucket="index-gone")
    arns = [f"arn:aws:s3:::{name}" for name in ("index-gone", "index-bare", "index-here")]
    arns += ["arn:aws:s3:us-west-2:123456789012:accesspoint/door", "arn:aws:sns:us-west-2:123456789012:bell"]
    mapped = {"ResourceTagMappingList": [{"ResourceARN": arn, "Tags": [tag]} for arn in arns]}
    restore = told_again(of, "resourcegroupstaggingapi", "GetResources", mapped)
    try:
        found = by_ref(look.take(of, scope))
    finally:
        restore()
    others = {f"{rest.OTHER} {arn}" for arn in arns[3:]}
    assert set(found) == {"S3 bucket index-here", *others}
    assert all("AWS's index of tags alone has it" in found[one].text() for one in others)


def test_a_service_that_does_not_answer_is_asked_once(account: tuple[ClientOf, dict[str, str]]) -> None:
    of, _ = account
    restore, asked = fails(of, "iam", "*", EndpointConnectionError(endpoint_url="https://iam"))
    try:
        inventory = look.take(of, LAB)
    finally:
        restore()
    assert asked == [1] and {one.kind for one in inventory.unseen} >= {"IAM role", "IAM policy"}
    assert "does not answer" in inventory.unseen[0].why and not inventory.denied


def test_later_pages_are_read(account: tuple[ClientOf, dict[str, str]]) -> None:
    """AWS gives a hundred roles a page."""
    of, _ = account
    roles = {f"many{number:03}-node" for number in range(110)}
    for role in roles:
        of("iam").create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    first = of("iam").list_roles()
    assert first["IsTruncated"]
    later = min(roles - {one["RoleName"] for one in first["Roles"]})
    cluster = later.removesuffix("-node")
    assert set(by_ref(look.take(of, Scope(cluster, cluster)))) == {f"IAM role {later}"}


def test_names_are_of_kinds_that_are_looked_at() -> None:
    assert {*LAB.names(), *LAB.prefixes()} <= {kind for one in look.LOOKS for kind in one.kinds}
