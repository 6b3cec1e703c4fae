"""docker-compose.yaml cannot be started on every machine that runs the tests; what it must hold can be read on each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = {
    "apiserver": "api-server",
    "scheduler": "scheduler",
    "dag-processor": "dag-processor",
    "triggerer": "triggerer",
}
SHARED = (
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yaml").read_text()))


def test_every_component_runs_and_shows_its_health(compose: dict[str, Any]) -> None:
    for service, component in COMPONENTS.items():
        assert compose["services"][service]["command"] == ["airflow", component]
        assert compose["services"][service]["healthcheck"]["test"]


def test_components_share_database_and_keys(compose: dict[str, Any]) -> None:
    for name in SHARED:
        values = {compose["services"][service]["environment"][name] for service in [*COMPONENTS, "init"]}
        assert len(values) == 1, name


def test_no_secret_has_a_default(compose: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yaml").read_text()
    for variable in re.findall(r"\$\{(\w*(?:KEY|SECRET|PASSWORD))\b([^}]*)\}", text):
        assert variable[1].startswith(":?"), f"{variable[0]} would silently be {variable[1] or 'empty'}"


def test_volumes_that_are_used_are_declared_and_folders_exist(compose: dict[str, Any]) -> None:
    mounts = {m.split(":")[0] for s in compose["services"].values() for m in s.get("volumes", [])}
    assert {m for m in mounts if not m.startswith("./")} == set(compose["volumes"])
    assert [m for m in mounts if m.startswith("./") and not (ROOT / m).is_dir()] == []


def test_variables_are_in_the_example(compose: dict[str, Any]) -> None:
    example = (ROOT / ".env.example").read_text()
    required = re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yaml").read_text())
    assert required
    assert {name for name in required if f"{name}=" not in example} == set()


def test_the_image_is_of_the_pinned_airflow() -> None:
    (version,) = re.findall(r"^apache-airflow==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"FROM apache/airflow:{version}-python3.11" in (ROOT / "Dockerfile").read_text()
