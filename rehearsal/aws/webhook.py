"""The API server's token webhook: a TokenReview in, the IAM identity mapped by the cluster's access entries out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rehearsal.aws import ACCESS_KEY_ID, SECRET_ACCESS_KEY, token
from rehearsal.aws.eks import WsgiApp
from rehearsal.aws.eks_access import CLUSTER_ADMIN_POLICY
from rehearsal.aws.eks_state import AccessEntry, Caller, Clusters, ClusterState
from rehearsal.aws.token import BadToken, Presigned

if TYPE_CHECKING:
    from rehearsal.config import Rehearsal

log = logging.getLogger("rehearsal.aws.webhook")

_ASSUMED_ROLE = re.compile(
    r"^arn:(?P<partition>[^:]+):sts::(?P<account>\d+):assumed-role/(?P<role>[^/]+)/(?P<session>.+)$"
)
#: moto names a caller whose key it did not issue so; STS would name an IAM user by its IAM ARN.
_STS_USER = re.compile(r"^(?P<head>arn:[^:]+:)sts(?P<tail>::\d+:user/.+)$")


def kubeconfig(r: Rehearsal) -> str:
    """The text of the file for the API server's --authentication-token-webhook-config-file."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tokens", "cluster": {"server": r.url("webhook") + "/authenticate"}}],
            "users": [{"name": "apiserver", "user": {}}],
            "contexts": [{"name": "webhook", "context": {"cluster": "tokens", "user": "apiserver"}}],
            "current-context": "webhook",
        },
        indent=1,
    )


class TokenWebhook:
    """WSGI application: POST /authenticate (TokenReview), GET /healthz."""

    def __init__(self, moto: WsgiApp, clusters: Clusters, endpoint_hosts: set[str]) -> None:
        self.moto, self.clusters, self.endpoint_hosts = moto, clusters, endpoint_hosts

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            return _respond(start_response, "200 OK", b"ok", "text/plain")
        if environ["PATH_INFO"] != "/authenticate" or environ["REQUEST_METHOD"] != "POST":
            return _respond(start_response, "404 Not Found", b"POST /authenticate only\n", "text/plain")
        try:
            review = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            bearer = review["spec"]["token"]
        except (ValueError, KeyError, TypeError):
            return _respond(start_response, "400 Bad Request", b"a TokenReview is wanted\n", "text/plain")
        answer = {
            "apiVersion": review.get("apiVersion", "authentication.k8s.io/v1"),
            "kind": "TokenReview",
            "status": self.review(bearer),
        }
        return _respond(start_response, "200 OK", json.dumps(answer).encode(), "application/json")

    def review(self, bearer: str) -> dict[str, Any]:
        """The status of a TokenReview. Why a token was refused is said in the log and in `error`."""
        try:
            user = self._user(bearer)
        except BadToken as error:
            log.info("refused: %s", error)
            return {"authenticated": False, "error": str(error)}
        return {"authenticated": True, "user": user}

    def _user(self, bearer: str) -> dict[str, Any]:
        presigned = token.parse(bearer, self.endpoint_hosts)
        identity = self._caller_identity(presigned)
        with self.clusters.lock:
            cluster = self._cluster(presigned, identity["Account"])
            arn = canonical_arn(identity["Arn"])
            entry = cluster.access_entries.get(arn) or _by_role_name(cluster, arn)
            if entry is None:
                raise BadToken(f"{arn} has no access entry in cluster {cluster.name}")
            session = identity["UserId"].partition(":")[2]
            return {
                "username": entry.description["username"].replace("{{SessionName}}", session.replace("@", "-")),
                "uid": f"aws-iam-authenticator:{identity['Account']}:{identity['UserId'].partition(':')[0]}",
                "groups": _groups(cluster, entry),
                "extra": {
                    "arn": [identity["Arn"]],
                    "canonicalArn": [arn],
                    "accessKeyId": [presigned.access_key],
                    **({"sessionName": [session]} if session else {}),
                },
            }

    def _cluster(self, presigned: Presigned, account: str) -> ClusterState:
        """The cluster that the token was signed for. On EKS each API server knows its own; here one plays them all."""
        standing = self.clusters.in_region(Caller(account, presigned.region))
        if not standing:
            raise BadToken(f"no cluster stands in {presigned.region}")
        secret = _secret_of(presigned.access_key)
        if secret is None:
            # The signature cannot be checked, so the name in the signed header cannot be told.
            if len(standing) > 1:
                raise BadToken(f"access key {presigned.access_key} is unknown and several clusters stand")
            return standing[0]
        for cluster in standing:
            if presigned.is_signed_for(cluster.name, secret):
                return cluster
        raise BadToken(
            "the signature matches no standing cluster: the token was signed for another cluster or by another key"
        )

    def _caller_identity(self, presigned: Presigned) -> dict[str, str]:
        """Replay the request against STS. moto tells services apart by the Authorization header, so it gets one."""
        from werkzeug.test import Client

        answer = Client(self.moto).get(
            "/",
            query_string={"Action": "GetCallerIdentity", "Version": "2011-06-15"},
            headers={
                "Authorization": f"AWS4-HMAC-SHA256 Credential={presigned.credential}, "
                f"SignedHeaders={';'.join(presigned.signed_headers)}, Signature={presigned.query['X-Amz-Signature']}"
            },
        )
        if answer.status_code != 200:
            raise BadToken(f"STS answered {answer.status_code}")
        found = {
            element.tag.rpartition("}")[2]: element.text or "" for element in ElementTree.fromstring(answer.data).iter()
        }
        return {key: found[key] for key in ("Arn", "Account", "UserId")}


def canonical_arn(arn: str) -> str:
    """The IAM ARN of the principal behind an STS identity, as EKS looks it up among the access entries."""
    if match := _ASSUMED_ROLE.match(arn):
        return f"arn:{match['partition']}:iam::{match['account']}:role/{match['role']}"
    if match := _STS_USER.match(arn):
        return f"{match['head']}iam{match['tail']}"
    return arn


def _by_role_name(cluster: ClusterState, arn: str) -> AccessEntry | None:
    """An assumed role's ARN has lost the role's path; EKS finds the entry of a role with a path all the same."""
    head, _, name = arn.partition(":role/")
    for principal, entry in cluster.access_entries.items():
        if name and principal.startswith(f"{head}:role/") and principal.rpartition("/")[2] == name:
            return entry
    return None


def _groups(cluster: ClusterState, entry: AccessEntry) -> list[str]:
    groups = list(entry.description["kubernetesGroups"])
    for policy_arn, association in entry.policies.items():
        if policy_arn == CLUSTER_ADMIN_POLICY and association["accessScope"]["type"] == "cluster":
            # EKS has an authorizer of its own for access policies; this group has the same effect.
            groups.append("system:masters")
        else:
            log.warning(
                "cluster %s: %s gives no rights here: only AmazonEKSClusterAdminPolicy does", cluster.name, policy_arn
            )
    return groups


def _secret_of(access_key: str) -> str | None:
    if access_key == ACCESS_KEY_ID:
        return SECRET_ACCESS_KEY
    from moto.iam.models import iam_backends

    for account in list(iam_backends.values()):
        key = account["aws"].access_keys.get(access_key)
        if key is not None:
            return str(key.secret_access_key)
    return None


def _respond(start_response: Callable[..., Any], status: str, body: bytes, content_type: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]
