"""An include folder of a test session's own: links to the checkout's, in which a test may put environments of its own.

A chart's path is relative to the folder above include/, so that one is made of links too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
#: In these a test may add files; of the others the whole folder is a link.
_OPEN = ("environments", "terraform")
SMALL_ROOT = "small"


def make(folder: Path) -> Path:
    """The include folder, below `folder`."""
    include = folder / "include"
    include.mkdir(parents=True)
    for entry in ROOT.iterdir():
        if entry.name not in ("include", ".git"):
            (folder / entry.name).symlink_to(entry)
    for entry in (ROOT / "include").iterdir():
        if entry.name not in _OPEN:
            (include / entry.name).symlink_to(entry)
            continue
        (include / entry.name).mkdir()
        for file in entry.iterdir():
            (include / entry.name / file.name).symlink_to(file)
    (include / "terraform" / SMALL_ROOT).symlink_to(ROOT / "tests" / "rehearsal" / "small_root")
    return include


def small_environment(include: Path, name: str, *, revision: int, **policies: Any) -> None:
    """An environment whose infrastructure is one resource that costs nothing; a new revision replaces it."""
    settings = yaml.safe_load((ROOT / "include" / "environments" / "rehearsal.yaml").read_text())
    settings |= {"name": name, "cluster": {"name": f"no-cluster-of-{name}"}, "policies": policies}
    # Of the add-ons the one that wants nothing of terraform's outputs, which this root does not have.
    settings["addons"] = [addon for addon in settings["addons"] if addon["name"] == "nim-operator"]
    settings["terraform"] = {
        "root": f"terraform/{SMALL_ROOT}",
        "state": {**settings["terraform"]["state"], "key": f"{name}/terraform.tfstate"},
        "variables": {"revision": str(revision)},
    }
    (include / "environments" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
