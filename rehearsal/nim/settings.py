"""How the stand-in behaves: from the pod's environment, else the rehearsal's timing.json, else defaults.

`timing.json` and the fault files lie in the folder that REHEARSAL_STATE names; without one there are none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rehearsal import faults

STATE_ENV = "REHEARSAL_STATE"


class SettingsError(ValueError):
    """A setting is no number or out of range."""


@dataclass(frozen=True)
class Settings:
    """Times in seconds, shares in percent."""

    start_s: float = 3.0
    download_s: float = 2.0
    ttft_s: float = 0.120
    itl_s: float = 0.010
    slots: int = 64
    error_percent: float = 0.0
    drop_percent: float = 0.0


# field -> (environment variable, factor to the field's unit, key in timing.json)
_SOURCES = {
    "start_s": ("NIM_STANDIN_START_S", 1.0, "nim_start"),
    "download_s": ("NIM_STANDIN_DOWNLOAD_S", 1.0, "nim_download"),
    "ttft_s": ("NIM_STANDIN_TTFT_MS", 0.001, "nim_ttft"),
    "itl_s": ("NIM_STANDIN_ITL_MS", 0.001, "nim_itl"),
    "slots": ("NIM_STANDIN_SLOTS", 1.0, "nim_slots"),
    "error_percent": ("NIM_STANDIN_ERROR_PERCENT", 1.0, "nim_error_percent"),
    "drop_percent": ("NIM_STANDIN_DROP_PERCENT", 1.0, "nim_drop_percent"),
}


def state_folder(environ: Mapping[str, str]) -> Path | None:
    name = environ.get(STATE_ENV)
    return Path(name) if name else None


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Raises SettingsError for a value that is no number or negative, a share above 100, fewer than one slot."""
    timing: Mapping[str, object] = {}
    folder = state_folder(environ)
    if folder is not None:
        try:
            timing = json.loads((folder / "timing.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise SettingsError(f"timing.json of the rehearsal is not JSON: {error}") from error
    values: dict[str, float] = {}
    for field, (variable, factor, key) in _SOURCES.items():
        raw, where, unit = environ.get(variable), variable, factor
        if raw is None and key in timing:
            raw, where, unit = str(timing[key]), f"timing.json {key}", 1.0
        if raw is None:
            continue
        try:
            number = float(raw) * unit
        except ValueError:
            raise SettingsError(f"{where}={raw!r} is no number") from None
        limit = 100.0 if field.endswith("percent") else float("inf")
        if not 0 <= number <= limit or (field == "slots" and number < 1):
            raise SettingsError(f"{where}={raw!r} is out of range")
        values[field] = number
    given = Settings(**{k: int(v) if k == "slots" else v for k, v in values.items()})  # type: ignore[arg-type]
    slow = Ordered(folder).get("slow-start")
    return replace(given, start_s=float(slow["start_s"])) if slow else given


class Shares:
    """Spreads a share evenly and without chance: of any 100 numbers in a row, exactly ``percent`` hit."""

    def __init__(self, percent: float) -> None:
        self.percent = percent
        self._number = 0

    def hit(self) -> bool:
        self._number += 1
        return int(self._number * self.percent / 100 + 1e-9) > int((self._number - 1) * self.percent / 100 + 1e-9)


class _State:
    """What `faults.get` needs of a rehearsal, without its state file (which a pod's user may not be able to read)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        return self._folder / name


class ErrorRule:
    """Which streaming requests fail: the share of the ordered fault `benchmark-errors`, else the set one.

    The fault's file is read at most once a second, so a load test does not pay for it.
    """

    def __init__(
        self, percent: float, folder: Path | None, clock: Callable[[], float] = time.monotonic, period_s: float = 1.0
    ) -> None:
        self._base = Shares(percent)
        self._fault: Shares | None = None
        self._state = _State(folder) if folder is not None else None
        self._clock, self._period_s, self._next = clock, period_s, float("-inf")

    def hit(self) -> bool:
        """Count one streaming request; True when it is to fail."""
        self._refresh()
        return (self._fault or self._base).hit()

    def _refresh(self) -> None:
        now = self._clock()
        if self._state is None or now < self._next:
            return
        self._next = now + self._period_s
        found = faults.get(self._state, "benchmark-errors")
        if found is None:
            self._fault = None
        elif self._fault is None or self._fault.percent != float(found["percent"]):
            self._fault = Shares(float(found["percent"]))


class Ordered:
    """The faults that meet a running server; each fault's file is read at most every `period_s` seconds."""

    def __init__(
        self, folder: Path | None, clock: Callable[[], float] = time.monotonic, period_s: float = 0.25
    ) -> None:
        self._state = _State(folder) if folder is not None else None
        self._clock, self._period_s = clock, period_s
        self._read: dict[str, tuple[float, dict[str, Any] | None]] = {}
        self._since: dict[str, float] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        """The settings of the fault when it is active."""
        if self._state is None:
            return None
        now = self._clock()
        read, found = self._read.get(name, (float("-inf"), None))
        if now - read >= self._period_s:
            found = faults.get(self._state, name)
            self._read[name] = (now, found)
            if found is None:
                self._since.pop(name, None)
            else:
                self._since.setdefault(name, now)
        return found

    def flapped(self) -> bool:
        """Whether `health-flaps` shows the server as not ready now: after each `up_s`, for `down_s` seconds."""
        found = self.get("health-flaps")
        if found is None:
            return False
        up, down = float(found["up_s"]), float(found["down_s"])
        return (self._clock() - self._since["health-flaps"]) % (up + down) >= up
