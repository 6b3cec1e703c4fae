"""What can be told of an environment's add-ons from files alone, before anything is made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nim_rollouts.clients.include import Include
from nim_rollouts.core.addons import Addon, second_device_plugins
from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import SpecError
from nim_rollouts.core.yamlsource import parse

_OUTPUT = re.compile(r'^\s*output\s+"([^"]+)"', re.MULTILINE)


def addon_problems(environment: Environment, include: Include) -> list[SpecError]:
    """One error a finding: a missing chart folder or values file, values that cannot be read, an output that the root
    module does not have, a second device plugin."""
    found: list[SpecError] = []
    outputs = outputs_of(include.path(environment.terraform.root))
    for addon in environment.active_addons:
        found += _of_files(addon, include)
        found += [
            SpecError(
                f"addons.{addon.name}: terraform's root has no output {name}",
                hint=f"Use one that include/{environment.terraform.root} has",
            )
            for name in sorted(addon.outputs - outputs)
        ]
        try:
            values = values_of(addon, include)
        except SpecError as error:
            found.append(error)
            continue
        if twice := second_device_plugins(addon, environment.node_os, values):
            found.append(
                SpecError(
                    f"addons.{addon.name}: Bottlerocket's NVIDIA images carry driver and device plugin; this chart "
                    f"would install a second one, and each GPU would be given out twice",
                    hint=f"Give the add-on `when: {{node_os: al2023}}`, or set to false in its values: "
                    f"{', '.join(twice)}",
                    reason="second-device-plugin",
                )
            )
    return found


def values_of(addon: Addon, include: Include) -> dict[str, Any]:
    """The add-on's values file; empty when it names none or the file is missing.

    :raises SpecError: it is no YAML map
    """
    path = include.path(addon.values) if addon.values else None
    if path is None or not path.is_file():
        return {}
    data = parse(path.read_text(), f"include/{addon.values}").data
    if data is not None and not isinstance(data, dict):
        raise SpecError(f"include/{addon.values}:1: a chart's values are keys and values")
    return data or {}


def outputs_of(root: Path) -> set[str]:
    """The names of the outputs of a root module."""
    return {name for path in root.glob("*.tf") for name in _OUTPUT.findall(path.read_text())}


def _of_files(addon: Addon, include: Include) -> Iterator[SpecError]:
    if addon.is_local and not (include.repository / addon.chart).is_dir():
        yield SpecError(f"addons.{addon.name}.chart: there is no folder {addon.chart}")
    if addon.values and not include.path(addon.values).is_file():
        yield SpecError(f"addons.{addon.name}.values: there is no file include/{addon.values}")
