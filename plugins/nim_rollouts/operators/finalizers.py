"""What hangs on a finalizer whose controller is gone: asked about, and freed only where a person has said so.

The better way is always to let the controller run again. What a yes allows is exactly what was shown: these finalizers
on these very objects, in this run. Where the controller is back meanwhile, it is left to do its work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from nim_rollouts.core.approval import Question
from nim_rollouts.operators.approval import AskOperator
from nim_rollouts.operators.base import RESULT, Facts, Stage

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object
    from nim_rollouts.core.finalizers import Held

APPROVE_STAGE = "approve_finalizers"
FREED = "freed"
# A write that lost the race to another reads again.
_ATTEMPTS = 8


class ApproveFinalizersOperator(AskOperator):
    """Asks about the finalizers that nobody will remove; skipped when there is none."""

    claim_scopes: ClassVar[tuple[str, ...]] = ("deployment", "environment")

    def run(self, stage: Stage) -> Facts:
        """Look, and ask. Removes nothing: the steps that delete do, with what was approved."""
        from airflow.sdk.exceptions import AirflowSkipException

        stuck = self._stuck(stage)
        if not stuck:
            raise AirflowSkipException("no finalizer is without its controller: there is nothing to ask")
        for one in stuck:
            stage.log.warning("nobody is there to remove %s (%s would)", one.text, one.keeper.name)
        return super().run(stage)

    def question(self, stage: Stage) -> Question:
        """Which finalizers on what, whose they are, what is lost with them, and what would be better."""
        from nim_rollouts.core.finalizers import checksum, question_text

        stuck = self._stuck(stage)
        request, environment = stage.session.request, stage.session.environment.name
        subject, body = question_text(stuck, environment, request.triggered_by or "nobody known")
        return Question(
            checksum=checksum(stuck, stage.session.run_id),
            subject=subject,
            body=body,
            needed=True,
            why=f"{len(stuck)} finalizers have no controller any more",
            changes=[[one.uid, one.finalizer, one.text] for one in stuck],
        )

    def _stuck(self, stage: Stage) -> list[Held]:
        """In a fixed order, so that the same things are asked about in the same words."""
        from nim_rollouts.core.finalizers import definitions_of, held

        cluster = stage.session.cluster_if_any()
        if cluster is None:
            return []
        found = self._candidates(stage, cluster)
        gone = {one for one in definitions_of(found) if is_absent(stage, one)}
        return sorted(held(found, gone), key=lambda one: (one.kind, one.namespace or "", one.name, one.finalizer))

    def _candidates(self, stage: Stage, cluster: Cluster) -> list[Object]:
        """What this run is going to delete, and what goes with it."""
        from nim_rollouts.clients.resources import api_version_of
        from nim_rollouts.core.teardown import Scope
        from nim_rollouts.operators.teardown import marks

        selector = marks(stage, self.deployment)
        kinds: list[tuple[str, str | None]] = [
            ("NIMPipeline", selector),
            ("NIMService", selector),
            ("NIMCache", selector),
        ]
        if stage.session.facts("validate")["scope"] != Scope.DEPLOYMENT:
            kinds += [("NodePool", selector), ("NodeClaim", None), ("Node", None), ("EC2NodeClass", selector)]
        return [one for kind, label in kinds for one in cluster.list(api_version_of(kind), kind, label_selector=label)]


def is_absent(stage: Stage, definition: str) -> bool:
    """True when the add-on that brings this CRD is not there: one of its Deployments does not exist."""
    from nim_rollouts.clients.resources import api_version_of
    from nim_rollouts.triggers.plans import operators_of

    cluster = stage.session.cluster
    return any(
        cluster.get(api_version_of("Deployment"), "Deployment", one.namespace, one.name) is None
        for one in operators_of(stage.session, definition)
    )


def free(stage: Stage, cluster: Cluster, objects: Iterable[Object]) -> list[str]:
    """Take the approved finalizers away from those of the objects that have them. Returns what was freed, in words."""
    from nim_rollouts.clients.approvals import read_answer
    from nim_rollouts.core.finalizers import KEEPERS

    told = stage.session.ledger.read(APPROVE_STAGE, RESULT)
    answer = read_answer(stage.session.store, stage.session.environment.name, told["checksum"]) if told else None
    if answer is None or not answer.approved:
        return []
    freed = []
    for obj in objects:
        allowed = {finalizer for uid, finalizer, _ in answer.changes if uid == obj["metadata"]["uid"]}
        allowed = {one for one in allowed if is_absent(stage, KEEPERS[one].definition)}
        if allowed and _take_away(stage, cluster, obj, allowed):
            what = f"{obj['kind']}/{obj['metadata']['name']}: {', '.join(sorted(allowed))}"
            stage.log.warning("removed, as %s has approved: finalizer of %s", answer.by, what)
            freed.append(what)
    if freed:
        facts = {"finalizers": freed, "checksum": answer.checksum, "approved_by": answer.by, "approved_at": answer.at}
        stage.session.ledger.record(stage.name, stage.try_number, FREED, facts)
    return freed


def _take_away(stage: Stage, cluster: Cluster, obj: Object, finalizers: set[str]) -> bool:
    """True when this object had one of them, and now has none. It must be on its way out for that."""
    from nim_rollouts.core.errors import ClusterUnavailable

    metadata = obj["metadata"]
    for _ in range(_ATTEMPTS):
        live = cluster.get(obj["apiVersion"], obj["kind"], metadata.get("namespace"), metadata["name"])
        if live is None or live["metadata"]["uid"] != metadata["uid"]:
            return False
        kept = [one for one in live["metadata"].get("finalizers") or () if one not in finalizers]
        if len(kept) == len(live["metadata"].get("finalizers") or ()):
            return False
        stage.check_claims()
        if not live["metadata"].get("deletionTimestamp"):
            cluster.delete(live, uid=live["metadata"]["uid"])
        elif cluster.patch(live, {"metadata": {"finalizers": kept}}) is not None:
            return True
    raise ClusterUnavailable(f"{obj['kind']}/{metadata['name']} was changed by others {_ATTEMPTS} times meanwhile")
