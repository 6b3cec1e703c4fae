"""Queues, rules, log groups, keys, secrets, and whatever else carries the environment's tag."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nim_rollouts.clients.inventory.aws import Look, code_of, is_gone, pages, tags_of
from nim_rollouts.core.inventory import ENVIRONMENT_TAG, Scope, Thing, found_by, ref

QUEUE, RULE, LOGS, SECRET = "SQS queue", "EventBridge rule", "log group", "secret"
KEY, ALIAS, BUCKET, OTHER = "KMS key", "KMS alias", "S3 bucket", "other thing with the tag"


def _queues(sqs: Any, scope: Scope) -> Iterator[Thing]:
    # Without a page size SQS gives the first thousand and says nothing of others.
    for url in pages(
        sqs, "list_queues", "QueueUrls", QueueNamePrefix=f"{scope.cluster}-", PaginationConfig={"PageSize": 1000}
    ):
        try:
            tags = sqs.list_queue_tags(QueueUrl=url).get("Tags", {})
        except sqs.exceptions.ClientError as error:
            # A deleted queue is listed for another minute.
            if is_gone(error):
                continue
            raise
        yield Thing(QUEUE, url.rpartition("/")[2], tags=tags)


def _rules(events: Any, scope: Scope) -> Iterator[Thing]:
    for item in pages(events, "list_rules", "Rules", NamePrefix=f"{scope.cluster}-"):
        try:
            tags = tags_of(events.list_tags_for_resource(ResourceARN=item["Arn"]))
            targets = list(pages(events, "list_targets_by_rule", "Targets", Rule=item["Name"]))
        except events.exceptions.ClientError as error:
            if is_gone(error):
                continue
            raise
        # A rule with targets cannot be deleted.
        held_by = tuple(f"target {target['Id']} ({target['Arn'].rpartition(':')[2]})" for target in targets)
        yield Thing(RULE, item["Name"], tags=tags, held_by=held_by)


def _log_groups(logs: Any, scope: Scope) -> Iterator[Thing]:
    """The dying control plane may write once more and so make its group again, unknown to terraform: the next apply
    fails on it."""
    for prefix in scope.prefixes()[LOGS]:
        for item in pages(logs, "describe_log_groups", "logGroups", logGroupNamePrefix=prefix):
            try:
                tags = logs.list_tags_for_resource(resourceArn=item["arn"].removesuffix(":*")).get("tags", {})
            except logs.exceptions.ClientError as error:
                if is_gone(error):
                    continue
                raise
            yield Thing(LOGS, item["logGroupName"], tags=tags)


def _secrets(secrets: Any, scope: Scope) -> Iterator[Thing]:
    """Those that wait for their deletion too: their names are in the way of the next apply."""
    by_name = [{"Key": "name", "Values": [f"{scope.cluster}/"]}]
    by_tag = [{"Key": "tag-key", "Values": [ENVIRONMENT_TAG]}]
    listed = {
        item["ARN"]: Thing(SECRET, item["Name"], tags=tags_of(item))
        for filters in (by_name, by_tag)
        for item in pages(secrets, "list_secrets", "SecretList", Filters=filters, IncludePlannedDeletion=True)
    }
    for arn, thing in listed.items():
        if found_by(thing, scope):
            yield from _secret(secrets, arn)


def _secret(secrets: Any, arn: str) -> Iterator[Thing]:
    """As it is now: the list shows a secret for minutes after it was deleted for good."""
    try:
        told = secrets.describe_secret(SecretId=arn)
    except secrets.exceptions.ClientError as error:
        if is_gone(error):
            return
        raise
    state = "deletion scheduled, its name is still taken" if told.get("DeletedDate") else ""
    yield Thing(SECRET, told["Name"], tags=tags_of(told), state=state)


def _aliases(kms: Any, scope: Scope) -> Iterator[Thing]:
    for item in pages(kms, "list_aliases", "Aliases"):
        name = item["AliasName"]
        if name not in scope.names()[ALIAS]:
            continue
        key = item.get("TargetKeyId")
        yield Thing(ALIAS, name, holds=(ref(KEY, key),) if key else ())
        if key:
            yield from _key(kms, key, {}, (f"its {ALIAS} {name}",))


def _key(kms: Any, key: str, tags: dict[str, str], by: tuple[str, ...] = ()) -> Iterator[Thing]:
    """A key that waits for its deletion costs nothing, blocks no name, and cannot be hurried: it is not left."""
    try:
        told = kms.describe_key(KeyId=key)["KeyMetadata"]
    except kms.exceptions.ClientError as error:
        if is_gone(error):
            return
        raise
    if told["KeyState"] != "PendingDeletion" and told.get("KeyManager") != "AWS":
        yield Thing(KEY, told["KeyId"], tags=tags, by=by, state=told["KeyState"])


def _mapped(tagging: Any, scope: Scope, *types: str) -> Iterator[tuple[str, dict[str, str]]]:
    only = {"ResourceTypeFilters": list(types)} if types else {}
    wanted = [{"Key": ENVIRONMENT_TAG, "Values": [scope.environment]}]
    for item in pages(tagging, "get_resources", "ResourceTagMappingList", TagFilters=wanted, **only):
        yield item["ResourceARN"], tags_of(item)


def _keys(tagging: Any, kms: Any, scope: Scope) -> Iterator[Thing]:
    """Not by listing keys: those of others may not be ours to ask about."""
    for arn, tags in _mapped(tagging, scope, "kms:key"):
        yield from _key(kms, arn.rpartition("/")[2], tags)


def _buckets(tagging: Any, s3: Any, scope: Scope) -> Iterator[Thing]:
    """The bootstrap's buckets carry another tag: no teardown is theirs."""
    for arn, _ in _mapped(tagging, scope, "s3"):
        if not arn.partition(":s3:")[2].startswith("::"):
            continue  # an access point, or another part of S3 with an account in its name
        name = arn.rpartition(":")[2]
        # Not HeadBucket, whose right also shows what is in a bucket: its tags are what counts.
        try:
            yield Thing(BUCKET, name, tags=tags_of(s3.get_bucket_tagging(Bucket=name)))
        except s3.exceptions.ClientError as error:
            if not (is_gone(error) or code_of(error) == "NoSuchTagSet"):
                raise


#: ARNs of what another look sees itself. AWS's index of tags lags behind: what was deleted minutes or hours ago may
#: still stand there, and only the service itself knows better.
_SEEN_ELSEWHERE = re.compile(
    r"arn:[^:]+:(?:"
    r"ec2:[^:]*:[^:]*:(?:vpc|subnet|security-group|security-group-rule|network-interface|route-table|internet-gateway"
    r"|natgateway|elastic-ip|vpc-endpoint|instance|volume|snapshot|launch-template|fleet|spot-instances-request)/"
    r"|(?:eks|elasticfilesystem|elasticloadbalancing|autoscaling|sqs|events|logs|secretsmanager|kms|iam):|s3:::)"
)


def _others(tagging: Any, scope: Scope) -> Iterator[Thing]:
    """No call asks any service whether a thing of it is still there, so that a person has to look."""
    for arn, tags in _mapped(tagging, scope):
        if not _SEEN_ELSEWHERE.match(arn):
            yield Thing(OTHER, arn, tags=tags, state="AWS's index of tags alone has it, perhaps hours too long")


LOOKS = (
    Look((QUEUE,), ("sqs",), _queues),
    Look((RULE,), ("events",), _rules),
    Look((LOGS,), ("logs",), _log_groups),
    Look((SECRET,), ("secretsmanager",), _secrets),
    Look((ALIAS,), ("kms",), _aliases),
    Look((KEY,), ("resourcegroupstaggingapi", "kms"), _keys),
    Look((BUCKET,), ("resourcegroupstaggingapi", "s3"), _buckets),
    Look((OTHER,), ("resourcegroupstaggingapi",), _others),
)
