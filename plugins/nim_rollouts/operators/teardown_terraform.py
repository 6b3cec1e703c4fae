"""The infrastructure's way down: planned and approved before anything at all is deleted, applied last; and the proof
that it is gone.

The steps in between do not touch terraform's state, and nobody else may while the environment's claim is held: so the
plan that was approved is the one that is applied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from nim_rollouts.core.approval import ALWAYS, Question
from nim_rollouts.core.errors import LeftoversFound, NimRolloutsError
from nim_rollouts.core.teardown import Scope
from nim_rollouts.operators.approval import ApprovePlanOperator, AskOperator
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.inventory import InventoryOperator
from nim_rollouts.operators.teardown_nodes import launched_nodes
from nim_rollouts.operators.teardown_volumes import refuse_volumes
from nim_rollouts.operators.terraform import TerraformApplyOperator, TerraformPlanOperator

if TYPE_CHECKING:
    from nim_rollouts.clients.approvals import Answer
    from nim_rollouts.clients.terraform import Terraform
    from nim_rollouts.clients.terraform_plan import PlanSummary

DESTROY_PLAN_STAGE = "plan_destroy"


class PlanDestroyOperator(TerraformPlanOperator):
    """Plans the destruction of everything in the state, and keeps the plan. Nothing in it is no error."""

    def run(self, stage: Stage) -> Facts:
        """Skipped when the infrastructure is to stay."""
        skip_unless_everything(stage)
        return super().run(stage)

    def plan(self, stage: Stage, terraform: Terraform) -> PlanSummary:
        """All of it goes."""
        from nim_rollouts.hooks import interrupted
        from nim_rollouts.hooks.inventory import remember_networks

        # What a killed apply has made and not written down is in no plan of a destruction, and would stay.
        interrupted.settle(terraform, stage.session, stage.log.info)
        # Once the state is empty, nothing else says in which network an untagged thing would lie.
        remember_networks(stage.session.environment, stage.session.store, terraform.output(), terraform.state_list)
        return _plan(stage, terraform)


class ApproveDestroyOperator(ApprovePlanOperator):
    """The environment's name, typed into the form, is the approval: kept under the plan's checksum with who typed it.
    The policy `always` asks besides; so does any but `never` where who typed it may not approve a plan: it is none of
    the `approvers`, or `four_eyes` wants another."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("plan_stage", DESTROY_PLAN_STAGE)
        kwargs.setdefault("title", "Destroy this")
        super().__init__(**kwargs)

    def question(self, stage: Stage) -> Question:
        """As of any plan; the policy decides whether it is put."""
        asked = super().question(stage)
        asked = replace(asked, body=f"{asked.body}\n\n{_goes_first(stage)}")
        typed = stage.session.facts("validate")["confirmed"]
        if asked.policy == ALWAYS or typed != stage.session.environment.name:
            return asked
        if asked.needed and not self._may_approve(stage):
            return asked
        return replace(asked, needed=False, why=f'"{typed}" was typed into the form to confirm it')

    @staticmethod
    def _may_approve(stage: Stage) -> bool:
        """Whether who typed the name could have answered the question as well."""
        policies = stage.session.environment.policies
        named = not policies.approvers or stage.session.request.triggered_by in policies.approvers
        return named and not policies.four_eyes

    @staticmethod
    def _keep(
        stage: Stage, question: Question, answer: str, *, by: str | None, at: str | None = None, asked: bool = True
    ) -> Answer:
        who = by if asked else stage.session.request.triggered_by
        return AskOperator._keep(stage, question, answer, by=who, at=at, asked=asked)


class TerraformDestroyOperator(TerraformApplyOperator):
    """Applies the approved plan of the destruction."""

    plan_stage = DESTROY_PLAN_STAGE

    def run(self, stage: Stage) -> Facts:
        """Skipped when the infrastructure is to stay; refused while a launched node is left: its instance would outlive
        the cluster, as a volume would. What holds a network that does not go is named."""
        from nim_rollouts.hooks.inventory import naming_holders, strangers

        skip_unless_everything(stage)
        _refuse_nodes(stage)
        refuse_volumes(stage)
        for line in strangers(stage.session.environment, stage.session.store):
            stage.log.warning("terraform cannot remove what this is in: %s", line)
        try:
            return super().run(stage)
        except NimRolloutsError as error:
            if error.reason != "dependency-violation":
                raise
            raise naming_holders(stage.session.environment, stage.session.store, error) from error

    def plan(self, stage: Stage, terraform: Terraform) -> PlanSummary:
        """What is left to destroy."""
        from nim_rollouts.hooks import interrupted

        found = _plan(stage, terraform)
        if not found.has_changes:
            interrupted.over(stage.session)  # our own destruction had come to its end after all
        return found


class VerifyGoneOperator(InventoryOperator):
    """Looks again everywhere: the state, and AWS itself."""

    claim_scopes: ClassVar[tuple[str, ...]] = ("environment",)
    reads_only: ClassVar[bool] = False
    work: ClassVar[str | None] = None

    def run(self, stage: Stage) -> Facts:
        """Empty is success; leftovers are listed; not being able to look is neither."""
        facts = super().run(stage)
        stage.log.info("nothing is left: the state is empty, AWS has nothing of the environment")
        return {"state": "empty", "aws": "empty"} | facts


def skip_unless_everything(stage: Stage) -> None:
    """Nothing, if the infrastructure is to go.

    :raises AirflowSkipException: it stays
    """
    from airflow.sdk.exceptions import AirflowSkipException

    if (scope := stage.session.facts("validate")["scope"]) != Scope.EVERYTHING:
        raise AirflowSkipException(f"the scope is {scope}: the infrastructure stays")


def _goes_first(stage: Stage) -> str:
    """What else a yes means. Of the run's own records alone: every try must put the question in the same words."""
    names = ", ".join(f"`{name}`" for name in sorted(stage.session.facts("validate")["deployments"]))
    return (
        "### What goes before it\n\n"
        f"Everything of ours in the cluster: services and caches of {names or 'no deployment'}, node pools with their "
        "nodes, add-ons, load balancers. A no deletes none of it."
    )


def _plan(stage: Stage, terraform: Terraform) -> PlanSummary:
    from nim_rollouts.hooks.infrastructure import variables

    return terraform.plan(variables(stage.session.environment), destroy=True)


def _refuse_nodes(stage: Stage) -> None:
    cluster = stage.session.cluster_if_any()
    nodes = launched_nodes(cluster) if cluster else []
    if nodes:
        raise LeftoversFound(
            f"launched nodes have come back: {', '.join(one['metadata']['name'] for one in nodes)}",
            hint="See who asks for them, then clear free_network and the tasks after it",
        )
