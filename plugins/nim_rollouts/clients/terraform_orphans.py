"""Provider plugins that outlived their terraform. One that was killed with SIGKILL cannot end them; a plugin that was
waiting for AWS then stays for ever, does nothing any more, and holds what it has inherited: our guard."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

#: terraform tells its plugins by it that they are plugins (HashiCorp's go-plugin).
_COOKIE = "TF_PLUGIN_MAGIC_COOKIE"


def plugins_alone(guard: Path) -> list[psutil.Process]:
    """Who holds `guard` open, if those are plugins and nothing else: no terraform is at work with them any more.

    Empty also where a holder cannot be looked into: then it is not known to be a plugin.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or not any(file.path == str(guard) for file in process.open_files()):
                continue
        except psutil.Error:
            # Another user's, or gone meanwhile. Ours are of our own user.
            continue
        try:
            if _COOKIE not in process.environ():
                return []
        except psutil.Error:
            return []
        found.append(process)
    return found


def end(plugins: list[psutil.Process]) -> None:
    """Kill them, and wait until they have gone. Nobody listens to them: there is nothing that they could finish."""
    import psutil

    for plugin in plugins:
        with suppress(psutil.NoSuchProcess):
            plugin.kill()
    psutil.wait_procs(plugins, timeout=10)
