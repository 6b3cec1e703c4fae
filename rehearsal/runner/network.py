"""The Service network: listens on the ClusterIPs of all Services with ready endpoints, and routes as kube-proxy."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Iterable

from rehearsal.cache import Cache
from rehearsal.kube import Obj
from rehearsal.runner.hosts import loopback
from rehearsal.runner.proxy import Backend, Listener

log = logging.getLogger(__name__)

Place = tuple[str, int]
_RETRY = 5.0


def backends(
    services: Iterable[Obj], slices: Iterable[Obj], service_cidr: str, pod_cidr: str
) -> dict[Place, tuple[str, list[Backend]]]:
    """What is to be listened on: (ClusterIP, port) -> (the Service's name, where connections go).

    A slice's ports carry the numbers that the endpoints controller resolved from named target ports, under the Service
    port's name. As kube-proxy does, endpoints that are ending but still serve are used where no ready one is left.
    """
    network = ipaddress.ip_network(service_cidr)
    by_service: dict[tuple[str, str], list[Obj]] = {}
    for each in slices:
        meta = each["metadata"]
        owner = meta.get("labels", {}).get("kubernetes.io/service-name", "")
        if each.get("addressType", "IPv4") == "IPv4":
            by_service.setdefault((meta["namespace"], owner), []).append(each)
    result: dict[Place, tuple[str, list[Backend]]] = {}
    for service in services:
        meta, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP", "")
        if address in ("", "None") or ipaddress.ip_address(address) not in network:
            continue
        for port in spec.get("ports") or []:
            if port.get("protocol", "TCP") != "TCP":
                continue
            found: dict[bool, list[Backend]] = {True: [], False: []}
            for each in by_service.get((meta["namespace"], meta["name"]), []):
                _collect(each, port.get("name") or "", pod_cidr, found)
            chosen = found[True] or found[False]
            result[address, port["port"]] = (f"{meta['namespace']}/{meta['name']}", sorted(set(chosen)))
    return result


def _collect(each: Obj, name: str, pod_cidr: str, found: dict[bool, list[Backend]]) -> None:
    targets = [p["port"] for p in each.get("ports") or [] if (p.get("name") or "") == name and p.get("port")]
    for endpoint in each.get("endpoints") or []:
        conditions = endpoint.get("conditions", {})
        ready = conditions.get("ready") is not False
        ending = bool(conditions.get("terminating")) and conditions.get("serving") is not False
        if ready or ending:
            for address in endpoint["addresses"]:
                found[ready] += [(loopback(address, pod_cidr), target) for target in targets]


class Network:
    """Keeps the listeners as Services and EndpointSlices want them."""

    def __init__(self, services: Cache, slices: Cache, service_cidr: str, pod_cidr: str):
        self._services, self._slices = services, slices
        self._service_cidr, self._pod_cidr = service_cidr, pod_cidr
        self._listeners: dict[Place, Listener] = {}
        self._failed: dict[Place, str] = {}
        self._changed = asyncio.Event()

    def touch(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        try:
            while True:
                await self.settle()
                try:
                    async with asyncio.timeout(_RETRY if self._failed else None):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
        finally:
            for each in self._listeners.values():
                each.close()

    async def settle(self) -> None:
        """Open, change and close listeners once, by what the caches hold now."""
        wanted = backends(
            self._services.items.values(), self._slices.items.values(), self._service_cidr, self._pod_cidr
        )
        for place in [place for place in self._listeners if place not in wanted]:
            self._listeners.pop(place).close()
            self._failed.pop(place, None)
        for place, (title, targets) in wanted.items():
            listener = self._listeners.get(place)
            if listener is None:
                listener = self._listeners[place] = Listener(*place, title)
            try:
                await listener.update(targets)
                self._failed.pop(place, None)
            except OSError as error:
                # Such as a port below 1024 for a normal user, or another program on all addresses.
                if self._failed.get(place) != str(error):
                    log.warning("%s: cannot listen on %s:%d: %s", title, *place, error)
                self._failed[place] = str(error)
