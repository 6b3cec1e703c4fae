"""terraform, its worker, or both, killed at chosen moments of an apply or a destroy: the ground, killer and tries."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import yaml

from rehearsal.aws import ADMIN_PRINCIPAL_ARN
from rehearsal.aws.environment import environment
from rehearsal.config import Rehearsal
from tests.rehearsal import terraform_tries
from tests.rehearsal.aws_standin import ROOT, client

STATE, STORE = "state", "ledger"
#: What a small root of a test begins with, so that the pipelines' operators can work with it.
HEAD = """
terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
  backend "s3" {
    use_lockfile = true
  }
}
variable "environment" { type = string }
variable "region" { default = "" }
variable "cluster_name" { default = "" }
variable "admin_principal_arns" { default = [] }
provider "aws" {
  default_tags {
    tags = { "nim-rollouts/environment" = var.environment }
  }
}
"""
#: How often Airflow would try again what says of itself that trying again helps.
TRIES = 4
#: Seconds that one try may take; on a machine with nothing else to do none takes two minutes.
PATIENCE_S = 900


@dataclass(frozen=True)
class Moment:
    """Just after terraform has written this event. `address`: of the resource, where the event is about one."""

    kind: str
    address: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.address}".rstrip()


def moments(lines: Sequence[str], count: int) -> list[Moment]:
    """From the event stream of a clean apply or destroy: its first start, its last completion, the last event before
    its slowest step is done, and for the rest events at equal distances, starts and completions alike. What terraform
    says of a step that takes long is left out: it says it only where it does."""
    events = [event for event in map(json.loads, lines) if event["type"] in ("apply_start", "apply_complete")]
    found = [Moment(event["type"], event["hook"]["resource"]["addr"]) for event in events]
    done = [event for event in events if event["type"] == "apply_complete"]
    slowest = events.index(max(done, key=lambda event: float(event["hook"]["elapsed_seconds"])))
    assert len(found) > 2 * count and found[-1].kind == "apply_complete"
    chosen = {0, slowest - 1, len(found) - 1}
    for number in range(1, 4 * count):
        if len(chosen) == count:
            break
        at = round(number * (len(found) - 1) / (count - 2))
        while at in chosen:
            at += 1
        chosen.add(at % len(found))
    return [found[at] for at in sorted(chosen)]


class Ground:
    """Environments side by side in one AWS stand-in, each with its own state, work folder and name."""

    def __init__(self, r: Rehearsal, folder: Path) -> None:
        self.r, self.folder = r, folder
        self.include = folder / "include"
        (self.include / "environments").mkdir(parents=True)
        (self.include / "terraform").symlink_to(ROOT / "include" / "terraform")
        s3 = client(r, "s3")
        for bucket in (STATE, STORE):
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        self.variables = environment(r.url("aws")) | {
            "NIM_ROLLOUTS_INCLUDE": str(self.include),
            "NIM_ROLLOUTS_WORK": str(folder / "work"),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
                {"conn_type": "aws", "extra": {"endpoint_url": r.url("aws"), "region_name": "us-west-2"}}
            ),
        }
        self._processes = multiprocessing.get_context("forkserver")
        # Airflow is imported once, for all tries; each is then a fork of its own.
        self._processes.set_forkserver_preload([terraform_tries.__name__])
        self._tries: dict[str, int] = {}

    def root(self, name: str, main: str) -> None:
        """An environment of a small root of its own; `main` is all of that."""
        folder = self.include / name
        folder.mkdir()
        (folder / "main.tf").write_text(main)
        self.environment(name, name, {"admin_principal_arns": []})

    def environment(self, name: str, root: str = "terraform/eks", variables: dict[str, Any] | None = None) -> None:
        """An environment of the production example's kind, smaller where that only saves time."""
        text = yaml.safe_load((ROOT / "include" / "environments" / "rehearsal.yaml").read_text())
        variables = (
            variables
            if variables is not None
            else {
                "environment": name,
                "region": "us-west-2",
                "cluster_name": name,
                "admin_principal_arns": [ADMIN_PRINCIPAL_ARN],
                "zone_count": 2,
                "secondary_cidr": None,
                "karpenter": {"interruption_queue": False},
            }
        )
        text |= {
            "name": name,
            "cluster": {"name": name},
            "store": {"kind": "s3", "bucket": STORE, "prefix": "ledger"},
            "terraform": {"root": root, "state": {"bucket": STATE, "key": key(name)}, "variables": variables},
            "addons": [],
            "node_pools": [],
        }
        (self.include / "environments" / f"{name}.yaml").write_text(yaml.safe_dump(text))

    def stream(self, name: str) -> Path:
        """The events of the environment's last apply or destroy."""
        return self.folder / "work" / name / "terraform" / "logs" / "apply.out"

    # --- tries ----------------------------------------------------------------------------------------------------

    def begin(self, name: str, stages: Sequence[str], run_id: str = "rollout") -> tuple[ForkServerProcess, Path]:
        """A worker of its own with the environment's next try."""
        number = self._tries[name] = self._tries.get(name, 0) + 1
        place = self.folder / "tries" / f"{name}-{number}"
        arguments = (self.variables, name, run_id, list(stages), number, str(place))
        worker = self._processes.Process(target=terraform_tries.work, args=arguments, daemon=True)
        worker.start()
        return worker, place

    def attempt(self, name: str, stages: Sequence[str], run_id: str = "rollout") -> dict[str, Any]:
        """One try, to its end."""
        worker, place = self.begin(name, stages, run_id)
        worker.join(PATIENCE_S)
        if worker.exitcode is None:
            worker.terminate()  # which stops its terraform properly
            worker.join(60)
        assert worker.exitcode == 0, f"{name}: the worker ended with {worker.exitcode}\n{said(place)}"
        ended: dict[str, Any] = json.loads((place / "ended.json").read_text())
        return ended | {"log": said(place)}

    def converge(self, name: str, stages: Sequence[str]) -> dict[str, Any]:
        """The tries that Airflow would make: again only where the error says that this helps."""
        ended: dict[str, Any] = {}
        for _ in range(TRIES):
            ended = self.attempt(name, stages)
            if ended["ok"] or not ended["again"]:
                break
        assert ended["ok"], f"{name}: {ended['error']}\n{ended['log']}"
        return ended

    def kill(self, name: str, stages: Sequence[str], moment: Moment, victims: str) -> None:
        """A try whose terraform, worker or both are killed at the moment. A worker that is spared ends by itself, with
        an error that asks for another try."""
        stream = self.stream(name)
        stream.unlink(missing_ok=True)
        worker, place = self.begin(name, stages)
        try:
            self._wait_for(moment, stream, worker, place)
            if victims == "terraform":
                terraform_of(worker).kill()
            else:
                group = command_of(worker)
                worker.kill()  # first: it would tell of the other's death
            if victims == "both":
                # Its group: the worker's is another, so that terraform may outlive it.
                os.killpg(group, signal.SIGKILL)
        finally:
            worker.join(60)
            worker.kill()
        if victims == "terraform":
            ended = json.loads((place / "ended.json").read_text())
            assert not ended["ok"] and ended["again"], f"{name}: {ended}"
        else:
            assert worker.exitcode == -signal.SIGKILL and not (place / "ended.json").exists(), said(place)

    @staticmethod
    def _wait_for(moment: Moment, stream: Path, worker: ForkServerProcess, place: Path) -> None:
        seen, deadline = b"", time.monotonic() + PATIENCE_S
        reader = None
        while True:
            if reader is None and stream.exists():
                reader = stream.open("rb")
            if reader is not None:
                seen += reader.read()
                *lines, seen = seen.split(b"\n")
                if any(_is(moment, line) for line in lines):
                    return
            assert worker.is_alive() and time.monotonic() < deadline, f"{moment} never came\n{said(place)}"
            time.sleep(0.02)


def key(name: str) -> str:
    """Of the environment's state in its bucket."""
    return f"{name}/terraform.tfstate"


def said(place: Path) -> str:
    """The last of a try's log."""
    log = place / "log"
    return log.read_text()[-6000:] if log.exists() else "it has not begun"


def terraform_of(worker: ForkServerProcess) -> psutil.Process:
    """The terraform that a worker runs."""
    assert worker.pid is not None
    below = psutil.Process(worker.pid).children(recursive=True)
    return next(one for one in below if one.name() == "terraform")


def command_of(worker: ForkServerProcess) -> int:
    """The process group of the command that a worker runs: of terraform, and of the shell that notes what it left."""
    assert worker.pid is not None
    return next(one.pid for one in psutil.Process(worker.pid).children() if os.getpgid(one.pid) == one.pid)


def _is(moment: Moment, line: bytes) -> bool:
    event = json.loads(line)
    address = event.get("hook", {}).get("resource", {}).get("addr", "")
    return bool(event["type"] == moment.kind and address == moment.address)
