"""A rehearsal that is up, as the live tests use it: Airflow's API, kubectl, the AWS stand-in, the ledger."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests

from rehearsal import main_job, summary
from rehearsal.airflow_api import AirflowApi, Task
from rehearsal.config import Rehearsal

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]

DEPLOYMENT = "meta-llama3-8b-instruct"
ENVIRONMENT = "rehearsal"
NAMESPACE = "nim-service"
NIM = "apps.nvidia.com"

#: Kinds whose specs a rollout may write; a second one of the same thing must not.
WRITTEN_KINDS = (
    f"nimcaches.{NIM}",
    f"nimservices.{NIM}",
    "services",
    "deployments.apps",
    "persistentvolumeclaims",
    "storageclasses",
    "namespaces",
    "customresourcedefinitions",
)


@dataclass
class Run:
    """One DAG run that has ended: what was seen while it went, and how it ended."""

    dag_id: str
    run_id: str
    state: str
    lines: list[str]
    tasks: dict[str, Task]
    states_seen: Mapping[str, list[str]] = field(default_factory=dict)


class Live:
    """One per session. Runs that tests share (the first deploy) are remembered in `runs` by a name."""

    def __init__(self, r: Rehearsal, environment: dict[str, str]):
        self.r = r
        self.environment = environment
        self.runs: dict[str, Run] = {}
        #: The task from which the last case of the fault matrix is cleared to be repaired; empty when it was promoted.
        self.repair_from = ""
        self.nodes_before: set[str] = set()
        # Secrets that a run itself had made, as tests come to know them.
        self.passwords: list[str] = []
        self._api: AirflowApi | None = None

    @property
    def api(self) -> AirflowApi:
        if self._api is None:
            self._api = AirflowApi(self.r)
        return self._api

    # Airflow

    def params(self, **changes: Any) -> dict[str, Any]:
        """The params of nim_deploy as the form holds them, with changes."""
        standard = {"deployment": DEPLOYMENT, "environment": ENVIRONMENT, "image_tag": "", "strategy": "replace"}
        return {**standard, "skip_benchmark": False, **changes}

    def run(self, dag_id: str, params: dict[str, Any], patience_s: float = 420) -> Run:
        """Trigger, follow to the end, and collect."""
        return self.follow(dag_id, self.api.trigger(dag_id, params), patience_s)

    def follow(self, dag_id: str, run_id: str, patience_s: float = 420) -> Run:
        """Follow a run that was triggered or cleared."""
        lines: list[str] = []
        follower = main_job.Follower(self.api, dag_id, run_id, lines.append)
        state = follower.follow(patience_s)
        if state != "success":
            main_job.explain(self.r, self.api, dag_id, run_id, lines.append)
        tasks = {task.name: task for task in self.api.tasks(dag_id, run_id)}
        return Run(dag_id, run_id, state, lines, tasks, follower.seen)

    def facts(self, run: Run, deployment: str = DEPLOYMENT) -> summary.Facts:
        """The ledger's records of a deploy run."""
        return summary.read(self.r, ENVIRONMENT, deployment, run.run_id)

    def log(self, run: Run, task: str) -> str:
        """The whole log of a task's last try."""
        return "\n".join(self.api.log(run.dag_id, run.run_id, run.tasks[task]))

    # Kubernetes

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """kubectl as the cluster's admin; its standard output."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.r.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def objects(self, kind: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """Every object of a kind; none when the API server does not know the kind."""
        where = ["-n", namespace] if namespace else ["-A"]
        text = self.kubectl("get", kind, *where, "-o", "json", check=False)
        return list(json.loads(text)["items"]) if text else []

    def specs(self) -> dict[str, Any]:
        """What was asked for in every object that a rollout writes, by kind and name."""
        found = {}
        for kind in WRITTEN_KINDS:
            for obj in self.objects(kind):
                name = f"{kind}/{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
                found[name] = {
                    "uid": obj["metadata"]["uid"],
                    **{key: value for key, value in obj.items() if key not in ("metadata", "status")},
                }
        return found

    def in_a_pod(self, program: str, patience_s: float = 90) -> str:
        """Run a Python program in a pod of the benchmark image, in the models' namespace; what it printed."""
        name = f"check-{time.time_ns():x}"
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "backoffLimit": 0,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "containers": [
                            {
                                "name": "check",
                                "image": "nvcr.io/nvidia/aiperf:0.13.0",
                                "command": ["python3", "-c", program],
                            }
                        ],
                    }
                },
            },
        }
        self.kubectl("create", "-f", "-", stdin=json.dumps(job))
        try:
            until(lambda: self._ended(name), f"the Job {name} to end", patience_s)
            assert self._ended(name) == "Complete", self.kubectl("-n", NAMESPACE, "describe", "job", name)
            return self.kubectl("-n", NAMESPACE, "logs", f"job/{name}")
        finally:
            self.kubectl("-n", NAMESPACE, "delete", "job", name, "--wait=false")

    def _ended(self, job: str) -> str | None:
        status = json.loads(self.kubectl("-n", NAMESPACE, "get", "job", job, "-o", "json")).get("status", {})
        ends = [c["type"] for c in status.get("conditions", []) if c["status"] == "True"]
        return next((end for end in ends if end in ("Complete", "Failed")), None)

    # AWS

    def aws(self, service: str) -> Any:
        """A boto3 client of the AWS stand-in."""
        import boto3

        from rehearsal.aws.environment import environment

        variables = environment(self.r.url("aws"))
        return boto3.client(
            service,
            endpoint_url=self.r.url("aws"),
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=variables["AWS_DEFAULT_REGION"],
        )

    def stored(self) -> Iterator[tuple[str, bytes]]:
        """Every object of every bucket, older versions included, as (place, content)."""
        s3 = self.aws("s3")
        for bucket in (b["Name"] for b in s3.list_buckets()["Buckets"]):
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
                for entry in page.get("Versions", []):
                    got = s3.get_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])
                    yield f"s3://{bucket}/{entry['Key']} ({entry['VersionId']})", got["Body"].read()

    def aws_writes(self, during: Callable[[], None]) -> list[str]:
        """What was changed in AWS meanwhile, beside the ledger and terraform's lock: from moto's recorder and a log.

        moto records what it is asked itself; the EKS calls that the stand-in answers in its place are in its log.
        """
        log = self.r.logs / "aws.log"
        begin = log.stat().st_size
        recorder = f"{self.r.url('aws')}/moto-api/recorder"
        requests.post(f"{recorder}/reset-recording", timeout=10).raise_for_status()
        requests.post(f"{recorder}/start-recording", timeout=10).raise_for_status()
        try:
            during()
        finally:
            requests.post(f"{recorder}/stop-recording", timeout=10).raise_for_status()
        recorded = requests.get(f"{recorder}/download-recording", timeout=30).text.splitlines()
        assert recorded, "nothing was recorded: the check would prove nothing"
        _, ledger, _ = summary.store(self.r, ENVIRONMENT)
        written = [action for line in recorded if (action := _write(json.loads(line), ledger))]
        with log.open("rb") as lines:
            lines.seek(begin)
            for line in lines.read().decode(errors="replace").splitlines():
                if any(f" {s} {m} " in line for s in ("eks", "elasticfilesystem") for m in ("POST", "PUT", "DELETE")):
                    written.append(line)
        return written

    # The rehearsal's own command line

    def fault(self, *arguments: str) -> None:
        """Order a fault at a stand-in, or clear it."""
        subprocess.run(
            [sys.executable, "-m", "rehearsal", "fault", *arguments],
            cwd=ROOT,
            env=self.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )


def until(condition: Callable[[], T], what: str, patience_s: float = 60, every_s: float = 0.3) -> T:
    """Wait for a condition to hold, and return what it gave."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain for {what}"
        time.sleep(every_s)
    return found


def _write(request: dict[str, Any], ledger: str) -> str | None:
    """The action of one recorded request when it changes something; None when it only reads, records or locks."""
    headers = {key.lower(): value for key, value in request["headers"].items()}
    body = request.get("body") or ""
    if request.get("body_encoded"):
        import base64

        body = base64.b64decode(body).decode(errors="replace")
    scope = headers.get("authorization", "")
    if "/sts/aws4_request" in scope or ".tflock" in request["url"] or ledger in request["url"]:
        return None
    action = headers.get("x-amz-target", "").rpartition(".")[2]
    if not action and "Action=" in body:
        action = body.split("Action=", 1)[1].split("&", 1)[0]
    if action:
        return None if action.startswith(("Describe", "List", "Get", "Lookup", "BatchGet")) else action
    if request["method"] in ("GET", "HEAD"):
        return None
    return f"{request['method']} {request['url']}"
