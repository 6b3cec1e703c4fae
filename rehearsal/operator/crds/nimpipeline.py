"""NIMPipeline v1alpha1."""

from __future__ import annotations

from rehearsal.operator.crds import nimservice
from rehearsal.operator.crds.shorthand import Schema, array, boolean, conditions, crd, enum, integer, obj, string, texts


def _service_spec() -> Schema:
    """A NIMService's spec without its transition rules: an entry of a list has no earlier self to be compared with."""
    spec = nimservice.spec()
    spec["x-kubernetes-validations"] = [r for r in spec["x-kubernetes-validations"] if "oldSelf" not in r["rule"]]
    return spec


def _spec() -> Schema:
    dependency = obj({"name!": string(), "port!": integer(), "envName": string(), "envValue": string()})
    service = obj(
        {"name": string(), "enabled": boolean(), "spec": _service_spec(), "dependencies": array(dependency)},
    )
    # The bound is ours: without one the API server counts the rules of the spec as too costly.
    return obj({"services": array(service, maxItems=32)})


def _status() -> Schema:
    return obj({"state": enum("", "NotReady", "Ready", "Failed"), "states": texts(), "conditions": conditions()})


def definition() -> Schema:
    return crd("NIMPipeline", "nimpipelines", [], _spec(), _status(), [("Status", "string", ".status.state")])
