"""Down in order, the models' part: services, then caches with their claims and volumes.

Each step makes sure that something is absent, so the pipeline can be run again from any point, also when the cluster
itself does not exist any more. Finalizers are honoured: nothing is ever stripped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nim_rollouts.core.errors import ClusterUnavailable, NeedsHumanError
from nim_rollouts.core.teardown import Scope, refusals
from nim_rollouts.core.verdicts.objects import is_deleting
from nim_rollouts.operators.base import RESULT, Facts, Stage, StageOperator
from nim_rollouts.operators.decide import FAILED, ConcludeOperator, why
from nim_rollouts.operators.finalizers import APPROVE_STAGE, free
from nim_rollouts.operators.validate import ClaimingOperator, Problems, check_tools

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object

GONE = "gone"
APPROVE_DESTROY_STAGE = "approve_destroy"
NIM_API = "apps.nvidia.com/v1alpha1"
_BOTH = ("deployment", "environment")


class ValidateTeardownOperator(ClaimingOperator):
    """Checks what is to go, and takes the claims of all that it concerns.

    :param scope: `deployment`: one alone; `platform`: all that is in the cluster of ours; `everything`: that and the
        infrastructure
    :param confirm: the environment's name as it was typed; needed for all but one deployment
    """

    template_fields: Sequence[str] = (*StageOperator.template_fields, "scope", "confirm")

    def __init__(
        self, *, scope: str = "{{ params.scope }}", confirm: str = "{{ params.confirm }}", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.scope = scope
        self.confirm = confirm

    def run(self, stage: Stage) -> Facts:
        """Refuse, or claim and write the request down."""
        from nim_rollouts.clients import claims
        from nim_rollouts.core.spec import Request

        session = stage.session
        known = sorted(set(session.include.deployments()) | set(self._claimed(stage)))
        self._check(stage, known)
        whole = self.scope != Scope.DEPLOYMENT
        concerned = known if whole else [self.deployment]
        environment = session.environment.name
        scopes = [claims.deployment_scope(environment, name) for name in concerned]
        if whole:
            scopes.insert(0, claims.environment_scope(environment))
        taken = self.take_claims(stage, scopes)
        ti = stage.context["ti"]
        request = Request(
            environment=environment,
            deployment=session.scope,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            rollout_id=session.rollout,
            triggered_by=self.triggered_by(stage.context),
            generation=taken[-1].generation if taken else None,
            environment_generation=taken[0].generation if whole else None,
        )
        session.ledger.record(stage.name, stage.try_number, "request", request.model_dump(mode="json", by_alias=True))
        stage.log.info("to go: %s of %s", self.scope, ", ".join(concerned) or environment)
        generations = {name: claim.generation for name, claim in zip(concerned, taken[-len(concerned) :], strict=False)}
        return {
            "scope": self.scope,
            "deployments": generations,
            "triggered_by": request.triggered_by,
            "confirmed": self.confirm if whole else None,
        }

    def _check(self, stage: Stage, known: list[str]) -> None:
        problems = Problems()
        for refusal in refusals(stage.session.environment, self.scope, self.deployment, self.confirm, known):
            problems.add(refusal)
        if self.scope in (Scope.PLATFORM, Scope.EVERYTHING):
            # Better missed now than when half of it is gone.
            check_tools(stage.session, problems)
        problems.refuse(stage.log)
        if self.scope in (Scope.PLATFORM, Scope.EVERYTHING):
            self._refuse_others(stage)

    def _refuse_others(self, stage: Stage) -> None:
        """What others have there would stop the steps half-way, one after the other: it is told now, all at once."""
        from nim_rollouts.operators.teardown_others import others

        try:
            cluster = stage.session.cluster_if_any()
        except ClusterUnavailable as unavailable:
            if unavailable.reason != "cluster-not-active":
                raise
            # A killed apply's: planning waits for it, and it has nobody in it yet.
            stage.log.info("%s: nobody is looked for in it", unavailable.message)
            return
        if cluster is None:
            return
        problems, everything = Problems(), self.scope == Scope.EVERYTHING
        problems.found += others(cluster, stage.session.environment, marks(stage, ""), whole=everything)
        problems.refuse(stage.log)

    @staticmethod
    def _claimed(stage: Stage) -> list[str]:
        """Deployments that were ever claimed here: a file may have been removed since."""
        prefix = f"claims/{stage.session.environment.name}/"
        names = [key.removeprefix(prefix).removesuffix(".json") for key in stage.session.store.list(prefix)]
        return [name for name in names if not name.startswith("_") and "/" not in name]


class DeletingOperator(StageOperator):
    """Orders deletions and names them with their uids for the wait that follows."""

    claim_scopes = _BOTH

    def perform(self, context: Any, work: Callable[[Stage], Facts]) -> Any:
        """As of any stage, but never after a no: Airflow skips what follows one, until somebody clears it."""

        def agreed(stage: Stage) -> Facts:
            refuse_declined(stage)
            return work(stage)

        return super().perform(context, agreed)

    def cluster(self, stage: Stage) -> Cluster | None:
        """None when there is no cluster any more, and so nothing to delete in it."""
        return stage.session.cluster_if_any()

    def selector(self, stage: Stage) -> str:
        """Labels of what this run concerns."""
        return marks(stage, self.deployment)

    def delete(
        self, stage: Stage, cluster: Cluster, objects: Iterable[Object], also: Iterable[Object] = ()
    ) -> list[dict[str, Any]]:
        """Delete by name, uid and generation; what is on its way out already is only named.

        The names are written down before anything is deleted: a try after this one may not find them any more.

        :param also: what goes with them by itself, and is to be waited for
        """
        from nim_rollouts.core.manifests import DEPLOYMENT_LABEL

        objects, also = list(objects), list(also)
        removed = self.named_all([*objects, *also])
        stage.intend({"removed": removed})
        generations = stage.session.facts("validate")["deployments"]
        for obj in objects:
            if is_deleting(obj):
                continue
            metadata = obj["metadata"]
            stage.check_claims()
            owner = (metadata.get("labels") or {}).get(DEPLOYMENT_LABEL)
            cluster.delete(obj, uid=metadata["uid"], generation=generations.get(owner))
            stage.log.info("%s/%s: deletion ordered", obj["kind"], metadata["name"])
        free(stage, cluster, [*objects, *also])
        return removed

    @staticmethod
    def named_all(objects: Iterable[Object]) -> list[dict[str, Any]]:
        """What a record keeps of them."""
        return [named(one) for one in objects]


class DeleteServicesOperator(DeletingOperator):
    """Freezes the traffic, then takes NIMPipelines, NIMServices and benchmarks: all that holds a GPU or a claim."""

    #: What clients come in by goes first; a pipeline before the services that it would make again.
    _KINDS = (
        ("v1", "Service"),
        (NIM_API, "NIMPipeline"),
        (NIM_API, "NIMService"),
        ("batch/v1", "Job"),
        ("v1", "ConfigMap"),
    )

    def run(self, stage: Stage) -> Facts:
        """Order the deletions."""
        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": [], "cluster": "absent"}
        selector = self.selector(stage)
        found = [
            one
            for api_version, kind in self._KINDS
            for one in cluster.list(api_version, kind, None, label_selector=selector)
        ]
        for service in (one for one in found if one["kind"] == "Service" and not is_deleting(one)):
            place = f"{service['metadata']['name']}.{service['metadata'].get('namespace')}"
            stage.log.warning("traffic ends here: clients of %s are refused from now on", place)
        return {"removed": self.delete(stage, cluster, found), "cluster": "present"}


class DeleteCachesOperator(DeletingOperator):
    """NIMCaches; their claims and volumes go with them."""

    def run(self, stage: Stage) -> Facts:
        """Order the deletions, and name the volumes that must go too."""
        cluster = self.cluster(stage)
        if cluster is None:
            return {"removed": []}
        caches = cluster.list(NIM_API, "NIMCache", None, label_selector=self.selector(stage))
        volumes = self._volumes(stage, cluster, caches)
        return {"removed": self.delete(stage, cluster, caches, volumes)}

    def _volumes(self, stage: Stage, cluster: Cluster, caches: list[Object]) -> list[Object]:
        """The volumes of the caches' claims, and of those that an earlier, interrupted run took away: by their claim's
        name, which no deployment of a longer name has. Before the file system is destroyed all of the environment's
        storage class: somebody else's holds the teardown up, and should, for its data lies there."""
        from nim_rollouts.core.names import is_claim_of

        claims = {
            (one["metadata"]["namespace"], (one.get("status") or {}).get("pvc") or f"{one['metadata']['name']}-pvc")
            for one in caches
        }
        request = stage.session.facts("validate")
        every, names = request["scope"] == Scope.EVERYTHING, request["deployments"]

        def concerned(volume: Object) -> bool:
            namespace, claim = _claim_of(volume)
            if (namespace, claim) in claims:
                return True
            if (volume.get("spec") or {}).get("storageClassName") != stage.session.environment.storage_class:
                return False
            return every or any(is_claim_of(name, str(claim)) for name in names)

        return [one for one in cluster.list("v1", "PersistentVolume") if concerned(one)]


class ConcludeTeardownOperator(ConcludeOperator):
    """As of a rollout; the run is a success when all that was to go is gone."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("success", GONE)
        super().__init__(**kwargs)

    #: The tasks whose success means that all of the scope is gone.
    _DECISIVE: ClassVar[dict[str, tuple[str, ...]]] = {
        Scope.DEPLOYMENT: ("wait_caches_gone",),
        Scope.PLATFORM: ("uninstall_karpenter", "delete_storage_class"),
        Scope.EVERYTHING: ("verify_gone",),
    }

    def decide(self, stage: Stage, states: dict[str, str | None]) -> tuple[str, str | None]:
        """By the last proofs of what was to go: of one deployment its caches', of everything the inventory."""
        facts = stage.session.ledger.read("validate", "result") or {}
        decisive = self._DECISIVE[facts.get("scope", Scope.EVERYTHING)]
        if all(states.get(task) == "success" for task in decisive):
            return GONE, None
        return FAILED, why(stage, states)


def refuse_declined(stage: Stage) -> None:
    """Nothing, if nobody has said no to this teardown.

    :raises NeedsHumanError: somebody has, or did not answer in time
    """
    for asked in (APPROVE_DESTROY_STAGE, APPROVE_STAGE):
        answer = stage.session.ledger.read(asked, RESULT) or {}
        if answer.get("declined"):
            raise NeedsHumanError(
                f"this teardown was declined in {asked}: {answer['told']}",
                layer="approval",
                reason="not-approved",
                hint="Trigger a new teardown, and have it approved",
            )


def marks(stage: Stage, deployment: str) -> str:
    """The label selector of what is ours: of one deployment, or of the environment when none is named."""
    from nim_rollouts.core.manifests import DEPLOYMENT_LABEL, ENVIRONMENT_LABEL, MANAGED_BY, MANAGER

    labels = {MANAGED_BY: MANAGER, ENVIRONMENT_LABEL: stage.session.environment.name}
    if deployment:
        labels[DEPLOYMENT_LABEL] = deployment
    return ",".join(f"{name}={value}" for name, value in labels.items())


def named(obj: Object) -> dict[str, Any]:
    """What a record keeps of an object that is to go."""
    metadata = obj["metadata"]
    record = {
        "kind": obj["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace"),
        "uid": metadata["uid"],
    }
    # What a volume is in AWS: its access point must go too.
    handle = ((obj.get("spec") or {}).get("csi") or {}).get("volumeHandle")
    return record | ({"handle": handle} if handle else {})


def _claim_of(volume: Object) -> tuple[str | None, str | None]:
    reference = (volume.get("spec") or {}).get("claimRef") or {}
    return reference.get("namespace"), reference.get("name")
