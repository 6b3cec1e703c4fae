"""Rolls one deployment out in one environment: infrastructure, platform, model cache, service, gate, benchmark.

Ends promoted, or rejected with the reason and the service removed again (`on_first_failure` of the deployment).
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, TriggerRule

from nim_rollouts.lineage.assets import stage_asset
from nim_rollouts.operators.approval import ApprovePlanOperator
from nim_rollouts.operators.base import DEFAULT_ARGS
from nim_rollouts.operators.benchmark import ApplyBenchmarkOperator, JudgeOperator
from nim_rollouts.operators.decide import ConcludeOperator, PromoteOperator, RejectOperator
from nim_rollouts.operators.gate import GateOperator, SmokeTestOperator
from nim_rollouts.operators.helm import HelmReleaseOperator
from nim_rollouts.operators.model import ApplyCacheOperator, ApplyServiceOperator
from nim_rollouts.operators.platform import (
    ApplyPlatformOperator,
    ApplySecretsOperator,
    ClusterAccessOperator,
)
from nim_rollouts.operators.terraform import (
    TerraformApplyOperator,
    TerraformOutputsOperator,
    TerraformPlanOperator,
)
from nim_rollouts.operators.validate import STRATEGIES, ValidateOperator
from nim_rollouts.operators.verify import VerifyPlatformOperator
from nim_rollouts.operators.waits import (
    WaitBenchmarkOperator,
    WaitCacheOperator,
    WaitPlatformOperator,
    WaitServiceOperator,
)

PARAMS = {
    "deployment": Param("meta-llama3-8b-instruct", type="string", minLength=1, title="Deployment",
                        description="A file of include/deployments/, without .yaml"),
    "environment": Param("nvidia-nim-eks", type="string", minLength=1, title="Environment",
                         description="A file of include/environments/, without .yaml"),
    "image_tag": Param("", type="string", title="Image tag", section="Options",
                       description="Another tag than the deployment's own; empty: its own"),
    "strategy": Param(STRATEGIES[0], type="string", enum=list(STRATEGIES), title="Strategy", section="Options",
                      description="replace: the old service gives up its GPUs first, with downtime"),
    "skip_benchmark": Param(False, type="boolean", title="Skip the benchmark", section="Options",
                            description="Promote after the smoke test, without a look at the objectives"),
}  # fmt: skip

with DAG(
    dag_id="nim_deploy",
    description="One NVIDIA NIM deployment from nothing to a benchmarked service on Amazon EKS",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=16,
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    tags=["nim", "deploy"],
    render_template_as_native_obj=False,
) as dag:
    validate = ValidateOperator(task_id="validate")
    plan = TerraformPlanOperator(task_id="terraform_plan")
    # A no, or silence, skips all that follows but `conclude`, and the run ends well: nothing was changed.
    approve = ApprovePlanOperator(task_id="approve_plan")
    apply = TerraformApplyOperator(task_id="terraform_apply")
    outputs = TerraformOutputsOperator(task_id="terraform_outputs")
    access = ClusterAccessOperator(task_id="cluster_access")
    install_addon = HelmReleaseOperator.partial(
        task_id="install_addon",
        max_active_tis_per_dagrun=1,  # in the environment's order
        outlets=[stage_asset("install_addon")],
    ).expand(addon=validate.output)
    # An environment without add-ons skips their installation, and goes on.
    apply_platform = ApplyPlatformOperator(task_id="apply_platform", trigger_rule=TriggerRule.NONE_FAILED)
    wait_platform = WaitPlatformOperator(task_id="wait_platform")
    verify_platform = VerifyPlatformOperator(task_id="verify_platform")
    apply_secrets = ApplySecretsOperator(task_id="apply_secrets")
    apply_cache = ApplyCacheOperator(task_id="apply_cache")
    wait_cache = WaitCacheOperator(task_id="wait_cache")
    apply_service = ApplyServiceOperator(task_id="apply_service")
    wait_service = WaitServiceOperator(task_id="wait_service")
    gate = GateOperator(task_id="gate")
    smoke_test = SmokeTestOperator(task_id="smoke_test")
    apply_benchmark = ApplyBenchmarkOperator(task_id="apply_benchmark")
    wait_benchmark = WaitBenchmarkOperator(task_id="wait_benchmark")
    judge = JudgeOperator(task_id="judge")
    # Without a benchmark its tasks are skipped; the smoke test must have passed either way.
    promote = PromoteOperator(task_id="promote", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    reject = RejectOperator(task_id="reject", trigger_rule=TriggerRule.ONE_FAILED)
    conclude = ConcludeOperator(task_id="conclude", trigger_rule=TriggerRule.ALL_DONE)

    validate >> plan >> approve >> apply >> outputs >> access >> install_addon >> apply_platform >> wait_platform
    wait_platform >> verify_platform >> apply_secrets >> apply_cache >> wait_cache >> apply_service >> wait_service
    wait_service >> gate >> smoke_test >> apply_benchmark >> wait_benchmark >> judge
    [smoke_test, judge] >> promote
    rollout = [apply_cache, wait_cache, apply_service, wait_service, gate, smoke_test]
    [*rollout, apply_benchmark, wait_benchmark, judge, promote] >> reject
    [promote, reject] >> conclude
