"""What an instance is told at launch: cluster, labels and taints of the node that it is to become, as Bottlerocket's
settings (TOML). Whoever launches writes it, the machine's kubelet reads it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bootstrap:
    """The settings that matter to the Node object."""

    cluster: str
    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, str]]


def render(cluster: str, labels: Mapping[str, str], taints: Sequence[Mapping[str, str]]) -> str:
    """The settings as text."""
    by_key: dict[str, list[str]] = {}
    for taint in taints:
        by_key.setdefault(taint["key"], []).append(f"{taint.get('value') or ''}:{taint['effect']}")
    lines = ["[settings.kubernetes]", f"cluster-name = {json.dumps(cluster)}"]
    lines += ["[settings.kubernetes.node-labels]"]
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in sorted(labels.items())]
    lines += ["[settings.kubernetes.node-taints]"]
    lines += [f"{json.dumps(key)} = {json.dumps(values)}" for key, values in sorted(by_key.items())]
    return "\n".join(lines) + "\n"


def parse(text: str) -> Bootstrap:
    """Back from `render`. Raises ValueError for what is no such text: that machine never becomes a node."""
    try:
        settings = tomllib.loads(text)["settings"]["kubernetes"]
        taints = []
        for key, values in settings.get("node-taints", {}).items():
            for one in values:
                value, _, effect = one.rpartition(":")
                taints.append({"key": key, **({"value": value} if value else {}), "effect": effect})
        return Bootstrap(settings["cluster-name"], settings.get("node-labels", {}), taints)
    except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"no settings of Bottlerocket's: {error}") from error
