"""Where Services lead, what pods read in /etc/hosts, and that carried connections lose nothing."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from rehearsal.kube import Obj
from rehearsal.runner import hosts
from rehearsal.runner.addresses import Addresses
from rehearsal.runner.network import backends
from rehearsal.runner.proxy import Listener

CIDRS = ("127.96.0.0/16", "10.97.0.0/16")


def service(name: str, ip: str, *ports: Obj, namespace: str = "ns") -> Obj:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": list(ports)}}


def endpoints(name: str, *ends: Obj, ports: list[Obj] | None = None) -> Obj:
    return {
        "metadata": {"name": f"{name}-abc", "namespace": "ns", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": ports or [{"name": "api", "port": 8000}], "endpoints": list(ends),
    }  # fmt: skip


def end(address: str, **conditions: bool) -> Obj:
    return {"addresses": [address], "conditions": conditions}


API = {"name": "api", "port": 80, "targetPort": "http"}


@pytest.mark.parametrize(
    ("ends", "wanted"),
    [
        ([], []),
        ([end("10.97.0.2", ready=True)], [("127.97.0.2", 8000)]),
        ([end("10.97.0.2")], [("127.97.0.2", 8000)]),
        ([end("10.97.0.2", ready=False, serving=False)], []),
        ([end("10.97.0.2", ready=False, serving=True, terminating=True)], [("127.97.0.2", 8000)]),
        (
            [end("10.97.0.2", ready=False, serving=True, terminating=True), end("10.97.0.3", ready=True)],
            [("127.97.0.3", 8000)],
        ),
    ],
)
def test_backends_are_the_ready_endpoints(ends: list[Obj], wanted: list[Any]) -> None:
    found = backends([service("s", "127.96.0.9", API)], [endpoints("s", *ends)], *CIDRS)
    assert found == {("127.96.0.9", 80): ("ns/s", wanted)}


def test_only_tcp_ports_of_addresses_in_the_service_network() -> None:
    udp = {"name": "api", "port": 53, "protocol": "UDP"}
    services = [service("a", "None", API), service("b", "10.0.0.1", API), service("c", "127.96.0.9", udp)]
    assert backends(services, [], *CIDRS) == {}


def test_hosts_of_a_pod() -> None:
    reader = hosts.Reader("uid", "ns", "pod-a", "127.97.0.2", Path("/nowhere"))
    services = [service("a", "127.96.0.9", API), service("b", "127.96.0.8", API, namespace="other"),
                service("headless", "None", API)]  # fmt: skip
    first = end("10.97.0.3", ready=True) | {"hostname": "zero"}
    text = hosts.render(reader, services, [endpoints("headless", first, end("10.97.0.4", ready=False))], CIDRS[1])
    assert text.splitlines() == [
        "127.0.0.1 localhost",
        "127.97.0.2 pod-a",
        "127.96.0.9 a a.ns a.ns.svc a.ns.svc.cluster.local",
        "127.97.0.3 headless headless.ns headless.ns.svc headless.ns.svc.cluster.local "
        "zero.headless zero.headless.ns zero.headless.ns.svc zero.headless.ns.svc.cluster.local",
        "127.96.0.8 b.other b.other.svc b.other.svc.cluster.local",
    ]


def test_hosts_are_rewritten_in_the_same_inode(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    for text in (b"one two three\n", b"one\n", b"four five six seven\n"):
        hosts.overwrite(file, text)
        assert file.read_bytes() == text
    inode = file.stat().st_ino
    hosts.overwrite(file, b"x\n")
    assert file.stat().st_ino == inode


def test_addresses_are_unique_and_reused_late() -> None:
    addresses = Addresses("10.97.0.0/29")
    first = [addresses.take(uid) for uid in "abc"]
    assert first == ["10.97.0.2", "10.97.0.3", "10.97.0.4"] and addresses.take("a") == "10.97.0.2"
    addresses.release("a")
    assert addresses.take("d") == "10.97.0.5"
    assert addresses.take("e", "10.97.0.2") == "10.97.0.2"
    assert addresses.take("f", "10.97.0.2") == "10.97.0.6"
    with pytest.raises(RuntimeError):
        addresses.take("g")


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def echo() -> Any:
    """Answers with all that it got, but only once the client has ended its direction; then its own name."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read() + b"|" + str(port).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield ("127.0.0.1", port)
    server.close()


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.96.0.9", port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_half_closed_connections_carry_everything(echo: tuple[str, int]) -> None:
    port = _free_port("127.96.0.9")
    listener = Listener("127.96.0.9", port, "ns/s")
    await listener.update([echo])
    data = bytes(range(256)) * 40000
    try:
        answers = await asyncio.gather(*(exchange(port, data) for _ in range(8)))
        assert all(answer == data + b"|%d" % echo[1] for answer in answers)
    finally:
        listener.close()


async def test_refused_without_endpoints_and_open_with_them(echo: tuple[str, int]) -> None:
    port = _free_port("127.96.0.9")
    listener = Listener("127.96.0.9", port, "ns/s")
    await listener.update([])
    with pytest.raises(ConnectionRefusedError):
        await exchange(port, b"x")
    await listener.update([echo])
    assert await exchange(port, b"x") == b"x|%d" % echo[1]
    await listener.update([])
    with pytest.raises(ConnectionRefusedError):
        await exchange(port, b"x")


async def test_a_backend_that_refuses_is_passed_over_and_all_refusing_reset(echo: tuple[str, int]) -> None:
    port, dead = _free_port("127.96.0.9"), ("127.0.0.1", _free_port("127.0.0.1"))
    listener = Listener("127.96.0.9", port, "ns/s")
    await listener.update([dead, echo])
    try:
        for _ in range(4):
            assert await exchange(port, b"x") == b"x|%d" % echo[1]
        await listener.update([dead])
        with pytest.raises(ConnectionResetError):
            await exchange(port, b"x")
    finally:
        listener.close()


async def test_a_backend_that_dies_resets_its_clients() -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    server = await asyncio.start_server(die, "127.0.0.1", 0)
    port = _free_port("127.96.0.9")
    listener = Listener("127.96.0.9", port, "ns/s")
    await listener.update([server.sockets[0].getsockname()])
    reader, writer = await asyncio.open_connection("127.96.0.9", port)
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    listener.close()
    server.close()
