"""The start of a NIM, phase by phase as its log shows it, in a fraction of the time.

The reference deployment took 81 s from start to ready with a cached engine: workspace 0.126 s, engine ready after
16 s, API up after 80 s. Here the same phases take the same shares of the set start-up time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rehearsal.nim import store
from rehearsal.nim.image import Image, Profile
from rehearsal.nim.puller import KEYS
from rehearsal.nim.settings import Settings

ENGINE_SHARE, API_SHARE = 16 / 81, 80 / 81


class CannotStart(RuntimeError):
    """The server ends with exit code 1; the message is its last log line."""


def select(profiles: Sequence[Profile], folder: Path, wanted: str | None) -> tuple[Profile, bool]:
    """(the profile to run, whether it is cached). Raises CannotStart when the wanted one is not in the manifest.

    Without a wish a cached one is taken; of several, TensorRT-LLM's before others', then in the manifest's order.
    """
    if wanted:
        for profile in profiles:
            if wanted in (profile.id, profile.description):
                return profile, store.is_cached(folder, profile)
        raise CannotStart(f"profile {wanted!r} of NIM_MODEL_PROFILE is not in the model manifest")
    found = store.cached(folder, profiles)
    found.sort(key=lambda p: not p.tags.get("llm_engine", "").startswith("tensorrt"))
    if found:
        return found[0], True
    if not profiles:
        raise CannotStart("the model manifest lists no profile")
    return profiles[0], False


async def run(
    image: Image,
    profiles: Sequence[Profile],
    settings: Settings,
    log: logging.Logger,
    environ: Mapping[str, str] = os.environ,
) -> Profile:
    """Go through the phases; returns the profile that is served. Raises CannotStart."""
    loop = asyncio.get_running_loop()
    began, total = loop.time(), settings.start_s

    async def at(share: float) -> None:
        await asyncio.sleep(max(0.0, began + share * total - loop.time()))

    folder = store.root()
    log.info("NVIDIA Inference Microservice LLM NIM, model %s, release %s", image.model, image.tag or "latest")
    log.info("Scanning manifest of %d profile(s); model store is %s", len(profiles), folder)
    profile, hit = select(profiles, folder, environ.get("NIM_MODEL_PROFILE"))
    tags = ", ".join(f"{k}={v}" for k, v in sorted(profile.tags.items()))
    if hit:
        log.info("Matched profile_id in manifest: %s (%s): %s", profile.id, profile.description, tags)
    else:
        log.warning("Cache miss: profile %s (%s) is not in %s", profile.id, profile.description, folder)
        began += await _fetch(profile, folder, settings, log, environ)
    await at(0.02)
    log.info("Preparing model workspace. This step might download additional files to run the model.")
    await at(0.05)
    log.info("Model workspace is now ready. It took %.3f seconds", loop.time() - began)
    log.info(
        "Initializing an LLM engine: %s, tensor_parallel_size=%s", profile.description, profile.tags.get("tp", "1")
    )
    await at(ENGINE_SHARE)
    log.info("Engine ready after %.3f seconds; warming up", loop.time() - began)
    await at(API_SHARE)
    log.info("Application startup complete: API up after %.3f seconds", loop.time() - began)
    await at(1.0)
    return profile


async def _fetch(
    profile: Profile, folder: Path, settings: Settings, log: logging.Logger, environ: Mapping[str, str]
) -> float:
    """Download a missing profile, as a NIM does when it has a key. Returns the seconds that it took."""
    if not any(environ.get(name, "").strip() for name in KEYS):
        raise CannotStart(
            f"the model store {folder} holds no profile of this image, "
            f"and there is no NGC key ({' or '.join(KEYS)}) to download one"
        )
    loop = asyncio.get_running_loop()
    before = loop.time()
    try:
        count = await asyncio.to_thread(store.download, folder, profile, settings.download_s, log.info)
    except OSError as error:
        raise CannotStart(f"the model store {folder} cannot be written: {error}") from error
    log.info("Downloaded %d file(s) of profile %s", count, profile.id)
    return loop.time() - before
