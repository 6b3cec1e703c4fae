"""The operator's stand-in, driven through recorded scenarios of the real operator on a real control plane.

Those that are long are slow tests. REPLAY_DIR names another folder of recordings, REPLAY_SCENARIOS (names apart by
commas or blanks) other scenarios, none of which counts as slow then.
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
SHORT = "cache-ready service-ready pipeline-ready"


def _params() -> list[object]:
    wanted = os.environ.get("REPLAY_SCENARIOS", "all").strip()
    if wanted != "all":
        return list(re.split(r"[,\s]+", wanted))
    names = sorted(file.parent.name for file in FOLDER.glob("*/actions.jsonl"))
    short = names if os.environ.get("REPLAY_DIR") else SHORT.split()
    return [pytest.param(name, marks=[] if name in short else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def replayed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """All scenarios that were chosen, side by side: it takes as long as the longest of them."""
    mine = [
        item for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module
    ]
    return replay(FOLDER, [item.callspec.params["name"] for item in mine], tmp_path_factory.mktemp("replay"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", _params())
def test_replay(replayed: Replay, name: str) -> None:
    scenario = next(s for s in replayed.scenarios if s.name == name)
    found = differences(scenario.events, replayed.seen[name])
    assert not found, "\n".join([f"{name} went differently:", *replayed.notes[name], *found])
