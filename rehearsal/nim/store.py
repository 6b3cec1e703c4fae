"""The model store on the cache volume: which files of a profile lie where, written by the puller, read by the server.

Layout below NIM_CACHE_PATH, as NGC's client keeps it: ``ngc/hub/models--<org>--<team>--<name>/`` with
``snapshots/<version>/<file>`` and ``refs/<profile id>``. A ref is written last and as a whole, so a download
that was killed half way is never taken for a cached profile.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rehearsal.nim.image import Profile

DEFAULT_CACHE = "/opt/nim/.cache"  # NIM documentation, "Configuration": default of NIM_CACHE_PATH
_FILE_BYTES = 4096  # a stand-in's file only has to exist and not be empty


def root() -> Path:
    return Path(os.environ.get("NIM_CACHE_PATH") or DEFAULT_CACHE)


def _locate(file: str) -> tuple[str, str]:
    """``org/team/name:version/path`` -> (repository, path below its folder in the hub)."""
    repository, _, rest = file.partition(":")
    return repository, f"snapshots/{rest}"


def _folder(store: Path, repository: str) -> Path:
    return store / "ngc" / "hub" / ("models--" + repository.replace("/", "--"))


def paths(store: Path, profile: Profile) -> list[Path]:
    """Every file of a profile, where it must lie."""
    result = []
    for file in profile.files:
        repository, below = _locate(file)
        result.append(_folder(store, repository) / below)
    return result


def _refs(store: Path, profile: Profile) -> list[Path]:
    return [_folder(store, r) / "refs" / profile.id for r in sorted({_locate(f)[0] for f in profile.files})]


def is_cached(store: Path, profile: Profile) -> bool:
    """True when the profile was downloaded to its end and no file has gone since."""
    refs = _refs(store, profile)
    return bool(refs) and all(p.is_file() for p in refs) and all(p.is_file() for p in paths(store, profile))


def cached(store: Path, profiles: Iterable[Profile]) -> list[Profile]:
    return [p for p in profiles if is_cached(store, p)]


def download(store: Path, profile: Profile, seconds: float, say: Callable[[str], None]) -> int:
    """Fetch a profile's files in about ``seconds``; returns how many were written. OSError: it cannot write.

    Files that lie there already are kept, as NGC's client does after an interrupted download.
    """
    missing = [(f, p) for f, p in zip(profile.files, paths(store, profile), strict=True) if not p.is_file()]
    for number, (file, path) in enumerate(missing, 1):
        time.sleep(seconds / len(missing))
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(path.name + ".incomplete")
        half.write_bytes((hashlib.sha256(file.encode()).hexdigest() * (_FILE_BYTES // 64)).encode())
        os.replace(half, path)
        say(f"Downloaded filename: {path.name} from ngc://{file} ({number}/{len(missing)})")
    for ref in _refs(store, profile):
        ref.parent.mkdir(parents=True, exist_ok=True)
        half = ref.with_name(ref.name + ".incomplete")
        half.write_text(json.dumps({"profile": profile.id, "tags": dict(profile.tags)}), encoding="utf-8")
        os.replace(half, ref)
    return len(missing)
