"""The environment's infrastructure: plan, apply of exactly that plan, outputs, drift.

The saved plan travels in the store under its checksum, with the provider versions that it was made with, so that the
apply may run on another worker. A plan that our own apply began and did not finish is made again, and goes on only
where nothing is in it that the first one did not show.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nim_rollouts.core import planning
from nim_rollouts.core.errors import NeedsHumanError, NimRolloutsError, TerraformFailed
from nim_rollouts.operators.base import INTENT, RESULT, Facts, Stage, StageOperator
from nim_rollouts.operators.stopping import StopsTerraform

if TYPE_CHECKING:
    from nim_rollouts.clients.terraform import Terraform
    from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary

PLAN_STAGE = "terraform_plan"
#: Kind of the record that says which state a try of an apply left.
LEFT = "left"
#: In an intent: the reason for which terraform has not begun.
REFUSED = "refused"


class TerraformStage(StopsTerraform, StageOperator):
    """A stage that runs terraform. Stopping the task lets terraform finish what is in flight."""

    claim_scopes: ClassVar[tuple[str, ...]] = ("environment",)

    def terraform(self, stage: Stage, *, lock_file: bytes | None = None, purpose: str | None = None) -> Terraform:
        """terraform, initialised on the environment's state.

        :param lock_file: provider versions to use
        :param purpose: name of a work folder of its own; None: the environment's
        """
        from nim_rollouts.hooks.infrastructure import backend, open_terraform

        environment = stage.session.environment
        more = {} if purpose is None else {"purpose": purpose}
        terraform = self.stoppable(open_terraform(environment, stage.session.include, stage.log.info, **more))
        terraform.owner = {"run": stage.session.run_id, "task": stage.name, "try": stage.try_number}
        terraform.holders = lambda: _elsewhere(stage)
        terraform.init(backend(environment), **({} if lock_file is None else {"lock_file": lock_file}))
        return terraform


class TerraformPlanOperator(TerraformStage):
    """Plans, and keeps the plan in the store."""

    def run(self, stage: Stage) -> Facts:
        """Changes nothing. Facts: the summary (`changes`, `reasons`, `checksum` and more), and where the plan lies."""
        terraform = self.terraform(stage)
        plan = self.plan(stage, terraform)
        for line in plan.lines():
            stage.log.info("  %s", line)
        key = plan_key(stage, plan.checksum)
        stage.session.store.put(key, Path(plan.plan_file).read_bytes())
        if lock_file := terraform.lock_file():
            stage.session.store.put(lock_key(key), lock_file)
        more = {"plan_key": key, "summary": plan.text(), "reasons": plan.reasons(), "state_serial": plan.serial}
        return plan.as_facts() | more

    def plan(self, stage: Stage, terraform: Terraform) -> PlanSummary:
        """The plan. Looked into where somebody will be shown it."""
        from nim_rollouts.hooks import interrupted

        asked = _policy(stage) == "always" or None
        return interrupted.plan(terraform, stage.session, stage.log.info, explain=asked)


class TerraformApplyOperator(TerraformStage):
    """Applies the plan of this run, if it may be applied."""

    #: Whose plan.
    plan_stage: ClassVar[str] = PLAN_STAGE

    def run(self, stage: Stage) -> Facts:
        """Nothing to change: done without starting terraform."""
        from nim_rollouts.clients.terraform_plan import PlanSummary

        planned = stage.session.facts(self.plan_stage)
        plan = PlanSummary.from_facts(planned)
        if not plan.has_changes:
            stage.log.info("the plan has no changes: nothing to apply")
            return self._facts(plan, None) | {"state_serial": planned.get("state_serial")}
        refuse_unapproved(stage, plan)
        terraform = self.terraform(stage, lock_file=stage.session.store.get(lock_key(planned["plan_key"])))
        if self._was_started(stage, plan):
            stage.log.info("this plan was applied before, in part or whole: planning again")
            return self._again(stage, terraform, plan)
        saved = self._saved(stage, planned["plan_key"])
        with terraform.saved_plan(saved) as file:
            try:
                return self._apply(stage, terraform, plan, file)
            except TerraformFailed as error:
                if error.reason != "plan-stale":
                    raise
                # None of our tries has begun to apply it: it was not us.
                raise planning.state_moved("it has changed since it was planned on") from error

    def _apply(
        self, stage: Stage, terraform: Terraform, plan: PlanSummary, file: Path | None = None, *, approved: str = ""
    ) -> Facts:
        """Apply, and write down which state is left, however that ends. Where terraform has not begun, the next try
        takes this very plan again: a lock that somebody held is no reason to apply what the files say by then."""
        from nim_rollouts.hooks import interrupted

        intent = self._intend(stage, plan, approved or plan.checksum)
        try:
            with interrupted.applying(stage.session, plan.checksum, terraform):
                applied = terraform.apply(file, expect_checksum=plan.checksum)
        except NimRolloutsError as error:
            if not terraform.began:
                stage.intend(intent | {REFUSED: error.reason})
            raise
        finally:
            left = terraform.left()
            if left is not None and terraform.began:
                facts = {"checksum": plan.checksum, "lineage": left.lineage, "serial": left.serial}
                stage.session.ledger.record(stage.name, stage.try_number, LEFT, facts)
        return self._facts(plan, applied) | {"state_serial": left.serial if left else terraform.state_serial()}

    def _again(self, stage: Stage, terraform: Terraform, approved: PlanSummary) -> Facts:
        told = self._left(stage, terraform, approved)
        plan = self.plan(stage, terraform)
        more = {"checksum": approved.checksum, "replanned": plan.text()}
        if not planning.left_to_do(approved, plan, told, held=terraform.released_own_lock):
            return self._facts(approved, None) | more | {"state_serial": plan.serial}
        return self._apply(stage, terraform, plan, approved=approved.checksum) | more

    def plan(self, stage: Stage, terraform: Terraform) -> PlanSummary:
        """What is left to do."""
        from nim_rollouts.hooks import interrupted

        return interrupted.plan(terraform, stage.session, stage.log.info)

    @staticmethod
    def _intend(stage: Stage, plan: PlanSummary, approved: str) -> Facts:
        """Before terraform is started: which plan, on which state, from which process."""
        from nim_rollouts.clients.terraform_locks import this_worker

        facts = {"checksum": approved, "applies": plan.checksum, "run_id": stage.session.run_id}
        facts |= {"lineage": plan.lineage, "serial": plan.serial} | this_worker()
        stage.intend(facts)
        return facts

    @staticmethod
    def _left(stage: Stage, terraform: Terraform, plan: PlanSummary) -> set[planning.Mark]:
        """States that our own tries of this plan left: as recorded, and as noted in the work folder by an apply whose
        worker was gone by then."""
        applied = {plan.checksum}
        found = set()
        for one in stage.session.ledger.records(stage.name):
            if one.kind == INTENT and one.facts.get("checksum") == plan.checksum:
                applied.add(str(one.facts.get("applies")))
            if one.kind == LEFT:
                found.add((str(one.facts["checksum"]), (str(one.facts["lineage"]), int(one.facts["serial"]))))
        marks = {mark for checksum, mark in found if checksum in applied}
        noted = terraform.left()
        if noted is not None and noted.checksum in applied:
            marks.add((noted.lineage, noted.serial))
        if (home := terraform.brought_home) is not None:
            marks.add((home.lineage, home.serial))
        return marks

    @staticmethod
    def _was_started(stage: Stage, plan: PlanSummary) -> bool:
        """Whether a try may have changed something by it. One that was killed counts: nobody says that it did not."""
        mine = [one for one in stage.session.ledger.records(stage.name) if one.kind in (INTENT, RESULT)]
        return any(one.facts.get("checksum") == plan.checksum and REFUSED not in one.facts for one in mine)

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

        terraform = self.terraform(stage)
        outputs: dict[str, Any] = terraform.output()
        if command := outputs.get("configure_kubectl"):
            stage.log.info("kubectl access: %s", command)
        if not outputs:
            raise TerraformFailed("the state holds no outputs", reason="outputs-missing",
                                  hint="Clear terraform_plan and the tasks after it")  # fmt: skip
        remember_networks(stage.session.environment, stage.session.store, outputs, terraform.state_list)
        return {"outputs": outputs}


class TerraformDriftOperator(TerraformStage):
    """Whether what stands is what the files say. Works beside a deploy's own terraform, in a folder of its own.

    :param fail: end the task as failed when there is drift
    """

    claim_scopes: ClassVar[tuple[str, ...]] = ()
    reads_only = True

    def __init__(self, *, fail: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fail = fail

    def run(self, stage: Stage) -> Facts:
        """Changes nothing. Facts: `drift` (`none` or `found`), `changes`, `outside`: what somebody else changed."""
        from nim_rollouts.hooks.infrastructure import variables

        terraform = self.terraform(stage, purpose="drift")
        plan = terraform.drift(variables(stage.session.environment))
        for line in plan.lines():
            stage.log.info("  %s", line)
        facts = {
            "drift": "found" if plan.has_changes else "none",
            "changes": [list(change) for change in plan.changes],
            "outside": [list(change) for change in plan.drift],
            "details": plan.details,
            "summary": plan.text(),
        }
        if plan.has_changes and self.fail:
            raise TerraformFailed(f"the infrastructure has drifted: {plan.text()}", reason="drift",
                                  hint="Trigger nim_deploy, whose plan shows the way back")  # fmt: skip
        return facts


def refuse_unapproved(stage: Stage, plan: PlanSummary) -> None:
    """Nothing, if this very plan may be applied: by the environment's policy, or by the answer that is kept for it.

    :raises NeedsHumanError: it was not approved
    """
    from nim_rollouts.clients.approvals import read_answer
    from nim_rollouts.core.approval import need

    answer = read_answer(stage.session.store, stage.session.environment.name, plan.checksum)
    needed = need(_policy(stage), plan.changes).needed
    why = planning.refused(answer.answer if answer else None, needed)
    if why is not None:
        raise NeedsHumanError(
            f"the plan {plan.checksum[:12]} ({plan.text()}) is not applied: {why}",
            layer="approval",
            reason="not-approved",
            hint="Trigger a new run, and have its plan approved: Airflow shows a cleared task's first question only",
        )


def plan_key(stage: Stage, checksum: str) -> str:
    """Where a saved plan lies in the store."""
    session = stage.session
    return f"plans/{session.environment.name}/{session.rollout}/{checksum}.tfplan"


def lock_key(plan: str) -> str:
    """Where the provider versions of the plan of this key lie."""
    return plan.removesuffix(".tfplan") + ".lock.hcl"


def _elsewhere(stage: Stage) -> dict[str, str]:
    """Workers of this run's earlier tries, other than this one, and why a lock of theirs is left alone."""
    from nim_rollouts.clients.terraform_locks import whoami

    found = {}
    for one in stage.session.ledger.records():
        if one.kind == INTENT and (who := one.facts.get("who")) and who != whoami():
            found[str(who)] = (
                f"there try {one.try_number} of {one.stage} of this run has worked (pid {one.facts.get('pid')});"
                " from here nobody can see whether its terraform, which outlives its worker, still runs"
            )
    return found


def _policy(stage: Stage) -> str:
    return str(stage.session.environment.policies.approval)
