"""The AWS stand-in alone, without a cluster or Airflow: its process, boto3 clients for it, tokens and their reviews."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3

from rehearsal.aws.environment import environment
from rehearsal.aws.webhook import kubeconfig
from rehearsal.config import Rehearsal

ROOT = Path(__file__).resolve().parents[2]
CA = "-----BEGIN CERTIFICATE-----\nnot a real one\n-----END CERTIFICATE-----\n"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(state: Path, **more: str) -> tuple[Rehearsal, subprocess.Popen[bytes]]:
    """The stand-in in a process of its own, answering; `more` are variables of its environment."""
    ports = free_ports(4)
    r = Rehearsal(
        root=ROOT,
        state=state,
        block=96,
        ports={"aws": ports[0], "webhook": ports[1], "apiserver": ports[2], "gateway": ports[3]},
        admin_token="unused",
        controlplane=Path("/nonexistent"),
        aiperf=Path("/nonexistent"),
        python=sys.executable,
    )
    r.save()
    r.ca.parent.mkdir()
    r.ca.write_text(CA)
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rehearsal.aws"],
            cwd=ROOT,
            env={**os.environ, **more, "REHEARSAL_STATE": str(state), "PYTHONPATH": str(ROOT)},
            stderr=log,
        )
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(r.url("aws") + "/healthz", timeout=1) as answer:
                assert answer.status == 200
                return r, process
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (state / "log").read_text()
            time.sleep(0.1)


def client(r: Rehearsal, service: str, **keys: str) -> Any:
    variables = environment(r.url("aws"))
    credentials = {
        "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
    }
    session = boto3.Session(region_name="us-west-2", **(credentials | keys))
    return session.client(service, endpoint_url=r.url("aws"))


def eks_token(r: Rehearsal, name: str, sts_url: str | None = None, **keys: str) -> str:
    from airflow.providers.amazon.aws.utils.eks_get_token import fetch_access_token_for_cluster

    variables = environment(r.url("aws"))
    session = boto3.Session(
        region_name="us-west-2",
        **(
            {
                "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
            }
            | keys
        ),
    )
    url = f"{sts_url or r.url('aws')}/?Action=GetCallerIdentity&Version=2011-06-15"
    return str(fetch_access_token_for_cluster(name, url, "us-west-2", session=session))


def review(r: Rehearsal, token: str) -> dict[str, Any]:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    target = json.loads(kubeconfig(r))["clusters"][0]["cluster"]["server"]
    with urllib.request.urlopen(target, data=json.dumps(body).encode(), timeout=5) as answer:
        reviewed = json.load(answer)
    assert (reviewed["apiVersion"], reviewed["kind"]) == (body["apiVersion"], body["kind"])
    status: dict[str, Any] = reviewed["status"]
    return status
