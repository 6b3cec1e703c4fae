"""Which of a rehearsal's ports somebody listens on: after `down`, none."""

from __future__ import annotations

import socket

from rehearsal.config import Rehearsal


def open_ports(r: Rehearsal) -> list[str]:
    """Names of the rehearsal's ports on which somebody listens."""
    found = []
    for name, port in r.ports.items():
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                found.append(name)
    return found
