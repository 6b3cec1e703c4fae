"""Which program stands for an image: the map in rehearsal/images.yaml, or in the file that REHEARSAL_IMAGES names."""

from __future__ import annotations

import fnmatch
import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rehearsal.config import Rehearsal
from rehearsal.faults import split_image

IMAGES_ENV = "REHEARSAL_IMAGES"


class ImageMapError(ValueError):
    """The image map is malformed; the message names the file and the entry."""


@dataclass(frozen=True)
class Program:
    """What runs for an image. An empty `command` and no command in the pod means a pod without a process."""

    pattern: str
    command: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    files_from: str = ""
    """``module:function``: called with the image's reference, gives more files as path -> text."""
    workdir: str = "/"
    ports: list[int] = field(default_factory=list)
    processes: bool = True
    anonymous: bool = False
    """The registry gives this image to everyone, so a missing pull secret is no error."""
    size: int = 0


PAUSE = Program("*", processes=False)
_KEYS = {"image", "command", "path", "env", "files", "files_from", "workdir", "ports", "anonymous", "size"}


class ImageMap:
    """Looks an image up; the first pattern that matches wins."""

    def __init__(self, r: Rehearsal, file: Path | None = None):
        self.r = r
        self.file = file or Path(os.environ.get(IMAGES_ENV) or r.root / "rehearsal" / "images.yaml")
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
        return PAUSE

    def _filled(self, entry: dict[str, Any], image: str, repository: str, tag: str) -> Program:
        values = {
            "root": str(self.r.root), "state": str(self.r.state), "python": self.r.python,
            "aiperf_bin": str(self.r.aiperf.parent), "host_path": os.environ.get("PATH", os.defpath),
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
            files={target: fill(source) for target, source in entry.get("files", {}).items()},
            files_from=entry.get("files_from", ""),
            workdir=fill(entry.get("workdir", "/")),
            ports=list(entry.get("ports", [])),
            anonymous=bool(entry.get("anonymous", False)),
            size=int(entry.get("size", 0)),
        )


def image_files(program: Program, image: str) -> dict[str, str]:
    """The text of every file that the image has and the host has not, by its path in the container."""
    texts = {target: Path(source).read_text() for target, source in program.files.items()}
    if program.files_from:
        module, _, function = program.files_from.partition(":")
        texts |= getattr(importlib.import_module(module), function)(image)
    return texts
