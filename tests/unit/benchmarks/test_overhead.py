"""bench-overhead: its arithmetic, and that its empty chain is the pipeline's chain."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.overhead import figures, ground
from benchmarks.overhead.figures import Moment
from nim_rollouts.clients.include import Include

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "benchmarks" / "overhead"
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def moment(task: str, began: float, ended: float) -> Moment:
    return Moment(task, T0 + timedelta(seconds=began), T0 + timedelta(seconds=ended))


RUN = [
    moment("validate", 1, 3),
    moment("apply_cache", 4, 5),
    moment("wait_cache", 6, 9),
    moment("conclude", 10, 12),
]


def test_the_steps_of_a_run_add_up() -> None:
    seconds = figures.run_seconds(RUN, T0, T0 + timedelta(seconds=13))
    assert seconds == {"validate": 3, "cache": 6, "decision": 3, figures.LAST: 1}
    assert sum(seconds.values()) == 13


def test_a_task_of_no_step_is_not_overlooked() -> None:
    with pytest.raises(ValueError, match="a_new_task"):
        figures.run_seconds([*RUN, moment("a_new_task", 12, 13)], T0, T0)


def test_gaps_are_told_from_tasks() -> None:
    assert figures.gaps(RUN, T0) == {
        "tasks": 4, "between_median_s": 1.0, "between_sum_s": 4.0, "task_median_s": 2.0, "task_sum_s": 8.0}  # fmt: skip


def test_the_script_s_steps() -> None:
    lines = ["100.5 validate\n", "101.0 terraform plan\n", "103.0 end\n"]
    assert figures.script_seconds(lines) == {"validate": 0.5, "terraform plan": 2.0}
    with pytest.raises(ValueError, match="terraform plan"):
        figures.script_seconds(lines[:2])


def test_the_table() -> None:
    ours = {"validate": 3.0, "gate": 5.0, figures.LAST: 1.0}
    table = figures.rows({"validate": 1.0}, ours, {"validate": 1.5, "gate": 1.0})
    row = {one["step"]: one for one in table}
    assert row["validate"] == {"step": "validate", "by_hand_s": 1.0, "ours_s": 3.0, "difference_s": 2.0,
                               "airflow_s": 1.5, "rest_s": 0.5}  # fmt: skip
    assert row["gate"]["by_hand_s"] is None and row["gate"]["difference_s"] == 5.0
    assert figures.total(table) == {"by_hand_s": 1.0, "ours_s": 9.0, "difference_s": 8.0, "airflow_s": 2.5,
                                    "rest_s": 5.5}  # fmt: skip
    assert figures.text(table).splitlines()[-1].split() == ["total", "1.0", "9.0", "8.0", "2.5", "5.5"]


def edges(folder: Path, dag_id: str) -> dict[str, tuple[set[str], str, bool]]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(folder))
    assert bag.import_errors == {}
    return {
        name: (set(task.downstream_task_ids), str(task.trigger_rule), bool(getattr(task, "start_from_trigger", False)))
        for name, task in bag.dags[dag_id].task_dict.items()
    }


def test_the_empty_chain_is_that_of_nim_deploy() -> None:
    real = edges(ROOT / "dags", "nim_deploy")
    assert edges(FOLDER / "dags", "empty_rollout") == real
    assert {task for tasks in figures.STEPS.values() for task in tasks} == set(real) - {"reject"}


def test_the_script_has_the_steps_of_the_table() -> None:
    script = FOLDER / "by_hand.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    begun = [line.split(maxsplit=1)[1].strip('"') for line in script.read_text().splitlines() if line[:6] == "begin "]
    assert begun == [*(step for step in figures.STEPS if step not in ("gate", "decision")), "end"]


def test_both_sides_apply_the_same_objects(tmp_path: Path) -> None:
    include = Include(ROOT / "include")
    environment, deployment = include.environment("rehearsal"), include.deployment("meta-llama3-8b-instruct")
    ground._write_manifests(tmp_path / "manifests", include, environment, deployment)
    by_hand = {
        path.stem: list(yaml.safe_load_all(path.read_text())) for path in (tmp_path / "manifests").glob("*.yaml")
    }
    (blueprint_cache, blueprint_service) = yaml.safe_load_all((ROOT / "tests/rehearsal/blueprint.yaml").read_text())
    assert by_hand["nimcache"][0] == blueprint_cache
    (service,) = by_hand["nimservice"]
    assert _within(blueprint_service, service)
    # What we add to the published one, on both sides.
    assert set(service["spec"]) - set(blueprint_service["spec"]) == {"startupProbe", "readinessProbe"}
    assert [obj["kind"] for obj in by_hand["benchmark"]] == ["ConfigMap", "Job"]


def _within(part: Any, whole: Any) -> bool:
    """True when all that is in `part` stands in `whole`, numbers and their texts taken as equal."""
    if isinstance(part, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(_within(*pair) for pair in zip(part, whole, strict=True))
    return str(part) == str(whole)


def test_a_failing_script_is_told_by_step_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ground.Failed, match='step "validate" failed'):
        ground.run_script(tmp_path, {"PATH": "/usr/bin:/bin", "HELM": "/nonexistent/helm"}, 30)
