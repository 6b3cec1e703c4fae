"""What a deployment is, and what one run asks for.

A deployment is one file of include/deployments: the only file that is edited to add a model. Its shape is a stable
interface (apiVersion nim-rollouts/v1).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nim_rollouts.core.environment import LONGEST_BUDGET_S, Addon, Environment, load_environment
from nim_rollouts.core.errors import SpecError
from nim_rollouts.core.fields import (
    DeploymentName,
    EnvName,
    LabelKey,
    LabelName,
    LabelValue,
    ObjectName,
    Quantity,
    Repository,
    Strict,
    Tag,
)
from nim_rollouts.core.quantity import parse_quantity
from nim_rollouts.core.yamlsource import parse, validate

__all__ = [
    "Addon", "Benchmark", "Cache", "Deployment", "Environment", "Image", "Profile", "Request", "Resources", "Service",
    "Slo", "Toleration", "load_deployment", "load_environment", "resolve",
]  # fmt: skip

GPU = "nvidia.com/gpu"
START_BUDGET_S = 1230


class Image(Strict):
    """A container image with its registry."""

    repository: Repository
    tag: Tag

    @property
    def reference(self) -> str:
        """`registry/path:tag`"""
        return f"{self.repository}:{self.tag}"

    @property
    def registry(self) -> str:
        """Host of the registry."""
        return self.repository.split("/", 1)[0]

    @property
    def path(self) -> str:
        """Repository without the registry's host."""
        return self.repository.split("/", 1)[1]


class Toleration(Strict):
    """A Kubernetes toleration, in the field names of Kubernetes."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(default=None, alias="tolerationSeconds")

    def manifest(self) -> dict[str, Any]:
        """As it stands in an object."""
        given = self.model_dump(by_alias=True, exclude_none=True)
        # An empty text is what is not given, and vanishes when Go writes it back.
        return {name: value for name, value in given.items() if value != ""}


class Resources(Strict):
    """Requests and limits by resource name. What is only limited is also requested, as Kubernetes does it."""

    requests: dict[str, Quantity] = Field(default_factory=dict)
    limits: dict[str, Quantity] = Field(default_factory=dict)

    @property
    def effective(self) -> dict[str, str]:
        """What the scheduler will reserve."""
        return {**self.limits, **self.requests}

    @model_validator(mode="after")
    def _consistent(self) -> Resources:
        for name, wanted in self.requests.items():
            limit = self.limits.get(name)
            if limit is not None and parse_quantity(wanted) > parse_quantity(limit):
                raise ValueError(f"requests.{name} ({wanted}) is larger than limits.{name} ({limit}); raise the limit")
            # Extended resources cannot be overcommitted: the API server refuses a request without an equal limit.
            if "/" in name and (limit is None or parse_quantity(limit) != parse_quantity(wanted)):
                raise ValueError(f"requests.{name} needs limits.{name} of the same value")
        for name, value in self.effective.items():
            if "/" in name and parse_quantity(value).denominator != 1:
                raise ValueError(f"{name} must be a whole number, found {value}")
        return self


class Profile(Strict):
    """Which of the image's model profiles to cache: by its tags, or by explicit profile ids alone."""

    engine: str | None = None
    precision: str | None = None
    gpus: list[str] = Field(default_factory=list)
    tensor_parallelism: int | None = Field(default=None, ge=1)
    qos: Literal["latency", "throughput"] | None = None
    lora: bool | None = None
    ids: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_way(self) -> Profile:
        tags = (self.engine, self.precision, self.tensor_parallelism, self.qos, self.lora)
        if self.ids and (self.gpus or any(value is not None for value in tags)):
            raise ValueError("give either ids or engine, precision, gpus, ..., not both")
        return self


class Cache(Strict):
    """Where the model is downloaded to, and on which nodes the download runs."""

    size: Quantity
    storage_class: ObjectName
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod"] = "ReadWriteMany"
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    resources: dict[Literal["cpu", "memory"], Quantity] = Field(default_factory=dict)
    env: dict[EnvName, str] = Field(default_factory=dict)

    @property
    def asked(self) -> dict[str, str]:
        """`resources`; the operator makes them both request and limit."""
        return {name: value for name, value in self.resources.items()}


class Start(Strict):
    """How a start is watched, in seconds. The default budget is the operator's own (30 + 120 x 10); it asks every 10 s
    after 30 s, which adds up to 30 s to every rollout of a model that is up sooner."""

    first_look_s: int = Field(default=5, ge=0)
    look_every_s: int = Field(default=5, ge=1)
    budget_s: int = Field(default=START_BUDGET_S, ge=10, le=LONGEST_BUDGET_S)

    @property
    def looks(self) -> int:
        """Failed looks in a row after which the kubelet restarts the container."""
        return max(1, math.ceil((self.budget_s - self.first_look_s) / self.look_every_s))


class Service(Strict):
    """How the model is served. `port` is the one that clients use."""

    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int = Field(default=1, ge=1)
    resources: Resources
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    env: dict[EnvName, str] = Field(default_factory=dict)
    runtime_class: ObjectName | None = None
    start: Start = Field(default_factory=Start)

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return int(parse_quantity(self.resources.effective.get(GPU, "0")))


class Benchmark(Strict):
    """One load run: counts, tokens per request, seconds."""

    image: str
    requests: int = Field(default=100, ge=1)
    concurrency: int = Field(default=20, ge=1)
    input_tokens: int = Field(default=200, ge=1)
    output_tokens: int = Field(default=100, ge=1)
    warmup_requests: int = Field(default=20, ge=0)
    streaming: bool = True
    deadline_s: int = Field(default=900, ge=30, le=LONGEST_BUDGET_S)
    resources: Resources = Resources(requests={"cpu": "1", "memory": "1Gi"}, limits={"memory": "4Gi"})
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)

    @property
    def image_parts(self) -> Image:
        """`image`, taken apart."""
        repository, _, tag = self.image.rpartition(":")
        return Image(repository=repository, tag=tag)

    @model_validator(mode="after")
    def _sound(self) -> Benchmark:
        _ = self.image_parts
        if self.concurrency > self.requests:
            raise ValueError(f"concurrency ({self.concurrency}) is larger than requests ({self.requests})")
        if GPU in self.resources.effective:
            raise ValueError("the benchmark needs no GPU; remove it from resources")
        return self


class Slo(Strict):
    """A bound on one statistic of one metric of the report, in the report's unit (ms, tokens/s, share)."""

    metric: str
    statistic: str | None = None
    max: float | None = None
    min: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Slo:
        if self.max is None and self.min is None:
            raise ValueError(f"{self.metric} has neither max nor min; give one")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"{self.metric}: min ({self.min}) is larger than max ({self.max})")
        return self


class Deployment(Strict):
    """A deployable model."""

    api_version: Literal["nim-rollouts/v1"] = Field(alias="apiVersion")
    kind: Literal["Deployment"]
    name: DeploymentName
    model: str = Field(min_length=1)
    namespace: LabelName
    image: Image
    profile: Profile
    cache: Cache
    service: Service
    benchmark: Benchmark
    slos: list[Slo] = Field(default_factory=list)
    on_first_failure: Literal["remove", "keep"] = "remove"


class Request(BaseModel):
    """What one run rolls out (or takes down). Written to the ledger by the run's first task, read by all later ones.

    `spec` is the deployment as it was resolved then: an edit of the file during the run moves nothing.
    `generation` is that of the deployment's claim, `environment_generation` that of the environment's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: str
    deployment: str
    dag_id: str
    run_id: str
    rollout_id: str
    triggered_by: str | None = None
    image_tag: str | None = None
    strategy: Literal["replace"] = "replace"
    skip_benchmark: bool = False
    generation: int | None = None
    environment_generation: int | None = None
    spec: Deployment | None = None


def load_deployment(name: str, text: str, source: str) -> Deployment:
    """The deployment in `text`.

    :param name: what was asked for: the file's stem
    :param source: the file's name, for messages
    :raises SpecError: with file and line
    """
    document = parse(text, source)
    deployment = validate(Deployment, document)
    if deployment.name != name:
        raise SpecError(
            f'{document.at(("name",))}: the name "{deployment.name}" is not that of the file ("{name}")',
            hint="Make the two equal",
        )
    return deployment


def resolve(deployment: Deployment, request: Request) -> Deployment:
    """The deployment as this run rolls it out: as pinned in the request, else with the request's image tag.

    :raises SpecError: the image tag cannot be one
    """
    if request.spec is not None:
        return request.spec
    if not request.image_tag:
        return deployment
    try:
        image = Image(repository=deployment.image.repository, tag=request.image_tag)
    except ValueError:
        raise SpecError(
            f'image_tag: "{request.image_tag}" is not an image tag',
            hint='Use letters, digits, ".", "_" and "-"',
            reason="image-tag-invalid",
        ) from None
    return deployment.model_copy(update={"image": image})
