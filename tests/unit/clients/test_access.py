"""Tokens and DescribeCluster."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from nim_rollouts.clients.access import ClusterAccess, Token, describe
from nim_rollouts.core.errors import AccessDenied, ClusterMissing, ClusterUnavailable, NimRolloutsError


def test_a_token_is_minted_once_while_it_is_young() -> None:
    minted: list[int] = []

    def mint() -> str:
        minted.append(1)
        return f"token-{len(minted)}"

    token = Token(mint)
    assert (token(), token()) == ("token-1", "token-1")
    token.forget()
    assert token() == "token-2"
    old = Token(mint, max_age_s=-1)
    assert old() != old()
    assert "token-" not in repr(token) + repr(ClusterAccess("https://x", "ca", token))


def test_headers() -> None:
    assert ClusterAccess("http://x", None, lambda: "t").headers() == {"Authorization": "Bearer t"}
    assert ClusterAccess("http://x").headers() == {}
    assert ClusterAccess("http://x").ssl_context() is None


class Eks:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def describe_cluster(self, name: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"cluster": {"name": name, **self.answer}}


def refused(code: str, status: int) -> ClientError:
    error: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(error, "DescribeCluster")


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (refused("ResourceNotFoundException", 404), ClusterMissing, "cluster-missing"),
        (refused("AccessDeniedException", 403), AccessDenied, "access-denied"),
        (refused("ServerException", 500), ClusterUnavailable, "cluster-unavailable"),
        (NoCredentialsError(), AccessDenied, "access-denied"),
        (EndpointConnectionError(endpoint_url="x"), ClusterUnavailable, "cluster-unavailable"),
        ({"status": "DELETING"}, ClusterMissing, "cluster-not-active"),
        ({"status": "CREATING"}, ClusterUnavailable, "cluster-not-active"),
    ],
)
def test_refusals(answer: Any, error: type[NimRolloutsError], reason: str) -> None:
    with pytest.raises(error) as caught:
        describe(Eks(answer), "c", "us-west-2")
    assert caught.value.reason == reason
    assert caught.value.hint or isinstance(caught.value, ClusterUnavailable) or reason == "cluster-not-active"


@pytest.mark.parametrize("status", ["ACTIVE", "UPDATING"])
def test_a_cluster_that_serves(status: str) -> None:
    assert describe(Eks({"status": status}), "c", "us-west-2")["status"] == status
