"""Operators for any root module, in any DAG: plan, show, apply of exactly that plan, output, destroy, drift.

They know nothing of environments, rollouts or ledgers (the pipelines' own operators: `operators.terraform`), and give
the same guarantees: variables never in argv, sensitive values never in logs, XCom or rendered fields, one SIGINT on a
stop, a dead worker's lock released only where it is certainly ours, and an apply of nothing but the plan that was seen.

    plan = RootPlanOperator(task_id="plan", root="/opt/roots/network", backend={...}, plans="s3://plans/network")
    apply = RootApplyOperator(task_id="apply", checksum="{{ ti.xcom_pull('plan')['checksum'] }}", root=..., ...)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from nim_rollouts.core import planning
from nim_rollouts.core.errors import NimRolloutsError, TerraformFailed
from nim_rollouts.operators.base import DEFAULT_ARGS, Facts
from nim_rollouts.operators.stopping import StopsTerraform

if TYPE_CHECKING:
    from nim_rollouts.clients.terraform import Terraform
    from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary
    from nim_rollouts.hooks.terraform import TerraformHook


class RootOperator(StopsTerraform, BaseOperator):
    """Base of the operators here; what a DAG's tasks of one root have in common can stand in its `default_args`.

    :param root: folder of the root module, on every worker (templated)
    :param backend: what its backend needs, as `-backend-config` takes it; no secrets (templated)
    :param plans: where plans are kept: a folder that all workers share, or `s3://bucket/prefix` (templated)
    :param variables: of the root, by name; shown in Airflow's UI, so no secrets (templated)
    :param secret_variables: of the root, by name: the Airflow connection whose password is the value
    :param aws_conn_id: connection whose credentials terraform gets; None: those of the worker
    :param region: of AWS; None: the connection's
    :param work_dir: folder on the worker for this state alone; None: one is chosen by root and backend
    :param plugin_dir: filesystem mirror of providers; None: looked for, else downloaded
    :param lock_timeout_s: how long to wait for a state lock that somebody else holds
    """

    template_fields: Sequence[str] = ("root", "backend", "plans", "variables")
    ui_color = "#e8f5d0"

    def __init__(
        self,
        *,
        root: str,
        backend: Mapping[str, Any],
        plans: str,
        variables: Mapping[str, Any] | None = None,
        secret_variables: Mapping[str, str] | None = None,
        aws_conn_id: str | None = "aws_default",
        region: str | None = None,
        work_dir: str | None = None,
        plugin_dir: str | None = None,
        lock_timeout_s: int = 60,
        **kwargs: Any,
    ) -> None:
        for name, value in DEFAULT_ARGS.items():
            if kwargs.get(name) is None:
                kwargs[name] = value
        super().__init__(**kwargs)
        self.root, self.backend, self.plans = root, dict(backend), plans
        self.variables = dict(variables or {})
        self.secret_variables = dict(secret_variables or {})
        self.aws_conn_id, self.region = aws_conn_id, region
        self.work_dir, self.plugin_dir, self.lock_timeout_s = work_dir, plugin_dir, lock_timeout_s

    def hook(self) -> TerraformHook:
        """The root, with its backend and its plans."""
        from nim_rollouts.hooks.terraform import TerraformHook

        return TerraformHook(
            self.root, self.backend, self.plans, aws_conn_id=self.aws_conn_id, region=self.region,
            work_dir=self.work_dir, plugin_dir=self.plugin_dir, lock_timeout_s=self.lock_timeout_s,
        )  # fmt: skip

    def terraform(
        self, context: Any, hook: TerraformHook, *, lock_file: bytes | None = None, purpose: str = "terraform"
    ) -> Terraform:
        """terraform, initialised."""
        ti = context["ti"]
        terraform = self.stoppable(hook.client(self.log.info, purpose=purpose))
        terraform.owner = {"dag": ti.dag_id, "run": ti.run_id, "task": ti.task_id, "try": ti.try_number}
        terraform.init(hook.backend, lock_file=lock_file)
        return terraform

    def values(self) -> dict[str, Any]:
        """All variables with their values; the secret ones are fetched here, and go into a private file alone."""
        from airflow.sdk import BaseHook

        secret = {name: BaseHook.get_connection(one).password for name, one in self.secret_variables.items()}
        return {**self.variables, **secret}

    def told(self, plan: PlanSummary) -> Facts:
        """The plan for the log and for XCom."""
        for line in plan.lines():
            self.log.info("  %s", line)
        return plan.as_facts() | {"summary": plan.text(), "reasons": plan.reasons()}


class RootPlanOperator(RootOperator):
    """Plans, and keeps the plan. XCom: the summary with its `checksum`, `changes`, `reasons` and `has_changes`.

    :param destroy: plan the destruction of everything in the state
    :param explain: look into every plan for what forces a replacement; None: only where something goes
    """

    def __init__(self, *, destroy: bool = False, explain: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.destroy, self.explain = destroy, explain

    def execute(self, context: Any) -> Facts:
        """Changes nothing."""
        hook = self.hook()
        terraform = self.terraform(context, hook)
        plan = terraform.plan(self.values(), self.destroy, explain=self.explain)
        return self.told(plan) | {"plan_key": hook.kept.put(plan, terraform.lock_file())}


class RootShowOperator(RootOperator):
    """What a kept plan does in full: every changed resource before and after. XCom: that, without sensitive values.

    :param checksum: which plan (templated)
    """

    template_fields = (*RootOperator.template_fields, "checksum")

    def __init__(self, *, checksum: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.checksum = checksum

    def execute(self, context: Any) -> Facts:
        """Reads only."""
        from nim_rollouts.clients.terraform_plan import planned_values, summarise

        hook = self.hook()
        terraform = self.terraform(context, hook, lock_file=hook.kept.lock_file(self.checksum))
        with terraform.saved_plan(hook.kept.plan(self.checksum)) as file:
            shown = terraform.show(file)
        return self.told(summarise(shown, checksum=self.checksum, plan_file="")) | planned_values(shown)


class RootApplyOperator(RootOperator):
    """Applies exactly one kept plan. A retry after its own interrupted apply plans again, and goes on only where that
    holds nothing which the first plan did not show, on a state that nobody else has moved.

    :param checksum: which plan: the one that was looked at, or approved (templated)
    """

    template_fields = (*RootOperator.template_fields, "checksum")

    def __init__(self, *, checksum: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.checksum = checksum

    def execute(self, context: Any) -> Facts:
        """XCom: what was done (`applied`, `add`, `change`, `destroy`, `changed`)."""
        hook = self.hook()
        plan = hook.kept.summary(self.checksum)
        if not plan.has_changes:
            self.log.info("the plan has no changes: nothing to apply")
            return {"checksum": plan.checksum, "changed": False, "summary": plan.text()}
        terraform = self.terraform(context, hook, lock_file=hook.kept.lock_file(plan.checksum))
        return self.apply(context, hook, terraform, plan)

    def apply(self, context: Any, hook: TerraformHook, terraform: Terraform, plan: PlanSummary) -> Facts:
        """Apply the plan, or what is left of it."""
        if hook.kept.begun(plan.checksum):
            return self._again(context, hook, terraform, plan)
        saved = hook.kept.plan(plan.checksum)
        self._begin(context, hook, plan)
        with terraform.saved_plan(saved) as file:
            try:
                return self._apply(hook, terraform, plan, file, plan.checksum)
            except NimRolloutsError as error:
                if not terraform.began:
                    # The next try takes this very plan again, and not what the files say by then.
                    hook.kept.not_begun(plan.checksum)
                if error.reason != "plan-stale":
                    raise
                raise planning.state_moved("it has changed since it was planned on") from error

    def _again(self, context: Any, hook: TerraformHook, terraform: Terraform, seen: PlanSummary) -> Facts:
        self.log.info("this plan was applied before, in part or whole: planning again")
        marks = hook.kept.left(seen.checksum)
        noted = (terraform.left(), terraform.brought_home)
        marks |= {
            (one.lineage, one.serial)
            for one in noted
            if one and (one.checksum in (seen.checksum, "") or hook.kept.is_rest(one.checksum, seen.checksum))
        }
        plan = terraform.plan(self.values(), seen.destruction)
        if not planning.left_to_do(seen, plan, marks, held=terraform.released_own_lock):
            return {"checksum": seen.checksum, "changed": False, "summary": plan.text()}
        self._begin(context, hook, plan, rest_of=seen.checksum)
        return self._apply(hook, terraform, plan, None, seen.checksum)

    def _apply(
        self, hook: TerraformHook, terraform: Terraform, plan: PlanSummary, file: Path | None, checksum: str
    ) -> Facts:
        applied: ApplySummary | None = None
        try:
            applied = terraform.apply(file, expect_checksum=plan.checksum)
        finally:
            if (left := terraform.left()) is not None and terraform.began:
                hook.kept.leave(checksum, left)
        return applied.as_facts() | {"checksum": checksum, "changed": applied.changed, "summary": applied.text()}

    @staticmethod
    def _begin(context: Any, hook: TerraformHook, plan: PlanSummary, rest_of: str = "") -> None:
        from nim_rollouts.clients.terraform_locks import this_worker

        facts = {
            "run_id": context["ti"].run_id,
            "rest_of": rest_of,
            "lineage": plan.lineage,
            "serial": plan.serial,
            **this_worker(),
        }
        hook.kept.begin(plan.checksum, facts)


class RootOutputOperator(RootOperator):
    """The outputs' values. XCom: by name, without those marked sensitive, which never leave terraform's own process."""

    def execute(self, context: Any) -> Facts:
        """Reads only."""
        return self.terraform(context, self.hook()).output()


class RootDestroyOperator(RootApplyOperator):
    """Destroys everything in the state: by a destruction plan that is kept first, and then applied as any other is.

    With `checksum`, it applies that plan (of a `RootPlanOperator(destroy=True)`), so that it can be approved before.
    """

    def __init__(self, *, checksum: str = "", **kwargs: Any) -> None:
        super().__init__(checksum=checksum, **kwargs)

    def execute(self, context: Any) -> Facts:
        """Nothing in the state is no error."""
        if self.checksum:
            return super().execute(context)
        hook = self.hook()
        terraform = self.terraform(context, hook)
        plan = terraform.plan(self.values(), destroy=True)
        self.told(plan)
        if not plan.has_changes:
            return {"checksum": plan.checksum, "changed": False, "summary": plan.text()}
        hook.kept.put(plan, terraform.lock_file())
        return self.apply(context, hook, terraform, plan)


class RootDriftOperator(RootOperator):
    """Whether what stands is what the files say (`plan -detailed-exitcode`); nothing is kept or changed.

    XCom: `drift` (`none` or `found`), `changes` (what an apply would do), `outside` (what somebody else has changed).

    :param fail: end the task as failed when there is drift
    """

    def __init__(self, *, fail: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fail = fail

    def execute(self, context: Any) -> Facts:
        """Works beside other tasks of the same state, in a folder of its own."""
        plan = self.terraform(context, self.hook(), purpose="drift").drift(self.values())
        facts = self.told(plan)
        if plan.has_changes and self.fail:
            raise TerraformFailed(f"the infrastructure has drifted: {plan.text()}", reason="drift",
                                  hint="Plan and apply, or take the change into the root")  # fmt: skip
        outside = [list(one) for one in plan.drift]
        return {**facts, "drift": "found" if plan.has_changes else "none", "outside": outside}
