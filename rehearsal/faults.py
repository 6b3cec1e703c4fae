"""Faults that a user orders at the stand-ins: what exists, what is active, and its settings.

An active fault is one JSON file, ``<state>/faults/<name>.json``, replaced atomically. A file was chosen over a
service so that every stand-in (the operator, the runner, a NIM server inside a pod) reads it without an
RPC, and so that a fault outlives a restart of any part. Only stand-ins read faults; the product never does.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class State(Protocol):
    """The part of ``rehearsal.config.Rehearsal`` that faults need."""

    def path(self, name: str) -> Path: ...


class FaultError(ValueError):
    """An order that cannot be taken: the message says what is wrong and lists what exists."""


@dataclass(frozen=True)
class Setting:
    """One declared setting of a fault. ``default=None`` together with ``required`` means it must be given."""

    type: type[int] | type[float] | type[str] | type[bool]
    help: str
    default: int | float | str | bool | None = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[int | float | str, ...] = ()

    def read(self, fault: str, name: str, value: object) -> int | float | str | bool:
        """Return ``value`` in the declared type; strings (from a command line) are converted. Raises FaultError."""
        result = _convert(self.type, value)
        if result is None:
            raise FaultError(f"fault {fault!r}: {name}={value!r} is not {_TYPE_WORDS[self.type]}")
        if self.choices and result not in self.choices:
            allowed = ", ".join(str(c) for c in self.choices)
            raise FaultError(f"fault {fault!r}: {name}={value!r} is not one of {allowed}")
        if isinstance(result, int | float) and not isinstance(result, bool):
            if self.minimum is not None and result < self.minimum:
                raise FaultError(f"fault {fault!r}: {name}={value!r} is below {self.minimum:g}")
            if self.maximum is not None and result > self.maximum:
                raise FaultError(f"fault {fault!r}: {name}={value!r} is above {self.maximum:g}")
        if result == "":
            raise FaultError(f"fault {fault!r}: {name} must not be empty")
        return result


@dataclass(frozen=True)
class Fault:
    """A fault that can be ordered: which stand-in acts on it, and what can be set."""

    help: str
    acts_in: str
    settings: Mapping[str, Setting] = field(default_factory=dict)


_TYPE_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}

CATALOGUE: Mapping[str, Fault] = {
    "cache-job-fails": Fault(
        "the first pods of every model download Job exit with status 1",
        acts_in="runner",
        settings={"pods": Setting(int, "how many pods of one Job fail before one may succeed", default=1, minimum=1)},
    ),
    "crash-loop": Fault(
        "containers of NIM server pods are killed some time after each start",
        acts_in="runner",
        settings={
            "after_s": Setting(float, "seconds from the container's start to its end", default=5.0, minimum=0),
            "exit_code": Setting(int, "exit code that the container reports", default=137, minimum=1, maximum=255),
            "reason": Setting(str, "reason in the container's terminated state", default="OOMKilled"),
        },
    ),
    "no-profile": Fault(
        "NIM images offer profiles for another GPU alone",
        acts_in="runner",
        settings={"gpu": Setting(str, "product name of that GPU", default="GB300")},
    ),
    "pull-refused": Fault(
        "nodes cannot pull NIM images, although the registry lets the one ask that started the rollout",
        acts_in="runner",
        settings={
            "pods": Setting(str, "whose", default="any", choices=("any", "cache", "service")),
            "status": Setting(int, "HTTP status of the refusal", default=401, choices=(401, 402, 403, 404, 429, 500)),
        },
    ),
    "no-capacity": Fault(
        "the cloud has no instances of some types: nodes do not start",
        acts_in="karpenter",
        settings={"instance_type": Setting(str, "pattern with * and ?", default="[gp]*")},
    ),
    "claim-unbound": Fault(
        "volume claims are not bound: the storage driver is refused",
        acts_in="storage",
        settings={
            "code": Setting(
                str,
                "AWS error code",
                default="AccessDeniedException",
                choices=("AccessDeniedException", "AccessPointLimitExceeded", "FileSystemNotFound"),
            ),
        },
    ),
    "volume-not-writable": Fault(
        "volumes are made in folders that nobody may write into",
        acts_in="storage",
        settings={"mode": Setting(str, "the folder's permissions", default="555", choices=("555", "500"))},
    ),
    "few-vcpus": Fault(
        "the account's quota of EC2 vCPUs is another",
        acts_in="AWS",
        settings={
            "code": Setting(str, "of the quota", default="L-DB2E81BA"),
            "value": Setting(float, "vCPUs", default=0.0, minimum=0),
        },
    ),
    "slow-start": Fault(
        "NIM servers take long to start",
        acts_in="NIM server",
        settings={"start_s": Setting(float, "seconds from start to ready", default=60.0, minimum=0)},
    ),
    "health-flaps": Fault(
        "/v1/health/ready of NIM servers answers 503 now and then",
        acts_in="NIM server",
        settings={
            "up_s": Setting(float, "seconds of 200", default=4.0, minimum=0),
            "down_s": Setting(float, "seconds of 503 after them", default=2.0, minimum=0.1),
        },
    ),
    "models-endpoint": Fault(
        "/v1/models of NIM servers answers an error while their health is fine",
        acts_in="NIM server",
        settings={"status": Setting(int, "HTTP status", default=500, choices=(404, 500, 503))},
    ),
    "operator-away": Fault("the NIM operator's process is killed and cannot start", acts_in="runner"),
    "watch-cut": Fault(
        "every connection of Airflow's to the API server is reset, again and again",
        acts_in="gateway",
        settings={"every_s": Setting(float, "seconds from cut to cut", default=5.0, minimum=0.5)},
    ),
    "error-storm": Fault(
        "the API server answers Airflow with an error",
        acts_in="gateway",
        settings={
            "status": Setting(int, "HTTP status", default=429, choices=(429, 500, 503)),
            "percent": Setting(float, "share of connections that get it in %", default=100.0, minimum=0, maximum=100),
            "retry_after_s": Setting(int, "Retry-After of 429 and 503 in seconds", default=1, minimum=0),
        },
    ),
    "benchmark-errors": Fault(
        "a share of the inference requests of a load test is answered 500",
        acts_in="NIM server",
        settings={"percent": Setting(float, "share of failing requests in %", default=30.0, minimum=0, maximum=100)},
    ),
    "registry": Fault(
        "the image registry refuses an image",
        acts_in="NGC, runner",
        settings={
            "image": Setting(str, "repository, with or without registry host and :tag", required=True),
            "status": Setting(int, "HTTP status of the refusal", default=404, choices=(401, 404, 402, 403, 429)),
            "retry_after_s": Setting(int, "Retry-After of a 429 in seconds; 0: none", default=5, minimum=0),
        },
    ),
}


def _convert(kind: type, value: object) -> int | float | str | bool | None:
    """Read a value in one of the four declared types; None when it cannot be read so."""
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        return value if isinstance(value, bool) else words.get(str(value).lower())
    if kind is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if kind is int and isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        number = kind(value)
    except ValueError:
        return None
    return number if number == number and number not in (float("inf"), float("-inf")) else None


def _declared(name: str) -> Fault:
    try:
        return CATALOGUE[name]
    except KeyError:
        raise FaultError(f"no fault {name!r}; there are: {', '.join(sorted(CATALOGUE))}") from None


def _complete(name: str, given: Mapping[str, object]) -> dict[str, Any]:
    """All settings of a fault, checked, with defaults where none was given. Raises FaultError."""
    fault = _declared(name)
    unknown = sorted(set(given) - set(fault.settings))
    if unknown:
        there = ", ".join(sorted(fault.settings)) or "none"
        raise FaultError(f"fault {name!r} has no setting {', '.join(map(repr, unknown))}; its settings: {there}")
    result: dict[str, Any] = {}
    for key, setting in fault.settings.items():
        if key in given:
            result[key] = setting.read(name, key, given[key])
        elif setting.required:
            raise FaultError(f"fault {name!r} needs {key}=... ({setting.help})")
        else:
            result[key] = setting.default
    return result


def order(r: State, name: str, **settings: object) -> dict[str, Any]:
    """Activate a fault (or replace its settings) and return its complete settings.

    Raises FaultError for a fault or setting that is not in the catalogue, or a value of the wrong type or range.
    """
    complete = _complete(name, settings)
    folder = r.path("faults")
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(complete, stream, indent=1)
        # Pods of another (mapped) user read it too; mkstemp would leave it to its owner alone.
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / f"{name}.json")
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return complete


def clear(r: State, name: str | None = None) -> list[str]:
    """End one fault, or all of them (None). Returns the names of those that were active. Raises FaultError."""
    if name is not None:
        _declared(name)
    ended = []
    for each in [name] if name is not None else sorted(CATALOGUE):
        try:
            (r.path("faults") / f"{each}.json").unlink()
        except FileNotFoundError:
            continue
        ended.append(each)
    return ended


def get(r: State, name: str) -> dict[str, Any] | None:
    """The settings of a fault when it is active, else None. Cheap: at most one small file is read.

    Raises FaultError when the name is not in the catalogue (a misspelt fault must not look inactive) or when
    its file was written by hand and is wrong.
    """
    _declared(name)
    try:
        text = (r.path("faults") / f"{name}.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        given = json.loads(text)
    except ValueError as error:
        raise FaultError(f"the file of fault {name!r} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise FaultError(f"the file of fault {name!r} is not a JSON object")
    return _complete(name, given)


def active(r: State) -> dict[str, dict[str, Any]]:
    """All active faults with their settings, by name."""
    found = {name: get(r, name) for name in sorted(CATALOGUE)}
    return {name: settings for name, settings in found.items() if settings is not None}


def refused_image(r: State, image: str) -> int | None:
    """HTTP status with which the registry refuses ``image`` now, or None. Used by all who play the registry.

    A fault's image matches with or without registry host; without a tag it matches every tag of that repository.
    """
    fault = get(r, "registry")
    if fault is None:
        return None
    wanted_repo, wanted_tag = split_image(fault["image"])
    repo, tag = split_image(image)
    same = repo == wanted_repo or repo.partition("/")[2] == wanted_repo or wanted_repo.partition("/")[2] == repo
    return int(fault["status"]) if same and wanted_tag in ("", tag) else None


def split_image(image: str) -> tuple[str, str]:
    """``host/repo:tag`` (or ``@digest``) -> (``host/repo``, ``tag``); the tag is empty when there is none."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return head + slash + last, tag


def describe() -> str:
    """The catalogue as text for a command line."""
    lines = []
    for name, fault in sorted(CATALOGUE.items()):
        lines.append(f"{name}: {fault.help} [{fault.acts_in}]")
        for key, setting in fault.settings.items():
            default = "required" if setting.required else f"default {setting.default}"
            lines.append(f"    {key}=  {setting.help} ({_TYPE_WORDS[setting.type]}, {default})")
    return "\n".join(lines)
