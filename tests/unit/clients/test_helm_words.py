"""Helm's words, and what they mean to us. Each was said by a real Helm 4.3: to a chart that is broken, a cluster or a
repository that answers so, a user without rights."""

from __future__ import annotations

import pytest

from nim_rollouts.clients.helm_process import HelmEnded
from nim_rollouts.core.errors import AccessDenied, HelmFailed, HelmUnavailable, NimRolloutsError

UNREACHABLE = "kubernetes cluster unreachable: "
REPOSITORY = 'looks like "http://127.0.0.1:23155" is not a valid chart repository or cannot be reached: '
INDEX = REPOSITORY + "failed to fetch http://127.0.0.1:23155/index.yaml : "
OCI = 'failed to perform "FetchReference" on source: GET "https://127.0.0.1:25655/v2/charts/x/manifests/1.0.0": '
APPLY = "server-side apply failed for object n/x /v1, Kind=Service: "

TRANSIENT = [
    UNREACHABLE + 'Get "https://127.0.0.1:1/version": dial tcp 127.0.0.1:1: connect: connection refused',
    UNREACHABLE + 'Get "https://a.invalid/version": dial tcp: lookup a.invalid on 10.255.255.53:53: no such host',
    UNREACHABLE + 'Get "http://127.0.0.1:23155/version": EOF',
    UNREACHABLE + "unexpected error when reading response body. Please retry. Original error: unexpected EOF",
    UNREACHABLE + "the server has received too many requests and has asked us to try again later",
    UNREACHABLE + 'an error on the server ("busy") has prevented the request from succeeding',
    UNREACHABLE + "the server is currently unable to handle the request",
    UNREACHABLE + "the server was unable to return a response in the time allotted, but may still be processing the "
    "request",
    "UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress",
    INDEX + "429 Too Many Requests",
    INDEX + "500 Internal Server Error",
    INDEX + "502 Bad Gateway",
    INDEX + "503 Service Unavailable",
    INDEX + "504 Gateway Timeout",
    "failed to fetch http://127.0.0.1:24649/sample-1.0.0.tgz : 503 Service Unavailable",
    OCI + "response status code 429: Too Many Requests",
    OCI + "response status code 500: Internal Server Error",
    OCI + "response status code 502: Bad Gateway",
    OCI + "response status code 503: Service Unavailable",
    OCI + "response status code 504: Gateway Timeout",
    REPOSITORY + 'Get "http://127.0.0.1:23155/index.yaml": EOF',
    REPOSITORY + "unexpected EOF",
    "unexpected EOF",
]
PERMANENT = [
    "parse error at (sample/templates/all.yaml:5): unexpected EOF",
    "UPGRADE FAILED: parse error at (sample/templates/_h.tpl:1): unclosed action",
    "YAML parse error on sample/templates/all.yaml: error converting YAML to JSON: yaml: line 503: did not find "
    "expected ',' or '}'",
    "failed to parse bad.yaml: cannot unmarshal yaml document: error converting YAML to JSON: yaml: line 1: did not "
    "find expected ',' or ']'",
    'sample/templates/all.yaml:502:20 executing "sample/templates/all.yaml" at <.Values.no.such>: nil pointer '
    "evaluating interface {}.such",
    "execution error at (sample/templates/all.yaml:4:13): EOF of 503 reached, connection refused",
    "values don't meet the specifications of the schema(s) in the following chart(s): sample: - at '/port': got "
    "number, want string",
    APPLY + 'Service "x" is invalid: spec.ports[0].nodePort: Invalid value: 503: provided port is not in the valid '
    "range. The range of valid ports is 30000-32767",
    'unable to build kubernetes objects from release manifest: resource mapping not found for name: "x" namespace: "" '
    'from "": no matches for kind "Nope" in version "v1" ensure CRDs are installed first',
    "UPGRADE FAILED: pre-upgrade hooks failed: resource Job/s1/s-hook not ready. status: Failed, message: Job Failed. "
    "failed: 1/1",
    "UPGRADE FAILED: resource Deployment/s1/s-second not ready. status: InProgress, message: Available: 0/1 context "
    "deadline exceeded",
    UNREACHABLE + 'Get "https://127.0.0.1:21102/version": tls: failed to verify certificate: x509: certificate signed '
    "by unknown authority",
    UNREACHABLE + "the server could not find the requested resource",
]
OF_A_REPOSITORY = [
    INDEX + "404 Not Found",
    INDEX + "401 Unauthorized",
    OCI + "response status code 401: Unauthorized",
    OCI + "response status code 403: Forbidden",
    'chart "sample" version "9.0.0" not found in http://127.0.0.1:24466 repository',
]
DENIED = [
    UNREACHABLE + "the server has asked for the client to provide credentials",
    'query: failed to query with labels: secrets is forbidden: User "system:serviceaccount:default:nobody" cannot list '
    'resource "secrets" in API group "" in the namespace "default"',
    "query: failed to query with labels: Unauthorized",
]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        *((said, HelmUnavailable) for said in TRANSIENT),
        *((said, HelmFailed) for said in PERMANENT),
        *((said, AccessDenied) for said in DENIED),
    ],
)
def test_what_helm_says(said: str, error: type[NimRolloutsError]) -> None:
    ended = HelmEnded("upgrade of r", 1, said)
    assert type(ended.as_error()) is error
    assert ended.is_transient is (error is HelmUnavailable)


@pytest.mark.parametrize("said", OF_A_REPOSITORY)
def test_what_a_repository_says_for_good(said: str) -> None:
    assert not HelmEnded("pull of r", 1, said).is_transient


def test_the_beginning_of_a_long_text_counts_too() -> None:
    ended = HelmEnded("upgrade of r", 1, f"parse error at (c/templates/{'x' * 700}.yaml:5): unexpected EOF")
    assert not ended.is_transient
    assert len(ended.text) == 600 and ended.text in str(ended.as_error())
