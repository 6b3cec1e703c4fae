"""The part of nim_deploy that plans, asks and applies, without what it is for: the infrastructure of
`small_environment` carries no cluster."""

from __future__ import annotations

from airflow.sdk import DAG, Param, TriggerRule

from nim_rollouts.operators.approval import ApprovePlanOperator
from nim_rollouts.operators.base import DEFAULT_ARGS
from nim_rollouts.operators.decide import ConcludeOperator
from nim_rollouts.operators.terraform import TerraformApplyOperator, TerraformPlanOperator
from nim_rollouts.operators.validate import ValidateOperator

PARAMS = {
    "environment": Param("none", type="string"),
    "deployment": Param("meta-llama3-8b-instruct", type="string"),
    "image_tag": Param("", type="string"),
    "strategy": Param("replace", type="string"),
    "skip_benchmark": Param(True, type="boolean"),
}

with DAG("plans", schedule=None, catchup=False, max_active_runs=16, params=PARAMS, default_args=DEFAULT_ARGS):
    validate, plan = ValidateOperator(task_id="validate"), TerraformPlanOperator(task_id="terraform_plan")
    approve, apply = ApprovePlanOperator(task_id="approve_plan"), TerraformApplyOperator(task_id="terraform_apply")
    conclude = ConcludeOperator(
        task_id="conclude", success="applied", decisive="terraform_apply", trigger_rule=TriggerRule.ALL_DONE
    )
    validate >> plan >> approve >> apply >> conclude
