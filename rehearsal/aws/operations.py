"""What a request to AWS asks for, told from method, path, headers and body, by botocore's models of the services."""

from __future__ import annotations

import re
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote

#: The service that a signature names -> botocore's model of it.
_MODELS = {
    "elasticfilesystem": "efs",
    "elasticloadbalancing": "elbv2",
    "tagging": "resourcegroupstaggingapi",
    "servicequotas": "service-quotas",
    "monitoring": "cloudwatch",
}


def operation(service: str, method: str, path: str, target: str, body: str) -> str | None:
    """The name of the call, as `DescribeVolumes`; None for what is no call of that service.

    :param service: as the signature names it
    :param path: as it was sent, without the query
    :param target: the header X-Amz-Target, or empty
    """
    if target:
        return target.rpartition(".")[2]
    if action := parse_qs(body).get("Action"):
        return action[0]
    return by_path(service, method, path)


def by_path(service: str, method: str, path: str) -> str | None:
    """The call of a service whose calls are paths."""
    # An ARN in a path may hold slashes, quoted or not.
    whole = re.sub(r"arn(:|%3A).*?(?=/access-policies|$)", "arn", path, flags=re.IGNORECASE)
    for verb, pattern, name in _routes(service):
        if verb == method and pattern.match(unquote(whole)):
            return name
    return None


@cache
def model(service: str) -> Any:
    """botocore's model of the service that a signature names."""
    import botocore.session

    return botocore.session.get_session().get_service_model(_MODELS.get(service, service))


@cache
def _routes(service: str) -> list[tuple[str, re.Pattern[str], str]]:
    """(method, path, operation)."""
    found = []
    for name in model(service).operation_names:
        http = model(service).operation_model(name).http
        path = re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(http["requestUri"].partition("?")[0].rstrip("/")))
        found.append((http["method"], re.compile(path + "/?$"), name))
    # A fixed segment goes before one that stands for any.
    return sorted(found, key=lambda route: route[1].pattern.count("[^/]+"))
