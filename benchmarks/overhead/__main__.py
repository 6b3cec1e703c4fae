"""`make bench-overhead`: nim_deploy beside the same steps as a shell script, and Airflow's own part of the difference.

Each side has a fresh rehearsal, one after the other on the same machine. What is compared and what is not stands in
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.overhead import figures
from benchmarks.overhead.figures import Moment
from benchmarks.overhead.ground import ROOT, Failed, prepare, rehearsal, run_script, say
from nim_rollouts.clients.include import Include
from nim_rollouts.core import report
from rehearsal import main_job, toolbox
from rehearsal.airflow_api import AirflowApi, AirflowError
from rehearsal.config import Rehearsal

ENVIRONMENT = "rehearsal"
SIDES = ("by-hand", "ours")
EMPTY = "empty_rollout"


def by_hand(r: Rehearsal, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The script's seconds by step, checked by what its benchmark measured."""
    include = Include(ROOT / "include")
    environment, deployment = include.environment(ENVIRONMENT), include.deployment(options.deployment)
    work = folder / "by-hand"
    variables = prepare(r, work, environment, deployment)
    lines = run_script(work, variables, options.patience)
    measured = report.parse_report(report.extract_report((work / "report.log").read_text()))
    if (measured.done, measured.errors) != (deployment.benchmark.requests, 0):
        raise Failed(f"by_hand.sh: its benchmark has {measured.done} answers and {measured.errors} errors")
    return {"seconds": figures.script_seconds(lines)}


def ours(r: Rehearsal, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """nim_deploy's seconds by step, and those of the empty chain."""
    params = {"deployment": options.deployment, "environment": ENVIRONMENT, "image_tag": "", "strategy": "replace",
              "skip_benchmark": False}  # fmt: skip
    api = AirflowApi(r)
    moments, began, ended = run(r, api, "nim_deploy", params, options.patience)
    found: dict[str, Any] = {
        "seconds": figures.run_seconds(moments, began, ended), "gaps": figures.gaps(moments, began)}  # fmt: skip
    empties = []
    for number in range(options.empty_runs):
        say(f"the empty chain, run {number + 1} of {options.empty_runs}")
        empties.append(run(r, api, EMPTY, {}, options.patience))
    found["empty"] = figures.middle([figures.run_seconds(*one) for one in empties])
    found["empty_gaps"] = figures.middle([figures.gaps(one[0], one[1]) for one in empties])
    return found


def warm(r: Rehearsal, options: argparse.Namespace) -> None:
    """Airflow as it is after its first minute: every DAG read, every worker process once used."""
    api = AirflowApi(r)
    api.wait_for_dag("nim_deploy")
    run(r, api, EMPTY, {}, options.patience)


def run(
    r: Rehearsal, api: AirflowApi, dag_id: str, params: dict[str, Any], patience_s: float
) -> tuple[list[Moment], datetime, datetime]:
    """One DAG run to its success: its tasks, when it was asked for, and when it had ended.

    :raises Failed: it failed or took longer than `patience_s`; says which task and why
    """
    run_id = api.trigger(dag_id, params)
    deadline = time.monotonic() + patience_s
    # One look a second, at the run alone: to look costs the measured machine something.
    while (state := api.run_state(dag_id, run_id)) not in ("success", "failed"):
        if time.monotonic() > deadline:
            state = f"not at its end after {patience_s:.0f} s"
            break
        time.sleep(1.0)
    if state != "success":
        lines: list[str] = []
        main_job.explain(r, api, dag_id, run_id, lines.append)
        raise Failed("\n".join([f"{dag_id}: {state}", *lines]))
    tasks = [task for task in api.tasks(dag_id, run_id) if task.state != "skipped"]
    if retried := [task.name for task in tasks if task.state != "success" or task.try_number != 1]:
        raise Failed(f"{dag_id}: not at their first try: {', '.join(retried)}")
    data = api.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
    began, ended = (datetime.fromisoformat(data[name].replace("Z", "+00:00")) for name in ("queued_at", "end_date"))
    moments = [Moment(one.task_id, one.started, one.ended) for one in tasks if one.started and one.ended]
    return moments, began, ended


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(prog="make bench-overhead ARGS=...", description=__doc__)
    made.add_argument("--deployment", default="meta-llama3-8b-instruct", help="a file of include/deployments/")
    made.add_argument("--first", choices=SIDES, default=SIDES[0], help="which side begins (the page cache is cold)")
    made.add_argument("--empty-runs", type=int, default=2, help="runs of the empty chain, of which the median counts")
    made.add_argument("--patience", type=float, default=600.0, help="seconds that one side may take")
    made.add_argument("--keep", action="store_true", help="keep the folder with states and logs")
    return made


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides, each in a rehearsal of its own."""
    found: dict[str, Any] = {}
    for side in SIDES if options.first == SIDES[0] else SIDES[::-1]:
        say(f"{side}: bringing a rehearsal up")
        with rehearsal(folder / f"state-{side}") as r:
            warm(r, options)
            say(f"{side}: begins")
            load = os.getloadavg()[0]
            found[side] = (by_hand if side == "by-hand" else ours)(r, folder, options)
            found[side]["load_before"], found[side]["load_after"] = round(load, 1), round(os.getloadavg()[0], 1)
            say(f"{side}: {sum(found[side]['seconds'].values()):.0f} s; ending its rehearsal")
    return found


def show(found: dict[str, Any], options: argparse.Namespace) -> None:
    """The table, and one JSON object as the last line."""
    mine = found["ours"]
    table = figures.rows(found["by-hand"]["seconds"], mine["seconds"], mine["empty"])
    print(figures.text(table))
    for title, key in (("nim_deploy", "gaps"), ("the empty chain", "empty_gaps")):
        gap = mine[key]
        print(f"{title}: {gap['tasks']:.0f} tasks; between two of them {gap['between_sum_s']:.1f} s in all, median"
              f" {gap['between_median_s']:.2f} s; in them {gap['task_sum_s']:.1f} s in all, median"
              f" {gap['task_median_s']:.2f} s")  # fmt: skip
    loads = {f"{side}_{when}": found[side][f"load_{when}"] for side in SIDES for when in ("before", "after")}
    print(f"load average (1 min): {', '.join(f'{name} {value}' for name, value in loads.items())}")
    result = {"benchmark": "overhead", "first": options.first, **figures.total(table), "steps": table,
              "gaps": mine["gaps"], "empty_gaps": mine["empty_gaps"], "load_average": loads}  # fmt: skip
    print(json.dumps(result), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0 with the figures; 1 with what failed."""
    options = parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="nim-rollouts-overhead-"))
    keep = True
    try:
        found = measure(folder, options)
        keep = options.keep
    except (Failed, AirflowError, toolbox.ToolNotReady) as error:
        print(f"bench-overhead failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench-overhead: stopped", file=sys.stderr)
        keep = False
        return 130
    finally:
        if keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    show(found, options)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
