"""Looks for a secret in every place where it must not be, in every form in which it could be there."""

from __future__ import annotations

import base64
import gzip
import io
import threading
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_SAMPLE_S = 0.1


def forms(secret: str) -> list[bytes]:
    """The secret as it is, in hex, URL-quoted, and inside any base64 text.

    Base64 of a longer text holds the secret at one of three alignments; the characters at both ends depend on the
    neighbours, so only the middle is looked for.
    """
    plain = secret.encode()
    found = {plain, plain.hex().encode(), urllib.parse.quote(secret, safe="").encode()}
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + plain)
        middle = encoded[4 if shift else 0 :].rstrip(b"=")[:-2]
        found |= {middle, middle.replace(b"+", b"-").replace(b"/", b"_")}
    return sorted(found)


class CommandLines(threading.Thread):
    """Reads the command line of every process, ten times a second, and keeps each one that it has not seen: a secret
    may become known only after the processes that were near it have ended."""

    def __init__(self, wanted: list[bytes]):
        super().__init__(daemon=True)
        self.wanted = wanted
        self.programs: set[str] = set()
        self.samples = 0
        self._seen: set[bytes] = set()
        self._end = threading.Event()

    @property
    def found(self) -> set[bytes]:
        """The command lines that held one of the secrets."""
        lines = tuple(self._seen)
        return {line.replace(b"\0", b" ")[:300] for line in lines if any(form in line for form in self.wanted)}

    def run(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            self.samples += 1
            for line in _command_lines():
                self.programs.add(line.split(b"\0", 1)[0].rsplit(b"/", 1)[-1].decode(errors="replace"))
                self._seen.add(line)

    def stop(self) -> None:
        self._end.set()
        self.join(5)


def _command_lines() -> Iterator[bytes]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield (folder / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue


def in_bytes(content: bytes, wanted: Iterable[bytes]) -> bool:
    """Whether any form occurs in the content, also inside what is zipped or compressed in it."""
    wanted = list(wanted)
    return any(any(form in layer for form in wanted) for layer in _layers(content))


def _layers(content: bytes, depth: int = 0) -> Iterator[bytes]:
    yield content
    if depth > 2:
        return
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from _layers(archive.read(name), depth + 1)
    elif content.startswith(b"\x1f\x8b"):
        yield from _layers(gzip.decompress(content), depth + 1)
    elif content[:1] == b"\x78":
        try:
            yield from _layers(zlib.decompress(content), depth + 1)
        except zlib.error:
            return


def in_files(folder: Path, wanted: list[bytes], *, skip: Iterable[str] = ()) -> list[str]:
    """Files below a folder that hold the secret, as paths relative to it."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.relative_to(folder).parts[0] in set(skip):
            continue
        # Terraform's provider plugins are hundreds of megabytes of somebody else's program.
        if "providers" in path.parts and ".terraform" in str(path):
            continue
        if in_bytes(path.read_bytes(), wanted):
            found.append(str(path.relative_to(folder)))
    return sorted(found)
