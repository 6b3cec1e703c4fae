"""A terraform that a dead worker left at work: it may finish, and whoever waits for it is told how far it is.

What it says goes into a file, which outlives its worker as it does. An EKS cluster takes 10 to 25 minutes, and a task
that waits for one in silence looks as if it hung.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nim_rollouts.clients.terraform_events import Progress
from nim_rollouts.clients.terraform_orphans import end, plugins_alone

#: Between two looks at who holds the guard: each goes through all processes. Plugins that are alone at two of them are
#: not about to end: those that notice the death of their terraform do so within moments.
_PROCESSES_S = 5.0
_TELL_S = 60.0


class Earlier:
    """The wait for one of them.

    :param record: what is written down of its command
    :param logs: folder with what it has said so far
    :param guard: the file that it holds locked
    """

    def __init__(self, record: Mapping[str, Any], logs: Path, guard: Path, say: Callable[[str], None]) -> None:
        self.name = f"{record.get('name') or 'command'}"
        self._output, self._guard, self._say = logs / f"{self.name}.out", guard, say
        self._progress, self._read = Progress(), 0
        self._last = ""
        self._alone = False
        self._next_look, self._next_word = 0.0, time.monotonic() + _TELL_S
        say(f"waiting for an earlier terraform {self.name} here (pid {record.get('pid')}), which outlived its worker")

    def look(self) -> None:
        """To be called again and again: ends plugins that are left of it, and says how far it is."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _PROCESSES_S
            self._end_plugins()
        if now >= self._next_word:
            self._next_word = now + _TELL_S
            self._say(f"the earlier terraform {self.name} is still at work: {self.last_words()}")

    def last_words(self) -> str:
        """The last that it has said of what it does."""
        try:
            with self._output.open("rb") as output:
                output.seek(self._read)
                whole, _, _ = output.read().rpartition(b"\n")
        except FileNotFoundError:
            whole = b""
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            self._last = self._progress.line(line.decode(errors="replace")) or self._last
        return self._last or "it says nothing"

    def _end_plugins(self) -> None:
        plugins = plugins_alone(self._guard)
        if plugins and self._alone:
            pids = ", ".join(str(one.pid) for one in plugins)
            self._say(f"ending the plugins of an earlier terraform that was killed (pid {pids})")
            end(plugins)
        self._alone = bool(plugins)
