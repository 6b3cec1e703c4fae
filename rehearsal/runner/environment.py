"""A container's environment and command line, made from the pod spec by Kubernetes' rules."""

from __future__ import annotations

import math
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Protocol

from rehearsal.kube import NotFound, Obj, path_of

_SUFFIXES = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


class ConfigError(Exception):
    """The container cannot be created with this configuration; the message is worded as the kubelet's."""


class Getter(Protocol):
    async def get(self, path: str, **query: Any) -> Obj: ...


def expand(text: str, values: Mapping[str, str]) -> str:
    """``$(NAME)`` becomes the value of a known name and stays as it is for an unknown one; ``$$`` is one ``$``."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", replace, text)


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number. Raises ValueError for what is none."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?\d+)?)([numkMGTPE]|[KMGTPE]i)?", str(text))
    if not match:
        raise ValueError(f"{text!r} is no quantity")
    return float(match[1]) * _SUFFIXES[match[2] or ""]


async def build(
    kube: Getter, pod: Obj, container: Obj, node: Obj, addresses: Mapping[str, str], base: Mapping[str, str]
) -> dict[str, str]:
    """The complete environment: `base`, then envFrom, then env. Raises ConfigError naming what is missing.

    `addresses` holds podIP and hostIP, which the pod's own status may not carry yet.
    """
    namespace = pod["metadata"]["namespace"]
    source = _Source(kube, namespace)
    result: dict[str, str] = {}
    for each in container.get("envFrom", []):
        reference = each.get("secretRef") or each.get("configMapRef") or {}
        data = await source.data("Secret" if "secretRef" in each else "ConfigMap", reference)
        result |= {each.get("prefix", "") + name: value for name, value in (data or {}).items()}
    for each in container.get("env", []):
        value: str | None
        if "valueFrom" in each:
            value = await _value_from(source, each["valueFrom"], pod, container, node, addresses)
        else:
            value = expand(each.get("value", ""), {**base, **result})
        if value is not None:
            result[each["name"]] = value
    return {**base, **result}


def command_line(container: Obj, default: list[str], env: Mapping[str, str]) -> list[str]:
    """command and args with variables filled in; the image's own program where the spec has no command."""
    command = container.get("command") or default
    return [expand(part, env) for part in [*command, *container.get("args", [])]]


class _Source:
    """Secrets and ConfigMaps of one namespace, each read once per container start."""

    def __init__(self, kube: Getter, namespace: str):
        self._kube, self._namespace = kube, namespace
        self._seen: dict[tuple[str, str], dict[str, str] | None] = {}

    async def data(self, kind: str, reference: Obj) -> dict[str, str] | None:
        """All entries; None when the object is missing and the reference optional."""
        name = reference["name"]
        if (kind, name) not in self._seen:
            try:
                obj = await self._kube.get(path_of("v1", kind, self._namespace, name))
                self._seen[kind, name] = {k: v.decode(errors="replace") for k, v in contents(kind, obj).items()}
            except NotFound:
                self._seen[kind, name] = None
        found = self._seen[kind, name]
        if found is None and not reference.get("optional"):
            raise ConfigError(f'{kind.lower()} "{name}" not found')
        return found

    async def entry(self, kind: str, reference: Obj) -> str | None:
        found = await self.data(kind, reference)
        if found is not None and reference["key"] in found:
            return found[reference["key"]]
        if reference.get("optional"):
            return None
        raise ConfigError(f"couldn't find key {reference['key']} in {kind} {self._namespace}/{reference['name']}")


def contents(kind: str, obj: Obj) -> dict[str, bytes]:
    """The entries of a Secret or ConfigMap, decoded."""
    data = obj.get("data") or {}
    if kind == "Secret":
        return {name: b64decode(value) for name, value in data.items()}
    plain = {name: value.encode() for name, value in data.items()}
    return plain | {name: b64decode(value) for name, value in (obj.get("binaryData") or {}).items()}


async def _value_from(
    source: _Source, choice: Obj, pod: Obj, container: Obj, node: Obj, addresses: Mapping[str, str]
) -> str | None:
    if "secretKeyRef" in choice:
        return await source.entry("Secret", choice["secretKeyRef"])
    if "configMapKeyRef" in choice:
        return await source.entry("ConfigMap", choice["configMapKeyRef"])
    if "fieldRef" in choice:
        return field(pod, choice["fieldRef"]["fieldPath"], addresses)
    if "resourceFieldRef" in choice:
        return resource(pod, container, choice["resourceFieldRef"], node)
    raise ConfigError(f"unsupported source of a value: {', '.join(choice)}")


def field(pod: Obj, path: str, addresses: Mapping[str, str]) -> str:
    """One field of the downward API. Whole maps are written as the kubelet does, a line ``key="value"`` each."""
    meta, spec = pod["metadata"], pod["spec"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str(meta.get(match[1], {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = meta.get(path.partition(".")[2], {})
        return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))
    known = {
        "metadata.name": meta["name"], "metadata.namespace": meta["namespace"], "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""), "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": addresses["podIP"], "status.podIPs": addresses["podIP"],
        "status.hostIP": addresses["hostIP"], "status.hostIPs": addresses["hostIP"],
    }  # fmt: skip
    if path not in known:
        raise ConfigError(f"field label not supported: {path}")
    return str(known[path])


def resource(pod: Obj, container: Obj, choice: Obj, node: Obj) -> str:
    """A request or limit in units of its divisor, rounded up. An unset limit is what the node can give."""
    every = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    named = choice.get("containerName")
    if named:
        container = next(c for c in every if c["name"] == named)
    group, _, name = choice["resource"].partition(".")
    resources = container.get("resources", {})
    amount = resources.get(group, {}).get(name)
    if amount in (None, "0", 0) and group == "limits":
        amount = node.get("status", {}).get("allocatable", {}).get(name, "0")
    divisor = quantity(choice.get("divisor") or "1") or 1
    return str(math.ceil(quantity(amount or "0") / divisor - 1e-9))
