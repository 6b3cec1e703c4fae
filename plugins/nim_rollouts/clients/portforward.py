"""HTTP to a port of a pod, through the API server's port-forward (websocket, v4.channel.k8s.io).

The tunnel does not pass on that the pod's server closed its connection, so an answer is read by its length, and
every exchange has a time limit. One tunnel an exchange: nothing is left open between two probes.
"""

from __future__ import annotations

import http.client
import io
import json as jsonlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.core.errors import AccessDenied, PortForwardFailed, TunnelFailed, redact

_PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
_PORT_ANNOUNCEMENT = 2  # bytes: each channel begins with its port number


@dataclass(frozen=True)
class Response:
    """Status, headers in lower case, body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON; ValueError when it is not."""
        return jsonlib.loads(self.body)


class PodHttp:
    """Requests to one port of one pod."""

    def __init__(self, access: ClusterAccess, namespace: str, pod: str, port: int) -> None:
        self.access, self.namespace, self.pod, self.port = access, namespace, pod, port

    def request(self, method: str, path: str, json: Any = None, *, timeout_s: float = 10.0) -> Response:
        """One exchange.

        :param json: the body, if any
        :param timeout_s: for all of it, connecting included
        :raises TunnelFailed: the tunnel cannot be opened: the pod was not asked
        :raises PortForwardFailed: it breaks, the port does not answer, or the time is up
        """
        where = f"{method} {path} of {self.pod}:{self.port}"
        deadline = time.monotonic() + timeout_s
        tunnel = self._open(where, timeout_s)
        try:
            connection = http.client.HTTPConnection("localhost", self.port)
            connection.sock = _Socket(tunnel, deadline)
            body = None if json is None else jsonlib.dumps(json).encode()
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            if answer.length is None and not answer.chunked:
                raise PortForwardFailed(f"{where}: the answer does not tell its length")
            data = answer.read()
            return Response(answer.status, {key.lower(): value for key, value in answer.getheaders()}, data)
        except (OSError, http.client.HTTPException) as error:
            raise PortForwardFailed(f"{where}: {error or type(error).__name__}") from error
        finally:
            tunnel.close(timeout=0)

    def _open(self, where: str, timeout_s: float) -> Any:
        import websocket

        path = f"/api/v1/namespaces/{quote(self.namespace)}/pods/{quote(self.pod)}/portforward?ports={self.port}"
        context = self.access.ssl_context()
        try:
            return websocket.create_connection(
                "ws" + self.access.endpoint.removeprefix("http") + path,
                timeout=timeout_s,
                header=[f"{name}: {value}" for name, value in self.access.headers().items()],
                subprotocols=[_PROTOCOL],
                sslopt={"context": context} if context else {},
                suppress_origin=True,
                http_no_proxy=["*"],
            )
        except websocket.WebSocketBadStatusException as error:
            if error.status_code in (401, 403):
                self.access.forget_token()
                raise AccessDenied(f"{where}: port-forward refused with {error.status_code}") from error
            raise TunnelFailed(f"{where}: port-forward refused with {error.status_code}") from error
        except (websocket.WebSocketException, OSError) as error:
            raise TunnelFailed(f"{where}: no tunnel: {redact(str(error))}") from error


class _Socket:
    """What http.client needs of a socket, on top of the tunnel's data channel."""

    def __init__(self, tunnel: Any, deadline: float) -> None:
        self._tunnel, self._deadline = tunnel, deadline

    def sendall(self, data: bytes) -> None:
        self._tunnel.settimeout(_left(self._deadline))
        try:
            self._tunnel.send_binary(bytes([_DATA]) + data)
        except Exception as error:
            raise _broken(error) from error

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._tunnel, self._deadline))

    def close(self) -> None:
        """The tunnel is closed by its owner."""


class _Incoming(io.RawIOBase):
    """The bytes of the data channel."""

    def __init__(self, tunnel: Any, deadline: float) -> None:
        self._tunnel, self._deadline = tunnel, deadline
        self._buffer = b""
        self._skip = {_DATA: _PORT_ANNOUNCEMENT, _ERROR: _PORT_ANNOUNCEMENT}

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._buffer:
            if not self._receive():
                return 0
        count = min(len(target), len(self._buffer))
        target[:count] = self._buffer[:count]
        self._buffer = self._buffer[count:]
        return count

    def _receive(self) -> bool:
        """One frame into the buffer; False at the end of the tunnel."""
        import websocket

        self._tunnel.settimeout(_left(self._deadline))
        try:
            code, frame = self._tunnel.recv_data()
        except websocket.WebSocketConnectionClosedException:
            return False
        except Exception as error:
            raise _broken(error) from error
        if code == websocket.ABNF.OPCODE_CLOSE or not frame:
            return bool(code != websocket.ABNF.OPCODE_CLOSE)
        channel, data = frame[0], frame[1:]
        skipped = min(self._skip.get(channel, 0), len(data))
        if skipped:
            self._skip[channel] -= skipped
            data = data[skipped:]
        if channel == _ERROR and data:
            raise OSError(f"the pod's port does not answer: {data.decode(errors='replace').strip()}")
        if channel == _DATA:
            self._buffer += data
        return True


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


def _broken(error: Exception) -> OSError:
    import websocket

    if isinstance(error, websocket.WebSocketTimeoutException):
        return TimeoutError("the time is up")
    return error if isinstance(error, OSError) else OSError(f"the tunnel broke: {redact(str(error))}")
