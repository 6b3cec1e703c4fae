"""The DAG files: they import alone and fast, and every task keeps the house's rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "dags"

# Airflow's own asset code imports every provider's URI handlers, boto3 among them, on the first Asset of a process:
# what counts is what our files add to that.
_PROBE = """
import importlib.util, json, sys, time
from airflow.sdk import Asset
Asset(name="probe", uri="probe://x")
before, began = set(sys.modules), time.process_time()
spec = importlib.util.spec_from_file_location("probed", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps({"cpu_s": time.process_time() - began, "modules": sorted(set(sys.modules) - before)}))
"""
_HEAVY = (
    *("boto3", "botocore", "kubernetes", "kubernetes_asyncio", "requests", "aiohttp", "urllib3", "websocket", "yaml"),
    *("airflow.providers.amazon", "airflow.providers.cncf"),
    *("nim_rollouts.clients", "nim_rollouts.hooks", "nim_rollouts.core.spec"),
)


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Both DAGs as Airflow's dag-processor gets them: imported, then serialized and read back."""
    os.environ.setdefault("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(DAGS))
    assert bag.import_errors == {}
    return dict(bag.dags)


def test_there_are_the_two_pipelines(dags: dict) -> None:
    assert set(dags) == {"nim_deploy", "nim_teardown"}


@pytest.mark.parametrize("file", sorted(DAGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_dag_file_is_wiring_only_and_parses_fast(file: Path, tmp_path: Path) -> None:
    assert len(file.read_text().splitlines()) < 120
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(file)], env=environment, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    heavy = [name for name in answer["modules"] if any(name == one or name.startswith(f"{one}.") for one in _HEAVY)]
    assert heavy == []
    assert answer["cpu_s"] < 1.0


def test_every_task_is_retried_by_the_one_policy_and_has_its_asset(dags: dict) -> None:
    from nim_rollouts.operators.retry import ErrorClassRetryPolicy

    for dag in dags.values():
        assert dag.tags and dag.doc_md
        for task in dag.tasks:
            assert task.retries >= 1, task.task_id
            assert task.retry_delay.total_seconds() <= 30, task.task_id
            assert isinstance(_attribute(task, "retry_policy"), ErrorClassRetryPolicy), task.task_id
            assert [asset.name for asset in _attribute(task, "outlets")] == [f"nim-rollouts-{task.task_id}"]


def test_the_order_of_a_rollout(dags: dict) -> None:
    wanted = [
        "validate", "terraform_plan", "approve_plan", "terraform_apply", "terraform_outputs", "cluster_access",
        "install_addon",
        "apply_platform", "wait_platform", "verify_platform", "apply_secrets", "apply_cache", "wait_cache",
        "apply_service", "wait_service", "gate", "smoke_test", "apply_benchmark", "wait_benchmark", "judge", "promote",
        "conclude",
    ]  # fmt: skip
    dag = dags["nim_deploy"]
    for task, after in zip(wanted, wanted[1:], strict=False):
        assert after in dag.get_task(task).downstream_task_ids
    assert dag.get_task("reject").downstream_task_ids == {"conclude"}
    assert [task.task_id for task in dag.leaves] == ["conclude"]


def test_the_order_of_a_teardown(dags: dict) -> None:
    """Each before what it needs to disappear: services before caches, node pools before Karpenter, all of the cluster
    before what it stands on."""
    wanted = [
        "validate", "plan_destroy", "approve_destroy", "approve_finalizers", "delete_services", "wait_services_gone",
        "delete_caches", "wait_caches_gone", "delete_namespaces", "delete_node_pools", "wait_nodes_gone",
        "delete_node_classes", "uninstall_addons", "wait_network_free", "uninstall_karpenter", "terraform_destroy",
        "verify_gone", "conclude",
    ]  # fmt: skip
    dag = dags["nim_teardown"]
    for task, after in zip(wanted, wanted[1:], strict=False):
        assert after in dag.get_task(task).downstream_task_ids
    assert dag.get_task("free_network").upstream_task_ids == {"wait_nodes_gone"}
    assert dag.get_task("free_network").downstream_task_ids == {"uninstall_addons"}
    assert dag.get_task("delete_storage_class").downstream_task_ids == {"terraform_destroy"}
    # What is skipped for its scope skips no deletion in the cluster; a no skips the first of them, also when cleared.
    assert "delete_services" in dag.get_task("approve_destroy").downstream_task_ids
    for task in ("approve_finalizers", "delete_services"):
        assert dag.get_task(task).trigger_rule == "none_failed"
    assert [task.task_id for task in dag.leaves] == ["conclude"]


def test_a_teardown_that_nobody_thought_about_takes_nothing_down(dags: dict) -> None:
    params = dags["nim_teardown"].params
    assert (params["scope"], params["deployment"], params["confirm"]) == ("deployment", "", "")


def test_waits_start_from_their_trigger_and_render_nothing_but_names(dags: dict) -> None:
    waits = [task for dag in dags.values() for task in dag.tasks if task.task_id.startswith("wait_")]
    assert len(waits) == 8
    for task in waits:
        assert task.start_from_trigger is True
        arguments = task.start_trigger_args
        assert arguments.next_method == "finish"
        assert arguments.trigger_kwargs["stage"] == task.task_id
        assert arguments.trigger_kwargs["environment"] == "{{ params.environment }}"
        # Rendered there only if a template field here; an XCom in it would hang the triggerer.
        assert {"environment", "deployment", "run_id"} <= set(task.template_fields)
        assert "xcom" not in json.dumps(arguments.trigger_kwargs)
        assert task.execution_timeout is not None


def test_nothing_else_defers_but_what_is_slow_enough() -> None:
    """A trigger that fires in the first 8 s after a worker's deferral can lose the task (`execute` of a wait is for
    `dag.test` alone: Airflow's scheduler starts it in the triggerer)."""
    from nim_rollouts.operators.approval import LOOK_AFTER_S
    from nim_rollouts.operators.validate import LOOK_AGAIN_S

    deferring = {path.name for path in (ROOT / "plugins").rglob("*.py") if "self.defer(" in path.read_text()}
    assert deferring == {"approval.py", "validate.py", "waits.py"}
    assert min(LOOK_AFTER_S, LOOK_AGAIN_S) > 8


def test_the_trigger_can_be_made_from_what_airflow_stores(dags: dict) -> None:
    from airflow.sdk.module_loading import import_string

    task = dags["nim_deploy"].get_task("wait_benchmark")
    cls = import_string(task.start_trigger_args.trigger_cls)
    trigger = cls(**task.start_trigger_args.trigger_kwargs)
    path, kwargs = trigger.serialize()
    assert path == task.start_trigger_args.trigger_cls
    assert kwargs == task.start_trigger_args.trigger_kwargs
    assert kwargs["stop_job"] is True
    assert all(hasattr(trigger, name) for name in ("environment", "deployment", "run_id"))


def test_a_started_wait_knows_its_run_and_lets_go_of_its_dag(dags: dict) -> None:
    """As Airflow's triggerer starts it: with a copy of the DAG and a context of its own."""
    import gc
    import uuid
    import weakref
    from datetime import UTC, datetime

    from airflow.executors.workloads.task import TaskInstanceDTO
    from airflow.jobs.triggerer_job_runner import TriggerRunner
    from airflow.sdk.module_loading import import_string
    from airflow.serialization.serialized_objects import DagSerialization

    dag, now = dags["nim_deploy"], datetime.now(UTC)
    arguments = dag.get_task("wait_service").start_trigger_args
    dto = TaskInstanceDTO(
        id=uuid.uuid4(), task_id="wait_service", dag_id="nim_deploy", run_id="manual__1", try_number=1,
        dag_version_id=uuid.uuid4(), pool_slots=1, priority_weight=1,
    )  # fmt: skip
    run = {
        "dag_id": "nim_deploy", "run_id": "manual__1", "end_date": None, "run_type": "manual", "state": "running",
        "consumed_asset_events": [], "partition_key": None, "conf": {},
        **dict.fromkeys(("logical_date", "data_interval_start", "data_interval_end", "run_after", "start_date"), now),
    }  # fmt: skip
    ti = TriggerRunner.create_runtime_ti(dto, DagSerialization.to_dict(dag), run)
    context = ti.get_template_context()
    trigger = import_string(arguments.trigger_cls)(**arguments.trigger_kwargs)
    trigger.task_instance = ti
    copy = weakref.ref(ti.task.dag)
    trigger.render_template_fields(context=context)
    assert (trigger.run_id, trigger.environment) == ("manual__1", "nvidia-nim-eks")
    gc.collect()
    assert copy() is None
    # What it needs of its task instance while it waits, and when it is killed.
    assert (ti.dag_id, ti.run_id, ti.task_id, ti.try_number) == ("nim_deploy", "manual__1", "wait_service", 1)


def test_the_dags_survive_serialization(dags: dict) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in dags.values():
        back = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        assert set(back.task_ids) == set(dag.task_ids)
        for task in back.tasks:
            assert task.retries >= 1
            if task.task_id.startswith("wait_"):
                assert task.start_from_trigger is True
                assert task.start_trigger_args.trigger_kwargs


def test_no_template_field_can_hold_a_secret(dags: dict) -> None:
    allowed = {
        "environment",
        "deployment",
        "run_id",
        "image_tag",
        "strategy",
        "skip_benchmark",
        "scope",
        "confirm",
        "addon",
    }
    for dag in dags.values():
        for task in dag.tasks:
            assert set(task.template_fields) <= allowed


def _attribute(task: object, name: str) -> Any:
    """Of a mapped task from what it is made with."""
    partial = getattr(task, "partial_kwargs", None)
    return partial[name] if partial is not None else getattr(task, name)
