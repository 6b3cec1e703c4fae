"""What lies in a NIM image: its model, its profiles, its files.

A stand-in has no image, so everything that a real one carries comes from data: `models.yaml` says what a
repository serves, `manifests/` holds the profiles. The runner puts `root_files(image)` where the image would
have them; inside the pod the tools read them from there, and fall back to the data when nobody put them there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
MANIFEST_PATH = "/opt/nim/etc/default/model_manifest.yaml"  # NIM documentation, "Model Profiles", since NIM 1.2
NIM_PREFIX = "nvcr.io/nim/"
IMAGE_ENV = "REHEARSAL_IMAGE"


class ImageError(ValueError):
    """No such image, profile or manifest; the message says which."""


@dataclass(frozen=True)
class Profile:
    """One entry of a manifest: a runtime with its tags, and the files that it needs from NGC."""

    id: str
    tags: Mapping[str, str]
    files: tuple[str, ...]

    @property
    def description(self) -> str:
        """The human-readable name in NIM's style, e.g. ``tensorrt_llm-A10G-fp16-tp2-throughput``."""
        t = self.tags
        parts = [t.get("llm_engine") or t.get("backend"), t.get("gpu"), t.get("precision")]
        parts.append(f"tp{t['tp']}" if "tp" in t else None)
        parts.append(t.get("profile"))
        parts.append("lora" if t.get("feat_lora") == "true" else None)
        return "-".join(p for p in parts if p)


@dataclass(frozen=True)
class Image:
    """A NIM image as the stand-in knows it."""

    repository: str
    tag: str
    model: str
    max_model_len: int
    manifest: str

    @property
    def reference(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else self.repository


def split(reference: str) -> tuple[str, str]:
    """``host/repo:tag@digest`` -> (repository, tag)."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return head + slash + last, tag


@cache
def _models() -> dict[str, Any]:
    return dict(yaml.safe_load((HERE / "models.yaml").read_text(encoding="utf-8")))


def describe(reference: str) -> Image:
    """What ``repository:tag`` is. Raises ImageError for an image that is no NIM."""
    repository, tag = split(reference)
    data = _models()
    entry = data["repositories"].get(repository)
    if entry is None:
        if not repository.startswith(NIM_PREFIX):
            raise ImageError(f"{reference!r} is no NIM image: {NIM_PREFIX}<org>/<name>:<tag> expected")
        entry = {"model": repository.removeprefix(NIM_PREFIX)}
    merged = {**data["default"], **entry}
    manifest = merged.get("releases", {}).get(tag, merged["manifest"])
    return Image(repository, tag, merged["model"], int(merged["max_model_len"]), manifest)


def manifest_text(image: Image) -> str:
    """The manifest file of an image, with model, release and image reference filled in."""
    text = (HERE / "manifests" / image.manifest).read_text(encoding="utf-8")
    release = image.tag or "latest"
    text = text.replace("<model>", image.model)
    text = re.sub(r"(?m)^(\s+release:).*$", lambda m: f"{m.group(1)} '{release}'", text)
    text = re.sub(r"(?m)^(\s+container_url:).*$", lambda m: f"{m.group(1)} {image.reference}", text)
    if "<id>" in text:
        for profile in yaml.safe_load(text)["profiles"]:
            seed = json.dumps([image.model, release, profile["tags"]], sort_keys=True)
            text = text.replace("<id>", hashlib.sha256(seed.encode()).hexdigest(), 1)
    return text


def for_gpu(text: str, gpu: str) -> str:
    """The manifest of an image that was built for another GPU alone: profiles that name none are left out."""
    data = yaml.safe_load(text)
    of_list = "schema_version" in data
    entries = data["profiles"] if of_list else data.values()
    kept = [entry for entry in entries if entry["tags"].get("gpu")]
    for entry in kept:
        entry["tags"] |= {"gpu": gpu, "gpu_device": gpu.lower()}
    data = {**data, "profiles": kept} if of_list else {k: v for k, v in data.items() if v in kept}
    return yaml.safe_dump(data, sort_keys=False)


def root_files(reference: str) -> dict[str, str]:
    """The files that a pod of this image must see: absolute path -> text. Raises ImageError."""
    return {MANIFEST_PATH: manifest_text(describe(reference))}


def parse_manifest(text: str) -> list[Profile]:
    """The profiles of a manifest of schema 1 (id -> entry) or 2 (`schema_version` with a list). Raises ImageError."""
    data = yaml.safe_load(text)
    if not isinstance(data, dict) or not data:
        raise ImageError("the model manifest is empty or not a mapping")
    profiles = []
    if "schema_version" in data:
        for entry in data.get("profiles") or []:
            files = [f["uri"].partition("://")[2] for f in entry.get("workspace", {}).get("files", {}).values()]
            profiles.append(Profile(entry["id"], _texts(entry["tags"]), tuple(files)))
        return profiles
    for key, entry in data.items():
        files = []
        for part in (entry.get("workspace") or {}).get("components") or []:
            repo = part["src"]["repo_id"].partition("://")[2]
            files += [f"{repo}/{part['dst']}/{name}".replace("//", "/") for name in part["src"]["files"]]
        profiles.append(Profile(key, _texts(entry["tags"]), tuple(files)))
    return profiles


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in tags.items()}


def own() -> Image:
    """The image this process runs in: named by the runner in the environment. Raises ImageError."""
    reference = os.environ.get(IMAGE_ENV)
    if not reference:
        raise ImageError(f"{IMAGE_ENV} is not set: the image is not known")
    return describe(reference)


def own_profiles(image: Image) -> list[Profile]:
    """The profiles of the manifest that lies in this pod, or of the image's data when none lies there."""
    path = Path(MANIFEST_PATH)
    return parse_manifest(path.read_text(encoding="utf-8") if path.is_file() else manifest_text(image))


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m rehearsal.nim.image REFERENCE FOLDER``: write the image's files below a folder."""
    parser = argparse.ArgumentParser(prog="python -m rehearsal.nim.image", description="write a NIM image's files")
    parser.add_argument("reference", help="repository:tag")
    parser.add_argument("folder", type=Path, help="root under which the files are written")
    arguments = parser.parse_args(argv)
    try:
        files = root_files(arguments.reference)
    except ImageError as error:
        print(f"image: {error}", file=sys.stderr)
        return 2
    for path, text in files.items():
        target = arguments.folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
