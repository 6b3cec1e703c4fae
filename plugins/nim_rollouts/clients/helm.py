"""Add-ons by Helm, so that a second run makes no new revision.

What was installed is remembered in labels of the release: a digest of the chart and one of the values. Helm keeps a
release in Secrets; reading their labels answers whether there is anything to do without starting Helm.

Decisions:

* CRDs of a chart's crds/ folder: Helm installs them once and never upgrades them. Here they are applied server-side
  before each install or upgrade (`helm show crds`), and Helm is told to skip them.
* No waiting: installing is a short step that writes; a later step waits, deferred, and says which layer is stuck.
  With `wait_s` Helm waits and, since it is asked for --rollback-on-failure, takes a failed upgrade back (a failed first
  install away).
* A release left `pending` by a Helm that was killed blocks every later one. If its labels say that it was ours, its
  newest revision's Secret is removed, and the release goes on from the one before. The environment's claim excludes
  another run's Helm, and an earlier try's has ended with its task; somebody else's pending release is left alone.
* The token is in a kubeconfig file of mode 0600 that lives as long as the call, not in argv.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.include import Include
from nim_rollouts.clients.resources import Ref
from nim_rollouts.core.errors import HelmFailed, HelmUnavailable, ToolMissing, redact
from nim_rollouts.core.spec import Addon

BINARY_VARIABLE = "HELM"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
CHART_LABEL, VALUES_LABEL = "nim-rollouts/chart", "nim-rollouts/values"
_TRANSIENT = re.compile(
    r"connection refused|i/o timeout|TLS handshake timeout|EOF|context deadline exceeded|no such host|"
    r"Kubernetes cluster unreachable|another operation .* in progress|too many requests|\b50[0234]\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class HelmStatus:
    """The newest revision of a release. Digests: None when it was not ours."""

    revision: int
    status: str
    chart_digest: str | None
    values_digest: str | None


@dataclass(frozen=True)
class HelmResult:
    """`changed`: a new revision was made."""

    changed: bool
    revision: int
    status: str
    chart_digest: str


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


class Helm:
    """Helm on one cluster."""

    def __init__(
        self, cluster: Cluster, include: Include, *, binary: str | None = None, timeout_s: float = 300
    ) -> None:
        self.cluster, self.include, self.timeout_s = cluster, include, timeout_s
        self.binary = binary or find_binary()

    def status(self, addon: Addon) -> HelmStatus | None:
        """The newest revision, or None when the release is not installed."""
        secrets = self._revisions(addon)
        if not secrets:
            return None
        labels = secrets[-1]["metadata"]["labels"]
        return HelmStatus(
            int(labels["version"]), str(labels["status"]), labels.get(CHART_LABEL), labels.get(VALUES_LABEL)
        )

    def upgrade_install(self, addon: Addon, *, wait_s: float | None = None) -> HelmResult:
        """Install or upgrade, unless the release is deployed with this chart and these values already.

        :param wait_s: None returns once the objects are applied; else wait that long for them, and roll back on failure
        :raises HelmFailed: the chart or the values are refused
        :raises HelmUnavailable: cluster or repository do not answer, or somebody else's operation is in progress
        """
        chart_digest, values_digest = self._chart_digest(addon), self._values_digest(addon)
        before = self.status(addon)
        if before and before.status == "deployed":
            if (before.chart_digest, before.values_digest) == (chart_digest, values_digest):
                return HelmResult(False, before.revision, before.status, chart_digest)
        if before and before.status.startswith("pending"):
            self._unblock(addon, before)
        for definition in self.crds(addon):
            self.cluster.apply(definition, force_managers=("helm", "manager", "kubectl"))
        arguments = ["upgrade", "--install", addon.name, *self._chart(addon), "--create-namespace", "--skip-crds"]
        arguments += ["--labels", f"{CHART_LABEL}={chart_digest},{VALUES_LABEL}={values_digest}", "--history-max", "5"]
        arguments += ["--server-side", "true", "--timeout", f"{int(wait_s or self.timeout_s)}s"]
        if addon.values:
            arguments += ["--values", str(self.include.path(addon.values))]
        if wait_s is not None:
            arguments += ["--wait", "--rollback-on-failure"]
        self._run(addon, arguments, (wait_s or 0) + self.timeout_s)
        after = self.status(addon)
        if after is None:
            raise HelmFailed(f"release {addon.name} is not there after helm upgrade --install")
        return HelmResult(True, after.revision, after.status, chart_digest)

    def uninstall(self, addon: Addon, *, wait_s: float = 120) -> bool:
        """Remove the release and wait until its objects are gone; False when it was not installed. CRDs stay."""
        if self.status(addon) is None:
            return False
        self._run(
            addon,
            ["uninstall", addon.name, "--ignore-not-found", "--wait", "--timeout", f"{int(wait_s)}s"],
            wait_s + self.timeout_s,
        )
        return True

    def crds(self, addon: Addon) -> list[dict[str, Any]]:
        """The CustomResourceDefinitions of the chart's crds/ folder."""
        text = self._run(addon, ["show", "crds", *self._chart(addon)], self.timeout_s, cluster=False)
        documents = [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]
        return [one for one in documents if one.get("kind") == "CustomResourceDefinition"]

    def _revisions(self, addon: Addon) -> list[dict[str, Any]]:
        secrets = self.cluster.list("v1", "Secret", addon.namespace, label_selector=f"owner=helm,name={addon.name}")
        return sorted(secrets, key=lambda secret: int(secret["metadata"]["labels"]["version"]))

    def _unblock(self, addon: Addon, pending: HelmStatus) -> None:
        if pending.chart_digest is None:
            raise HelmUnavailable(
                f"release {addon.name} is {pending.status} by somebody else's Helm",
                hint="Let it end; if it was killed, roll it back by hand",
                retry_after_s=60,
            )
        name = f"sh.helm.release.v1.{addon.name}.v{pending.revision}"
        self.cluster.delete(Ref("v1", "Secret", name, addon.namespace))

    def _chart(self, addon: Addon) -> list[str]:
        if addon.is_local:
            return [str(self._local(addon))]
        version = ["--version", str(addon.version)]
        return [addon.chart, *(["--repo", addon.repository] if addon.repository else []), *version]

    def _local(self, addon: Addon) -> Path:
        path = (self.include.repository / addon.chart).resolve()
        if not (path / "Chart.yaml").is_file():
            raise HelmFailed(
                f"the chart {addon.chart} of add-on {addon.name} is not a folder with a Chart.yaml",
                hint="Correct addons in the environment's file",
                reason="chart-missing",
            )
        return path

    def _chart_digest(self, addon: Addon) -> str:
        """16 hex digits: of all files of a local chart; of address and version of a published one, which is fixed."""
        if not addon.is_local:
            return _digest([f"{addon.repository or ''} {addon.chart} {addon.version}".encode()])
        root = self._local(addon)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return _digest(
            part for path in files for part in (path.relative_to(root).as_posix().encode(), path.read_bytes())
        )

    def _values_digest(self, addon: Addon) -> str:
        if not addon.values:
            return _digest([])
        path = self.include.path(addon.values)
        if not path.is_file():
            raise HelmFailed(
                f"include/{addon.values}, the values of add-on {addon.name}, is missing", reason="values-missing"
            )
        return _digest([path.read_bytes()])

    def _run(self, addon: Addon, arguments: Sequence[str], timeout_s: float, *, cluster: bool = True) -> str:
        with self._environment() as environment:
            command = [self.binary, *arguments]
            if cluster:
                command += ["--namespace", addon.namespace]
            try:
                done = subprocess.run(
                    command,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=timeout_s,
                    check=False,
                    preexec_fn=_ends_with_us(),
                )
            except FileNotFoundError as error:
                raise ToolMissing(f"helm is missing: {self.binary}") from error
            except subprocess.TimeoutExpired as error:
                raise HelmUnavailable(f"helm {arguments[0]} {addon.name} did not end in {timeout_s:.0f} s") from error
        if done.returncode == 0:
            return done.stdout
        text = " ".join(redact(done.stderr or done.stdout).split())[-600:]
        error_class = HelmUnavailable if _TRANSIENT.search(text) else HelmFailed
        raise error_class(f"helm {arguments[0]} of {addon.name} ended with {done.returncode}: {text}")

    @contextmanager
    def _environment(self) -> Iterator[dict[str, str]]:
        """Helm's environment: an own home, and a kubeconfig that only we can read."""
        with tempfile.TemporaryDirectory(prefix="nim-rollouts-helm-") as folder:
            kubeconfig = Path(folder, "kubeconfig")
            handle = os.open(kubeconfig, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(self._kubeconfig(), file)
            yield {
                **_inherited(),
                "KUBECONFIG": str(kubeconfig),
                "HELM_DRIVER": "secret",
                "HELM_CACHE_HOME": f"{folder}/cache",
                "HELM_CONFIG_HOME": f"{folder}/config",
                "HELM_DATA_HOME": f"{folder}/data",
            }

    def _kubeconfig(self) -> Mapping[str, Any]:
        access = self.cluster.access
        server: dict[str, Any] = {"server": access.endpoint}
        if access.ca_pem:
            import base64

            server["certificate-authority-data"] = base64.b64encode(access.ca_pem.encode()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": server}],
            "users": [{"name": "user", "user": {"token": access.token()}}],
            "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "context",
        }


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


def _inherited() -> dict[str, str]:
    """Our environment without what would send Helm elsewhere, and without what is none of its business: Airflow's
    connections (the NGC key may be one), its keys, AWS credentials."""
    kept_back = ("HELM_", "KUBE", "AIRFLOW", "_AIRFLOW", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(kept_back)}


def _digest(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]
