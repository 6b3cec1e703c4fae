"""The environment's infrastructure: plan, apply of exactly that plan, outputs.

The saved plan travels in the store under its checksum, so that the apply may run on another worker. A plan that was
applied or has gone stale is made again, and goes on only where nothing is in it that the first one did not show.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nim_rollouts.core.errors import TerraformFailed
from nim_rollouts.operators.base import INTENT, RESULT, Facts, Stage, StageOperator

if TYPE_CHECKING:
    from nim_rollouts.clients.terraform import Terraform
    from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary

PLAN_STAGE = "terraform_plan"


class TerraformStage(StageOperator):
    """A stage that runs terraform. Stopping the task lets terraform finish what is in flight."""

    claim_scopes: ClassVar[tuple[str, ...]] = ("environment",)

    def terraform(self, stage: Stage) -> Terraform:
        """terraform, initialised on the environment's state."""
        from nim_rollouts.hooks.infrastructure import backend, open_terraform

        environment = stage.session.environment
        self._terraform = open_terraform(environment, stage.session.include, stage.log.info)
        self._terraform.init(backend(environment))
        return self._terraform

    def on_kill(self) -> None:
        """One interrupt: a second would lose state."""
        running: Terraform | None = getattr(self, "_terraform", None)
        if running is not None:
            running.stop()


class TerraformPlanOperator(TerraformStage):
    """Plans, and keeps the plan in the store."""

    def run(self, stage: Stage) -> Facts:
        """Changes nothing."""
        from nim_rollouts.hooks.infrastructure import variables

        terraform = self.terraform(stage)
        plan = terraform.plan(variables(stage.session.environment))
        for address, action in plan.changes:
            stage.log.info("  %s %s", action, address)
        key = _plan_key(stage, plan.checksum)
        stage.session.store.put(key, Path(plan.plan_file).read_bytes())
        return plan.as_facts() | {"plan_key": key, "summary": plan.text(), "state_serial": terraform.state_serial()}


class TerraformApplyOperator(TerraformStage):
    """Applies the plan of this run."""

    def run(self, stage: Stage) -> Facts:
        """Nothing to change: done without starting terraform."""
        from nim_rollouts.clients.terraform_plan import PlanSummary

        planned = stage.session.facts(PLAN_STAGE)
        plan = PlanSummary.from_facts({name: planned[name] for name in PlanSummary.__dataclass_fields__})
        if not plan.has_changes:
            stage.log.info("the plan has no changes: nothing to apply")
            return self._facts(plan, None) | {"state_serial": planned.get("state_serial")}
        terraform = self.terraform(stage)
        if self._was_started(stage, plan):
            stage.log.info("this plan was applied before, in part or whole: planning again")
            return self._again(stage, terraform, plan)
        stage.intend({"checksum": plan.checksum})
        try:
            with tempfile.TemporaryDirectory(prefix="nim-rollouts-") as folder:
                file = Path(folder) / "plan.tfplan"
                file.write_bytes(self._saved(stage, planned["plan_key"]))
                applied = terraform.apply(file, expect_checksum=plan.checksum)
        except TerraformFailed as error:
            if error.reason != "plan-stale":
                raise
            stage.log.info("the state has moved since the plan: planning again")
            return self._again(stage, terraform, plan)
        return self._facts(plan, applied) | {"state_serial": terraform.state_serial()}

    def _again(self, stage: Stage, terraform: Terraform, approved: PlanSummary) -> Facts:
        from nim_rollouts.hooks.infrastructure import variables

        plan = terraform.plan(variables(stage.session.environment))
        if not plan.within(approved.changes):
            seen = set(approved.changes)
            new = [f"{change[1]} {change[0]}" for change in plan.changes if change not in seen]
            raise TerraformFailed(
                f"what is left to do is not what was planned: {', '.join(new)}",
                reason="plan-changed",
                hint="Clear the terraform_plan task and those after it, and look at the new plan",
            )
        applied = terraform.apply(expect_checksum=plan.checksum) if plan.has_changes else None
        return self._facts(approved, applied) | {"replanned": plan.text(), "state_serial": terraform.state_serial()}

    @staticmethod
    def _was_started(stage: Stage, plan: PlanSummary) -> bool:
        records = stage.session.ledger.records()
        mine = [one for one in records if one.stage == stage.name and one.kind in (INTENT, RESULT)]
        return any(one.facts.get("checksum") == plan.checksum for one in mine)

    @staticmethod
    def _saved(stage: Stage, key: str) -> bytes:
        saved = stage.session.store.get(key)
        if saved is None:
            raise TerraformFailed(f"the saved plan {key} is not in the store", reason="plan-missing",
                                  hint="Clear the terraform_plan task, which makes it")  # fmt: skip
        return saved

    @staticmethod
    def _facts(plan: PlanSummary, applied: ApplySummary | None) -> Facts:
        done = applied.as_facts() if applied else {"applied": [], "add": 0, "change": 0, "destroy": 0, "elapsed_s": 0.0}
        return {"checksum": plan.checksum, "changed": bool(done["applied"]), **done}


class TerraformOutputsOperator(TerraformStage):
    """Writes the outputs down for the stages after it. Sensitive ones are left out."""

    def run(self, stage: Stage) -> Facts:
        """Reads only, but for the note of which network it is: a teardown's inventory looks there."""
        from nim_rollouts.hooks.inventory import remember_networks

        outputs: dict[str, Any] = self.terraform(stage).output()
        if command := outputs.get("configure_kubectl"):
            stage.log.info("kubectl access: %s", command)
        if not outputs:
            raise TerraformFailed("the state holds no outputs", reason="outputs-missing",
                                  hint="Clear terraform_plan and the tasks after it")  # fmt: skip
        remember_networks(stage.session.environment, stage.session.store, outputs)
        return {"outputs": outputs}


def _plan_key(stage: Stage, checksum: str) -> str:
    session = stage.session
    return f"plans/{session.environment.name}/{session.rollout}/{checksum}.tfplan"
