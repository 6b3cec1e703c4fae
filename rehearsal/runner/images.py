"""Which program stands for an image: the map in rehearsal/images.yaml, or in the file that REHEARSAL_IMAGES names."""

from __future__ import annotations

import fnmatch
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rehearsal.config import Rehearsal
from rehearsal.faults import split_image


class ImageMapError(ValueError):
    """The image map is malformed; the message names the file and the entry."""


@dataclass(frozen=True)
class Program:
    """What runs for an image. An empty `command` and no command in the pod means a pod without a process.

    :param files: path in the container -> file or folder of this machine
    :param files_from: ``module:function``: called with the image's reference, gives more files as path -> text
    :param listen: argument on which the program listens -> the address where the spec has none
    :param anonymous: the registry gives this image to everyone, so a missing pull secret is no error
    """

    pattern: str
    command: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    files_from: str = ""
    listen: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    ports: list[int] = field(default_factory=list)
    processes: bool = True
    anonymous: bool = False
    size: int = 0


NOBODY = Program("*", processes=False)
"""For an image that no entry fits."""
_KEYS = {
    "image", "command", "path", "env", "files", "files_from", "workdir", "ports", "anonymous", "size", "idle", "listen",
}  # fmt: skip
_ANYWHERE = re.compile(r"(|0\.0\.0\.0|127\.0\.0\.1|localhost|\[::1?\]):(\d+)")
_TELLING = ("command", "args", "startupProbe", "readinessProbe", "livenessProbe")


class ImageMap:
    """Looks an image up; the first pattern that matches wins."""

    def __init__(self, r: Rehearsal, file: Path | None = None):
        self.r = r
        self.file = file or Path(r.images or r.root / "rehearsal" / "images.yaml")
        data = yaml.safe_load(self.file.read_text())
        if not isinstance(data, list):
            raise ImageMapError(f"{self.file}: a list of entries with `image:` is wanted")
        for number, entry in enumerate(data, 1):
            if not isinstance(entry, dict) or "image" not in entry:
                raise ImageMapError(f"{self.file}: entry {number} has no `image:`")
            if unknown := set(entry) - _KEYS:
                raise ImageMapError(f"{self.file}: entry {number} ({entry['image']}) has unknown {sorted(unknown)}")
        self._entries: list[dict[str, Any]] = data

    def program(self, image: str) -> Program:
        repository, tag = split_image(image)
        for entry in self._entries:
            if fnmatch.fnmatchcase(repository, entry["image"]) or fnmatch.fnmatchcase(image, entry["image"]):
                return self._filled(entry, image, repository, tag)
        return NOBODY

    def lacks(self, program: Program, image: str, container: Mapping[str, Any]) -> str:
        """Why a container cannot be played: its spec says that something runs, and no entry says what. Else empty."""
        told = [name for name in _TELLING if container.get(name)]
        if program is not NOBODY or not told:
            return ""
        return (
            f'no entry of {self.file} fits the image "{image}", whose container has {", ".join(told)}: '
            "say there which program stands for it (command), or that none does (idle: true)"
        )

    def _filled(self, entry: dict[str, Any], image: str, repository: str, tag: str) -> Program:
        values = {
            "root": str(self.r.root), "state": str(self.r.state), "python": self.r.python,
            "aiperf_bin": str(self.r.aiperf.parent), "host_path": os.environ.get("PATH", os.defpath),
            "operator": self.r.operator, "operator_manifests": self.r.operator_manifests,
            "image": image, "repository": repository, "name": repository.partition("/")[2], "tag": tag,
        }  # fmt: skip

        def fill(text: Any) -> str:
            try:
                return str(text).format(**values)
            except (KeyError, IndexError, ValueError) as error:
                raise ImageMapError(f"{self.file}: {entry['image']}: bad placeholder in {text!r}: {error}") from error

        return Program(
            pattern=entry["image"],
            command=[fill(part) for part in entry.get("command", [])],
            path=[fill(part) for part in entry.get("path", [])],
            env={name: fill(value) for name, value in entry.get("env", {}).items()},
            files={target: path for target, source in entry.get("files", {}).items() if (path := fill(source))},
            files_from=entry.get("files_from", ""),
            workdir=fill(entry.get("workdir", "/")),
            listen=dict(entry.get("listen", {})),
            ports=list(entry.get("ports", [])),
            processes=not entry.get("idle", False),
            anonymous=bool(entry.get("anonymous", False)),
            size=int(entry.get("size", 0)),
        )


def image_texts(program: Program, image: str) -> dict[str, str]:
    """The text of every file that is made for the image, by its path in the container."""
    if not program.files_from:
        return {}
    module, _, function = program.files_from.partition(":")
    texts: dict[str, str] = getattr(importlib.import_module(module), function)(image)
    return texts


def listening(program: Program, argv: Sequence[str], address: str) -> list[str]:
    """The command line, with the pod's address where the program would listen on more than that: two pods of this
    machine want the same port. Only of the image's own program; another command is left as it is."""
    if not program.listen or list(argv[: len(program.command)]) != program.command:
        return list(argv)
    done, given, before = [], set(), ""
    for part in argv:
        name, equals, value = part.partition("=")
        # As Go reads flags: one dash or two, the value behind a `=` or in the next argument.
        flag = "--" + name.lstrip("-") if part.startswith("-") else ""
        if flag in program.listen:
            given.add(flag)
            part = f"{name}={_own(value, address)}" if equals else part
        elif before in program.listen:
            part = _own(part, address)
        before = flag if not equals else ""
        done.append(part)
    lacking = {flag: value for flag, value in program.listen.items() if value and flag not in given}
    return done + [f"{flag}={_own(value, address)}" for flag, value in lacking.items()]


def _own(value: str, address: str) -> str:
    match = _ANYWHERE.fullmatch(value)
    return f"{address}:{match[2]}" if match else value
