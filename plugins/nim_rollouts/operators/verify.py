"""The platform's verification: is all there that a model needs, and can this deployment be put on it at all?

Every check is made and told, one line each, whatever the others come to; one error tells all that failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.errors import (
    ApplyRejected,
    NeedsHumanError,
    NimRolloutsError,
    PlatformNotReady,
    TransientError,
)
from nim_rollouts.operators.base import Facts, Stage, StageOperator

if TYPE_CHECKING:
    from nim_rollouts.core.checks import Check
    from nim_rollouts.core.pools import Fit

# As the API server words it when nobody answers for a webhook that must be asked.
_NO_ANSWER = re.compile(r"failed calling webhook")
_ADMISSION = "admissionregistration.k8s.io/v1"
_NODE_POOL = "karpenter.sh/nodepool"


class VerifyPlatformOperator(StageOperator):
    """CRDs, operators, webhooks, storage, node pools, GPU fit, quotas, and a dry-run of the deployment's own objects.

    What would fail later, on a GPU that is paid for, fails here. Reads only, but for the storage probe's Job, which it
    removes.
    """

    def run(self, stage: Stage) -> Facts:
        """Afterwards the environment's claim is given up: another deployment may begin."""
        from nim_rollouts.operators import storage_probe

        try:
            verification = Verification(stage)
            verification.run()
        finally:
            storage_probe.remove(stage)
        verification.refuse()
        stage.release_claims("environment")
        return verification.facts()


class Verification:
    """The checks of one try."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.session = stage, stage.session
        self.checks: list[Check] = []
        self.errors: dict[str, NimRolloutsError] = {}
        self._fitting: dict[str, Fit] = {}
        self._more: Facts = {}

    def run(self) -> None:
        """Make every check, in the order in which one may be the cause of the next."""
        from nim_rollouts.operators import storage_probe

        for name, look in (
            ("crds", self._definitions),
            ("operators", self._operators),
            ("webhooks", self._webhooks),
            ("storage", lambda: storage_probe.check(self.stage)),
            ("node-pools", self._node_pools),
            ("gpu-fit", self._gpu_fit),
            ("quota", self._quota),
            ("dry-run", self._dry_run),
        ):
            one = self._made(name, look)
            self.checks.append(one)
            log = self.stage.log
            {"failed": log.error, "unknown": log.warning}.get(one.outcome, log.info)("%s", one.line)

    def _made(self, name: str, look: Callable[[], Check]) -> Check:
        from nim_rollouts.core.checks import failed

        try:
            return look()
        except NimRolloutsError as error:
            self.errors[name] = error
            return failed(name, error.message, error.hint, error.reason, error.layer)

    def facts(self) -> Facts:
        """For the ledger."""
        return {"checks": [one.to_dict() for one in self.checks], **self._more}

    def refuse(self) -> None:
        """Nothing, if no check failed.

        :raises NimRolloutsError: the only failure as it is; of several, one that tells them all, by the first's slug
        """
        bad = [one for one in self.checks if one.outcome == "failed"]
        # What may pass is tried again only where nothing is wrong for good.
        final = [one for one in bad if not isinstance(self.errors.get(one.name), TransientError)]
        if not bad:
            return
        first, *others = final or bad
        if not others or not final:
            raise self.errors.get(first.name) or PlatformNotReady(
                f"{first.name}: {first.seen}", hint=first.hint, reason=first.reason, layer=first.layer
            )
        kind = NeedsHumanError if isinstance(self.errors.get(first.name), NeedsHumanError) else PlatformNotReady
        raise kind(
            f"{len(final)} checks failed: " + " | ".join(f"{one.name}: {one.seen}. {one.hint}" for one in final),
            hint="Correct all of them and clear apply_platform and what follows",
            reason=first.reason,
            layer=first.layer,
        )

    # --- the checks

    def _definitions(self) -> Check:
        from nim_rollouts.core import checks
        from nim_rollouts.operators.base import now

        wanted = [name for addon in self.session.environment.active_addons for name in addon.requires.crds]
        found = self._list("apiextensions.k8s.io/v1", "CustomResourceDefinition") if wanted else []
        return checks.definitions({"CustomResourceDefinition": found}, wanted, now())

    def _operators(self) -> Check:
        from nim_rollouts.clients.resources import api_version_of
        from nim_rollouts.core import checks
        from nim_rollouts.core.verdicts import deployment
        from nim_rollouts.operators.base import now

        addons = self.session.environment.active_addons
        wanted = [(addon.namespace, name) for addon in addons for name in addon.requires.deployments]
        snapshots = {
            space: {kind: self.session.cluster.list(api_version_of(kind), kind, space) for kind in deployment.KINDS}
            for space, _ in wanted
        }
        return checks.operators(snapshots, wanted, now())

    def _webhooks(self) -> Check:
        from nim_rollouts.core import checks

        brought = [name for addon in self.session.environment.active_addons for name in addon.requires.crds]
        groups = {name.partition(".")[2] for name in brought} | {"apps.nvidia.com", *checks.KARPENTER_GROUPS}
        kinds = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")
        configurations = [one for kind in kinds for one in self._list(_ADMISSION, kind)]
        slices = self._list("discovery.k8s.io/v1", "EndpointSlice") if configurations else []
        return checks.webhooks(configurations, slices, groups)

    def _node_pools(self) -> Check:
        from nim_rollouts.core import checks

        wanted = self._wanted_pools()
        return checks.node_pools(self._karpenter() if wanted else {}, wanted)

    def _gpu_fit(self) -> Check:
        from nim_rollouts.core import checks
        from nim_rollouts.operators import capacity

        environment, wanted = self.session.environment, self._wanted_pools()
        if not wanted:
            return checks.skipped(
                "gpu-fit", "the environment names no node pools; validation has looked at its instance types"
            )
        pools = [one for one in self._karpenter()["NodePool"] if one["metadata"]["name"] in wanted]
        self._fitting = capacity.fitting(environment, self.session.deployment, pools, standing=self._is_standing())
        told = capacity.summary(self._fitting)
        self._more["node_pools"] = told
        unknown = capacity.unjudged(self._fitting)
        seen = [f"{what} on {', '.join(where)}" for what, where in told.items() if where]
        return checks.Check("gpu-fit", checks.UNKNOWN if unknown else checks.OK, "; ".join(seen + unknown))

    def _quota(self) -> Check:
        from nim_rollouts.core.checks import Check
        from nim_rollouts.operators import capacity

        found = capacity.quotas(self.session.environment, self.session.deployment, self._fitting, self._usable_again())
        self._more["quotas"] = found
        why = f" ({'; '.join(found['unknown'])})" if found["unknown"] else ""
        return Check("quota", found["outcome"], ("; ".join(found["seen"]) or "no quota counts these types") + why)

    def _dry_run(self) -> Check:
        from nim_rollouts.core import manifests
        from nim_rollouts.core.checks import ok

        session = self.session
        context, deployment = session.manifest_context(), session.deployment
        objects = [
            manifests.nim_cache(context, deployment),
            manifests.nim_service(context, deployment),
            manifests.stable_service(context, deployment),
            *manifests.benchmark(context, deployment, session.include.benchmark_files()),
        ]
        refused: list[NimRolloutsError] = []
        for obj in objects:
            try:
                session.cluster.apply(obj, dry_run=True)
            except NimRolloutsError as error:
                if not isinstance(error, ApplyRejected) and not _NO_ANSWER.search(error.message):
                    raise
                refused.append(error)
        silent = [error for error in refused if _NO_ANSWER.search(error.message)]
        if silent:
            raise PlatformNotReady(
                silent[0].message,
                hint="Bring up the webhook that is named (its pods, its service, its certificate)",
                reason="webhook-unavailable",
                layer="api-server",
            )
        if refused:
            raise ApplyRejected(
                " | ".join(error.message for error in refused),
                hint="Correct the deployment, or install the operator version that knows these fields",
            )
        self._more["accepted"] = sorted(f"{obj['kind']}/{obj['metadata']['name']}" for obj in objects)
        return ok("dry-run", f"the API server accepts {', '.join(sorted({obj['kind'] for obj in objects}))}")

    # --- what they look at

    def _list(self, api_version: str, kind: str) -> list[dict[str, Any]]:
        return self.session.cluster.list(api_version, kind)

    def _wanted_pools(self) -> list[str]:
        """Names of the NodePool objects that the environment's files hold."""
        from nim_rollouts.operators import capacity

        return [str(one["metadata"]["name"]) for one in capacity.pools_of_files(self.session)]

    def _karpenter(self) -> dict[str, list[dict[str, Any]]]:
        from nim_rollouts.clients.resources import api_version_of

        return {kind: self._list(api_version_of(kind), kind) for kind in ("NodePool", "EC2NodeClass")}

    def _usable_again(self) -> dict[str, bool]:
        """Instances of Karpenter's nodes -> whether this deployment may use them again."""
        from nim_rollouts.core.quota import usable_again

        nodes = [one for one in self._list("v1", "Node") if _NODE_POOL in (one["metadata"].get("labels") or {})]
        pods = self._list("v1", "Pod") if nodes else []
        return usable_again(self.session.deployment.name, self.session.names.namespace, nodes, pods)

    def _is_standing(self) -> bool:
        """An earlier revision of the deployment runs: its nodes may be used again."""
        from nim_rollouts.clients.resources import api_version_of
        from nim_rollouts.core.manifests import DEPLOYMENT_LABEL

        selector = f"{DEPLOYMENT_LABEL}={self.session.deployment.name}"
        return bool(
            self.session.cluster.list(
                api_version_of("NIMService"), "NIMService", self.session.names.namespace, label_selector=selector
            )
        )
