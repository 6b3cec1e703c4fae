"""How a cluster is reached: its endpoint, its CA, and a token that is minted in process.

Nothing is written to disk and nothing is handed from worker to triggerer: each side asks AWS for itself. An EKS token
is a presigned request, valid for 15 minutes; it is made again after 10.
"""

from __future__ import annotations

import base64
import logging
import ssl
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nim_rollouts.core.errors import AccessDenied, ClusterMissing, ClusterUnavailable
from nim_rollouts.core.spec import Environment

log = logging.getLogger(__name__)

T = TypeVar("T")

TOKEN_AGE_S = 600.0


class Token:
    """A bearer token that is minted when it is wanted, and again when it is old. Safe across threads."""

    def __init__(self, mint: Callable[[], str], max_age_s: float = TOKEN_AGE_S) -> None:
        self._mint, self._max_age_s = mint, max_age_s
        self._value: str | None = None
        self._minted = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            if self._value is None or time.monotonic() - self._minted > self._max_age_s:
                self._value = self._mint()
                self._minted = time.monotonic()
            return self._value

    def forget(self, refused: str | None = None) -> None:
        """Mint a new one next time: the server has refused this one. A younger one than the `refused` stays: of many
        requests that a 401 meets at once, the first alone brings a new token."""
        with self._lock:
            if refused is None or refused == self._value:
                self._value = None

    def __repr__(self) -> str:
        return "Token(***)"


@dataclass(frozen=True)
class ClusterAccess:
    """`endpoint`: https://host[:port]; `ca_pem`: the CA's certificate, None for the system's; `name`: the
    environment's, whose waits may share a connection whoever of them opened it."""

    endpoint: str
    ca_pem: str | None = field(default=None, repr=False)
    token: Callable[[], str] = field(default=lambda: "", repr=False)
    name: str = ""

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Equal for two ways into one cluster that may do the same there."""
        return self.endpoint, self.ca_pem, self.name or self.token

    def ssl_context(self) -> ssl.SSLContext | None:
        """Checks the server against the cluster's own CA; None for a plain http endpoint."""
        if not self.endpoint.startswith("https://"):
            return None
        return ssl.create_default_context(cadata=self.ca_pem)

    def headers(self) -> dict[str, str]:
        """Authorization, with a token that is young enough. May call AWS: not for an event loop's thread."""
        token = self.token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def forget_token(self, headers: Mapping[str, str] | None = None) -> None:
        """After a 401 to a request with these `headers`."""
        if isinstance(self.token, Token):
            self.token.forget(headers.get("Authorization", "").removeprefix("Bearer ") if headers else None)


def cluster_access(environment: Environment) -> ClusterAccess:
    """Access to the environment's EKS cluster with its AWS connection. Blocking; from a trigger call it in a thread.

    :raises ClusterMissing: no such cluster, or it is being deleted or has failed
    :raises AccessDenied: AWS refuses the credentials
    :raises ClusterUnavailable: AWS does not answer
    """
    from airflow.providers.amazon.aws.hooks.eks import EksHook
    from airflow.providers.amazon.aws.hooks.sts import StsHook
    from airflow.providers.amazon.aws.utils.eks_get_token import fetch_access_token_for_cluster

    name, region = environment.cluster.name, environment.region
    hook = EksHook(aws_conn_id=environment.aws_conn_id, region_name=region)
    cluster = describe(hook.conn, name, region)
    sts = StsHook(aws_conn_id=environment.aws_conn_id, region_name=region).conn_client_meta.endpoint_url

    def mint() -> str:
        try:
            return str(
                fetch_access_token_for_cluster(
                    name, f"{sts}/?Action=GetCallerIdentity&Version=2011-06-15", region, hook.get_session()
                )
            )
        except ValueError as error:
            raise AccessDenied(f"no AWS credentials for cluster {name}", hint="Set the AWS connection") from error

    ca = base64.b64decode(cluster["certificateAuthority"]["data"]).decode()
    return ClusterAccess(
        endpoint=str(cluster["endpoint"]).rstrip("/"), ca_pem=ca, token=Token(mint), name=environment.name
    )


class Remembered:
    """The same access, or store, for all who ask within a short time: a thousand waits that begin together describe the
    cluster once, share a token, and make one S3 client instead of a thousand. Errors are not remembered. Safe across
    threads; for triggerers, not for workers, which may make and destroy the cluster that they ask for."""

    def __init__(self, max_age_s: float = 60.0) -> None:
        self._max_age_s = max_age_s
        self._known: dict[Hashable, tuple[float, Any]] = {}
        self._locks: dict[Hashable, threading.Lock] = {}

    def __call__(self, make: Callable[[Environment], T], environment: Environment) -> T:
        """`make(environment)`, or what it gave before."""
        store = environment.store.model_dump_json()
        key = (make, environment.name, environment.region, environment.cluster.name, environment.aws_conn_id, store)
        with self._locks.setdefault(key, threading.Lock()):
            age, known = self._known.get(key, (0.0, None))
            if known is None or time.monotonic() - age > self._max_age_s:
                known = make(environment)
                self._known[key] = (time.monotonic(), known)
            made: T = known
            return made


remembered = Remembered()


def describe(eks: Any, name: str, region: str) -> dict[str, Any]:
    """DescribeCluster of an active cluster. `eks`: a boto3 EKS client."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        cluster: dict[str, Any] = eks.describe_cluster(name=name)["cluster"]
    except NoCredentialsError as error:
        raise AccessDenied("no AWS credentials", hint="Set the AWS connection") from error
    except BotoCoreError as error:
        raise ClusterUnavailable(f"AWS does not answer for EKS cluster {name}: {error}") from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code == "ResourceNotFoundException":
            raise ClusterMissing(
                f"EKS has no cluster {name} in {region}", hint="Run the provisioning stage, or correct cluster.name"
            ) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (401, 403):
            raise AccessDenied(f"AWS refuses DescribeCluster of {name}: {code}") from error
        raise ClusterUnavailable(f"DescribeCluster of {name}: {code}") from error
    state = cluster.get("status")
    if state in ("CREATING", "PENDING"):
        # It is there, or will be: a teardown must not take that for nothing.
        raise ClusterUnavailable(f"EKS cluster {name} is {state}", reason="cluster-not-active", retry_after_s=60)
    if state not in ("ACTIVE", "UPDATING"):
        raise ClusterMissing(f"EKS cluster {name} is {state}, and serves nobody", reason="cluster-not-active")
    return cluster


def lets_somebody_in(environment: Environment) -> bool:
    """False when EKS itself says that nobody can do anything in the environment's cluster. See `has_users`."""
    from airflow.providers.amazon.aws.hooks.eks import EksHook

    hook = EksHook(aws_conn_id=environment.aws_conn_id, region_name=environment.region)
    return has_users(hook.conn, environment.cluster.name)


def has_users(eks: Any, name: str) -> bool:
    """Whether an access entry of a person or a program has any right in the cluster. terraform makes them after the
    cluster and destroys them before it: one that was cut off in between leaves a cluster that answers nobody.

    Where that cannot be told (another way of authentication, a call that is refused) it is taken to have some.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        config = eks.describe_cluster(name=name)["cluster"].get("accessConfig") or {}
        if config.get("authenticationMode") != "API":
            return True
        pages = eks.get_paginator("list_access_entries").paginate(clusterName=name)
        return any(_has_rights(eks, name, principal) for page in pages for principal in page["accessEntries"])
    except (BotoCoreError, ClientError) as error:
        log.warning("EKS does not tell who may use the cluster %s: %s", name, error)
        return True


def _has_rights(eks: Any, cluster: str, principal: str) -> bool:
    # EKS's own, of which every cluster has one.
    if ":role/aws-service-role/" in principal:
        return False
    try:
        entry = eks.describe_access_entry(clusterName=cluster, principalArn=principal)["accessEntry"]
        if entry.get("type", "STANDARD") != "STANDARD":  # of nodes
            return False
        policies = eks.list_associated_access_policies(clusterName=cluster, principalArn=principal)
    except eks.exceptions.ResourceNotFoundException:
        return False  # it has gone since
    return bool(entry.get("kubernetesGroups") or policies["associatedAccessPolicies"])
