"""The fault aws-error: the calls that are meant, in the words that each service's clients understand."""

from __future__ import annotations

import io
from typing import Any

import pytest
from botocore.parsers import create_parser

from rehearsal.aws.operations import model, operation
from rehearsal.aws.refusals import Refusing

FORM = "Action=DescribeVolumes&Version=2016-11-15"


def ask(service: str, method: str, path: str, target: str, body: str, fault: dict[str, Any] | None) -> tuple[int, Any]:
    """(status, AWS's error code as a client reads it, or what the stand-in read of the request)."""
    seen: dict[str, Any] = {}

    def start(status: str, headers: list[tuple[str, str]]) -> None:
        seen.update(status=int(status.split()[0]), headers={key.lower(): value for key, value in headers})

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "REQUEST_URI": path, "CONTENT_LENGTH": str(len(body)),
        "HTTP_AUTHORIZATION": f"AWS4-HMAC-SHA256 Credential=K/20260101/us-west-2/{service}/aws4_request, x=y",
        "HTTP_X_AMZ_TARGET": target, "wsgi.input": io.BytesIO(body.encode()),
    }  # fmt: skip
    answer = b"".join(Refusing(app, lambda: fault)(environ, start))
    if seen["status"] == 200:
        return 200, answer.decode()
    name = operation(service, method, path, target, body)
    response = {"body": answer, "headers": seen["headers"], "status_code": seen["status"]}
    shape = model(service).operation_model(name).output_shape
    return seen["status"], create_parser(model(service).metadata["protocol"]).parse(response, shape)["Error"]["Code"]


@pytest.mark.parametrize(
    ("service", "method", "path", "target", "body", "action"),
    [
        ("ec2", "POST", "/", "", FORM, "DescribeVolumes"),
        ("iam", "POST", "/", "", "Action=ListRoles", "ListRoles"),
        ("sqs", "POST", "/", "AmazonSQS.ListQueues", "{}", "ListQueues"),
        ("secretsmanager", "POST", "/", "secretsmanager.ListSecrets", "{}", "ListSecrets"),
        ("elasticfilesystem", "GET", "/2015-02-01/file-systems", "", "", "DescribeFileSystems"),
        ("eks", "GET", "/clusters/lab/node-groups/system", "", "", "DescribeNodegroup"),
    ],
)
def test_a_call_is_refused_in_its_services_own_form(
    service: str, method: str, path: str, target: str, body: str, action: str
) -> None:
    fault = {"service": service, "action": action, "status": 403, "code": "AccessDenied"}
    assert ask(service, method, path, target, body, fault) == (403, "AccessDenied")


@pytest.mark.parametrize(
    "fault",
    [
        None,
        {"service": "iam", "action": "*", "status": 403, "code": "X"},
        {"service": "ec2", "action": "DescribeVpcs", "status": 403, "code": "X"},
    ],
)
def test_any_other_call_is_answered_as_ever(fault: dict[str, Any] | None) -> None:
    assert ask("ec2", "POST", "/", "", FORM, fault) == (200, FORM), "and its body can still be read"


def test_patterns_are_taken() -> None:
    fault = {"service": "e*", "action": "Describe*", "status": 500, "code": "InternalError"}
    assert ask("ec2", "POST", "/", "", FORM, fault) == (500, "InternalError")
