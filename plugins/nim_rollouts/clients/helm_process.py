"""Running Helm: where it is found, what it is told of the cluster, what it sees of our environment, how it ends.

The token is in a file of mode 0600 that lives as long as the call, not in argv. Helm may run longer than a token lives
(15 minutes in EKS, of which 10 may be over): while it runs, the file is kept young, and Helm, as every client of
Kubernetes in Go, reads it again once a minute.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.scratch import scratch
from nim_rollouts.core.errors import AccessDenied, HelmFailed, HelmUnavailable, ToolMissing, redact

log = logging.getLogger(__name__)

BINARY_VARIABLE = "HELM"
_TOKEN_LOOK_S = 30.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SHOWN = 600
# Words of Helm 4 and of what it asks; tests/unit/clients/test_helm_words.py has them as a real one said them. A number
# alone is none: lines, ports and sizes have the same.
_TRANSIENT = re.compile(
    r"connection (?:refused|reset|timed out)|\b(?:dial|read|write) tcp\b|no such host|i/o timeout|"
    r"TLS handshake timeout|context deadline exceeded|Client\.Timeout exceeded|"
    r"(?:^|: )(?:unexpected )?EOF\b|\bhttp2: |\bstream error: |"
    r"\b(?:429|50[0234]):? (?:Too Many Requests|Internal Server Error|Bad Gateway|Service Unavailable|Gateway Timeout)|"
    r"too many requests|currently unable to handle the request|an error on the server|return a response in the time|"
    r"etcdserver: |another operation .* in progress|Kubernetes cluster unreachable",
    re.IGNORECASE,
)
# What no second try mends, whatever else is in the text: the chart's own faults quote it, and a server that is of
# another authority, or none, is called unreachable as well.
_FINAL = re.compile(
    r"\b(?:parse|execution) error at |YAML parse error|error converting YAML|\bexecuting \".*\" at <|x509: |"
    r"could not find the requested resource"
)
_DENIED = re.compile(
    r"asked for the client to provide credentials|: Unauthorized$|\bforbidden: User \"[^\"]*\" cannot ", re.IGNORECASE
)
# Helm 4's words for what it waited for in vain; the deadline alone may as well be that of a request.
_NOT_READY = re.compile(r"not ready\. status: |timed out waiting for", re.IGNORECASE)
_HOOK = re.compile(r"hooks? failed|failed (pre|post)-|hook .* failed", re.IGNORECASE)


@dataclass(frozen=True)
class Done:
    """Both outputs of a Helm that ended well."""

    stdout: str
    stderr: str


class HelmEnded(Exception):
    """Helm ended with an error. `said`: its own words without secrets; `text`: as much of them as a message takes."""

    def __init__(self, what: str, code: int, said: str) -> None:
        self.what, self.code, self.said, self.text = what, code, said, said[-_SHOWN:]
        super().__init__(f"helm {what} ended with {code}: {self.text}")

    @property
    def is_transient(self) -> bool:
        """The other side did not answer. Objects that did not become ready are no such case."""
        final = any(one.search(self.said) for one in (_FINAL, _DENIED, _NOT_READY))
        return not final and bool(_TRANSIENT.search(self.said))

    @property
    def why(self) -> str:
        """What kind of failure it is, in a word or three."""
        if _HOOK.search(self.said):
            return "a hook failed"
        if _NOT_READY.search(self.said):
            return "not ready in time"
        return "the cluster does not answer" if self.is_transient else "refused"

    def as_error(self) -> HelmFailed | HelmUnavailable | AccessDenied:
        """The error of our tree, for what Helm asked of the cluster."""
        if _DENIED.search(self.said):
            return AccessDenied(str(self))
        return (HelmUnavailable if self.is_transient else HelmFailed)(str(self))


def find_binary() -> str:
    """The helm to use: the environment variable HELM, else `helm` on PATH.

    :raises ToolMissing: there is none
    """
    named = os.environ.get(BINARY_VARIABLE)
    found = shutil.which(named or "helm")
    if found is None:
        raise ToolMissing(
            f"helm is missing: {f'{BINARY_VARIABLE}={named} is no program' if named else 'it is not on PATH'}",
            hint=f"Install Helm 4 on every worker, or name it in the environment variable {BINARY_VARIABLE}",
        )
    return found


class HelmProcess:
    """Starts Helm, each time with a home of its own.

    :param access: the cluster; None for what needs none
    """

    def __init__(self, binary: str, access: ClusterAccess | None = None) -> None:
        self.binary, self.access = binary, access

    def run(self, arguments: Sequence[str], *, about: str, timeout_s: float, namespace: str | None = None) -> Done:
        """Run to the end.

        :param about: whose release or chart, for messages
        :param namespace: with it the cluster is used, without it Helm knows none
        :raises HelmEnded: with an error
        :raises HelmUnavailable: not ended within `timeout_s`; it is killed
        """
        command = [self.binary, *arguments, *(["--namespace", namespace] if namespace else [])]
        with scratch("helm") as folder:
            token = self._prepare(folder) if namespace is not None else None
            try:
                done = _run(command, _environment(folder), timeout_s, token.renew if token else _nothing)
            except FileNotFoundError as error:
                raise ToolMissing(f"helm is missing: {self.binary}") from error
            except subprocess.TimeoutExpired as error:
                raise HelmUnavailable(f"helm {arguments[0]} of {about} did not end in {timeout_s:.0f} s") from error
        if done.returncode == 0:
            return Done(done.stdout, done.stderr)
        raise HelmEnded(f"{arguments[0]} of {about}", done.returncode, _last_words(done.stderr or done.stdout))

    def _prepare(self, folder: Path) -> _TokenFile:
        """Write down how the cluster is reached."""
        access = self.access
        assert access is not None
        token = _TokenFile(folder / "token", access.token)
        server: dict[str, Any] = {"server": access.endpoint}
        if access.ca_pem:
            import base64

            server["certificate-authority-data"] = base64.b64encode(access.ca_pem.encode()).decode()
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": server}],
            "users": [{"name": "user", "user": {"tokenFile": str(token.path)}}],
            "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "context",
        }
        write_private(folder / "kubeconfig", json.dumps(kubeconfig))
        return token


class _TokenFile:
    """A token where Helm looks for it."""

    def __init__(self, path: Path, token: Callable[[], str]) -> None:
        self.path, self._token = path, token
        self._written = token()
        write_private(path, self._written)

    def renew(self) -> None:
        """Replace it by a younger one, if there is one. What cannot be minted now is tried at the next look: the
        present token still holds for minutes."""
        try:
            token = self._token()
        except Exception as error:
            log.warning("no new token for Helm: %s", redact(str(error)))
            return
        if token != self._written:
            new = self.path.with_name("token.new")
            new.unlink(missing_ok=True)
            write_private(new, token)
            new.replace(self.path)  # at once: Helm never reads half a token
            self._written = token


def _nothing() -> None:
    """No token to keep young."""


def _run(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float, meanwhile: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, with something to do now and then while it runs."""
    deadline = time.monotonic() + timeout_s
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=_ends_with_us()
    ) as process:
        try:
            while True:
                left = deadline - time.monotonic()
                try:
                    stdout, stderr = process.communicate(timeout=min(left, _TOKEN_LOOK_S))
                    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
                except subprocess.TimeoutExpired:
                    if left <= _TOKEN_LOOK_S:
                        raise
                    meanwhile()
        except BaseException:
            process.kill()
            raise


def write_private(path: Path, text: str) -> None:
    """A new file that only we can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)


def _last_words(text: str) -> str:
    """The error itself: Helm logs the same before it, with more quoting."""
    said = redact(text)
    _, mark, error = said.rpartition("Error: ")
    return " ".join((error if mark else said).split())


def _ends_with_us() -> Callable[[], None] | None:
    """What a child does before it becomes Helm: it asks the kernel for SIGKILL at the end of the thread that made it.

    A task that is killed would otherwise leave its Helm at work beside the next try's, which takes it for dead. Linux
    alone has this; None elsewhere.
    """
    libc = ctypes.CDLL(None)  # loaded before the fork: the child may not
    if not hasattr(libc, "prctl"):
        return None
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was quicker
            os._exit(1)

    return ask


def _environment(folder: Path) -> dict[str, str]:
    """Helm's environment, with a home of its own."""
    return {
        **_inherited(),
        "KUBECONFIG": f"{folder}/kubeconfig",
        "HELM_DRIVER": "secret",
        "HELM_CACHE_HOME": f"{folder}/cache",
        "HELM_CONFIG_HOME": f"{folder}/config",
        "HELM_DATA_HOME": f"{folder}/data",
    }


def _inherited() -> dict[str, str]:
    """Our environment without what would send Helm elsewhere, and without what is none of its business: Airflow's
    connections (the NGC key may be one), its keys, AWS credentials."""
    kept_back = ("HELM_", "KUBE", "AIRFLOW", "_AIRFLOW", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(kept_back)}
