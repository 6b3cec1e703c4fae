"""What a running supervisor can be told through its socket: to stop, and to restart a part."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from typing import Protocol

log = logging.getLogger("supervisor")


class Supervisor(Protocol):
    stop: threading.Event

    def restart(self, name: str, away_s: float, *, kill: bool) -> None: ...


def serve(listener: socket.socket, supervisor: Supervisor) -> None:
    """One line from a connection of our own user. `stop`: it is held open until the supervisor ends. `restart PART
    SECONDS term|kill`: answered with `ok` once the part is ready again, or with what is wrong."""
    held = []
    while True:
        connection, _ = listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid = int.from_bytes(credentials[4:8], sys.byteorder)
        if uid in (os.geteuid(), 0):
            line = connection.recv(256).decode(errors="replace").strip()
            if line == "stop":
                held.append(connection)
                supervisor.stop.set()
            elif line.startswith("restart "):
                threading.Thread(target=_restart, args=(connection, supervisor, line), daemon=True).start()
            else:
                connection.close()  # whoever only looks whether a supervisor is there


def _restart(connection: socket.socket, supervisor: Supervisor, line: str) -> None:
    with connection:
        try:
            _, name, away_s, how = line.split()
            supervisor.restart(name, float(away_s), kill=how == "kill")
            said = "ok"
        except (ValueError, OSError) as error:  # TimeoutError is one
            said = str(error)
        try:
            connection.sendall(said.encode() + b"\n")
        except OSError:
            log.info("nobody heard that the restart of %s: %s", line, said)
