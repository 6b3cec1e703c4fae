"""What a NIMPipeline makes of its services' specs."""

from __future__ import annotations

from typing import Any

from rehearsal.operator import goform
from rehearsal.operator.nimpipeline import rendered

SPEC: dict[str, Any] = {
    "image": {"repository": "example.com/nim", "tag": "1"},
    "authSecret": "key",
    "storage": {"emptyDir": {}},
    "expose": {"service": {"port": 8000}},
    "env": [{"name": "A", "value": "1"}, {"name": "URL", "value": "old"}],
}


def test_a_dependency_brings_a_variable_only_with_name_and_value() -> None:
    dependencies = [
        {"name": "other", "port": 8000, "envName": "URL", "envValue": "http://other:8000"},
        {"name": "nameless", "port": 8000, "envValue": "x"},
        {"name": "valueless", "port": 8000, "envName": "Y"},
    ]
    made = rendered({"name": "one", "spec": SPEC, "dependencies": dependencies})
    assert made["env"] == [{"name": "A", "value": "1"}, {"name": "URL", "value": "http://other:8000"}]
    assert SPEC["env"][1]["value"] == "old", "the pipeline's own object is left as it is"


def test_a_made_service_is_not_rewritten_by_its_own_controller() -> None:
    """Its generation stays 1: it is created in the form that the finalizer's update would give it."""
    made = rendered({"name": "one", "spec": SPEC})
    assert goform.nimservice_spec(made) == made


def test_a_pipelines_spec_gets_the_same_form_as_its_services() -> None:
    services = [{"name": "one", "enabled": True, "spec": SPEC, "dependencies": []}]
    (service,) = goform.nimpipeline_spec({"services": services})["services"]
    assert service == {"name": "one", "enabled": True, "spec": goform.nimservice_spec(SPEC)}
    assert goform.nimpipeline_spec({}) == {}
