"""Where two states of one object differ, in paths that a person can look up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_CONTENT = ("apiVersion", "kind", "metadata", "status")
_DEPTH = 2


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The paths of what an object holds, besides metadata and status, that is another in `after`: two names deep, such
    as `spec.limits`; a list is looked at as a whole."""
    return sorted(_paths(_content(before), _content(after), _DEPTH))


def _content(obj: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in obj.items() if name not in _NOT_CONTENT}


def _paths(before: Mapping[str, Any], after: Mapping[str, Any], depth: int) -> list[str]:
    found: list[str] = []
    for name in {*before, *after}:
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        if depth > 1 and isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{name}.{below}" for below in _paths(one, other, depth - 1)]
        else:
            found.append(name)
    return found
