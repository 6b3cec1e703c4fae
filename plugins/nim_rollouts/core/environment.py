"""What an environment is: region, cluster, access, stores, add-ons, budgets, policies.

One file of include/environments each. Environments differ in data, never in code (apiVersion nim-rollouts/v1).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nim_rollouts.core.addons import Addon as Addon
from nim_rollouts.core.addons import NodeOs
from nim_rollouts.core.addons import Requires as Requires
from nim_rollouts.core.errors import SpecError
from nim_rollouts.core.fields import LabelName, ObjectName, Strict
from nim_rollouts.core.yamlsource import parse, validate

# Seconds of the longest part of a wait: a day.
LONGEST_BUDGET_S = 86_400
# Of a question: a week. The environment's claim is held meanwhile.
LONGEST_APPROVAL_S = 7 * 86_400


class Cluster(Strict):
    """The EKS cluster, by its name in AWS."""

    name: str = Field(pattern=r"^[0-9A-Za-z][A-Za-z0-9_-]{0,99}$")


class FolderStore(Strict):
    """A folder on a disk that every worker and triggerer shares."""

    kind: Literal["folder"]
    path: str = Field(min_length=1)


class S3Store(Strict):
    """A bucket, reached with the environment's AWS connection."""

    kind: Literal["s3"]
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    prefix: str = ""


class TerraformState(Strict):
    """Where terraform keeps its state (S3 with a lock file)."""

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    key: str = Field(min_length=1)


class Terraform(Strict):
    """The root module (a folder of include/), its state, its variables."""

    root: str
    state: TerraformState
    variables: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _inside(self) -> Terraform:
        path = PurePosixPath(self.root)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f'root "{self.root}" must be a folder inside include/')
        return self


class Budgets(Strict):
    """How long each part may take, in seconds, before the wait for it ends with a reason. At most a day each: Airflow's
    own limit on a wait, which gives no reason, lies above all that they can add up to."""

    node_launch_s: int = Field(default=300, ge=1, le=LONGEST_BUDGET_S)
    image_pull_s: int = Field(default=600, ge=1, le=LONGEST_BUDGET_S)
    cache_s: int = Field(default=3600, ge=1, le=LONGEST_BUDGET_S)
    service_s: int = Field(default=1800, ge=1, le=LONGEST_BUDGET_S)
    benchmark_s: int = Field(default=1800, ge=1, le=LONGEST_BUDGET_S)
    operator_s: int = Field(default=300, ge=1, le=LONGEST_BUDGET_S)
    delete_s: int = Field(default=600, ge=1, le=LONGEST_BUDGET_S)
    bind_s: int = Field(default=300, ge=1, le=LONGEST_BUDGET_S)
    endpoint_s: int = Field(default=180, ge=1, le=LONGEST_BUDGET_S)


class Verify(Strict):
    """How the platform is verified. `image`: of the pod that writes into a volume and reads it back; a shell with
    `stat` is all it needs, and nodes must be able to pull it without a secret."""

    image: str = "public.ecr.aws/docker/library/busybox:1.37"


class Policies(Strict):
    """`claim`: what a run does when another live one holds the claim. `approval`: which plans a person must approve,
    within `approval_timeout_s`: `approvers` (user ids) alone if any are named, with `four_eyes` not who asked.
    `protected`: a teardown of the platform or of everything is refused. `cloud_look_s`: seconds between two looks at
    AWS while a teardown waits for it."""

    claim: Literal["refuse", "wait"] = "refuse"
    approval: Literal["always", "on-destroy", "never"] = "on-destroy"
    approval_timeout_s: int = Field(default=3600, ge=10, le=LONGEST_APPROVAL_S)
    approvers: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    four_eyes: bool = False
    protected: bool = False
    cloud_look_s: int = Field(default=15, ge=1, le=600)


class Environment(Strict):
    """Everything that differs between environments."""

    api_version: Literal["nim-rollouts/v1"] = Field(alias="apiVersion")
    kind: Literal["Environment"]
    name: LabelName
    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    aws_conn_id: str = "aws_default"
    ngc_conn_id: str = "ngc_default"
    cluster: Cluster
    store: Annotated[FolderStore | S3Store, Field(discriminator="kind")]
    terraform: Terraform
    instance_types: list[str] = Field(min_length=1)
    node_os: NodeOs = "bottlerocket"
    addons: list[Addon] = Field(default_factory=list)
    node_pools: list[ObjectName] = Field(default_factory=list)
    storage_class: ObjectName
    budgets: Budgets = Field(default_factory=Budgets)
    policies: Policies = Field(default_factory=Policies)
    verify: Verify = Field(default_factory=Verify)

    @property
    def active_addons(self) -> list[Addon]:
        """The add-ons that this environment's nodes call for, in order. The others were perhaps installed once."""
        return [addon for addon in self.addons if addon.is_for(self.node_os)]

    @model_validator(mode="after")
    def _releases_differ(self) -> Environment:
        seen: set[tuple[str, str]] = set()
        for addon in self.addons:
            key = (addon.namespace, addon.name)
            if key in seen:
                raise ValueError(f"addons: {addon.name} in {addon.namespace} stands there twice; keep one")
            seen.add(key)
        if len(set(self.node_pools)) != len(self.node_pools):
            raise ValueError("node_pools: a pool stands there twice; keep one")
        return self


def _variables_agree(environment: Environment) -> list[tuple[str, str, str]]:
    """(variable, what it says, what the file says elsewhere), where the two differ."""
    elsewhere = {
        "environment": environment.name,
        "region": environment.region,
        "cluster_name": environment.cluster.name,
    }
    given = environment.terraform.variables
    return [(key, str(given[key]), value) for key, value in elsewhere.items() if given.get(key, value) != value]


def load_environment(name: str, text: str, source: str, node_pools: Collection[str] | None = None) -> Environment:
    """The environment in `text`.

    :param name: what was asked for: the file's stem
    :param source: the file's name, for messages
    :param node_pools: names of the pools that there are; None where nobody knows
    :raises SpecError: with file and line
    """
    document = parse(text, source)
    environment = validate(Environment, document)
    if environment.name != name:
        raise SpecError(
            f'{document.at(("name",))}: the name "{environment.name}" is not that of the file ("{name}")',
            hint="Make the two equal",
        )
    # terraform would make one cluster and the tasks look for another; a teardown would look for the wrong tag.
    for key, said, wanted in _variables_agree(environment):
        raise SpecError(
            f'{document.at(("terraform", "variables", key))}: `terraform.variables.{key}` is "{said}", '
            f'elsewhere the file says "{wanted}"',
            hint="Make the two equal, or leave the variable out: it is filled in",
        )
    for index, pool in enumerate(environment.node_pools):
        if node_pools is not None and pool not in node_pools:
            raise SpecError(
                f"{document.at(('node_pools', index))}: there is no node pool {pool}; "
                f"known: {', '.join(sorted(node_pools)) or 'none'}",
                hint="Choose one of include/manifests/node-pools, or add a file there",
            )
    return environment
