"""Names: deterministic, so that a task that runs again finds what it made before.

A NIMCache and a NIMService carry a hash of their spec in the name: another spec is another object, and the same spec
is found again by any later run. What clients use is the stable Service, named as the deployment.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from nim_rollouts.core.nimspec import API_SECRET, PULL_SECRET, cache_spec, hashed_service_spec, service_spec
from nim_rollouts.core.spec import Deployment

# Part of every hash. It moves when the same deployment is to get new names although its own data did not change.
HASH_VERSION = 1

_ROLLOUT_STEM = 45


def content_hash(obj: Any, version: int = HASH_VERSION) -> str:
    """8 hex digits of the canonical JSON of `obj` (keys sorted, no spaces) together with the hash's version."""
    text = json.dumps({"version": version, "content": obj}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def rollout_id(run_id: str) -> str:
    """The rollout's id for a DAG run's id: a DNS label that is also safe in paths and object keys.

    Readable, and unique by the hash of what was made readable.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")[:_ROLLOUT_STEM].strip("-")
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
    return f"{stem}-{digest}" if stem else f"run-{digest}"


def is_claim_of(deployment: str, claim: str) -> bool:
    """True for the name of a claim of one of the deployment's caches, or of one of its storage probes."""
    return re.fullmatch(rf"{re.escape(deployment)}-([0-9a-f]{{8}}-pvc|probe-[0-9a-f]{{8}}-.+)", claim) is not None


@dataclass(frozen=True)
class Names:
    """Every name of one rollout of one deployment."""

    namespace: str
    cache: str
    service: str
    stable_service: str
    benchmark_job: str
    benchmark_config: str
    pull_secret: str = PULL_SECRET
    api_secret: str = API_SECRET
    #: The Job that proves the storage, named after the rollout as the benchmark's is.
    storage_probe: str = "storage-probe"

    @property
    def cache_job(self) -> str:
        """The operator's download Job."""
        return f"{self.cache}-job"

    @property
    def cache_pvc(self) -> str:
        """The claim that the operator makes for the cache."""
        return f"{self.cache}-pvc"

    @property
    def selection_pod(self) -> str:
        """The operator's pod that prints the image's model manifest."""
        return f"{self.cache}-pod"


def names_for(deployment: Deployment, rollout_id: str) -> Names:
    """The names for a resolved deployment in one rollout."""
    cache = f"{deployment.name}-{content_hash(cache_spec(deployment))}"
    service = f"{deployment.name}-{content_hash(hashed_service_spec(service_spec(deployment, cache)))}"
    of_rollout = content_hash(rollout_id)
    benchmark = f"{deployment.name}-bench-{of_rollout}"
    return Names(
        namespace=deployment.namespace,
        cache=cache,
        service=service,
        stable_service=deployment.name,
        benchmark_job=benchmark,
        benchmark_config=benchmark,
        storage_probe=f"{deployment.name}-probe-{of_rollout}",
    )
