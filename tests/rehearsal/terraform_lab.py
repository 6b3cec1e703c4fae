"""terraform of a small root against the AWS stand-in: clients, workers in processes of their own, what AWS holds."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nim_rollouts.clients.terraform import Terraform
from rehearsal.aws.environment import environment
from rehearsal.config import Rehearsal
from tests.rehearsal.aws_standin import ROOT, client

SMALL_ROOT = Path(__file__).parent / "terraform_root"
BUCKET = "terraform-lab"
PASSWORD = "sesame-Open-9-lab"

_WORKER = """
import json, sys
from nim_rollouts.clients.terraform import Terraform
given = json.load(sys.stdin)
say = lambda line: print(line, flush=True)
terraform = Terraform(given["root"], given["work"], given["env"], progress=say, lock_timeout_s=2)
terraform.init(given["backend"])
plan = terraform.plan(given["variables"])
say("planned")
terraform.apply(expect_checksum=plan.checksum)
say("applied")
"""


class Lab:
    """One state (and its work folder) of the small root."""

    def __init__(self, r: Rehearsal, folder: Path, name: str, **env: str) -> None:
        self.r, self.name, self.work = r, name, folder / name
        self.env = environment(r.url("aws")) | env
        self.lines: list[str] = []
        self.workers: list[subprocess.Popen[str]] = []
        self.backend: dict[str, Any] = {"bucket": BUCKET, "key": f"{name}/terraform.tfstate", "region": "us-west-2",
                        "use_path_style": True}  # fmt: skip

    def variables(self, **more: Any) -> dict[str, Any]:
        return {"name": self.name, "password": PASSWORD} | more

    def terraform(self, work: str = "", **more: Any) -> Terraform:
        """Ready to plan; `work`: another work folder than the lab's own, as another worker has."""
        folder = self.work.with_name(work) if work else self.work
        terraform = Terraform(SMALL_ROOT, folder, self.env, progress=self.lines.append, lock_timeout_s=2, **more)
        terraform.init(self.backend)
        return terraform

    def apply(self, **variables: Any) -> Terraform:
        """Plan and apply, at once."""
        terraform = self.terraform()
        plan = terraform.plan(self.variables(**variables))
        terraform.apply(expect_checksum=plan.checksum)
        return terraform

    def worker(self, until: str, **variables: Any) -> subprocess.Popen[str]:
        """A process that plans and applies, once it has said `until`."""
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        )  # fmt: skip
        self.workers.append(process)
        assert process.stdin is not None and process.stdout is not None
        given = {"root": str(SMALL_ROOT), "work": str(self.work), "env": self.env, "backend": self.backend}
        process.stdin.write(json.dumps(given | {"variables": self.variables(**variables)}))
        process.stdin.close()
        heard = []
        for line in process.stdout:
            heard.append(line)
            if until in line:
                return process
        raise AssertionError(f"the worker ended early: {heard}")

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        """No worker and no terraform of this lab outlives it."""
        self.kill()

    def kill(self) -> None:
        """SIGKILL for the workers, then for terraform with all its children."""
        for one in self.workers:
            one.kill()
            one.wait(10)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.killpg(json.loads((self.work / "running.json").read_text())["pid"], signal.SIGKILL)

    @property
    def lock_file(self) -> dict[str, str]:
        """Where the state's lock lies."""
        return {"Bucket": BUCKET, "Key": f"{self.backend['key']}.tflock"}

    def lock_by(self, who: str) -> dict[str, str]:
        """Lock the state, as somebody else's apply does; what the lock says."""
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        info = {"ID": "4a1c", "Operation": "OperationTypeApply", "Info": "", "Who": who, "Version": "1.11.4",
                "Created": created, "Path": f"{BUCKET}/{self.backend['key']}"}  # fmt: skip
        client(self.r, "s3").put_object(**self.lock_file, Body=json.dumps(info).encode())
        return info

    def lock(self) -> dict[str, Any] | None:
        """The state's lock, or None."""
        s3 = client(self.r, "s3")
        try:
            body = s3.get_object(**self.lock_file)["Body"].read()
        except s3.exceptions.NoSuchKey:
            return None
        found: dict[str, Any] = json.loads(body)
        return found

    def state(self) -> dict[str, Any]:
        body = client(self.r, "s3").get_object(Bucket=BUCKET, Key=self.backend["key"])["Body"].read()
        found: dict[str, Any] = json.loads(body)
        return found

    def vpcs(self) -> list[str]:
        """VPCs in AWS that are this lab's."""
        wanted = [{"Name": "tag:nim-rollouts/environment", "Values": [self.name]}]
        return [one["VpcId"] for one in client(self.r, "ec2").describe_vpcs(Filters=wanted)["Vpcs"]]

    def queues(self) -> list[str]:
        return list(client(self.r, "sqs").list_queues(QueueNamePrefix=f"{self.name}-").get("QueueUrls", []))


class Door:
    """A port that leads to another one, until it is shut: then nothing listens there."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._end, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """Cut what is open, and refuse what comes."""
        self._wake.send(b".")
        self._thread.join(10)
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._end], [], [])
            if self._end in ready:
                return
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pass, args=(source, sink), daemon=True).start()


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def every_command_line() -> Iterator[set[str]]:
    """The command lines of all processes that live meanwhile, looked at all the time."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            done.wait(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def wait_until(true: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
