"""What every deployment needs in the cluster: access, storage class, namespace, proof that it all accepts."""

from __future__ import annotations

from typing import Any

from nim_rollouts.core.errors import PlatformNotReady
from nim_rollouts.operators.base import Facts, Stage, StageOperator

OUTPUTS_STAGE = "terraform_outputs"


class ClusterAccessOperator(StageOperator):
    """Proves that the cluster is there and lets us in. Tokens and certificates are not handed on: each task asks."""

    claim_scopes = ()

    def run(self, stage: Stage) -> Facts:
        """Reads only."""
        session = stage.session
        version = session.cluster.version()
        stage.log.info("cluster %s at %s runs %s", session.environment.cluster.name, session.access.endpoint, version)
        return {"cluster": session.environment.cluster.name, "endpoint": session.access.endpoint, "version": version}


class ApplyPlatformOperator(StageOperator):
    """Storage class on the file system, node pools, the deployment's namespace, and a probe of the storage."""

    claim_scopes = ("deployment", "environment")

    def run(self, stage: Stage) -> Facts:
        """Server-side apply of all, and of the storage's probe."""
        from nim_rollouts.core import manifests
        from nim_rollouts.operators import storage_probe

        session = stage.session
        outputs = session.facts(OUTPUTS_STAGE)["outputs"]
        file_system = outputs.get("efs_file_system_id")
        if not file_system:
            raise PlatformNotReady(
                "terraform has no output efs_file_system_id",
                hint="The storage class needs it: correct the root module and clear terraform_plan and what follows",
            )
        templates, environment = session.include.templates(), session.environment
        objects = [manifests.storage_class(templates, environment, file_system)]
        for output in ("node_role_name", "discovery_tag"):
            if environment.node_pools and not outputs.get(output):
                raise PlatformNotReady(
                    f"terraform has no output {output}",
                    hint="The node pools need it: correct the root module and clear terraform_plan and what follows",
                )
        objects += manifests.node_pools(templates, environment, outputs)
        objects.append(manifests.namespace(session.manifest_context()))
        foreign = [one for obj in objects if (one := self._foreign(stage, obj)) is not None]
        theirs = {(one["kind"], one["name"]) for one in foreign}
        objects = [obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) not in theirs]
        stage.intend({"objects": [f"{obj['kind']}/{obj['metadata']['name']}" for obj in objects]})
        applied = [apply_and_say(stage, obj) for obj in objects]
        return {
            "file_system": file_system,
            "applied": applied,
            "used_as_it_is": foreign,
            storage_probe.FACT: storage_probe.apply(stage),
        }

    @staticmethod
    def _foreign(stage: Stage, obj: dict[str, Any]) -> dict[str, Any] | None:
        """What the ledger keeps of an object that somebody else made: our labels on it would let a teardown delete it.
        None for one of ours. Unless it is a namespace, which is what its inhabitants make of it, it may not contradict
        ours; where ours would add to it (our tags, a limit), it is used all the same, and that is told.

        :raises ApplyConflict, ApplyRejected: it says something else
        """
        from nim_rollouts.core.differences import differing
        from nim_rollouts.core.manifests import MANAGED_BY, MANAGER

        cluster, kind, name = stage.session.cluster, obj["kind"], obj["metadata"]["name"]
        live = cluster.get(obj["apiVersion"], kind, None, name)
        if live is None or (live["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER:
            return None
        differs = [] if kind == "Namespace" else differing(live, cluster.apply(obj, dry_run=True).obj)
        stage.log.info("%s/%s was there before us: used as it is, and left by a teardown", kind, name)
        if differs:
            stage.log.warning("%s/%s differs from what we would apply, in %s", kind, name, ", ".join(differs))
        return {"kind": kind, "name": name, "differs": differs}


class ApplySecretsOperator(StageOperator):
    """The NGC key, from its Airflow connection straight into the two Kubernetes secrets."""

    def run(self, stage: Stage) -> Facts:
        """Server-side apply of both. The facts name them; nothing of their content leaves this method."""
        from nim_rollouts.core import manifests
        from nim_rollouts.hooks.ngc import ngc_key

        session = stage.session
        secrets = manifests.secrets(session.manifest_context(), ngc_key(session.environment))
        stage.intend({"objects": [f"Secret/{secret['metadata']['name']}" for secret in secrets]})
        return {"applied": [apply_and_say(stage, secret) for secret in secrets]}


def apply_and_say(stage: Stage, obj: dict[str, Any]) -> dict[str, Any]:
    """Apply, log one line, and return what the ledger keeps: kind, name, uid, and what became of it."""
    stage.check_claims()
    result = stage.session.cluster.apply(obj)
    became = "created" if result.created else "changed" if result.changed else "unchanged"
    metadata = result.obj["metadata"]
    stage.log.info("%s/%s %s", obj["kind"], metadata["name"], became)
    return {
        "kind": obj["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace"),
        "uid": metadata["uid"],
        "became": became,
    }
