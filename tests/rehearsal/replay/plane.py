"""A control plane for replays: etcd, API server, controller-manager without node lifecycle, scheduler, and the
operator."""

from __future__ import annotations

import asyncio
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
        self._parts = [_without_node_lifecycle(part) for part in chosen]
        self._supervisor.parts = []

    @property
    def kubelet_port(self) -> int:
        return self.r.ports["kwok"]

    def start(self, *, crds: bool = True) -> None:
        """Start the control plane, and put the CRDs in unless Helm is to do it. The controllers come after them: the
        garbage collector looks for new kinds only every 30 s, and would leave what a deleted custom resource owned
        until then."""
        self._start([part for part in self._parts if part.name in ("etcd", "kube-apiserver")])
        if crds:
            asyncio.run(install_crds(self.r))
        self._start(self._parts)

    def _start(self, wanted: list[parts.Part]) -> None:
        self._supervisor.parts = wanted
        self._until_ready()

    def _until_ready(self) -> None:
        while not self._supervisor.all_ready:
            self._supervisor._start_what_can_start()
            self._supervisor._look()
            for name, why in self._supervisor.failed.items():
                raise RuntimeError(f"{name} {why}:\n" + (self.r.logs / f"{name}.log").read_text()[-2000:])
            time.sleep(0.05)

    def start_operator(self) -> None:
        """Start the operator, until its caches are in sync."""
        port = self.r.ports["airflow"]
        argv = [
            self.r.python,
            "-m",
            "rehearsal.operator",
            "--kubeconfig",
            str(self.r.kubeconfig),
            "--health-probe-bind-address",
            f"127.0.0.1:{port}",
        ]
        ready = parts.http_ok(f"http://127.0.0.1:{port}/readyz")
        part = parts.Part("operator", argv, ("kube-apiserver",), ready, env={"OPERATOR_VERSION": VERSION})
        self._start([*self._parts, part])

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
def running(state: Path, *, crds: bool = True) -> Iterator[Plane]:
    plane = Plane(state)
    try:
        plane.start(crds=crds)
        yield plane
    finally:
        plane.close()
