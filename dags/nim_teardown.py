"""Takes an environment down in order, or one deployment of it, and proves that nothing is left.

Every step makes sure that something is absent, so a run can be repeated from any point.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, TriggerRule

from nim_rollouts.operators.base import DEFAULT_ARGS
from nim_rollouts.operators.teardown import (
    ConcludeTeardownOperator,
    DeleteCachesOperator,
    DeleteServicesOperator,
    ValidateTeardownOperator,
)
from nim_rollouts.operators.teardown_platform import (
    DeleteNamespacesOperator,
    DeleteStorageClassOperator,
    ListNodesOperator,
    TerraformDestroyOperator,
    UninstallAddonsOperator,
    VerifyGoneOperator,
)
from nim_rollouts.operators.waits import WaitGoneOperator

PARAMS = {
    "environment": Param("nvidia-nim-eks", type="string", minLength=1, title="Environment",
                         description="A file of include/environments/, without .yaml"),
    "deployment": Param("", type="string", title="Deployment",
                        description="With the scope deployment: which one. Empty: all of them"),
    "scope": Param("platform", type="string", enum=["platform", "deployment"], title="Scope",
                   description="platform: everything, down to the network; deployment: one service and its cache"),
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
    delete_services = DeleteServicesOperator(task_id="delete_services")
    wait_services_gone = WaitGoneOperator(task_id="wait_services_gone")
    delete_caches = DeleteCachesOperator(task_id="delete_caches")
    wait_caches_gone = WaitGoneOperator(task_id="wait_caches_gone")
    # Skips itself and all that follows when one deployment alone was to go.
    delete_namespaces = DeleteNamespacesOperator(task_id="delete_namespaces")
    uninstall_addons = UninstallAddonsOperator(task_id="uninstall_addons")
    delete_storage_class = DeleteStorageClassOperator(task_id="delete_storage_class")
    list_nodes = ListNodesOperator(task_id="list_nodes")
    wait_nodes_gone = WaitGoneOperator(task_id="wait_nodes_gone")
    terraform_destroy = TerraformDestroyOperator(task_id="terraform_destroy")
    verify_gone = VerifyGoneOperator(task_id="verify_gone")
    conclude = ConcludeTeardownOperator(task_id="conclude", trigger_rule=TriggerRule.ALL_DONE)

    validate >> delete_services >> wait_services_gone >> delete_caches >> wait_caches_gone >> delete_namespaces
    delete_namespaces >> uninstall_addons >> delete_storage_class >> list_nodes >> wait_nodes_gone
    wait_nodes_gone >> terraform_destroy >> verify_gone >> conclude
