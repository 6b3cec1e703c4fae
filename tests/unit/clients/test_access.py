"""Tokens and DescribeCluster."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from nim_rollouts.clients.access import ClusterAccess, Token, describe, has_users
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


ADMIN, NODE = "arn:aws:iam::1:role/airflow", "arn:aws:iam::1:role/node"
SERVICE = "arn:aws:iam::1:role/aws-service-role/eks.amazonaws.com/AWSServiceRoleForAmazonEKS"
NODES = {"type": "EC2_LINUX", "kubernetesGroups": ["system:nodes"], "policies": []}
RIGHTS = {"type": "STANDARD", "kubernetesGroups": [], "policies": ["admin"]}


class Entries(Eks):
    """EKS with access entries."""

    class exceptions:  # noqa: N801
        class ResourceNotFoundException(Exception):  # noqa: N818
            pass

    def __init__(self, entries: Any, mode: str = "API") -> None:
        super().__init__({"accessConfig": {"authenticationMode": mode}})
        self.entries = entries

    def get_paginator(self, name: str) -> Any:
        assert name == "list_access_entries"
        return self

    def paginate(self, clusterName: str) -> Any:  # noqa: N803
        if isinstance(self.entries, Exception):
            raise self.entries
        return [{"accessEntries": [one]} for one in self.entries]

    def _entry(self, principal: str) -> Any:
        if self.entries[principal] is None:
            raise self.exceptions.ResourceNotFoundException
        return self.entries[principal]

    def describe_access_entry(self, clusterName: str, principalArn: str) -> Any:  # noqa: N803
        return {"accessEntry": self._entry(principalArn)}

    def list_associated_access_policies(self, clusterName: str, principalArn: str) -> Any:  # noqa: N803
        return {"associatedAccessPolicies": self._entry(principalArn)["policies"]}


@pytest.mark.parametrize(
    ("entries", "mode", "some"),
    [
        ({}, "API", False),
        ({SERVICE: RIGHTS, NODE: NODES}, "API", False),
        ({NODE: NODES, ADMIN: {**RIGHTS, "policies": []}}, "API", False),
        ({ADMIN: None}, "API", False),
        ({NODE: NODES, ADMIN: RIGHTS}, "API", True),
        ({ADMIN: {**RIGHTS, "policies": [], "kubernetesGroups": ["ops"]}}, "API", True),
        ({}, "API_AND_CONFIG_MAP", True),
        (refused("AccessDeniedException", 403), "API", True),
    ],
)
def test_who_may_use_a_cluster(entries: Any, mode: str, some: bool) -> None:
    assert has_users(Entries(entries, mode), "c") is some
