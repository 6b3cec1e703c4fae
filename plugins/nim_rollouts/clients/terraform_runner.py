"""Running terraform's commands: the right arguments, events to progress lines, failures to errors, the state lock.

A state lock that a dead terraform of this work folder left is released on the way; any other is waited for and then
reported. See `terraform_locks`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nim_rollouts.clients.terraform_events import Diagnostic, Progress, failure, lock_info
from nim_rollouts.clients.terraform_locks import LockInfo, owner_of
from nim_rollouts.clients.terraform_process import Ended, TerraformProcess
from nim_rollouts.clients.terraform_workdir import WorkDir, checksum, environment
from nim_rollouts.core.errors import TerraformUnavailable, ToolMissing

#: S3's lock file needs no experiment flag from this version on.
MINIMUM_VERSION = (1, 11)

#: From here on a shell's exit status means that a signal ended the command.
_BY_SIGNAL = 128

#: Commands whose output holds values of resources and outputs, sensitive ones among them.
_TELLS_VALUES = ("show", "output", "state")

#: Runs an apply, and notes which state it left, also when the worker that started it is gone by then. (The shell is not
#: to die of the SIGINT that terraform is stopped with.) Where terraform could not upload it, asking for it is vain too.
_APPLY_AND_NOTE = """trap : INT
"$@"
status=$?
[ -e errored.tfstate ] && exit $status
{
  printf '  "plan": "%s"\\n' "$PLAN"
  "$1" state pull 2>/dev/null | sed -n '/^  "serial"/p;/^  "lineage"/p'
} >"$LEFT.new" && mv -f "$LEFT.new" "$LEFT"
exit $status
"""

_Answer = TypeVar("_Answer")


class TerraformRunner:
    """Runs commands in the copy of a work folder. `say` takes one readable line at a time; `env` is asked for anew for
    each command: a role's credentials last an hour, and an adoption may wait half of it before an apply begins."""

    def __init__(
        self,
        files: WorkDir,
        env: Callable[[], Mapping[str, str]],
        *,
        say: Callable[[str], None],
        lock_timeout_s: int,
    ) -> None:
        self.copy = files.copy
        self._env, self._data = env, str(files.data)
        self.say = say
        self.lock_timeout_s = lock_timeout_s
        #: Whether the lock of a terraform of ours that died was released: until then nobody else wrote the state.
        self.released_own_lock = False
        #: Whether the last command with steps may have begun one of them.
        self._stepped = False
        #: user@host -> what is known of work of ours on another worker, for a message on a lock that it holds.
        self.holders: Callable[[], Mapping[str, str]] = dict
        self._left_file = files.path / "left"
        self._process = TerraformProcess(files.path)
        self._binary: str | None = None

    @property
    def owner(self) -> Mapping[str, Any]:
        """Whose work it is (run, task, try), for the record of what runs here."""
        return self._process.owner

    @owner.setter
    def owner(self, owner: Mapping[str, Any]) -> None:
        self._process.owner = dict(owner)

    def env(self) -> dict[str, str]:
        """terraform's environment, as it is now."""
        return {**environment(self._env()), "TF_DATA_DIR": self._data}

    def stop(self) -> None:
        """Ask a running command to end properly (one SIGINT), and begin no other. For an operator's on_kill; returns at
        once."""
        self._process.stop()

    def binary(self) -> str:
        """Path of terraform: the variable TERRAFORM, else PATH. Raises `ToolMissing` also for one that is too old."""
        if self._binary is None:
            env = self.env()
            named = env.get("TERRAFORM") or os.environ.get("TERRAFORM") or "terraform"
            found = shutil.which(named, path=env.get("PATH"))
            hint = "Install terraform 1.11 or newer on the worker, or name it in the variable TERRAFORM"
            if found is None:
                raise ToolMissing(f"terraform is not there: {named!r} is not an executable on PATH", hint=hint)
            version = _version(found, env)
            if version is None or version < MINIMUM_VERSION:
                shown = ".".join(map(str, version)) if version else "an unknown version"
                raise ToolMissing(f"{found} is {shown}; 1.11 or newer is needed", reason="tool-too-old", hint=hint)
            self._binary = found
        return self._binary

    def _events(
        self, name: str, argv: list[str], total: int = 0, good: tuple[int, ...] = (0,), *, lock: bool = True
    ) -> Progress:
        """Run a command that takes `-json`; raises what its diagnostics amount to.

        :param lock: hold the state's lock meanwhile, as whoever writes it must
        """
        self._stepped = False

        def attempt(lock_timeout_s: int) -> tuple[Ended, list[Diagnostic], Progress]:
            progress = Progress(total)
            locking = f"-lock-timeout={lock_timeout_s}s" if lock else "-lock=false"
            ended = self._run(name, [*argv[:1], "-json", locking, *argv[1:]], self._shown(progress))
            # It says so before it does; one that a signal has ended may have had no time to.
            self._stepped = progress.started or not 0 <= ended.status < _BY_SIGNAL
            return ended, progress.errors, progress

        if not lock:
            ended, errors, progress = attempt(0)
            if ended.status not in good:
                raise self._error(name, errors, ended)
            return progress
        return self._past_own_lock(name, attempt, good)

    def _text(self, name: str, argv: list[str]) -> str:
        """Run a command that answers with text; raises with what it wrote to stderr."""
        ended = self._run(name, argv)
        if ended.status != 0:
            raise self._error(name, [], ended)
        return ended.stdout

    def _past_own_lock(
        self, name: str, attempt: Callable[[int], tuple[Ended, list[Diagnostic], _Answer]], good: tuple[int, ...] = (0,)
    ) -> _Answer:
        """Run a command that needs the state lock. One that our own dead process left does not go away by waiting, so
        where there may be one the first attempt does not wait."""
        unlocked = False
        waits = [0, self.lock_timeout_s] if self._process.ended_badly() else [self.lock_timeout_s]
        while True:
            ended, errors, answer = attempt(waits.pop(0))
            lock = lock_info(errors)
            if ended.status in good:
                # It had the lock: whatever ours may have left is gone.
                self._process.forget_ended()
                return answer
            if lock is not None and not unlocked and self._unlock(lock):
                unlocked = True
                waits = waits or [self.lock_timeout_s]
            elif lock is None or not waits:
                raise self._error(name, errors, ended)

    def _run(self, name: str, argv: list[str], on_line: Callable[[str], None] = lambda _: None) -> Ended:
        command = [self.binary(), *argv]
        env = self.env()
        if argv[0] not in (*_TELLS_VALUES, "force-unlock"):
            command[2:2] = ["-input=false"]
        if argv[0] not in ("state", "force-unlock") and "-json" not in argv:
            command[2:2] = ["-no-color"]
        if argv[0] == "apply":
            command = ["/bin/sh", "-c", _APPLY_AND_NOTE, "sh", *command]
            env = env | {"LEFT": str(self._left_file), "PLAN": checksum(Path(argv[-1]))}
        private = argv[0] in _TELLS_VALUES
        return self._process.run(name, command, cwd=self.copy, env=env, on_line=on_line, private=private)

    def _shown(self, progress: Progress) -> Callable[[str], None]:
        def show(raw: str) -> None:
            line = progress.line(raw)
            if line:
                self.say(line)

        return show

    def _error(self, name: str, errors: list[Diagnostic], ended: Ended) -> Exception:
        if ended.interrupted:
            return TerraformUnavailable(
                f"terraform {name} was stopped; what it had done is in the state",
                reason="terraform-interrupted",
                hint="Run the plan task again: it shows what is left to do",
            )
        said = ended.stderr or ("" if ended.private else ended.stdout)
        if not errors and ended.status in (-9, 137):
            return TerraformUnavailable(
                f"terraform {name} was killed; what it was making may not be in the state",
                reason="terraform-killed",
                hint="The next try looks for it; was the worker out of memory?",
            )
        where = f"cd {self.copy} && TF_DATA_DIR={self._data} "
        return failure(name, errors, said, ended.status, time.time(), where=where, holders=self.holders())

    def _unlock(self, lock: LockInfo) -> bool:
        """Release the lock of our own terraform that died here; any other is not ours to touch."""
        owner = owner_of(lock, self._process.ended_badly())
        if owner is None:
            return False
        whose = ", ".join(f"{name} {value}" for name, value in owner.get("owner", {}).items())
        self.say(
            f"releasing the state lock of our own terraform that died ({lock.text()}{'; ' + whose if whose else ''})"
        )
        self._text("force-unlock", ["force-unlock", "-force", lock.id])
        self.released_own_lock = True
        return True


def _version(binary: str, env: Mapping[str, str]) -> tuple[int, ...] | None:

    try:
        with tempfile.TemporaryDirectory() as elsewhere:
            asked = subprocess.run(
                [binary, "version", "-json"], env=dict(env), cwd=elsewhere, capture_output=True, timeout=30, check=True
            )
        text = json.loads(asked.stdout)["terraform_version"]
        return tuple(int(part) for part in text.partition("-")[0].split("."))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None
