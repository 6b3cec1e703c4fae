"""The first task: everything that can be refused is refused here, before anything is made or paid for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.errors import ClaimHeld, NimRolloutsError, SpecError, TransientError, one_line
from nim_rollouts.operators.base import Facts, Stage, StageOperator, run_mark

if TYPE_CHECKING:
    from nim_rollouts.clients.claims import Claim
    from nim_rollouts.core.spec import Deployment, Request
    from nim_rollouts.hooks.session import Session

log = logging.getLogger(__name__)

STRATEGIES = ("replace",)
# Longer than the 8 seconds in which a deferral can be lost to Airflow's own race.
LOOK_AGAIN_S = 60


class ClaimingOperator(StageOperator):
    """Validates a request, takes the run's claims and writes both down. A run that is cleared keeps its generation;
    an older one is refused by the claims themselves."""

    #: None to check: they are taken here.
    claim_scopes = ()

    def take_claims(self, stage: Stage, scopes: Sequence[str]) -> list[Claim]:
        """Take all claims, or none. A run that cannot have them all leaves no trace in any: a generation that it moved
        on would lock the last run's tasks.

        :raises ClaimHeld: a live run holds one; Superseded: this run is older than the claim's holder
        """
        from nim_rollouts.clients import claims
        from nim_rollouts.hooks.runs import is_ended
        from nim_rollouts.hooks.session import CLAIMS_KIND

        store, ti = stage.session.store, stage.context["ti"]
        holder = claims.Holder(ti.dag_id, ti.run_id)
        taken: list[Claim] = []
        try:
            for scope in scopes:
                claims.refuse_held(store, scope, holder, is_ended=is_ended)
            for scope in scopes:
                taken.append(claims.acquire(store, scope, holder, is_ended=is_ended))
        except NimRolloutsError as error:
            for claim in reversed(taken):
                claims.release(store, claim)
            if isinstance(error, ClaimHeld) and stage.session.environment.policies.claim == "wait":
                self._wait(stage, error)
            raise
        stage.session.ledger.record(
            stage.name,
            stage.try_number,
            CLAIMS_KIND,
            {
                "dag_id": holder.dag_id,
                "run_id": holder.run_id,
                "run_after": run_mark(stage.context),
                "taken": [{"scope": claim.scope, "generation": claim.generation} for claim in taken],
            },
        )
        return taken

    def _wait(self, stage: Stage, held: ClaimHeld) -> None:
        """By the environment's policy: look again in a minute, without a worker meanwhile."""
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

        stage.log.info("%s; the environment's policy is to wait, looking again in %d s", held.message, LOOK_AGAIN_S)
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=LOOK_AGAIN_S)), method_name="look_again")

    def look_again(self, context: Any, event: Any = None) -> Any:
        """After a wait for the claim: all of the validation once more, since the files may have changed."""
        return self.execute(context)

    @staticmethod
    def triggered_by(context: Any) -> str | None:
        """The user who triggered the run, or the way in which it came to be."""
        run = context["dag_run"]
        user = getattr(run, "triggering_user_name", None)
        kind = getattr(run, "run_type", None)
        return user or (str(getattr(kind, "value", kind)) if kind else None)


class ValidateOperator(ClaimingOperator):
    """Validates a rollout's request. Its XCom is the list of the add-ons' names, for mapping.

    :param image_tag: instead of the deployment's own; empty: its own
    :param strategy: `replace`
    :param skip_benchmark: true: promote after the smoke test
    """

    template_fields: Sequence[str] = (*StageOperator.template_fields, "image_tag", "strategy", "skip_benchmark")

    def __init__(
        self,
        *,
        image_tag: str = "{{ params.image_tag }}",
        strategy: str = "{{ params.strategy }}",
        skip_benchmark: str = "{{ params.skip_benchmark }}",
        **kwargs: Any,
    ) -> None:
        kwargs["do_xcom_push"] = True
        super().__init__(**kwargs)
        self.image_tag = image_tag
        self.strategy = strategy
        self.skip_benchmark = skip_benchmark

    def open_stage(self, context: Any) -> Stage:
        """The try. Both names are looked up first, so that one answer lists what is wrong with either."""
        from nim_rollouts.clients.include import Include

        include = Include()
        problems = Problems()
        problems.of(lambda: include.environment(self.environment))
        problems.of(lambda: include.deployment(self.deployment))
        if problems.found and not self._readable(include):
            problems.refuse(self.log)
        return super().open_stage(context)

    def _readable(self, include: Any) -> bool:
        """True when the run has a place in the ledger: an environment that loads, a deployment that exists."""
        try:
            include.environment(self.environment)
        except NimRolloutsError:
            return False
        return self.deployment in include.deployments()

    def run(self, stage: Stage) -> Facts:
        """Collect every problem, then take the claims, then write the request down."""
        from nim_rollouts.core.names import names_for

        session = stage.session
        problems = Problems()
        request = self._request(stage)
        deployment = problems.of(lambda: _resolved(session, request))
        if self.strategy not in STRATEGIES:
            problems.add(SpecError(f'strategy "{self.strategy}" is not one of {", ".join(STRATEGIES)}',
                                   hint="Choose one of them"))  # fmt: skip
        fitting: list[str] = []
        capacity: dict[str, Any] | None = None
        if deployment is not None:
            fitting = problems.of(lambda: _gpu_fit(session, deployment)) or []
            problems.of(lambda: _cache_fit(session, deployment))
            capacity = problems.of(lambda: _capacity(session, deployment)) if fitting else None
        image = problems.of(lambda: _ngc(session, deployment)) or {}
        if deployment is not None and image and not request.skip_benchmark:
            image |= problems.of(lambda: _benchmark_image(session, deployment)) or {}
        for problem in problems.of(lambda: _node_images(session)) or ():
            problems.add(problem)
        tools = check_tools(session, problems)
        problems.refuse(stage.log)
        assert deployment is not None

        environment_claim, deployment_claim = self._claim(stage)
        request = request.model_copy(
            update={
                "spec": deployment,
                "generation": deployment_claim.generation,
                "environment_generation": environment_claim.generation,
            }
        )
        session.ledger.record(stage.name, stage.try_number, "request", request.model_dump(mode="json", by_alias=True))
        names = names_for(deployment, session.rollout)
        stage.log.info("%s in %s: NIMCache %s, NIMService %s, generation %d", deployment.name,
                       session.environment.name, names.cache, names.service, deployment_claim.generation)  # fmt: skip
        return {
            "image": deployment.image.reference,
            "model": deployment.model,
            "nim_cache": names.cache,
            "nim_service": names.service,
            "generation": deployment_claim.generation,
            "environment_generation": environment_claim.generation,
            "triggered_by": request.triggered_by,
            "instance_types": fitting,
            **(capacity or {}),
            "addons": [addon.name for addon in session.environment.active_addons],
            **image,
            **tools,
        }

    def returned(self, facts: Facts) -> list[str]:
        """The add-ons' names: the one thing that must be an XCom, because a task is mapped over it."""
        return list(facts["addons"])

    def _claim(self, stage: Stage) -> list[Claim]:
        from nim_rollouts.clients import claims

        environment = stage.session.environment.name
        return self.take_claims(
            stage, [claims.environment_scope(environment), claims.deployment_scope(environment, self.deployment)]
        )

    def _request(self, stage: Stage) -> Request:
        from nim_rollouts.core.spec import Request

        ti = stage.context["ti"]
        return Request(
            environment=stage.session.environment.name,
            deployment=self.deployment,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            rollout_id=stage.session.rollout,
            triggered_by=self.triggered_by(stage.context),
            image_tag=self.image_tag or None,
            skip_benchmark=str(self.skip_benchmark).lower() == "true",
        )


class Problems:
    """What is wrong, collected so that one run tells all of it."""

    def __init__(self) -> None:
        self.found: list[NimRolloutsError] = []

    def add(self, error: NimRolloutsError) -> None:
        """One more."""
        self.found.append(error)

    def of(self, check: Callable[[], Any]) -> Any:
        """The check's result, or None with its problem noted."""
        try:
            return check()
        except NimRolloutsError as error:
            self.add(error)
            return None

    def refuse(self, log: Any) -> None:
        """Nothing, if there is no problem.

        :raises NimRolloutsError: the only problem itself, or one that lists them all
        """
        if not self.found:
            return
        for error in self.found:
            log.error("refused: %s", one_line(error))
        # What is wrong for good is told at once; a registry that does not answer is asked again only without it.
        final = [error for error in self.found if not isinstance(error, TransientError)]
        if len(final or self.found) == 1:
            raise (final or self.found)[0]
        if not final:
            # Of several that do not answer, the one that asks for the longest patience.
            raise max(self.found, key=lambda error: getattr(error, "retry_after_s", None) or 0.0)
        texts = [f"{error.message}. {error.hint}".strip() for error in final]
        raise SpecError(
            f"{len(texts)} problems: " + " | ".join(texts),
            reason="request-refused",
            hint="Correct all of them and trigger the run again",
            problems=texts,
        )


def _resolved(session: Session, request: Request) -> Deployment:
    from nim_rollouts.core.names import names_for
    from nim_rollouts.core.spec import resolve

    deployment = resolve(session.include.deployment(request.deployment), request)
    names_for(deployment, session.rollout)
    return deployment


def _gpu_fit(session: Session, deployment: Deployment) -> list[str]:
    from nim_rollouts.core.instances import INSTANCES, fits

    found = fits(deployment.service.resources.effective, session.environment.instance_types, deployment.profile.gpus)
    if strange := [name for name in found if name not in INSTANCES]:
        log.warning("instance_types: nothing is known here of %s; the service is taken to fit", ", ".join(strange))
    return found


def _cache_fit(session: Session, deployment: Deployment) -> None:
    """The download runs on the same kind of node, unless node pools say where."""
    from nim_rollouts.core.instances import fits

    if deployment.cache.resources and not session.environment.node_pools:
        fits(deployment.cache.asked, session.environment.instance_types, where="cache.resources")


def _node_images(session: Session) -> list[SpecError]:
    """GPU node pools whose images are not what node_os says."""
    from nim_rollouts.core.node_images import differing
    from nim_rollouts.operators import capacity

    return differing(session.environment.node_os, capacity.files(session))


def _capacity(session: Session, deployment: Deployment) -> dict[str, Any]:
    """The environment's node pools can start nodes for it, and the account's quotas leave room for them."""
    from nim_rollouts.operators import capacity

    found = capacity.fitting(session.environment, deployment, capacity.pools_of_files(session), standing=True)
    for line in capacity.unjudged(found):
        log.warning("%s", line)
    quotas = capacity.quotas(session.environment, deployment, found)
    for line in quotas["seen"]:
        log.info("quota %s: %s", quotas["outcome"], line)
    return {"node_pools": capacity.summary(found), "quotas": quotas}


def _benchmark_image(session: Session, deployment: Deployment) -> dict[str, Any]:
    """The benchmark's image is there too: without it the whole rollout would be paid for and not be judged. Of another
    registry nothing is known here."""
    from nim_rollouts.clients.ngc import from_connection
    from nim_rollouts.core.errors import NgcImageNotFound

    image = deployment.benchmark.image_parts
    if image.registry != deployment.image.registry:
        return {}
    try:
        found = from_connection(session.environment.ngc_conn_id).manifest(image.path, image.tag)
    except NgcImageNotFound as error:
        raise NgcImageNotFound(
            error.message,
            hint="benchmark.image of the deployment must name an image with aiperf that you have put there, "
            "or skip the benchmark",
        ) from None
    return {"benchmark_image_digest": found.digest}


def _ngc(session: Session, deployment: Deployment | None) -> dict[str, Any]:
    """The key is one, NGC takes it, and it may pull the exact tag."""
    from nim_rollouts.clients.ngc import from_connection

    ngc = from_connection(session.environment.ngc_conn_id)
    if deployment is None:
        return {}
    return {"image_digest": ngc.manifest(deployment.image.path, deployment.image.tag).digest}


def check_tools(session: Session, problems: Problems) -> dict[str, Any]:
    """terraform and Helm are on this worker, and the files that they will be given exist."""
    from nim_rollouts.clients.addon_files import addon_problems
    from nim_rollouts.clients.helm import find_binary
    from nim_rollouts.clients.terraform import Terraform
    from nim_rollouts.hooks.infrastructure import work_folder

    environment, include = session.environment, session.include
    root = include.path(environment.terraform.root)
    terraform = problems.of(lambda: Terraform(root, work_folder() / environment.name / "terraform", {}).binary())
    helm = problems.of(find_binary)
    if not any(root.glob("*.tf")):
        problems.add(SpecError(f"terraform.root: include/{environment.terraform.root} holds no terraform files"))
    for problem in addon_problems(environment, include):
        problems.add(problem)
    return {"terraform": terraform, "helm": helm}
