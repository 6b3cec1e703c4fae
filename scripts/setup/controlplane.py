"""The control plane: one Go program, built once from pinned sources and kept in the cache folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rehearsal import toolbox
from scripts.setup import environments, machine
from scripts.setup.shell import clock, only_one, run, say

_NETWORK = (
    "Go fetches its modules through GOPROXY: see `go env GOPROXY` and that it can be reached, then run it again;"
    " what was fetched is kept"
)


def build(root: Path) -> Path:
    """Build the control plane unless the cache holds it already, and return its path."""
    target = toolbox.controlplane_path(root)
    if target.exists() or os.environ.get("CONTROLPLANE"):
        return target
    with only_one(target.parent.name, toolbox.cache_dir()):
        if not target.exists():  # another checkout may have built it while we waited
            _build(root / "rehearsal" / "controlplane", target)
    return target


def _build(source: Path, target: Path) -> None:
    go = machine.find_go() or environments.go_from_index()
    version = ".".join(map(str, machine.go_version(go) or ()))
    say(f"building the control plane (etcd, Kubernetes {toolbox.KUBERNETES[0]}, KWOK, Helm) with Go {version}")
    say("  this is done once and takes 3 to 8 minutes on 2 cores, with about 2.5 GB of memory")
    say(f"  it is kept in {target.parent}")
    started = time.monotonic()
    env = {
        "CGO_ENABLED": "0",
        # The user's own flags are left out: -mod=vendor or a workspace would build something else.
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
    }

    def fetching(lines: list[str], elapsed: float) -> str:
        count = sum(line.startswith("go: downloading") for line in lines)
        return f"{clock(elapsed)} elapsed; {count} modules fetched"

    packages = len(run([go, "list", "-deps", "."], cwd=source, env=env, progress=fetching, todo=_NETWORK))

    def compiling(lines: list[str], elapsed: float) -> str:
        done = sum(not line.startswith(("go:", "#")) for line in lines)
        current = lines[-1] if lines else "reading what was compiled before"
        return f"{clock(elapsed)} elapsed; {done} of at most {packages} packages compiled; now {current}"

    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        run(
            [go, "build", "-v", "-trimpath", "-ldflags", toolbox.LDFLAGS, "-o", half, "."],
            cwd=source,
            env=env,
            progress=compiling,
            todo="the first line above names what failed; `killed` means that memory ran out",
        )
        half.replace(target)  # in one step: nobody ever starts half a program
    finally:
        half.unlink(missing_ok=True)
    size = target.stat().st_size / 1e6
    say(f"built the control plane in {clock(time.monotonic() - started)} ({size:.0f} MB)")
