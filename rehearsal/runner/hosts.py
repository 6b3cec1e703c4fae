"""The pods' name service: an /etc/hosts for each, with every Service of the cluster, kept current while pods run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rehearsal.kube import Obj

_SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True)
class Reader:
    """A pod that reads a hosts file: its namespace decides which short names it has."""

    uid: str
    namespace: str
    hostname: str
    address: str
    file: Path


def loopback(address: str, pod_cidr: str) -> str:
    """Where a pod's address leads on this machine: 10.X.Y.Z of the pods' network to 127.X.Y.Z, others as they are."""
    prefix = ".".join(pod_cidr.split(".")[:2]) + "."
    return "127." + address.partition(".")[2] if address.startswith(prefix) else address


def names(namespace: str, name: str, own: str) -> list[str]:
    full = f"{name}.{namespace}"
    short = [name] if namespace == own else []
    return [*short, full, f"{full}.svc", f"{full}.svc.cluster.local"]


def render(reader: Reader, services: Iterable[Obj], slices: Iterable[Obj], pod_cidr: str) -> str:
    """The file's text. A headless Service gets a line for every ready endpoint, with the endpoint's host name."""
    lines = ["127.0.0.1 localhost", f"{reader.address} {reader.hostname}"]
    by_service: dict[tuple[str, str], list[Obj]] = {}
    for each in slices:
        owner = each["metadata"].get("labels", {}).get(_SERVICE_LABEL, "")
        by_service.setdefault((each["metadata"]["namespace"], owner), []).append(each)
    for service in sorted(services, key=lambda s: (s["metadata"]["namespace"], s["metadata"]["name"])):
        meta, address = service["metadata"], service["spec"].get("clusterIP", "")
        known = names(meta["namespace"], meta["name"], reader.namespace)
        if address and address != "None":
            lines.append(" ".join([address, *known]))
            continue
        for each in by_service.get((meta["namespace"], meta["name"]), []):
            for endpoint in each.get("endpoints") or []:
                if endpoint.get("conditions", {}).get("ready") is False:
                    continue
                for target in endpoint["addresses"]:
                    host = endpoint.get("hostname")
                    own = [f"{host}.{name}" for name in known] if host else []
                    lines.append(" ".join([loopback(target, pod_cidr), *known, *own]))
    return "\n".join(lines) + "\n"


class Hosts:
    """Writes the files of all running pods, again whenever Services or endpoints change (`touch`)."""

    def __init__(
        self, services: Mapping[tuple[str, str], Obj], slices: Mapping[tuple[str, str], Obj], pod_cidr: str
    ) -> None:
        self._services, self._slices, self._pod_cidr = services, slices, pod_cidr
        self._readers: dict[str, Reader] = {}
        self._changed = asyncio.Event()

    def add(self, reader: Reader) -> Path:
        self._readers[reader.uid] = reader
        self._write(reader)
        return reader.file

    def remove(self, uid: str) -> None:
        self._readers.pop(uid, None)

    def touch(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(0.02)
            self._changed.clear()
            for reader in list(self._readers.values()):
                with contextlib.suppress(OSError):
                    self._write(reader)

    def _write(self, reader: Reader) -> None:
        text = render(reader, list(self._services.values()), list(self._slices.values()), self._pod_cidr)
        overwrite(reader.file, text.encode())


def overwrite(file: Path, data: bytes) -> None:
    """New contents in the same inode, since the pods have the file itself mounted.

    One write call, with blank lines up to the old length, so that no reader meets the end of an old line; then
    the blank lines go.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        old = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        if old != data:
            os.pwrite(descriptor, data + b"\n" * (len(old) - len(data)), 0)
            os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)
