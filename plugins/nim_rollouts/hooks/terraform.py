"""terraform for any root module, from any DAG: a hook with the root, its backend, its credentials, and kept plans.

The pipelines of this package use `hooks.infrastructure`, which reads all of that from an environment's file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

if TYPE_CHECKING:
    from nim_rollouts.clients.store import Store
    from nim_rollouts.clients.terraform import StateMark, Terraform
    from nim_rollouts.clients.terraform_plan import PlanSummary

STORE_ROOT = "terraform"


class TerraformHook(BaseHook):
    """One root module on one state.

    :param root: folder of the root module, on every worker
    :param backend: what its backend needs (`terraform init -backend-config`); no secrets
    :param plans: where plans and what was done with them are kept: a folder that all workers share, or
        `s3://bucket/prefix`
    :param aws_conn_id: Airflow connection whose credentials terraform gets; None: those of the worker
    :param region: of AWS
    :param work_dir: folder on the worker for this state alone; None: one below `NIM_ROLLOUTS_WORK` or AIRFLOW_HOME
    :param plugin_dir: filesystem mirror of providers; None: looked for, else downloaded
    :param lock_timeout_s: how long to wait for a state lock that somebody else holds
    """

    def __init__(
        self,
        root: str,
        backend: Mapping[str, Any],
        plans: str,
        *,
        aws_conn_id: str | None = "aws_default",
        region: str | None = None,
        work_dir: str | None = None,
        plugin_dir: str | None = None,
        lock_timeout_s: int = 60,
    ) -> None:
        super().__init__()
        self.root, self.backend, self.plans = root, dict(backend), plans
        self.aws_conn_id, self.region = aws_conn_id, region
        self.work_dir, self.plugin_dir, self.lock_timeout_s = work_dir, plugin_dir, lock_timeout_s

    @property
    def state_id(self) -> str:
        """Names the state: two roots on two states never share a work folder or a plan."""
        text = json.dumps([str(Path(self.root).absolute()), self.backend], sort_keys=True)
        return f"{Path(self.root).name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def client(self, progress: Callable[[str], None], *, purpose: str = "terraform") -> Terraform:
        """terraform, not yet initialised.

        :param progress: takes one line at a time
        :param purpose: two that may run beside each other have a work folder each
        """
        from nim_rollouts.clients.terraform import Terraform
        from nim_rollouts.hooks.infrastructure import aws_credentials, work_folder

        folder = Path(self.work_dir) if self.work_dir else work_folder() / STORE_ROOT / self.state_id

        def env() -> dict[str, str]:
            return aws_credentials(self.aws_conn_id, self.region) if self.aws_conn_id else {}

        return Terraform(
            self.root, folder / purpose, env, self.plugin_dir, progress=progress, lock_timeout_s=self.lock_timeout_s
        )

    @cached_property
    def kept(self) -> KeptPlans:
        """The plans of this state."""
        from nim_rollouts.clients.store import FolderStore, S3Store

        if not self.plans.startswith("s3://"):
            return KeptPlans(FolderStore(self.plans), self.state_id)
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        bucket, _, prefix = self.plans.removeprefix("s3://").partition("/")
        client = S3Hook(aws_conn_id=self.aws_conn_id, region_name=self.region).get_conn()
        return KeptPlans(S3Store(bucket, prefix, client), self.state_id)


@dataclass(frozen=True)
class KeptPlans:
    """Saved plans by their checksum, and what the tries of applying each have begun and left."""

    store: Store
    state_id: str

    def put(self, summary: PlanSummary, lock_file: bytes | None) -> str:
        """Keep the plan; its key."""
        key = self._key(summary.checksum)
        self.store.put(f"{key}.tfplan", Path(summary.plan_file).read_bytes())
        if lock_file is not None:
            self.store.put(f"{key}.lock.hcl", lock_file)
        self.store.put(f"{key}.json", json.dumps(summary.as_facts()).encode())
        return f"{key}.tfplan"

    def plan(self, checksum: str) -> bytes:
        """The saved plan.

        :raises TerraformFailed: there is none
        """
        return self._get(f"{self._key(checksum)}.tfplan")

    def summary(self, checksum: str) -> PlanSummary:
        """What the plan would do.

        :raises TerraformFailed: there is no such plan
        """
        from nim_rollouts.clients.terraform_plan import PlanSummary

        return PlanSummary.from_facts(json.loads(self._get(f"{self._key(checksum)}.json")))

    def lock_file(self, checksum: str) -> bytes | None:
        """The provider versions that the plan was made with."""
        return self.store.get(f"{self._key(checksum)}.lock.hcl")

    def begun(self, checksum: str) -> bool:
        """Whether a try has begun to apply it."""
        return self.store.get(f"{self._key(checksum)}.begun.json") is not None

    def is_rest(self, checksum: str, of: str) -> bool:
        """Whether a try has begun to apply it as what was left to do of another plan."""
        content = self.store.get(f"{self._key(checksum)}.begun.json") if checksum else None
        return content is not None and json.loads(content).get("rest_of") == of

    def begin(self, checksum: str, facts: Mapping[str, Any]) -> None:
        """Write down that a try begins, before it does."""
        self.store.put(f"{self._key(checksum)}.begun.json", json.dumps(dict(facts)).encode())

    def not_begun(self, checksum: str) -> None:
        """The try that was to begin has changed nothing."""
        self.store.delete(f"{self._key(checksum)}.begun.json")

    def left(self, checksum: str) -> set[tuple[str, int]]:
        """(lineage, serial) of the states that tries are known to have left."""
        content = self.store.get(f"{self._key(checksum)}.left.json")
        return {(lineage, int(serial)) for lineage, serial in json.loads(content)} if content else set()

    def leave(self, checksum: str, mark: StateMark) -> None:
        """Write down which state a try has left."""
        marks = sorted(self.left(checksum) | {(mark.lineage, mark.serial)})
        self.store.put(f"{self._key(checksum)}.left.json", json.dumps(marks).encode())

    def _key(self, checksum: str) -> str:
        return f"plans/{self.state_id}/{checksum}"

    def _get(self, key: str) -> bytes:
        from nim_rollouts.core.errors import TerraformFailed

        content = self.store.get(key)
        if content is None:
            raise TerraformFailed(f"the saved plan {key} is not in the store", reason="plan-missing",
                                  hint="Clear the plan task, which makes it")  # fmt: skip
        return content
