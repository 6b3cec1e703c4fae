"""The chain of nim_deploy with nothing in it: what Airflow alone needs to go through it.

A unit test holds its tasks and edges to those of nim_deploy. The waits start from a stock trigger that fires at once.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, TriggerRule
from airflow.triggers.base import StartTriggerArgs


class Empty(BaseOperator):
    """A task in a worker that does nothing. `items`: what it returns, for the mapped task after it."""

    def __init__(self, *, items: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.items = items

    def execute(self, context: Any) -> Any:
        """Nothing."""
        return list(range(self.items)) or None


class EmptyItem(BaseOperator):
    """One of a mapped task."""

    def __init__(self, *, item: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.item = item

    def execute(self, context: Any) -> Any:
        """Nothing."""


class EmptyWait(BaseOperator):
    """Starts in the triggerer and ends in a worker, as our waits do."""

    start_from_trigger = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="airflow.providers.standard.triggers.temporal.TimeDeltaTrigger",
            trigger_kwargs={"delta": timedelta(0)},
            next_method="finish",
        )

    def finish(self, context: Any, event: Any = None) -> None:
        """Nothing."""


with DAG("empty_rollout", schedule=None, catchup=False):
    task = {name: Empty(task_id=name, items=name == "validate") for name in (
        "validate", "terraform_plan", "approve_plan", "terraform_apply", "terraform_outputs", "cluster_access",
        "verify_platform",
        "apply_secrets", "apply_cache", "apply_service", "gate", "smoke_test", "apply_benchmark", "judge")}  # fmt: skip
    task |= {name: EmptyWait(task_id=name) for name in (
        "wait_platform", "wait_cache", "wait_service", "wait_benchmark")}  # fmt: skip
    task["install_addon"] = EmptyItem.partial(task_id="install_addon", max_active_tis_per_dagrun=1).expand(
        item=task["validate"].output
    )
    task["apply_platform"] = Empty(task_id="apply_platform", trigger_rule=TriggerRule.NONE_FAILED)
    promote = Empty(task_id="promote", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    reject = Empty(task_id="reject", trigger_rule=TriggerRule.ONE_FAILED)
    conclude = Empty(task_id="conclude", trigger_rule=TriggerRule.ALL_DONE)

    ids = ("validate", "terraform_plan", "approve_plan", "terraform_apply", "terraform_outputs", "cluster_access",
           "install_addon",
           "apply_platform", "wait_platform", "verify_platform", "apply_secrets", "apply_cache", "wait_cache",
           "apply_service", "wait_service", "gate", "smoke_test", "apply_benchmark", "wait_benchmark",
           "judge")  # fmt: skip
    chain = [task[name] for name in ids]
    for before, after in zip(chain, chain[1:], strict=False):
        before >> after
    [task["smoke_test"], task["judge"]] >> promote
    [*chain[chain.index(task["apply_cache"]) :], promote] >> reject
    [promote, reject] >> conclude
