"""Takes an environment down in order, or one deployment of it, and proves that nothing is left.

Whatever a person has to say to it is asked before anything is deleted. Every step makes sure that something is absent,
so a run can be repeated from any point.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, TriggerRule

from nim_rollouts.operators.base import DEFAULT_ARGS
from nim_rollouts.operators.finalizers import ApproveFinalizersOperator
from nim_rollouts.operators.teardown import (
    ConcludeTeardownOperator,
    DeleteCachesOperator,
    DeleteServicesOperator,
    ValidateTeardownOperator,
)
from nim_rollouts.operators.teardown_addons import UninstallAddonsOperator, UninstallKarpenterOperator
from nim_rollouts.operators.teardown_nodes import DeleteNodeClassesOperator, DeleteNodePoolsOperator
from nim_rollouts.operators.teardown_platform import (
    DeleteNamespacesOperator,
    DeleteStorageClassOperator,
    FreeNetworkOperator,
)
from nim_rollouts.operators.teardown_terraform import (
    ApproveDestroyOperator,
    PlanDestroyOperator,
    TerraformDestroyOperator,
    VerifyGoneOperator,
)
from nim_rollouts.operators.waits import WaitGoneOperator

PARAMS = {
    "environment": Param("nvidia-nim-eks", type="string", minLength=1, title="Environment",
                         description="A file of include/environments/, without .yaml"),
    # The default takes nothing down as long as nothing is named.
    "scope": Param("deployment", type="string", enum=["deployment", "platform", "everything"], title="Scope",
                   description="deployment: one service and its cache; platform: all of ours in the cluster; "
                               "everything: that and the infrastructure, down to the network"),
    "deployment": Param("", type="string", title="Deployment",
                        description="With the scope deployment: which one. Else leave it empty"),
    "confirm": Param("", type="string", title="Confirm",
                     description="With the scopes platform and everything: type the environment's name"),
}  # fmt: skip

with DAG(
    dag_id="nim_teardown",
    description="Everything of an environment down in order, and proof that it is gone",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    tags=["nim", "teardown"],
) as dag:
    validate = ValidateTeardownOperator(task_id="validate")
    # Skip themselves, alone, when the infrastructure is to stay. A no skips all that follows but `conclude`.
    plan_destroy = PlanDestroyOperator(task_id="plan_destroy")
    approve_destroy = ApproveDestroyOperator(task_id="approve_destroy")
    # Asks where an operator is gone and its finalizers are not; else it skips itself, alone.
    approve_finalizers = ApproveFinalizersOperator(task_id="approve_finalizers", trigger_rule=TriggerRule.NONE_FAILED)
    delete_services = DeleteServicesOperator(task_id="delete_services", trigger_rule=TriggerRule.NONE_FAILED)
    wait_services_gone = WaitGoneOperator(task_id="wait_services_gone")
    delete_caches = DeleteCachesOperator(task_id="delete_caches")
    wait_caches_gone = WaitGoneOperator(task_id="wait_caches_gone")
    # Skips itself and all that follows when one deployment alone was to go.
    delete_namespaces = DeleteNamespacesOperator(task_id="delete_namespaces")
    delete_node_pools = DeleteNodePoolsOperator(task_id="delete_node_pools")
    wait_nodes_gone = WaitGoneOperator(task_id="wait_nodes_gone")
    delete_node_classes = DeleteNodeClassesOperator(task_id="delete_node_classes")
    # While their controllers still run; the proof is after the add-ons, whose releases may hold some too.
    free_network = FreeNetworkOperator(task_id="free_network")
    uninstall_addons = UninstallAddonsOperator(task_id="uninstall_addons")
    wait_network_free = WaitGoneOperator(task_id="wait_network_free")
    uninstall_karpenter = UninstallKarpenterOperator(task_id="uninstall_karpenter")
    delete_storage_class = DeleteStorageClassOperator(task_id="delete_storage_class")
    # Skips itself and what follows when the infrastructure is to stay.
    terraform_destroy = TerraformDestroyOperator(task_id="terraform_destroy")
    verify_gone = VerifyGoneOperator(task_id="verify_gone")
    conclude = ConcludeTeardownOperator(task_id="conclude", trigger_rule=TriggerRule.ALL_DONE)

    validate >> plan_destroy >> approve_destroy >> approve_finalizers >> delete_services >> wait_services_gone
    # Its own edge, so that Airflow skips the first deletion again when it is cleared after a no.
    approve_destroy >> delete_services
    wait_services_gone >> delete_caches >> wait_caches_gone
    wait_caches_gone >> delete_namespaces >> delete_node_pools >> wait_nodes_gone >> [delete_node_classes, free_network]
    [delete_node_classes, free_network] >> uninstall_addons >> wait_network_free
    wait_network_free >> [uninstall_karpenter, delete_storage_class] >> terraform_destroy >> verify_gone >> conclude
