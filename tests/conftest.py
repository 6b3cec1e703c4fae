"""What every test needs: the two import roots, and an environment with nothing of the user's in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "plugins"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

#: Variables of a user's shell that would send a test to a real account, cluster or Airflow.
_FOREIGN = ("AWS_", "AIRFLOW", "KUBECONFIG", "KUBE_", "HELM_", "TF_VAR_", "NGC_", "REHEARSAL_", "NIM_ROLLOUTS_")
_OURS = ("NIM_ROLLOUTS_CACHE", "AWS_CA_BUNDLE")

# Before anything of Airflow is imported: it reads its configuration then, and makes its home folder.
for _name in [name for name in os.environ if name.startswith(_FOREIGN) and name not in _OURS]:
    del os.environ[_name]


def pytest_configure() -> None:
    """Airflow writes a configuration file on its first import: into a folder of this test run, not into a home."""
    import atexit
    import shutil
    import tempfile

    home = tempfile.mkdtemp(prefix="nim-rollouts-tests-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["AIRFLOW_HOME"] = home
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{home}/airflow.db"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first; of the live ones those of the shared rehearsal last, in the order that their marks give."""

    def place(item: pytest.Item) -> tuple[int, int]:
        mark = item.get_closest_marker("live")
        if mark:
            return (2, int(mark.kwargs.get("order", 50)))
        return (0 if "/tests/unit/" in str(item.path) else 1, 0)

    items.sort(key=place)


# One rehearsal for the live tests of all folders: a fixture of this name in two places would bring up two.
from tests.rehearsal.shared import (  # noqa: E402
    canary,  # noqa: F401
    command_lines,  # noqa: F401
    deployed,  # noqa: F401
    live,  # noqa: F401
    pytest_terminal_summary,  # noqa: F401
)


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT
