"""The two sides that are compared: terraform by hand, and our operators' work of the same tasks. Both make the root
module's environment in a stand-in for AWS that is fresh, and then find nothing to do."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from nim_rollouts.clients.include import Include
from nim_rollouts.clients.terraform_workdir import find_plugin_dir
from rehearsal.aws.environment import environment as aws_environment
from rehearsal.config import Rehearsal

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = "rehearsal"

Seconds = dict[str, float]


class Failed(Exception):
    """A side did not do its work; says which command and what it wrote."""


def bare(r: Rehearsal, folder: Path) -> Seconds:
    """What a competent user types: init, plan into a file, apply of that file; later another plan, which is empty."""
    environment = Include(ROOT / "include").environment(ENVIRONMENT)
    work = folder / "bare"
    shutil.copytree(ROOT / "include" / environment.terraform.root, work)
    (work / "variables.tfvars.json").write_text(json.dumps(environment.terraform.variables))
    state = environment.terraform.state
    backend = [f"-backend-config={one}" for one in (
        f"bucket={state.bucket}", f"key={state.key}", f"region={environment.region}")]  # fmt: skip
    env = os.environ | aws_environment(r.url("aws")) | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    mirror = find_plugin_dir(env)
    init = ["init", *backend, *([f"-plugin-dir={mirror}"] if mirror else [])]
    plan = ["plan", "-var-file=variables.tfvars.json", "-out=plan.tfplan"]
    seconds: Seconds = {}
    for name, argv in (("init", init), ("plan", plan), ("apply", ["apply", "plan.tfplan"]), ("no-op plan", plan)):
        began = time.monotonic()
        ended = subprocess.run(
            ["terraform", argv[0], "-input=false", "-no-color", *argv[1:]],
            cwd=work, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds[name] = time.monotonic() - began
        if ended.returncode:
            raise Failed(f"terraform {name}: {ended.stderr[-2000:]}")
    if "No changes." not in ended.stdout:
        raise Failed(f"terraform by hand is not at rest:\n{ended.stdout[-2000:]}")
    return seconds


def ours(r: Rehearsal, folder: Path) -> Seconds:
    """The work of terraform_plan and terraform_apply, twice, with the ledger, the store and all their checks."""
    from nim_rollouts.operators.terraform import TerraformApplyOperator, TerraformPlanOperator

    os.environ.update(variables(r, folder))
    log = logging.getLogger("benchmarks.terraform")
    logging.basicConfig(filename=folder / "ours.log", level=logging.INFO, force=True)
    seconds: Seconds = {}
    for run, prefix in (("first", ""), ("second", "no-op ")):
        for name, operator in (("plan", TerraformPlanOperator), ("apply", TerraformApplyOperator)):
            task = operator(task_id=f"terraform_{name}")
            began = time.monotonic()
            facts = stage_of(task.task_id, run, log, task)
            seconds[prefix + name] = time.monotonic() - began
    if facts["changed"]:
        raise Failed("our second apply has changed something")
    return seconds


def stage_of(name: str, run: str, log: logging.Logger, task: Any) -> Mapping[str, Any]:
    """What `execute` does with a stage, but for Airflow's own part: the asset event."""
    from nim_rollouts.hooks.session import Session
    from nim_rollouts.operators.base import RESULT, Stage

    session = Session(ENVIRONMENT, "", run)
    stage = Stage(name, session, {"ti": SimpleNamespace(try_number=1)}, log, ("environment",))
    facts: Mapping[str, Any] = task.run(stage)
    session.ledger.record(name, 1, RESULT, facts)
    return facts


def variables(r: Rehearsal, folder: Path) -> dict[str, str]:
    """Of a worker: its work folder, its connection."""
    connection = {"conn_type": "aws", "extra": {"endpoint_url": r.url("aws"), "region_name": "us-west-2"}}
    return aws_environment(r.url("aws")) | {
        "NIM_ROLLOUTS_WORK": str(folder / "work"),
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection),
    }


def buckets() -> list[str]:
    """That the environment's file names: made before the clock runs."""
    text = yaml.safe_load((ROOT / "include" / "environments" / f"{ENVIRONMENT}.yaml").read_text())
    return [text["terraform"]["state"]["bucket"], text["store"]["bucket"]]
