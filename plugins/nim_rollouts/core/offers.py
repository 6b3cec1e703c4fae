"""Which model profiles an image offers, from the manifest that the operator keeps beside a NIMCache.

Schema 1 is a mapping profile id -> entry, schema 2 has a list of profiles (k8s-nim-operator, internal/nimparser). What
cannot be read offers nothing: it only serves to help with a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_SHOWN = ("llm_engine", "precision", "gpu", "tp", "profile")


def offered(text: str) -> list[str]:
    """`engine=.. precision=.. gpu=..` of each profile, without repetitions, those without LoRA first."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    if not isinstance(data, Mapping):
        return []
    found = sorted(_tags(data), key=lambda tags: str(tags.get("feat_lora", "")).lower() == "true")
    lines = (" ".join(f"{name.removeprefix('llm_')}={tags[name]}" for name in _SHOWN if name in tags) for tags in found)
    return list(dict.fromkeys(line for line in lines if line))


def _tags(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    entries = data.get("profiles") if "schema_version" in data else list(data.values())
    for entry in entries or ():
        tags = entry.get("tags") if isinstance(entry, Mapping) else None
        if isinstance(tags, Mapping):
            yield tags
