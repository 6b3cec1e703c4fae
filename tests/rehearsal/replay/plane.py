"""A control plane for replays: etcd, API server, controller-manager without node lifecycle, scheduler, and the
operator."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import yaml

from rehearsal import parts, supervisor, toolbox
from rehearsal.config import ROOT, Rehearsal
from rehearsal.kube import Kube, path

CHART = ROOT / "rehearsal" / "charts" / "k8s-nim-operator"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
VERSION = "v3.1.2-main"
"""What the recorded operator labelled its children with."""


class Plane:
    """Starts and ends the processes. Ports of parts that a replay lacks are used for the kubelet and the operator."""

    def __init__(self, state: Path):
        # The benchmark client is no part of a replay, and may not be built where only this test runs.
        with mock.patch.object(toolbox, "aiperf_executable", lambda: Path("/nonexistent")):
            self.r, self._lock = supervisor.prepare(state, with_airflow=False)
        self._supervisor = supervisor.Supervisor(self.r)
        chosen = [part for part in self._supervisor.parts if part.name in CONTROL_PLANE]
        self._supervisor.parts = [_without_node_lifecycle(part) for part in chosen]

    @property
    def kubelet_port(self) -> int:
        return self.r.ports["kwok"]

    def start(self) -> None:
        self._until_ready()

    def _until_ready(self) -> None:
        while not self._supervisor.all_ready:
            self._supervisor._start_what_can_start()
            self._supervisor._look()
            for name, why in self._supervisor.failed.items():
                raise RuntimeError(f"{name} {why}:\n" + (self.r.logs / f"{name}.log").read_text()[-2000:])
            time.sleep(0.05)

    def start_operator(self) -> None:
        """Start the operator, until its caches are in sync. The CRDs must be there."""
        port = self.r.ports["airflow"]
        argv = [
            self.r.python,
            "-m",
            "rehearsal.operator",
            "--kubeconfig",
            str(self.r.kubeconfig),
            "--health-port",
            str(port),
        ]
        ready = parts.http_ok(f"http://127.0.0.1:{port}/readyz")
        part = parts.Part("operator", argv, ("kube-apiserver",), ready, env={"OPERATOR_VERSION": VERSION})
        self._supervisor.parts = [p for p in self._supervisor.parts if p.name != "operator"] + [part]
        self._until_ready()

    def stop_operator(self) -> None:
        entry = self._supervisor.running.pop("operator", None)
        if entry:
            entry.process.terminate()
            entry.process.wait(10)

    def close(self) -> None:
        self._supervisor.end()
        self._lock.close()


def _without_node_lifecycle(part: parts.Part) -> parts.Part:
    if part.name != "kube-controller-manager":
        return part
    return dataclasses.replace(part, argv=[*part.argv, "--controllers=*,-node-lifecycle-controller"])


async def install_crds(r: Rehearsal) -> None:
    async with Kube.from_rehearsal(r) as kube:
        for file in sorted((CHART / "crds").glob("*.yaml")):
            crd = yaml.safe_load(file.read_text())
            await kube.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd, fieldValidation="Strict")
            async for _, live in kube.watch(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
                field_selector=f"metadata.name={crd['metadata']['name']}",
            ):
                found = (live.get("status") or {}).get("conditions") or []
                if any(c["type"] == "Established" and c["status"] == "True" for c in found):
                    break
            assert await kube.get(path(crd))


@contextlib.contextmanager
def running(state: Path) -> Iterator[Plane]:
    plane = Plane(state)
    try:
        plane.start()
        yield plane
    finally:
        plane.close()
