"""Values of Helm charts, as data: dotted paths, and keys that a chart does not know.

Helm takes any key: a misspelt one changes nothing and says nothing. Here it is held against the chart's own defaults.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Path = tuple[str, ...]

# Below keys of such names a chart's defaults are examples, never the list of what may stand there.
_FREE = re.compile(
    r"(annotations|labels|selector|affinity|resources|limits|requests|env|config|securitycontext|data|args)$",
    re.IGNORECASE,
)


def split(path: str) -> Path:
    """The keys of a dotted path; `\\.` is a dot within a key.

    :raises ValueError: an empty key
    """
    keys = tuple(part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", path))
    if not all(keys):
        raise ValueError(f'values_from: "{path}" has an empty part; write keys with single dots between them')
    return keys


def refuse_clashes(paths: Collection[str]) -> None:
    """Nothing, if each path can have a value of its own.

    :raises ValueError: one leads through another, or is malformed
    """
    seen = sorted((split(path), path) for path in paths)
    for (first, name), (second, other) in zip(seen, seen[1:], strict=False):
        if second[: len(first)] == first:
            raise ValueError(f'values_from: "{other}" leads through "{name}", which has a value of its own')


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value, as nested maps."""
    result: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = split(path)
        place = result
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return result


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, as Helm puts them together: maps by key, everything else replaced, a null takes a key out."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def at(values: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What stands at the path, or None."""
    place: Any = values
    for key in path:
        place = place.get(key) if isinstance(place, Mapping) else None
    return place


def unknown(values: Mapping[str, Any], defaults: Mapping[str, Any], allowed: Collection[str] = ()) -> list[str]:
    """A sentence for each key that the chart does not know.

    Not looked into: lists, what is empty or null in the defaults, and keys whose content is the user's own (labels,
    resources, environment...).

    :param allowed: dotted paths that are known to be right although the defaults do not show them
    """
    found: list[str] = []
    _collect(values, defaults, (), frozenset(allowed), found)
    return found


def _collect(values: Mapping[str, Any], known: Mapping[str, Any], path: Path, allowed: frozenset[str],
             found: list[str]) -> None:  # fmt: skip
    for key, value in values.items():
        here = (*path, str(key))
        name = ".".join(part.replace(".", "\\.") for part in here)
        if name in allowed or here == ("global",):
            continue
        if key not in known:
            found.append(f"the chart has no value `{name}`; {_advice(str(key), path, known)}")
            continue
        below = known[key]
        if isinstance(below, Mapping) and below and not isinstance(value, Mapping) and value is not None:
            found.append(f"the value `{name}` must be a map with {', '.join(sorted(map(str, below)))}")
        elif isinstance(value, Mapping) and isinstance(below, Mapping) and below and not _FREE.search(str(key)):
            _collect(value, below, here, allowed, found)


def _advice(key: str, path: Path, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, [str(one) for one in known], n=1, cutoff=0.6)
    if close:
        return f"did you mean `{'.'.join((*path, close[0]))}`?"
    shown = ", ".join(sorted(str(one) for one in known)[:12])
    return f"it knows here: {shown}"
