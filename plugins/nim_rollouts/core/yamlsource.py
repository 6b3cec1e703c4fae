"""YAML text -> plain data that remembers on which line each key stands.

PyYAML keeps the last of two equal keys in silence and forgets positions. A person who edits a deployment needs both:
duplicates refused, and every complaint with file and line.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from nim_rollouts.core.errors import SpecError

Path = tuple[str | int, ...]
_MAX_PROBLEMS = 8


@dataclass(frozen=True)
class Document:
    """One YAML document: its data, and the line (from 1) of each key or item by path."""

    data: Any
    source: str
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """Line of the path, or of the closest parent that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def at(self, path: Path) -> str:
        """`file:line` of the path."""
        return f"{self.source}:{self.line(path)}"


def parse(text: str, source: str) -> Document:
    """Read one YAML document.

    :param source: file name as a person would look for it, for the messages
    :raises SpecError: not YAML, more than one document, a key given twice, an endless alias
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        data = _build(loader, node, (), lines, source, ()) if node is not None else None
    except yaml.YAMLError as error:
        raise SpecError(_yaml_problem(error, source), reason="yaml-malformed") from None
    finally:
        loader.dispose()
    return Document(data, source, lines)


def _yaml_problem(error: yaml.YAMLError, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or "not valid YAML"
    context = getattr(error, "context", None)
    where = f"{source}:{mark.line + 1}" if mark is not None else f"{source}:1"
    return f"{where}: malformed YAML: {what}" + (f" ({context})" if context else "")


def _build(
    loader: yaml.SafeLoader, node: yaml.Node, path: Path, lines: dict[Path, int], source: str, parents: tuple[int, ...]
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if id(node) in parents:
        raise SpecError(f"{source}:{line}: an alias refers to what holds it", reason="yaml-malformed")
    parents = (*parents, id(node))
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(loader, node, source)
        loader.flatten_mapping(node)
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node)
            if not isinstance(key, str):
                raise SpecError(
                    f"{source}:{key_node.start_mark.line + 1}: the key {key!r} is not text",
                    hint="Put it in quotes",
                    reason="yaml-malformed",
                )
            lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = _build(loader, value_node, (*path, key), lines, source, parents)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*path, index), lines, source, parents) for index, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _refuse_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode, source: str) -> None:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
            continue
        line = key_node.start_mark.line + 1
        if key_node.value in seen:
            raise SpecError(
                f"{source}:{line}: the key `{key_node.value}` was given on line {seen[key_node.value]} already",
                hint="Keep one of the two",
                reason="yaml-duplicate-key",
            )
        seen[key_node.value] = line


M = typing.TypeVar("M", bound=BaseModel)


def validate(model: type[M], document: Document) -> M:
    """The document as a model.

    :raises SpecError: naming file and line, what is wrong and what to do, for up to eight findings
    """
    if not isinstance(document.data, dict):
        raise SpecError(f"{document.source}:1: expected keys and values, found {_kind(document.data)}")
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems = [
            _problem(model, document, dict(item)) for item in error.errors(include_url=False, include_context=True)
        ]
    # An alternative of a union yields the same finding once per alternative.
    problems = list(dict.fromkeys(problems))
    shown = problems[:_MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise SpecError("; ".join(shown), problems=problems)


def _problem(model: type[BaseModel], document: Document, item: dict[str, Any]) -> str:
    path = real_path(document.data, item["loc"])
    at, name = document.at(path), dotted(path)
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = fields_at(model, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(sorted(known))}"
        return f"{at}: unknown key `{name}`; {advice}"
    if kind == "missing":
        return f"{at}: `{name}` is missing; add it"
    if kind == "string_type" and isinstance(value, (int, float, bool)):
        return f"{at}: `{name}` must be text, found {_kind(value)} ({value}); put it in quotes"
    if kind.endswith("_type") or kind in ("int_from_float", "model_attributes_type"):
        return f"{at}: `{name}`: {item['msg'].lower()}, found {_kind(value)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{at}: `{name}`: {message}" if name else f"{at}: {message}"


def real_path(data: Any, loc: Iterable[str | int]) -> Path:
    """Pydantic's location without what is not in the data (tags of unions, names of validators)."""
    parts, path = list(loc), []
    for index, part in enumerate(parts):
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            data = data[part]
            path.append(part)
        elif index == len(parts) - 1 and isinstance(data, dict) and part != "[key]":
            path.append(part)
    return tuple(path)


def fields_at(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that the model knows at a path."""
    models = {model}
    for part in path:
        found: set[type[BaseModel]] = set()
        for one in models:
            for name, info in one.model_fields.items():
                if part in (name, info.alias):
                    found |= _models_in(info.annotation)
            if isinstance(part, int):
                found.add(one)  # an item of a list: the models were collected with the list
        models = found
    return [info.alias or name for one in models for name, info in one.model_fields.items()]


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {found for part in typing.get_args(annotation) for found in _models_in(part)}


def dotted(path: Path) -> str:
    """`a.b[0].c`, as people write paths."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")
