"""Where the tools of a rehearsal lie that are too dear to make twice: the control plane and the benchmark client.

Both live in a cache folder outside the checkout, each in a folder named after a digest of what it is made from. So
a second checkout, or a clean clone, finds them again, and a change of their sources never meets an old build.
`scripts/setup` makes them; this module alone says where, so that maker and users cannot disagree. It uses the
standard library only, because setup imports it before any virtual environment exists.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Kubernetes' version, which the binary reports and kubectl compares itself with; go.mod pins the same.
KUBERNETES = ("v1.36.3", "1", "36")
_VERSION_PACKAGE = "k8s.io/component-base/version"
LDFLAGS = (
    f"-s -w -X {_VERSION_PACKAGE}.gitVersion={KUBERNETES[0]}"
    f" -X {_VERSION_PACKAGE}.gitMajor={KUBERNETES[1]} -X {_VERSION_PACKAGE}.gitMinor={KUBERNETES[2]}"
)

AIPERF_LOCK = "requirements-aiperf.txt"


class ToolNotReady(RuntimeError):
    """A tool that setup makes is not there; the message says which one, where it was looked for and what to run."""


def cache_dir() -> Path:
    """The folder for everything that outlives a checkout: NIM_ROLLOUTS_CACHE, else below the user's cache folder."""
    named = os.environ.get("NIM_ROLLOUTS_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "nim-rollouts"


def digest(parts: Iterable[Path | str]) -> str:
    """Twelve hex digits over the names and contents of files, and over plain strings, in the order given."""
    running = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            running.update(part.name.encode() + b"\0" + part.read_bytes() + b"\0")
        else:
            running.update(part.encode() + b"\0")
    return running.hexdigest()[:12]


def controlplane_sources(root: Path = ROOT) -> list[Path]:
    """Every file that decides what the control plane binary is: the Go sources, their pins and their checksums."""
    folder = root / "rehearsal" / "controlplane"
    return [folder / "go.mod", folder / "go.sum", *sorted(folder.glob("*.go"))]


def controlplane_path(root: Path = ROOT) -> Path:
    """Where the control plane binary of these sources belongs, there or not.

    The version of Go is left out of the key on purpose: go.mod says which one is the least, and a newer one on PATH
    would cost another eight minutes for a program that does the same.
    """
    return cache_dir() / f"controlplane-{digest([*controlplane_sources(root), LDFLAGS])}" / "controlplane"


def aiperf_venv(root: Path = ROOT) -> Path:
    """Where the benchmark client's own virtual environment belongs (its pins clash with Airflow's)."""
    return cache_dir() / f"aiperf-{digest([root / AIPERF_LOCK])}"


def controlplane_binary() -> Path:
    """The control plane binary, ready to run. CONTROLPLANE names another one.

    :raises ToolNotReady: when it has not been built yet.
    """
    return _ready("CONTROLPLANE", controlplane_path(), "the control plane binary")


def aiperf_executable() -> Path:
    """The aiperf command of its own virtual environment, ready to run. AIPERF names another one.

    :raises ToolNotReady: when it has not been installed yet, or an installation was cut short.
    """
    venv = aiperf_venv()
    if not os.environ.get("AIPERF") and not (venv / ".complete").exists():
        raise ToolNotReady(f"The benchmark client aiperf is not installed in {venv}. Run `make setup`.")
    return _ready("AIPERF", venv / "bin" / "aiperf", "the benchmark client aiperf")


def _ready(variable: str, usual: Path, what: str) -> Path:
    named = os.environ.get(variable)
    path = Path(named).expanduser().absolute() if named else usual
    if os.access(path, os.X_OK) and path.is_file():
        return path
    if named:
        raise ToolNotReady(f"{variable} names {path} as {what}, but no program is there. Mend it or unset it.")
    raise ToolNotReady(f"There is no {path}, which should be {what}. Run `make setup`.")
