"""A control plane of a test file's own: some parts of a rehearsal, each of which can be ended and started again."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.access import ClusterAccess
from rehearsal import supervisor, toolbox
from rehearsal.config import Rehearsal
from rehearsal.parts import Part, marked_ready
from tests.rehearsal.aws_standin import client


def admin(r: Rehearsal) -> ClusterAccess:
    """The cluster of a rehearsal, as its admin."""
    return ClusterAccess(r.url("apiserver"), r.ca.read_text(), lambda: r.admin_token)


class Plane:
    """The named parts under a supervisor that only this test drives."""

    def __init__(self, state: Path, parts: Collection[str], timing: Mapping[str, float]) -> None:
        self.r, self._lock = supervisor.prepare(state, with_airflow=False)
        karpenter = Part(
            "karpenter", [self.r.python, "-m", "rehearsal.karpenter.local"], ("cluster-setup", "aws"),
            marked_ready(self.r, "karpenter"),
        )  # fmt: skip
        (self.r.state / "timing.json").write_text(json.dumps(dict(timing)))
        self._supervisor = supervisor.Supervisor(self.r)
        # Without an environment there is no Karpenter in the cluster: where nodes are wanted, it runs beside it.
        everything = [*self._supervisor.parts, karpenter]
        self._supervisor.parts = [part for part in everything if part.name in parts]

    def start(self) -> None:
        """Start what does not run. A part ends with the thread that started it: never call this from a worker's."""
        while not self._supervisor.all_ready:
            self._supervisor._start_what_can_start()
            self._supervisor._look()
            for name, why in self._supervisor.failed.items():
                pytest.fail(f"{name} {why}:\n" + (self.r.logs / f"{name}.log").read_text()[-2000:])
            time.sleep(0.1)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one part, as every part must end: within 5 s."""
        process = self._supervisor.running.pop(name).process
        process.send_signal(number)
        process.wait(5)
        (self.r.state / "ready" / name).unlink(missing_ok=True)

    def file_system(self, token: str) -> str:
        """A file system that volumes can be made on; its id."""
        made = str(client(self.r, "efs").create_file_system(CreationToken=token)["FileSystemId"])
        subnet = client(self.r, "ec2").describe_subnets()["Subnets"][0]["SubnetId"]
        client(self.r, "efs").create_mount_target(FileSystemId=made, SubnetId=subnet)
        return made

    def close(self) -> None:
        self._supervisor.end()
        self._lock.close()


def compact(r: Rehearsal) -> None:
    """Forget, in etcd, every state but the present one: a watch that asks for more is answered `410 Gone`."""
    etcd = f"http://127.0.0.1:{r.ports['etcd']}/v3/kv/"
    newest = _post(etcd + "range", {"key": "AA=="})["header"]["revision"]
    _post(etcd + "compaction", {"revision": newest, "physical": True})


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def standing(state: Path, parts: Collection[str], timing: Mapping[str, float] | None = None) -> Iterator[Plane]:
    """The parts, up; ended afterwards with nothing left. `timing`: the stand-ins' durations, in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolbox, "aiperf_executable", lambda: Path("/nonexistent"))  # not needed here
        plane = Plane(state, parts, timing or {})
    try:
        plane.start()
        yield plane
    finally:
        plane.close()
    assert supervisor.leftovers(plane.r.state) == []
