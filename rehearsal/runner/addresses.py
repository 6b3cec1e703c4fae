"""Pod addresses: 10.X.Y.Z of the pods' network, one for each pod, given again as late as possible."""

from __future__ import annotations

import ipaddress


class Addresses:
    """Hands out addresses by the pods' uids."""

    def __init__(self, pod_cidr: str):
        network = ipaddress.ip_network(pod_cidr)
        # .0.0 and .0.1 look like a network and its gateway to many a reader.
        self._first, self._last = int(network.network_address) + 2, int(network.broadcast_address) - 1
        self._next = self._first
        self._by_uid: dict[str, int] = {}

    def take(self, uid: str, wanted: str | None = None) -> str:
        """The pod's address; `wanted` (from an earlier runner) if free. Raises RuntimeError when none is left."""
        if uid not in self._by_uid:
            taken = set(self._by_uid.values())
            number = int(ipaddress.ip_address(wanted)) if wanted else 0
            if not self._first <= number <= self._last or number in taken:
                number = self._free(taken)
            self._by_uid[uid] = number
        return str(ipaddress.ip_address(self._by_uid[uid]))

    def _free(self, taken: set[int]) -> int:
        for _ in range(self._last - self._first + 1):
            number = self._next
            self._next = self._first if number == self._last else number + 1
            if number not in taken:
                return number
        raise RuntimeError("no pod address is left")

    def release(self, uid: str) -> None:
        self._by_uid.pop(uid, None)
