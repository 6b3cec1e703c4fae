"""The operator's stand-in, driven through recorded scenarios of the real operator on a real control plane.

REPLAY_DIR names another folder of recordings, REPLAY_SCENARIOS (names apart by commas or blanks, or `all`) other
scenarios.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.rehearsal.replay.__main__ import replay
from tests.rehearsal.replay.compare import differences
from tests.rehearsal.replay.drive import Replay

FOLDER = Path(os.environ.get("REPLAY_DIR") or Path(__file__).parents[1] / "recordings")
DEFAULT = "cache-ready cache-retry-then-ready service-ready service-image-change service-crashloop"


def _names() -> list[str]:
    wanted = os.environ.get("REPLAY_SCENARIOS") or ("all" if os.environ.get("REPLAY_DIR") else DEFAULT)
    if wanted == "all":
        return sorted(file.parent.name for file in FOLDER.glob("*/actions.jsonl"))
    return re.split(r"[,\s]+", wanted.strip())


NAMES = _names()


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """All scenarios, side by side: it takes as long as the longest of them."""
    return replay(FOLDER, NAMES, tmp_path_factory.mktemp("replay"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_replay(replayed: Replay, name: str) -> None:
    scenario = next(s for s in replayed.scenarios if s.name == name)
    found = differences(scenario.events, replayed.seen[name])
    assert not found, "\n".join([f"{name} went differently:", *replayed.notes[name], *found])
