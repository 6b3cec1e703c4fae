"""A short way to write OpenAPI schemas.

`obj(name="string", size=integer(minimum=0), probe=core("Probe"))` is an object; a trailing `!` in a key of a mapping
marks it required. `core(...)` stands for a type of the Kubernetes API, filled in by the generator from an API
server's own OpenAPI.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
CORE = "x-core-type"


def string(**more: Any) -> Schema:
    return {"type": "string", **more}


def enum(*values: str, **more: Any) -> Schema:
    return {"type": "string", "enum": list(values), **more}


def integer(**more: Any) -> Schema:
    return {"type": "integer", "format": "int32", **more}


def big_integer(**more: Any) -> Schema:
    return {"type": "integer", "format": "int64", **more}


def boolean(**more: Any) -> Schema:
    return {"type": "boolean", **more}


def strings() -> Schema:
    return {"type": "array", "items": string()}


def texts() -> Schema:
    """A map of strings."""
    return {"type": "object", "additionalProperties": string()}


def quantity() -> Schema:
    pattern = (
        r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
        r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
    )
    return {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": pattern, "x-kubernetes-int-or-string": True}


def core(name: str) -> Schema:
    """A type of the Kubernetes API by the end of its OpenAPI name, such as `core.v1.Probe`."""
    return {CORE: name}


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def rule(expression: str, message: str) -> Schema:
    return {"rule": expression, "message": message}


def obj(fields: dict[str, Schema], *rules: Schema, **more: Any) -> Schema:
    required = [name.removesuffix("!") for name in fields if name.endswith("!")]
    schema: Schema = {
        "type": "object",
        "properties": {name.removesuffix("!"): field for name, field in fields.items()},
        **more,
    }
    if required:
        schema["required"] = required
    if rules:
        schema["x-kubernetes-validations"] = list(rules)
    return schema


def conditions() -> Schema:
    condition = obj(
        {
            "lastTransitionTime!": string(format="date-time"),
            "message!": string(maxLength=32768),
            "observedGeneration": big_integer(minimum=0),
            "reason!": string(maxLength=1024, minLength=1, pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
            "status!": enum("True", "False", "Unknown"),
            "type!": string(
                maxLength=316,
                pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
                r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
            ),
        }
    )
    return array(condition)


def crd(
    kind: str, plural: str, short: list[str], spec: Schema, status: Schema, columns: list[tuple[str, str, str]]
) -> Schema:
    """The whole CustomResourceDefinition. `columns`: name, type, JSON path; Age is added."""
    group, singular = "apps.nvidia.com", kind.lower()
    printed = [{"name": name, "type": type_, "jsonPath": path} for name, type_, path in columns]
    printed.append({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
    root = obj(
        {"apiVersion": string(), "kind": string(), "metadata": {"type": "object"}, "spec": spec, "status": status}
    )
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "additionalPrinterColumns": printed,
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
    }
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": singular}
    if short:
        names["shortNames"] = short  # type: ignore[assignment]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def image() -> Schema:
    fields = {"repository!": string(), "tag!": string(), "pullPolicy": string(), "pullSecrets": strings()}
    return obj(fields)


def env() -> Schema:
    return array(core("core.v1.EnvVar"))


def extra_containers() -> Schema:
    fields = {
        "name!": string(), "image!": image(), "command": strings(), "args": strings(), "env": env(),
        "workingDir": string(),
    }  # fmt: skip
    return array(obj(fields))


def proxy() -> Schema:
    return obj({"httpProxy": string(), "httpsProxy": string(), "noProxy": string(), "certConfigMap": string()})


def claim() -> Schema:
    """A volume claim to make or to use; nothing in it is required."""
    return obj(
        {
            "create": boolean(), "name": string(), "size": string(), "storageClass": string(),
            "volumeAccessMode": string(), "subPath": string(), "annotations": texts(),
        }
    )  # fmt: skip
