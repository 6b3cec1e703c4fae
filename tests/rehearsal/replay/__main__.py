"""`python -m tests.rehearsal.replay FOLDER [SCENARIO ...]`: replay scenarios and say what differs; --save keeps what
was seen."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from tests.rehearsal.replay.compare import differences
from tests.rehearsal.replay.drive import Replay
from tests.rehearsal.replay.plane import running
from tests.rehearsal.replay.scenario import Scenario


def replay(folder: Path, names: list[str], state: Path) -> Replay:
    """Replay the scenarios side by side in a control plane of their own."""
    scenarios = [Scenario(folder / name) for name in names]
    with running(state) as plane:
        plane.start_operator()
        result = Replay(plane, scenarios)
        asyncio.run(result.run())
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    names = args.names or sorted(file.parent.name for file in args.folder.glob("*/actions.jsonl"))
    with tempfile.TemporaryDirectory(prefix="nim-replay-") as state:
        result = replay(args.folder, names, Path(state))
        log = (Path(state) / "logs" / "operator.log").read_text()
    worst = 0
    for scenario in result.scenarios:
        seen = result.seen[scenario.name]
        if args.save:
            (args.save / scenario.name).mkdir(parents=True, exist_ok=True)
            (args.save / scenario.name / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in seen))
            (args.save / "operator.log").write_text(log)
        found = differences(scenario.events, seen)
        print(f"{scenario.name}: {'same' if not found else f'{len(found)} differences'}")
        for line in [*result.notes[scenario.name], *found]:
            print("   ", line)
        worst = worst or bool(found)
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
