"""The root file system and the first process of a container, as the program that `unshare` executes.

Run as ``unshare --mount --uts ... python -I -S sandbox.py <spec fd> <status fd>``. It uses the standard library
alone, since it starts once per container and before any path of the checkout need be visible.

What a container sees is the host's own root directory, bind mount by bind mount, with these differences: a ``/run``
of its own, the pod's volumes, and its ``/etc/hosts``. A mount point that does not exist is made without writing to the
host: the folder it would lie in is covered by a tmpfs that holds the folder's children as bind mounts.

This process then stays as the container's init: it starts the command in a session of its own, passes SIGTERM to that
process group, and takes every descendant with it when the command ends, when it is told to (SIGUSR1) and when the
runner dies (SIGUSR2, by PR_SET_PDEATHSIG). Its exit status is the command's, 128+n for a signal n.

User and group ids of the pod's securityContext are not honoured: everything runs as the user who runs the rehearsal
(mapped to root, where a user namespace was needed). Of the capabilities that it drops, those are dropped that pass over
the permissions of files: a container without them meets "Permission denied" as it would on a node.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import stat
import sys
from typing import Any, NoReturn

MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC = 0x1, 0x2, 0x20, 0x1000, 0x4000
MS_UNBINDABLE = 1 << 17
# statvfs tells a mount's flags in the same bits as mount(2) takes them, but for this one.
ST_RELATIME, MS_RELATIME = 0x1000, 1 << 21
KEPT_FLAGS = 0x2 | 0x4 | 0x8 | 0x400 | 0x800
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 24, 36
# linux/capability.h
CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3}
KILL_ALL, RUNNER_GONE = signal.SIGUSR1, signal.SIGUSR2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError with the target's name."""
    arguments = [text.encode() if text else None for text in (source, target, fstype)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def prctl(option: int, value: int) -> None:
    _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


class Root:
    """A root directory under construction at `folder` of the host. Paths handed in are as the container sees them."""

    def __init__(self, folder: str):
        self.folder = folder
        self._ours: set[int] = set()
        mount("tmpfs", folder, "tmpfs", MS_NOSUID, "mode=755")
        # Else the recursive bind of the top folder in which `folder` lies would contain this mount again.
        mount("", folder, "", MS_UNBINDABLE)
        self._ours.add(os.stat(folder).st_dev)

    def copy_host(self, leave_out: set[str]) -> None:
        for name in os.listdir("/"):
            if name not in leave_out:
                self._mirror(f"/{name}", f"{self.folder}/{name}")

    def _mirror(self, source: str, target: str) -> None:
        """Make `target`, which does not exist yet, show what `source` is: a link as a link, all else as a bind."""
        # What cannot be bound (gone meanwhile, or forbidden to us) is missing in the container: it could not use it.
        with contextlib.suppress(OSError):
            mode = os.lstat(source).st_mode
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(source), target)
            else:
                _make(target, stat.S_ISDIR(mode))
                mount(source, target, "", MS_BIND | MS_REC)

    def tmpfs(self, path: str, mode: int = 0o755) -> None:
        target = self.folder + self.place(path, True)
        mount("tmpfs", target, "tmpfs", MS_NOSUID, f"mode={mode:o}")
        self._ours.add(os.stat(target).st_dev)

    def bind(self, source: str, path: str, read_only: bool) -> None:
        target = self.folder + self.place(path, os.path.isdir(source))
        mount(source, target, "", MS_BIND | MS_REC)
        if read_only:
            flags = os.statvfs(target).f_flag
            kept = flags & KEPT_FLAGS | (MS_RELATIME if flags & ST_RELATIME else 0)
            mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)

    def place(self, path: str, folder: bool) -> str:
        """The path of a mount point with its links resolved inside this root; made where it is missing."""
        todo = [part for part in path.split("/") if part]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part in (".", ".."):
                if part == "..":
                    done = done[:-1]
                continue
            here = "/" + "/".join([*done, part])
            try:
                mode = os.lstat(self.folder + here).st_mode
            except FileNotFoundError:
                self._add(here, folder or bool(todo))
                mode = stat.S_IFDIR
            if stat.S_ISLNK(mode):
                links += 1
                if links > 40:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                aim = os.readlink(self.folder + here)
                done = [] if aim.startswith("/") else done
                todo = [piece for piece in aim.split("/") if piece] + todo
            else:
                done.append(part)
        return "/" + "/".join(done)

    def _add(self, path: str, folder: bool) -> None:
        parent = self.folder + os.path.dirname(path)
        if os.stat(parent).st_dev not in self._ours:
            self._cover(parent)
        _make(self.folder + path, folder)

    def _cover(self, folder: str) -> None:
        """Put a tmpfs over a folder of the host that shows the same children."""
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        below = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            names = os.listdir(folder)
            mount("tmpfs", folder, "tmpfs", MS_NOSUID, f"mode={mode:o}")
            self._ours.add(os.stat(folder).st_dev)
            for name in names:
                # The descriptor still leads to the covered folder.
                self._mirror(f"/proc/self/fd/{below}/{name}", f"{folder}/{name}")
        finally:
            os.close(below)


def _make(path: str, folder: bool) -> None:
    if folder:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def build(spec: dict[str, Any]) -> None:
    """Make the container's root as the spec says and move into it."""
    root = Root(spec["root"])
    root.copy_host({"run"})
    root.tmpfs("/run")
    for kept in spec["keep"]:
        # Only what the new /run hides has to be shown again.
        if os.path.realpath(kept).startswith("/run/"):
            root.bind(os.path.realpath(kept), os.path.realpath(kept), False)
    for each in sorted(spec["binds"], key=lambda b: str(b["target"]).rstrip("/").count("/")):
        root.bind(each["source"], each["target"], each["read_only"])
    os.chroot(spec["root"])
    os.chdir("/")


def descendants(of: int) -> list[int]:
    """All processes below one, read from /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                # The name in parentheses may hold anything; the parent is the second field after it.
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, todo = [], [of]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _kill_descendants() -> None:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _exec(spec: dict[str, Any], status: int) -> NoReturn:
    """In the forked child: become the command, or tell through the status pipe why not."""
    try:
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for name in spec.get("drop", ()):
            # Out of the bounding set: what root gets anew with the exec below is without it.
            prctl(PR_CAPBSET_DROP, CAPABILITIES[name])
        os.chdir(spec["workdir"])
        os.execvpe(spec["argv"][0], spec["argv"], os.environ)
    except BaseException as error:
        what = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else repr(error)
        os.write(status, what.encode())
        os._exit(127)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def supervise(main: int, watched: set[signal.Signals]) -> int:
    """Wait for the command; return its exit status once nothing of the container runs any more."""
    result: int | None = None
    while True:
        arrived = signal.sigtimedwait(watched, 0.05 if result is not None else 3600)
        number = arrived.si_signo if arrived else None
        if number in (KILL_ALL, RUNNER_GONE) or result is not None:
            _kill_descendants()
        elif number is not None and number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(main, number)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return result if result is not None else 255
            if pid == 0:
                break
            if pid == main:
                result = _exit_code(status)
                _kill_descendants()


def main() -> None:
    spec_fd, status = int(sys.argv[1]), int(sys.argv[2])
    prctl(PR_SET_PDEATHSIG, RUNNER_GONE)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    watched = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD, KILL_ALL, RUNNER_GONE}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    os.set_inheritable(status, False)
    with os.fdopen(spec_fd, "rb") as pipe:
        spec = json.load(pipe)
    if os.getppid() != spec["parent"]:
        sys.exit(255)
    try:
        with contextlib.suppress(OSError):
            _libc.sethostname(spec["hostname"].encode(), len(spec["hostname"]))
        build(spec)
    except OSError as error:
        os.write(status, f"mount of {error.filename}: {error.strerror}".encode())
        sys.exit(255)
    child = os.fork()
    if child == 0:
        _exec(spec, status)
    os.close(status)
    sys.exit(supervise(child, watched))


if __name__ == "__main__":
    main()
