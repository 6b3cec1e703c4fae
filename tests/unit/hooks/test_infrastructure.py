"""Whose credentials terraform gets, and who administers a cluster where nobody is named."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from moto import mock_aws

from nim_rollouts.core.environment import Environment, load_environment
from nim_rollouts.core.errors import AccessDenied
from nim_rollouts.hooks.infrastructure import aws_credentials, principal, variables

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without any credentials."""
    for name in (*KEYS, "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def connection(monkeypatch: pytest.MonkeyPatch, **extra: str) -> None:
    given = {"conn_type": "aws", "extra": {"region_name": "eu-west-1", **extra}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(given))


@pytest.fixture
def task_role(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The role that a container service gives to a worker: asked for at an address in its environment."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {
                "AccessKeyId": "task",
                "SecretAccessKey": "task",
                "Token": "task",
                "Expiration": "2099-01-01T00:00:00Z",
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}/")
    yield
    server.shutdown()
    server.server_close()


def test_the_worker_s_own_role_is_left_to_terraform_which_renews_it(
    monkeypatch: pytest.MonkeyPatch, task_role: None
) -> None:
    """Keys that are handed on end when they end, be it in the middle of an apply."""
    connection(monkeypatch)
    assert aws_credentials("aws_default", None) == {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"}


def test_a_role_of_the_connection_is_taken_on_anew_each_time(monkeypatch: pytest.MonkeyPatch, task_role: None) -> None:
    connection(monkeypatch, role_arn="arn:aws:iam::123456789012:role/terraform")
    with mock_aws():
        # moto has keys of its own in the environment meanwhile.
        found = [aws_credentials("aws_default", None) for _ in range(2)]
    assert all(set(KEYS) <= set(one) for one in found)
    assert found[0]["AWS_SESSION_TOKEN"] != found[1]["AWS_SESSION_TOKEN"]


def test_keys_of_the_connection_are_handed_on(monkeypatch: pytest.MonkeyPatch, task_role: None) -> None:
    connection(monkeypatch, aws_access_key_id="a", aws_secret_access_key="b")
    found = aws_credentials("aws_default", "us-west-2")
    assert {name: found.get(name) for name in KEYS} == dict(zip(KEYS, ("a", "b", None), strict=True))
    assert found["AWS_REGION"] == "us-west-2"


def test_no_credentials_at_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    connection(monkeypatch)
    with pytest.raises(AccessDenied, match="aws_default gives no AWS credentials"):
        aws_credentials("aws_default", None)


# --- who administers the cluster --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ("arn:aws:sts::123456789012:assumed-role/airflow/i-0abc", "the role airflow"),
        ("arn:aws-cn:sts::123456789012:assumed-role/a/b", "the role a"),
        ("arn:aws:sts::123456789012:user/ada", "arn:aws:iam::123456789012:user/ada"),
        ("arn:aws:iam::123456789012:user/teams/ada", "arn:aws:iam::123456789012:user/teams/ada"),
    ],
)
def test_an_access_entry_names_the_role_not_its_session(identity: str, named: str) -> None:
    assert principal(identity, lambda name: f"the role {name}") == named


@pytest.fixture
def environment() -> Environment:
    text = """
apiVersion: nim-rollouts/v1
kind: Environment
name: lab
region: us-west-2
cluster: {name: lab}
store: {kind: folder, path: /tmp}
terraform: {root: terraform/eks, state: {bucket: lab-tfstate, key: k}}
instance_types: [g5.12xlarge]
storage_class: efs-sc-dynamic
"""
    return load_environment("lab", text, "lab.yaml")


def test_whoever_runs_terraform_administers_by_the_role_s_whole_arn(
    monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    """A session's ARN has no path; EKS refuses the entry of a principal that does not exist by its very ARN."""
    with mock_aws():
        role = boto3.client("iam").create_role(RoleName="airflow", Path="/teams/ml/", AssumeRolePolicyDocument="{}")
        arn = role["Role"]["Arn"]
        assert arn == "arn:aws:iam::123456789012:role/teams/ml/airflow"
        connection(monkeypatch, role_arn=arn)
        assert variables(environment)["admin_principal_arns"] == [arn]
        boto3.client("iam").delete_role(RoleName="airflow")
        with pytest.raises(AccessDenied, match="admin_principal_arns"):
            variables(environment)
