"""What the looks share: clients, pages, tags, and what a refusal means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nim_rollouts.core.inventory import Thing, Unseen

#: (service) -> boto3 client.
ClientOf = Callable[[str], Any]

_IAM_PREFIX = {
    "elb": "elasticloadbalancing",
    "elbv2": "elasticloadbalancing",
    "efs": "elasticfilesystem",
    "resourcegroupstaggingapi": "tag",
}
_DENIED = ("AccessDenied", "Unauthorized", "AuthorizationError", "NotAuthorized")
_THROTTLED = ("Throttl", "RequestLimitExceeded", "TooManyRequests", "SlowDown")
_GONE = ("NotFound", "NoSuchEntity", "NonExistentQueue", "QueueDoesNotExist", "NoSuchBucket")


@dataclass(frozen=True)
class Look:
    """One way to find some kinds of things.

    `see` takes a client of each service, then the scope. It may yield more than the environment's: `core.inventory`
    decides.
    """

    kinds: tuple[str, ...]
    services: tuple[str, ...]
    see: Callable[..., Iterable[Thing]]


def pages(client: Any, operation: str, items: str, **arguments: Any) -> Iterator[Any]:
    """Every item of every page."""
    if client.can_paginate(operation):
        for page in client.get_paginator(operation).paginate(**arguments):
            yield from page.get(items) or ()
    else:
        yield from getattr(client, operation)(**arguments).get(items) or ()


def tags_of(item: Mapping[str, Any]) -> dict[str, str]:
    """The tags of an answer, whichever of AWS's ways of writing them it uses."""
    tags = item.get("Tags") or item.get("TagList") or item.get("TagSet") or item.get("tags") or ()
    if isinstance(tags, Mapping):
        return dict(tags)
    return {one.get("Key", one.get("key")): one.get("Value", one.get("value", "")) for one in tags}


def code_of(error: Exception) -> str:
    """AWS's error code; empty for what is no answer of AWS."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def is_gone(error: Exception) -> bool:
    """True when what was asked about has gone since it was listed."""
    return any(word in code_of(error) for word in _GONE)


def service_of(client_of: ClientOf, services: Sequence[str], error: Exception) -> str:
    """Which of the services it was that failed. The first, where the error does not tell."""
    operation = str(getattr(error, "operation_name", ""))
    if operation.startswith("AssumeRole"):
        return "sts"  # for the connection's own role, without which there is no client to ask
    asked = (one for one in services if operation in client_of(one).meta.service_model.operation_names)
    return next(asked, services[0]) if operation else services[0]


def unseen(kind: str, service: str, error: Exception) -> Unseen:
    """Why a kind could not be looked at."""
    code, operation = code_of(error), getattr(error, "operation_name", None)
    action = f"{_IAM_PREFIX.get(service, service)}:{operation}" if operation else service
    if any(word in code for word in _DENIED):
        return Unseen(kind, f"AWS refuses {action} ({code})", action)
    if any(word in code for word in _THROTTLED):
        return Unseen(kind, f"AWS throttles {action} ({code}), also after retries")
    if code:
        return Unseen(kind, f"AWS answered {action} with {code}")
    return Unseen(kind, f"AWS does not answer ({service}): {error}")
