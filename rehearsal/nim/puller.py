"""The tools that the operator's pods run in a NIM image: list the profiles, download one into the cache.

``python -m rehearsal.nim.puller {download-to-cache,list-model-profiles,create-model-store} ...``; `bin/` makes
them commands. Exit codes: 0 done, 1 refused or failed (the last line says why), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rehearsal.nim import image, logs, settings, store

KEYS = ("NGC_API_KEY", "NGC_CLI_API_KEY")


class PullError(RuntimeError):
    """The tool cannot do what it was asked for."""


def require_key() -> None:
    """NGC serves nobody without a key. Only its presence is looked at, and it is never printed."""
    if not any(os.environ.get(name, "").strip() for name in KEYS):
        raise PullError(f"Authentication Error: NGC needs an API key and none was found in {' or '.join(KEYS)}")


def choose(profiles: Sequence[image.Profile], wanted: Sequence[str], everything: bool) -> list[image.Profile]:
    """The profiles that were asked for, in that order. Raises PullError naming those that the image lacks."""
    if everything:
        return list(profiles)
    by_id = {p.id: p for p in profiles}
    unknown = [w for w in wanted if w not in by_id]
    if unknown:
        raise PullError(f"profile not found in the model manifest: {', '.join(unknown)}")
    return [by_id[w] for w in dict.fromkeys(wanted)]


def download_to_cache(arguments: argparse.Namespace, log: logging.Logger) -> None:
    require_key()
    own = image.own()
    available = image.own_profiles(own)
    wanted = list(arguments.profiles or [])
    if not wanted and not arguments.all:
        wanted = [p.id for p in available[:1]]  # the real tool takes the profile that suits the GPU: here the first
    chosen = choose(available, wanted, arguments.all)
    folder = store.root()
    folder.mkdir(parents=True, exist_ok=True)
    seconds = settings.load().download_s / max(1, len(chosen))
    for profile in chosen:
        log.info("Downloading profile %s (%s) of %s", profile.id, profile.description, own.model)
        if store.is_cached(folder, profile):
            log.info("Profile %s is already in %s", profile.id, folder)
            continue
        count = store.download(folder, profile, seconds, log.info)
        log.info("Profile %s complete: %d files in %s", profile.id, count, folder)
    log.info("Download to cache finished: %d profile(s)", len(chosen))


def list_model_profiles(arguments: argparse.Namespace, log: logging.Logger) -> None:
    """Which of them could run here depends on GPUs, which a stand-in does not have: all are listed as cacheable."""
    print("MODEL PROFILES\n- Compatible with system and runnable: <None>\n- Not checked, no GPU is visible:")
    for profile in image.own_profiles(image.own()):
        print(f"  - {profile.id} ({profile.description})")


def create_model_store(arguments: argparse.Namespace, log: logging.Logger) -> None:
    own = image.own()
    (profile,) = choose(image.own_profiles(own), [arguments.profile], False)
    folder = store.root()
    if not store.is_cached(folder, profile):
        require_key()
        log.info("Profile %s is not cached: downloading it", profile.id)
        store.download(folder, profile, settings.load().download_s, log.info)
    target: Path = arguments.model_store
    target.mkdir(parents=True, exist_ok=True)
    for path in store.paths(folder, profile):
        # Everything below snapshots/<version>/, so that trtllm_engine/ and the like keep their place.
        parts = path.parts[path.parts.index("snapshots") + 2 :]
        copy = target.joinpath(*parts)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    log.info("Model store of profile %s created in %s", profile.id, target)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="puller")
    tools = result.add_subparsers(dest="tool", required=True)
    pull = tools.add_parser("download-to-cache", help="download profiles into NIM_CACHE_PATH")
    which = pull.add_mutually_exclusive_group()
    which.add_argument("--profiles", "-p", nargs="+", metavar="ID")
    which.add_argument("--all", action="store_true")
    pull.set_defaults(run=download_to_cache)
    tools.add_parser("list-model-profiles").set_defaults(run=list_model_profiles)
    make = tools.add_parser("create-model-store", help="lay one profile out as a plain folder")
    make.add_argument("--profile", "-p", required=True, metavar="ID")
    make.add_argument("--model-store", "-m", required=True, type=Path, metavar="FOLDER")
    make.set_defaults(run=create_model_store)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    log = logs.setup("puller")
    try:
        arguments.run(arguments, log)
    except (PullError, image.ImageError, settings.SettingsError) as error:
        log.error("%s: %s", arguments.tool, error)
        return 1
    except OSError as error:
        log.error("%s: the model store cannot be used: %s", arguments.tool, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
