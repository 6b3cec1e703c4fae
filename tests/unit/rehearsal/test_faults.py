"""Faults: what the catalogue takes and refuses, and that orders are files that any process can read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rehearsal import fault_command, faults
from rehearsal.__main__ import main
from rehearsal.config import NotUp


class State:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path


@pytest.fixture
def r(tmp_path: Path) -> State:
    return State(tmp_path)


def test_an_order_fills_in_defaults_and_is_read_back(r: State) -> None:
    assert faults.order(r, "crash-loop", exit_code="139") == {"after_s": 5.0, "exit_code": 139, "reason": "OOMKilled"}
    assert faults.get(r, "crash-loop") == {"after_s": 5.0, "exit_code": 139, "reason": "OOMKilled"}
    assert list(faults.active(r)) == ["crash-loop"]
    assert [p.name for p in r.path("faults").iterdir()] == ["crash-loop.json"], "no temporary file is left"


def test_clear_ends_one_or_all(r: State) -> None:
    faults.order(r, "cache-job-fails")
    faults.order(r, "benchmark-errors", percent=5)
    assert faults.clear(r, "cache-job-fails") == ["cache-job-fails"]
    assert faults.clear(r, "cache-job-fails") == []
    assert faults.clear(r) == ["benchmark-errors"]
    assert faults.active(r) == {}


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("cache-job-fail", {}, "cache-job-fails"),
        ("cache-job-fails", {"pod": 1}, "its settings: pods"),
        ("cache-job-fails", {"pods": "one"}, "whole number"),
        ("cache-job-fails", {"pods": 1.5}, "whole number"),
        ("cache-job-fails", {"pods": True}, "whole number"),
        ("cache-job-fails", {"pods": 0}, "below 1"),
        ("benchmark-errors", {"percent": "101"}, "above 100"),
        ("benchmark-errors", {"percent": "nan"}, "a number"),
        ("registry", {}, "needs image"),
        ("registry", {"image": ""}, "must not be empty"),
        ("registry", {"image": "a/b", "status": 500}, "401, 404"),
    ],
)
def test_wrong_orders_are_refused_and_nothing_is_written(r: State, name: str, settings: dict, says: str) -> None:
    with pytest.raises(faults.FaultError, match=says):
        faults.order(r, name, **settings)
    assert list(r.path("faults").iterdir()) == []


def test_a_misspelt_name_never_looks_inactive(r: State) -> None:
    with pytest.raises(faults.FaultError, match=r"there are: aws-error, benchmark-errors"):
        faults.get(r, "benchmark-error")


def test_a_hand_written_file_is_checked(r: State) -> None:
    file = r.path("faults") / "benchmark-errors.json"
    file.write_text(json.dumps({"percent": 12}))
    assert faults.get(r, "benchmark-errors") == {"percent": 12.0}
    file.write_text("{")
    with pytest.raises(faults.FaultError, match="not JSON"):
        faults.active(r)


@pytest.mark.parametrize(
    ("ordered", "asked", "status"),
    [
        ("nim/org/model", "nvcr.io/nim/org/model:1.0", 401),
        ("nvcr.io/nim/org/model", "nim/org/model:1.0", 401),
        ("nvcr.io/nim/org/model:1.0", "nvcr.io/nim/org/model:1.0", 401),
        ("nvcr.io/nim/org/model:1.0", "nvcr.io/nim/org/model:1.1", None),
        ("nim/org/model", "nvcr.io/nim/org/model-two:1.0", None),
        ("localhost:5000/a", "localhost:5000/a:2", 401),
    ],
)
def test_refused_images(r: State, ordered: str, asked: str, status: int | None) -> None:
    assert faults.refused_image(r, asked) is None
    faults.order(r, "registry", image=ordered, status=401)
    assert faults.refused_image(r, asked) == status


def test_command_line(r: State, capsys: pytest.CaptureFixture[str]) -> None:
    assert fault_command.main(["cache-job-fails", "pods=2"], r) == 0
    assert fault_command.main([], r) == 0
    assert "cache-job-fails pods=2" in capsys.readouterr().out
    assert fault_command.main(["--list"], r) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in faults.CATALOGUE)
    assert fault_command.main(["nope"], r) == 2
    assert fault_command.main(["cache-job-fails", "pods"], r) == 2
    assert "key=value" in capsys.readouterr().err
    assert fault_command.main(["--clear"], r) == 0
    assert faults.active(r) == {}


def test_the_list_needs_no_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REHEARSAL_STATE", str(tmp_path))
    assert fault_command.main(["--list"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in faults.CATALOGUE) and "no rehearsal is up" in listing
    with pytest.raises(NotUp):
        fault_command.main([])


@pytest.mark.parametrize("rest", [["--list"], ["cache-job-fails", "pods=2"], ["--clear"], []])
def test_the_rehearsals_command_line_hands_everything_on(monkeypatch: pytest.MonkeyPatch, rest: list[str]) -> None:
    taken: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["rehearsal", "fault", *rest])
    monkeypatch.setattr(fault_command, "main", lambda argv: taken.append(argv) or 0)
    assert main() == 0
    assert taken == [rest]


def test_every_fault_is_in_the_document() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "rehearsal.md").read_text()
    assert [name for name in faults.CATALOGUE if f"| `{name}" not in text] == []


def test_no_pipeline_knows_of_a_fault() -> None:
    """Orders are files of the stand-ins: the product must find out by itself, as it would in production."""
    root = Path(__file__).resolve().parents[3]
    for folder in ("plugins", "dags"):
        for file in (root / folder).rglob("*.py"):
            text = file.read_text()
            own = [n for n in faults.CATALOGUE if n not in ("crash-loop", "registry") and f'"{n}"' in text]
            assert own == [], file
