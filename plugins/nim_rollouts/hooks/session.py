"""What a task or a trigger of one run works with, opened when it is first asked for.

A run is known by three texts: environment, deployment, run id. Everything else is read from the environment's file
and from the ledger, so that any worker or triggerer finds the same, also after a restart or a clear.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from nim_rollouts.clients.access import ClusterAccess, cluster_access, lets_somebody_in, remembered
from nim_rollouts.clients.claims import Claim, Holder
from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.include import Include
from nim_rollouts.clients.ledger import Ledger
from nim_rollouts.clients.store import Store, open_store
from nim_rollouts.core import manifests
from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import AccessDenied, ClusterMissing, LedgerError
from nim_rollouts.core.names import Names, names_for, rollout_id
from nim_rollouts.core.spec import Deployment, Request

log = logging.getLogger(__name__)

# The ledger's second part for a run that concerns a whole environment. `_` cannot begin a deployment's name.
WHOLE_ENVIRONMENT = "_environment"
CLAIMS_KIND = "claims"


class Session:
    """One run, seen from one task.

    :param environment: name of a file of include/environments
    :param deployment: name of a file of include/deployments; empty: the whole environment
    :param run_id: of the DAG run
    :param shared: use one store with all other such sessions of this process: for triggers, which are many
    :raises UnknownEnvironment, SpecError: the environment's file cannot be used
    """

    def __init__(
        self,
        environment: str,
        deployment: str,
        run_id: str,
        *,
        include: Include | None = None,
        shared: bool = False,
    ) -> None:
        self.include = include or Include()
        self._shared = shared
        self.environment: Environment = self.include.environment(environment)
        self.scope = deployment or WHOLE_ENVIRONMENT
        self.run_id = run_id
        self.rollout = rollout_id(run_id)

    @cached_property
    def store(self) -> Store:
        """The environment's object store."""
        return remembered(open_store, self.environment) if self._shared else open_store(self.environment)

    @cached_property
    def ledger(self) -> Ledger:
        """The run's records."""
        return Ledger(self.store, self.environment.name, self.scope, self.rollout)

    @cached_property
    def request(self) -> Request:
        """What the run was asked for, as validation wrote it down."""
        return self.ledger.request()

    @cached_property
    def deployment(self) -> Deployment:
        """The deployment as validation resolved it."""
        if self.request.spec is None:
            raise LedgerError(f"the request of {self.rollout} holds no deployment", hint="Trigger a new run")
        return self.request.spec

    @cached_property
    def names(self) -> Names:
        """Every name of the rollout."""
        return names_for(self.deployment, self.rollout)

    @cached_property
    def access(self) -> ClusterAccess:
        """The way into the cluster."""
        return cluster_access(self.environment)

    @cached_property
    def shared_access(self) -> ClusterAccess:
        """The same for a trigger, shared with the other waits of its triggerer."""
        return remembered(cluster_access, self.environment)

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster."""
        return Cluster(self.access)

    def cluster_if_any(self) -> Cluster | None:
        """The cluster, or None when EKS has none of that name, or one that lets nobody in (half made, or half
        destroyed). Not reaching it is an error, not an absence."""
        try:
            cluster = self.cluster
        except ClusterMissing as absent:
            log.info("%s", absent.message)
            return None
        try:
            cluster.get("v1", "Namespace", None, "kube-system")
        except AccessDenied as denied:
            if lets_somebody_in(self.environment):
                return cluster  # what is asked of it next says what is refused
            log.warning("EKS cluster %s lets nobody in, so nothing of ours can be in it: it has no access entry with "
                        "rights, as before its making or its destruction has ended (%s)",
                        self.environment.cluster.name, denied.message)  # fmt: skip
            return None
        return cluster

    def claims(self) -> list[Claim]:
        """The claims that validation took for this run, in the order in which it took them."""
        taken = self.ledger.read("validate", CLAIMS_KIND)
        if taken is None:
            raise LedgerError(f"no claim is recorded for {self.rollout}", hint="Clear the run's validate task")
        holder = Holder(taken["dag_id"], taken["run_id"])
        return [Claim(one["scope"], int(one["generation"]), holder) for one in taken["taken"]]

    def check_deployment_claim(self) -> None:
        """Nothing, if this run may still touch what is the deployment's.

        :raises Superseded: a newer run has taken it over
        """
        from nim_rollouts.clients import claims

        for claim in self.claims():
            if not claim.scope.endswith("/_environment.json"):
                claims.check(self.store, claim)

    def facts(self, stage: str, kind: str = "result") -> dict[str, Any]:
        """What an earlier stage recorded.

        :raises LedgerError: it has recorded nothing
        """
        found = self.ledger.read(stage, kind)
        if found is None:
            raise LedgerError(f"{stage} has recorded no {kind}", hint=f"Clear the run's {stage} task")
        return found

    def manifest_context(self) -> manifests.Context:
        """What every object of the rollout is marked with."""
        generation = self.request.generation
        if generation is None:
            raise LedgerError(f"the request of {self.rollout} holds no generation", hint="Trigger a new run")
        return manifests.Context(
            templates=self.include.templates(),
            names=self.names,
            deployment=self.deployment.name,
            environment=self.environment.name,
            rollout=self.rollout,
            generation=generation,
        )
