"""`make bench-terraform`: plan, apply and no-op through our operators beside terraform by hand, in one run.

The same root module, each time against a fresh stand-in for AWS, the sides taking turns. README.md beside this file
says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

GOAL_S = 2.0
SIDES = ("bare", "ours")
#: What is compared -> the parts of each side that belong to it.
FIGURES = {
    "plan + apply": {"bare": ("init", "plan", "apply"), "ours": ("plan", "apply")},
    "no-op": {"bare": ("no-op plan",), "ours": ("no-op plan", "no-op apply")},
}


def measure(folder: Path, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """Side -> seconds by part, of each repetition. The side that begins changes with each."""
    from benchmarks.terraform import sides
    from tests.rehearsal.aws_standin import client, start

    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(repetitions):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            place = folder / f"{number}-{side}"
            place.mkdir()
            r, process = start(place)
            try:
                for bucket in sides.buckets():
                    where = {"LocationConstraint": "us-west-2"}
                    client(r, "s3").create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
                seconds = getattr(sides, side)(r, place)
            finally:
                process.terminate()
                process.wait(30)
            found[side].append(seconds)
            told = ", ".join(f"{part} {value:.1f}" for part, value in seconds.items())
            print(f"{number + 1} of {repetitions}, {side}: {told}", file=sys.stderr, flush=True)
    return found


def result(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the repetitions, and what ours is above bare."""
    figures: dict[str, dict[str, float]] = {}
    for name, parts in FIGURES.items():
        whole = {side: [sum(one[part] for part in parts[side]) for one in found[side]] for side in SIDES}
        # Of pairs that ran one after the other: the machine's mood of the minute cancels out.
        over = [ours - bare for bare, ours in zip(whole["bare"], whole["ours"], strict=True)]
        spread = {"overhead_s": median(over), "least_s": min(over), "most_s": max(over)}
        middle = {f"{side}_s": median(whole[side]) for side in SIDES}
        figures[name] = {key: round(value, 2) for key, value in (middle | spread).items()}
    medians = {
        side: {part: round(median(one[part] for one in found[side]), 2) for part in found[side][0]} for side in SIDES
    }
    return {"benchmark": "terraform", "repetitions": len(found["bare"]), "figures": figures, "parts": medians,
            "goal_s": GOAL_S, "met": all(one["overhead_s"] < GOAL_S for one in figures.values())}  # fmt: skip


def text(measured: dict[str, Any]) -> str:
    """The table for people."""
    lines = [f"{'seconds (medians)':<20}{'by hand':>10}{'ours':>10}{'overhead':>10}{'from':>8}{'to':>8}"]
    for name, one in measured["figures"].items():
        shown = [one[key] for key in ("bare_s", "ours_s", "overhead_s", "least_s", "most_s")]
        lines.append(f"{name:<20}{shown[0]:>10.1f}{shown[1]:>10.1f}{shown[2]:>10.1f}{shown[3]:>8.1f}{shown[4]:>8.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """0 with the figures, whether or not they meet the goal; 1 where a side fails."""
    parser = argparse.ArgumentParser(prog="make bench-terraform ARGS=...", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="of each side")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="nim-rollouts-terraform-"))
    # Before Airflow is imported: it writes its configuration into its home.
    os.environ["AIRFLOW_HOME"] = str(folder / "airflow")
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "WARNING"
    from benchmarks.terraform.sides import Failed

    keep = True
    try:
        before = os.getloadavg()[0]
        found = measure(folder, options.repetitions)
        keep = False
    except Failed as error:
        print(f"bench-terraform failed: {error}", file=sys.stderr)
        return 1
    finally:
        if keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    measured = result(found) | {"load_average": {"before": round(before, 1), "after": round(os.getloadavg()[0], 1)}}
    print(text(measured))
    print(
        f"load average (1 min): before {measured['load_average']['before']}, after {measured['load_average']['after']}"
    )
    print(json.dumps(measured), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
