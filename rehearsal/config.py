"""What every part of a rehearsal knows about it: where its state lies, its ports, its files.

The supervisor writes ``state.json`` before it starts the first part; a part reads it by `load()` and
needs nothing else. The environment variable ``REHEARSAL_STATE`` names the state folder; without it
the folder is ``.rehearsal`` in the checkout, so two checkouts never share one.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATE_FILE = "state.json"
STATE_ENV = "REHEARSAL_STATE"
#: Folders with DAGs beside dags/, separated as in PATH; read once, when a rehearsal is brought up.
DAGS_ENV = "REHEARSAL_DAGS"
INCLUDE_ENV = "REHEARSAL_INCLUDE"
IMAGES_ENV = "REHEARSAL_IMAGES"


class NotUp(RuntimeError):
    """No rehearsal has been brought up in this state folder."""


@dataclass(frozen=True)
class Rehearsal:
    """One rehearsal's addresses and files. All servers listen on 127.0.0.0/8 only."""

    root: Path
    state: Path
    block: int
    ports: dict[str, int]
    admin_token: str
    controlplane: Path
    aiperf: Path
    python: str
    airflow_user: str = "admin"
    airflow_password: str = ""
    supervisor_pid: int = 0
    with_airflow: bool = True
    more_dags: list[str] = field(default_factory=list)
    other_include: str = ""
    images: str = ""
    """Another image map than rehearsal/images.yaml."""
    operator_binary: str = ""
    operator_manifests: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def include(self) -> Path:
        """The include folder that the pipelines read: the checkout's, that of REHEARSAL_INCLUDE, or one that leads
        there and has another chart of the NIM Operator beside it (`own_operator`)."""
        return Path(self.other_include) if self.other_include else self.root / "include"

    @property
    def operator(self) -> str:
        """The program that is the NIM Operator: NVIDIA's own where it was named, else the stand-in's launcher."""
        return self.operator_binary or str(self.root / "rehearsal" / "operator" / "bin" / "manager")

    @property
    def service_cidr(self) -> str:
        """Addresses of Services: real loopback addresses, on which the runner listens."""
        return f"127.{self.block}.0.0/16"

    @property
    def pod_cidr(self) -> str:
        """Addresses that pods report. 10.X.Y.Z stands for the loopback address 127.X.Y.Z."""
        return f"10.{self.block + 1}.0.0/16"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def ca(self) -> Path:
        return self.state / "pki" / "ca.crt"

    @property
    def logs(self) -> Path:
        return self.path("logs")

    @property
    def helm(self) -> Path:
        """A wrapper script: the control-plane binary under Helm's own name."""
        return self.state / "bin" / "helm"

    @property
    def ngc_key_file(self) -> Path:
        """The key that the NGC stand-in accepts (mode 0600)."""
        return self.state / "ngc-key"

    def url(self, part: str) -> str:
        scheme = "https" if part in ("apiserver", "gateway") else "http"
        return f"{scheme}://127.0.0.1:{self.ports[part]}"

    def path(self, name: str) -> Path:
        folder = self.state / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def timing(self, name: str, default: float) -> float:
        """A stand-in's duration in seconds: from ``timing.json`` in the state folder, else ``default``."""
        try:
            return float(json.loads((self.state / "timing.json").read_text()).get(name, default))
        except FileNotFoundError:
            return default

    def save(self) -> None:
        data = asdict(self)
        for key, value in data.items():
            if isinstance(value, Path):
                data[key] = str(value)
        write_atomic(self.state / STATE_FILE, json.dumps(data, indent=1), mode=0o600)


def state_folder() -> Path:
    return Path(os.environ.get(STATE_ENV) or ROOT / ".rehearsal").resolve()


def load(state: Path | None = None) -> Rehearsal:
    """The rehearsal of this state folder. Raises `NotUp` when there is none."""
    folder = state or state_folder()
    try:
        data = json.loads((folder / STATE_FILE).read_text())
    except FileNotFoundError:
        raise NotUp(f"no rehearsal is up in {folder}: start one with `make up` or `make rehearse KEEP=1`") from None
    for key in ("root", "state", "controlplane", "aiperf"):
        data[key] = Path(data[key])
    return Rehearsal(**data)


def write_atomic(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file as a whole, so that a reader sees the old text or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as out:
        os.fchmod(handle, mode)
        out.write(text)
    os.replace(name, path)


def mark_ready(part: str) -> None:
    """Tell the supervisor that this part, which serves no HTTP, is in sync and working."""
    write_atomic(state_folder() / "ready" / part, str(os.getpid()))
