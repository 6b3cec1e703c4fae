"""Documents are held to the code: slugs, files, commands that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nim_rollouts.core import errors
from nim_rollouts.core.environment import Environment
from nim_rollouts.core.layers import REMEDIES, Layer
from nim_rollouts.core.spec import Deployment
from rehearsal import faults

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _slugs() -> set[str]:
    classes = {cls.default_reason for cls in errors.error_classes()}
    finer = set()
    for path in (ROOT / "plugins" / "nim_rollouts").rglob("*.py"):
        finer |= set(re.findall(r"\breason=\"([a-z]+(?:-[a-z]+)*)\"", path.read_text()))
    for path in (ROOT / "plugins" / "nim_rollouts" / "core" / "verdicts").glob("*.py"):
        # A verdict's reason is its slug: what a failed wait is known by.
        finer |= set(re.findall(r"\"([a-z]+(?:-[a-z]+)+)\"", path.read_text()))
    return classes | finer


def test_every_slug_is_documented() -> None:
    documented = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", (ROOT / "docs" / "errors.md").read_text()))
    assert _slugs() - documented == set()


def _verdict_slugs() -> set[str]:
    """Every slug that a verdict module writes down: in a call of the shorthands, a table, an assignment."""
    quoted = set()
    for path in (ROOT / "plugins" / "nim_rollouts" / "core" / "verdicts").glob("*.py"):
        quoted |= set(re.findall(r"\"([a-z]+(?:-[a-z]+)+)\"", path.read_text()))
    return quoted


def test_every_reason_of_a_verdict_has_a_layer_a_remedy_and_a_line() -> None:
    good = {"scaling-down", "serving-degraded-status", "cache-status-flapping"}
    assert _verdict_slugs() - good - set(REMEDIES) == set()
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = {slug: row for row in page.splitlines() if row.startswith("|") for slug in re.findall(r"`([a-z-]+)`", row)}
    for slug, remedy in REMEDIES.items():
        assert slug in rows, f"docs/errors.md has no line on {slug}"
        assert str(remedy.layer) in rows[slug].split("|")[2], f"docs/errors.md names another layer of {slug}"


def test_every_reason_that_recordings_expect_is_one_of_ours() -> None:
    slugs = (ROOT / "tests" / "recordings" / "SLUGS.md").read_text()
    known = _verdict_slugs() | {"deleted", "deleting", "ready", "gone"}
    assert {row.split("|")[2].strip() for row in slugs.splitlines()[5:] if row.count("|") == 5} - known == set()


def test_every_layer_is_explained() -> None:
    text = (ROOT / "docs" / "waiting.md").read_text()
    assert [layer for layer in Layer if str(layer) not in text] == []


def test_the_catalogue_of_faults_is_documented() -> None:
    """docs/rehearsal.md has a row for each fault, with settings that it takes, and slugs that docs/errors.md has."""
    rows = [row.split("|")[1:-1] for row in (ROOT / "docs" / "rehearsal.md").read_text().splitlines() if "|" in row]
    told = {cells[0].strip(" `").split()[0]: cells for cells in rows if len(cells) == 4 and "`" in cells[0]}
    assert set(told) == set(faults.CATALOGUE)
    page = (ROOT / "docs" / "errors.md").read_text()
    for name, cells in told.items():
        fault = faults.CATALOGUE[name]
        for setting, value in re.findall(r"(\w+)=(\S+)", cells[0].strip(" `")):
            assert setting in fault.settings, f"{name} has no setting {setting}"
            if value != "...":
                fault.settings[setting].read(name, setting, value)
        for slug in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", cells[3]):
            assert f"`{slug}`" in page, f"docs/errors.md has no line on {slug}, which {name} leads to"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", document.read_text())
    own = [link for link in links if "://" not in link]
    assert [link for link in own if not (document.parent / link).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = [*(ROOT / "docs").iterdir(), *(ROOT / "benchmarks").glob("*/README.md")]
    assert [str(page) for page in pages if f"({page.relative_to(ROOT)})" not in readme] == []


@pytest.mark.parametrize(
    ("dag", "page"),
    [("nim_deploy", "README.md"), ("nim_deploy", "docs/pipeline.svg"), ("nim_teardown", "docs/teardown.md")],
)
def test_every_task_is_told_of_and_no_other(dag: str, page: str) -> None:
    tasks = set(re.findall(r'task_id="(\w+)"', (ROOT / "dags" / f"{dag}.py").read_text()))
    text = (ROOT / page).read_text()
    if page.endswith(".svg"):
        told = set(re.findall(r'class="[twh]">(\w+)', text)) - set("12345678")
    else:
        rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        told = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", rows))
        # Rows have other words too; what is named as tasks are is one.
        told = {name for name in told if name in tasks or re.match("apply_|wait_|delete_|verify_|approve_", name)}
    assert told == tasks


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= {f"bench-{path.parent.name}" for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    named = set(re.findall(r"(?:^|`|\$\()make (?:-s )?([a-z][a-z-]*)", document.read_text(), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.parametrize(
    ("model", "document"),
    [(Deployment, "deployments.md"), (Environment, "environments.md")],
    ids=["deployment", "environment"],
)
def test_every_key_of_a_file_is_documented(model: type, document: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    keys = {field.alias or name for name, field in model.model_fields.items()}  # type: ignore[attr-defined]
    assert {key for key in keys if not re.search(rf"`{key}\b", text)} == set()
