"""Temporary folders that go also when their process was killed.

Helm's holds a token. A killed worker removes nothing, so each folder is held by a lock (`flock`, which the kernel
releases with the process), and whoever makes one first removes those that nobody holds any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_LOCK = ".held"
_YOUNG_S = 60.0  # between the making of a folder and its lock


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A folder of mode 0700 for as long as the context lasts. What it is for is in its name.

    :raises OSError: no folder can be made where temporary files go
    """
    prefix = f"nim-rollouts-{purpose}-"
    _remove_abandoned(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder


def _remove_abandoned(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Of another user, or just being removed by another process: theirs to remove.
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            if time.time() - folder.stat().st_mtime > _YOUNG_S and _is_abandoned(folder / _LOCK):
                shutil.rmtree(folder)


def _is_abandoned(lock: Path) -> bool:
    if not lock.exists():
        return True
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
