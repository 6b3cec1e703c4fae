"""Our waits with nothing before them: the shared rehearsal's Airflow reads these two beside the pipelines.

`waits_at_once`: every kind of wait side by side. `waits_in_a_row`: one at a time, so that nothing but the wait itself
is in its time. What they wait for, and the records that they read, are the test's (`test_waits_lost.py`).
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from nim_rollouts.operators.base import DEFAULT_ARGS
from nim_rollouts.operators.waits import (
    WaitBenchmarkOperator,
    WaitCacheOperator,
    WaitGoneOperator,
    WaitPlatformOperator,
    WaitServiceOperator,
)

PARAMS = {
    "environment": Param("rehearsal", type="string"),
    "deployment": Param("waits-at-once", type="string"),
}

with DAG("waits_at_once", schedule=None, catchup=False, max_active_runs=100, params=PARAMS, default_args=DEFAULT_ARGS):
    WaitPlatformOperator(task_id="wait_platform")
    WaitCacheOperator(task_id="wait_cache")
    WaitServiceOperator(task_id="wait_service")
    WaitBenchmarkOperator(task_id="wait_benchmark")
    WaitGoneOperator(task_id="wait_services_gone")
    WaitGoneOperator(task_id="wait_caches_gone")
    WaitGoneOperator(task_id="wait_nodes_gone")

with DAG("waits_in_a_row", schedule=None, catchup=False, params=PARAMS, default_args=DEFAULT_ARGS):
    cache, service = WaitCacheOperator(task_id="wait_cache"), WaitServiceOperator(task_id="wait_service")
    WaitPlatformOperator(task_id="wait_platform") >> cache >> service >> WaitBenchmarkOperator(task_id="wait_benchmark")
