"""Whether the deployment can get nodes at all: pools against requests, quotas against pools.

Asked by validation, before anything is made, of the pools as the files have them; and by the platform's verification,
of those in the cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nim_rollouts.core.environment import Environment
    from nim_rollouts.core.pools import Fit, Need
    from nim_rollouts.core.quota import Candidate
    from nim_rollouts.core.spec import Deployment
    from nim_rollouts.hooks.session import Session

log = logging.getLogger(__name__)

NODE_POOLS = "manifests/node-pools"


def needs(deployment: Deployment) -> list[Need]:
    """What the deployment puts on nodes of its own: its service, and the download before it."""
    from nim_rollouts.core.pools import Need

    service, cache = deployment.service, deployment.cache
    return [
        Need("service", service.resources.effective, service.node_selector,
             [one.manifest() for one in service.tolerations], deployment.profile.gpus, service.replicas),
        Need("cache", cache.asked, cache.node_selector, [one.manifest() for one in cache.tolerations]),
    ]  # fmt: skip


def pool_names(environment: Environment) -> list[str]:
    """The environment's node pools, by the files that hold them; none where it has none."""
    return list(environment.node_pools)


def pools_of_files(session: Session) -> list[dict[str, Any]]:
    """The NodePool objects that the environment's files hold.

    :raises SpecError: one is missing, or holds no NodePool
    """
    return [one for _, documents in files(session) for one in documents if one.get("kind") == "NodePool"]


def files(session: Session) -> list[tuple[str, list[dict[str, Any]]]]:
    """The environment's node pools: (file, its objects).

    :raises SpecError: one is missing, or holds no NodePool
    """
    import yaml

    from nim_rollouts.core.errors import SpecError

    found = []
    for name in pool_names(session.environment):
        file = session.include.path(f"{NODE_POOLS}/{name}.yaml")
        if not file.is_file():
            raise SpecError(
                f"node_pools: there is no file include/{NODE_POOLS}/{name}.yaml",
                hint="Name files of that folder in node_pools, without .yaml",
            )
        try:
            documents = [one for one in yaml.safe_load_all(file.read_text()) if isinstance(one, dict)]
        except yaml.YAMLError as error:
            raise SpecError(f"include/{NODE_POOLS}/{name}.yaml is not YAML: {error}", reason="yaml-malformed") from None
        if not any(one.get("kind") == "NodePool" for one in documents):
            raise SpecError(f"include/{NODE_POOLS}/{name}.yaml holds no NodePool")
        found.append((f"include/{NODE_POOLS}/{name}.yaml", documents))
    return found


def fitting(
    environment: Environment, deployment: Deployment, pools: Sequence[Mapping[str, Any]], *, standing: bool = False
) -> dict[str, Fit]:
    """Need -> what the pools can start for it. Nothing where the environment names no pools.

    :param standing: an earlier revision runs
    :raises GpuFit: a need that none can hold
    """
    from nim_rollouts.core.pools import fit

    if not pool_names(environment):
        return {}
    return {need.what: fit(need, pools, standing=standing) for need in needs(deployment)}


def unjudged(found: Mapping[str, Fit]) -> list[str]:
    """What was taken as met without being known, a sentence each."""
    return [f"{what}: {note}" for what, one in found.items() for note in one.notes]


def quotas(
    environment: Environment,
    deployment: Deployment,
    found: Mapping[str, Fit] | None = None,
    again: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """Whether the account may have these nodes: facts for the ledger.

    What AWS does not tell refuses nothing: it is logged as a warning and recorded as unknown, with the missing right.

    :param found: of `fitting`; without pools the environment's instance types count, on demand
    :param again: which instances the deployment may use again; None before anybody could look into the cluster
    :raises QuotaTooSmall: it may not, and AWS has said so
    """
    from nim_rollouts.core import quota
    from nim_rollouts.hooks import quotas as aws

    candidates = _candidates(environment, deployment, found or {})
    known = [one for one in candidates if quota.quota_of(one.instance_type, one.capacity_type)]
    codes = {counted.code for one in known if (counted := quota.quota_of(one.instance_type, one.capacity_type))}
    # What no type is known for may be started all the same; of how many vCPUs, nobody here can say.
    judged = {one.what for one in candidates}
    strange = [f"no instance type is known here for {what}" for what in found or ["service"] if what not in judged]
    if not codes:
        return {"outcome": "unknown" if strange else "not-applicable", "seen": [], "unknown": strange}
    met = quota.findings(known, aws.limits(environment, codes), aws.running(environment), again or {})
    deciding = [
        finding
        for what in dict.fromkeys(one.what for one in known)
        if (finding := quota.judge([one for one in met if one.candidate.what == what], environment.region)) is not None
    ]
    unknown = [finding for finding in deciding if finding.is_met is None]
    for finding in unknown:
        log.warning("%s: the rollout goes on, and may wait for a node that it cannot get", finding.in_words)
    return {
        "outcome": "unknown" if unknown or strange else "ok",
        "seen": [finding.in_words for finding in deciding],
        "unknown": sorted({finding.why for finding in unknown}) + strange,
    }


def _candidates(environment: Environment, deployment: Deployment, found: Mapping[str, Fit]) -> list[Candidate]:
    from nim_rollouts.core.instances import INSTANCES, fits
    from nim_rollouts.core.pools import ON_DEMAND
    from nim_rollouts.core.quota import Candidate

    if found:
        return [
            Candidate(what, one.instance.name, one.nodes, capacity, one.nodes * one.instance.cpus)
            for what, fit in found.items()
            for one in fit.options
            for capacity in one.capacity_types
        ]
    service = deployment.service
    names = fits(service.resources.effective, environment.instance_types, deployment.profile.gpus)
    return sorted(
        (
            Candidate("service", name, service.replicas, ON_DEMAND, service.replicas * INSTANCES[name].cpus)
            for name in names
            if name in INSTANCES
        ),
        key=lambda one: one.vcpus,
    )


def summary(found: Mapping[str, Fit]) -> dict[str, list[str]]:
    """Need -> `pool: type, type, ...`, for the log and the ledger."""
    told: dict[str, list[str]] = {}
    for what, fit in found.items():
        by_pool: dict[str, list[str]] = {}
        for one in fit.options:
            by_pool.setdefault(one.pool, []).append(one.instance.name + (f" ({one.tight})" if one.tight else ""))
        told[what] = [f"{pool}: {', '.join(names)}" for pool, names in by_pool.items()]
    return told
