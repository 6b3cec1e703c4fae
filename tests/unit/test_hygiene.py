"""Rules of the house that no linter knows: sizes, words that must not occur, what Airflow may load from plugins/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[Path]:
    """Files that are in git, or would be with the next `git add`; those that git was told to ignore are left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def lines_with(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:160]}"
        for path in paths
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]


def test_product_code_does_not_know_that_it_is_rehearsed() -> None:
    word = re.compile("rehearsal", re.IGNORECASE)
    files = tracked("plugins", "dags")
    assert files
    assert lines_with(word, files) == []
    assert [str(f) for f in files if word.search(str(f.relative_to(ROOT)))] == []


# Put together here, so that this file does not hold what it looks for.
_INDEX_HOSTS = "|".join(
    host.replace("_", r"\.")
    for host in (
        "pypi_org",
        "files_pythonhosted_org",
        "proxy_golang_org",
        "sum_golang_org",
        "registry_npmjs_org",
        "crates_io",
        "repo1_maven_org",
        "deb_debian_org",
    )
)
_MACHINE_PATHS = "|".join(
    ("/work" + "/main", "/work" + "/shared", "/work" + r"/\.library", "/root" + "/", "/tmp" + "/brief")
)


@pytest.mark.parametrize("what", [_INDEX_HOSTS, _MACHINE_PATHS], ids=["package indexes", "paths of one machine"])
def test_no_file_is_bound_to_one_machine(what: str) -> None:
    # Recordings are facts as they were recorded; a checksum file is full of text that means nothing.
    skipped = ("tests/recordings/", "rehearsal/controlplane/go.sum")
    files = [f for f in tracked(".") if not str(f.relative_to(ROOT)).startswith(skipped)]
    assert lines_with(re.compile(what), files) == []


def test_modules_are_short() -> None:
    long = {str(f.relative_to(ROOT)): n for f in tracked("*.py") if (n := len(text_of(f).splitlines())) > _limit(f)}
    assert long == {}, "split these by reason to change (limit: 350 lines, a DAG file 120, a test 600)"


def _limit(path: Path) -> int:
    if path.name == "errors.py":
        return 500  # the error tree is one module by design: every class of it is read beside the others
    top = path.relative_to(ROOT).parts[0]
    return {"dags": 120, "tests": 600}.get(top, 350)


def test_airflow_loads_one_module_from_plugins(tmp_path: Path) -> None:
    """Airflow runs every other .py under plugins/ as a top-level module of its stem, unless .airflowignore says no."""
    program = """
import json, sys
before = set(sys.modules)
from airflow.plugins_manager import get_import_errors, get_plugin_info
plugins = [p.get("name") for p in get_plugin_info()]
stray = sorted(
    name for name, module in list(sys.modules.items())
    if "." not in name and name not in before and (getattr(module, "__file__", None) or "").startswith(sys.argv[1])
)
print("\\n" + json.dumps({"plugins": plugins, "errors": get_import_errors(), "top": stray}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "plugins")],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
            "AIRFLOW__CORE__LAZY_LOAD_PLUGINS": "False",
            "PYTHONPATH": str(ROOT / "plugins"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["errors"] == {}
    assert "nim_rollouts" in "".join(str(p) for p in found["plugins"])
    assert set(found["top"]) <= {"nim_rollouts", "nim_rollouts_plugin"}


def test_requirements_are_exact() -> None:
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-aiperf.txt"):
        lines = [line for line in text_of(ROOT / name).splitlines() if line and not line.startswith("#")]
        loose = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==\S+( ; .+)?", line)]
        assert loose == [], f"{name}: run `make lock`"


def test_the_development_lock_holds_the_image_lock() -> None:
    image = set(text_of(ROOT / "requirements.txt").splitlines())
    development = set(text_of(ROOT / "requirements-dev.txt").splitlines())
    plain = {re.sub(r"\[.*?\]", "", line) for line in development}
    assert {line for line in image if re.sub(r"\[.*?\]", "", line) not in plain} == set()
