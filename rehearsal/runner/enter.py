"""Run a command inside a running container: ``enter.py <pid of its init, or a file with it> COMMAND [ARGUMENT...]``.

The command gets the container's environment (read from the init's /proc entry, so that no Secret is copied to a
second place), its root directory and its namespaces. Standard library only; replaced by `nsenter` at its end.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    where, command = sys.argv[1], sys.argv[2:]
    try:
        pid = where if where.isdigit() else open(where).read().strip()
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if entry]
        namespaces = ["--mount", "--uts"]
        if os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"):
            namespaces += ["--user", "--preserve-credentials"]
    except OSError:
        sys.exit("error: the container is not running")
    env = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    terminal = os.environ.get("TERM")
    if terminal:
        env.setdefault("TERM", terminal)
    # nsenter itself is found by the caller's PATH; env(1) then looks the command up by the container's.
    program = ["nsenter", "--target", pid, *namespaces, "--root", "--wd", "--", "/usr/bin/env", *command]
    path = os.environ.get("REHEARSAL_HOST_PATH") or os.environ.get("PATH") or os.defpath
    for folder in [*path.split(os.pathsep), "/usr/bin", "/bin"]:
        candidate = os.path.join(folder, "nsenter")
        if os.access(candidate, os.X_OK):
            os.execve(candidate, program, env)
    sys.exit("error: the program `nsenter` (util-linux) is not on PATH")


if __name__ == "__main__":
    main()
