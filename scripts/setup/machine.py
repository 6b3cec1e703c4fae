"""The tools that the machine must bring along: found, asked for their version, and named plainly when they are not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.setup.shell import SetupError

Version = tuple[int, ...]

#: terraform 1.11 is the first with write-only arguments, which keep passwords out of its state (design rule 6).
TERRAFORM: Version = (1, 11)
#: What rehearsal/controlplane/go.mod says in its `go` line.
GO: Version = (1, 26)

_FOLDER = Path(__file__).resolve().parent.parent.parent


def check() -> None:
    """Refuse a machine on which a rehearsal cannot run, saying everything that is missing at once.

    :raises SetupError: naming each tool, where it was looked for and how to get it.
    """
    problems = [problem for problem in (_python(), _terraform(), *_plain_tools()) if problem]
    if problems:
        raise SetupError("this machine lacks what set-up cannot install:\n" + "\n".join(f"  - {p}" for p in problems))


def find_go() -> Path | None:
    """A Go of at least the version that the control plane needs: GO, else PATH. None when there is none.

    :raises SetupError: when GO names a program that will not do.
    """
    named = os.environ.get("GO")
    found = shutil.which(named or "go")
    version = go_version(Path(found)) if found else None
    if version and version >= GO:
        return Path(found or "")
    if named:
        raise SetupError(
            f"GO={named} is {'Go ' + _dotted(version) if version else 'no Go that runs'}; Go {_dotted(GO)} is needed",
            todo="unset GO to let set-up look on PATH and, failing that, install one into its cache",
        )
    return None


def go_version(go: Path) -> Version | None:
    """What `go version` says, as numbers; None when it does not run."""
    said = _output([str(go), "version"])
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", said or "")
    return tuple(int(part) for part in found.groups(default="0")) if found else None


def _python() -> str | None:
    if sys.version_info[:2] != (3, 11):
        return (
            f"Python 3.11: this is {sys.version.split()[0]} ({sys.executable}). Install 3.11 and run"
            " `make PYTHON=/path/to/python3.11 ...`"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "Python's venv module (on Debian and Ubuntu a package of its own): install python3.11-venv"
    return None


def _terraform() -> str | None:
    named = os.environ.get("TERRAFORM") or "terraform"
    found = shutil.which(named)
    if not found:
        return f"terraform {_dotted(TERRAFORM)} or newer: no `{named}` on PATH. Install it, or set TERRAFORM"
    # The check-point call asks the vendor's server for news: slow, and of no use here.
    said = _output([found, "version", "-json"], {"CHECKPOINT_DISABLE": "1"})
    try:
        version = tuple(int(part) for part in json.loads(said or "")["terraform_version"].split("-")[0].split("."))
    except (ValueError, KeyError):
        return f"terraform {_dotted(TERRAFORM)} or newer: {found} does not say its version (`{found} version -json`)"
    if version < TERRAFORM:
        return f"terraform {_dotted(TERRAFORM)} or newer: {found} is {_dotted(version)}. Install a newer one"
    return None


def _plain_tools() -> list[str]:
    known = {
        "git": "the project's own tool for its sources: install git",
        "make": "runs the targets of the Makefile: install make",
        "unshare": "gives each pod its own /etc/hosts and mounts: install util-linux",
        "setpriv": "lets no part of a rehearsal outlive its supervisor: install util-linux",
    }
    return [f"{tool}: not on PATH; it {why}" for tool, why in known.items() if not shutil.which(tool)]


def _output(argv: list[str], env: dict[str, str] | None = None) -> str | None:
    try:
        done = subprocess.run(
            argv,
            cwd=_FOLDER.parent,  # away from any go.mod, whose toolchain line could start a download
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _dotted(version: Version | None) -> str:
    return ".".join(map(str, version or ()))
