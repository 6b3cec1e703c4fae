"""What an add-on of an environment is: a Helm release, with what it is given and what must be there afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from nim_rollouts.core import chartvalues
from nim_rollouts.core.errors import PlatformNotReady
from nim_rollouts.core.fields import LabelName, ObjectName, Strict

#: On what is made for an add-on besides its release: CRDs and Secrets.
ADDON_LABEL = "nim-rollouts/addon"
#: What the GPU nodes run. It decides who brings the NVIDIA driver and device plugin: the image, or an add-on.
NodeOs = Literal["bottlerocket", "al2023"]

# Charts that bring what Bottlerocket's NVIDIA images carry already, and the switches that keep each part away.
_PARTS_BY_CHART: dict[str, tuple[tuple[str, ...], ...]] = {
    "nvidia-device-plugin": (("devicePlugin", "enabled"),),
    "gpu-operator": (("devicePlugin", "enabled"), ("driver", "enabled"), ("toolkit", "enabled")),
}


class Requires(Strict):
    """What must be there once the add-on is installed."""

    crds: list[ObjectName] = Field(default_factory=list)
    deployments: list[ObjectName] = Field(default_factory=list)


class When(Strict):
    """The add-on is installed only where all of this holds."""

    node_os: NodeOs | None = None


class AddonSecret(Strict):
    """A Secret that the chart expects in its namespace: the value comes from Secrets Manager, under the name that an
    output of terraform gives, and goes in under `key`; `literals` are what else the Secret holds, none of it secret."""

    name: ObjectName
    from_output: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$")
    literals: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_value_a_key(self) -> AddonSecret:
        if self.key in self.literals:
            raise ValueError(f"{self.name}: literals must not set {self.key}, which is the secret one")
        return self


class Addon(Strict):
    """One Helm release. `chart` is a path relative to the repository's root, an oci:// address, or a chart's name
    together with `repository`; `values` is a file of include/; `values_from` sets values (dotted paths) to outputs of
    terraform; `digest` pins the chart's content; `wait_s` lets Helm wait for readiness, and take back what is not;
    `adopt` takes over a release of that name that somebody else has installed."""

    name: LabelName
    namespace: LabelName
    chart: str = Field(min_length=1)
    repository: str | None = None
    version: str | None = None
    digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    values: str | None = None
    values_from: dict[str, str] = Field(default_factory=dict)
    secrets: list[AddonSecret] = Field(default_factory=list)
    when: When = Field(default_factory=When)
    wait_s: int | None = Field(default=None, ge=1, le=3600)
    adopt: bool = False
    requires: Requires = Field(default_factory=Requires)

    @property
    def is_local(self) -> bool:
        """True when the chart is a folder of the checkout."""
        return self.repository is None and not self.is_oci

    @property
    def is_oci(self) -> bool:
        """True when the chart is in an OCI registry."""
        return self.chart.startswith("oci://")

    @property
    def chart_name(self) -> str:
        """The chart's own name: the last part of its address."""
        return self.chart.rstrip("/").rpartition("/")[2]

    @property
    def label(self) -> str:
        """Its value of `ADDON_LABEL`."""
        return f"{self.namespace}.{self.name}"[:63].rstrip("-.")

    @property
    def outputs(self) -> set[str]:
        """The outputs of terraform that it needs."""
        return {*self.values_from.values(), *(one.from_output for one in self.secrets)}

    def is_for(self, node_os: NodeOs) -> bool:
        """Whether it is installed on nodes of that system."""
        return self.when.node_os in (None, node_os)

    @model_validator(mode="after")
    def _pinned(self) -> Addon:
        if "://" in self.chart and not self.is_oci:
            raise ValueError(f"{self.name}: a chart's address begins with oci://; of others give repository and name")
        if self.is_oci and self.repository:
            raise ValueError(f"{self.name}: an oci:// chart has no repository besides; remove one of the two")
        if not self.is_local and not self.version:
            raise ValueError(f"{self.name}: a chart from a repository needs its version, so that a run can be repeated")
        return self

    @model_validator(mode="after")
    def _paths_fit(self) -> Addon:
        chartvalues.refuse_clashes(self.values_from)
        return self


def overlay(addon: Addon, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The values that come from terraform's outputs, nested as the chart has them.

    :raises PlatformNotReady: an output is missing, null, or was withheld because it is sensitive
    """
    return chartvalues.nested({path: output(addon, outputs, name) for path, name in addon.values_from.items()})


def output(addon: Addon, outputs: Mapping[str, Any], name: str) -> Any:
    """The output that the add-on names.

    :raises PlatformNotReady: see `overlay`
    """
    if outputs.get(name) is None:
        what = "is null" if name in outputs else "does not exist, or is sensitive and was not handed on"
        raise PlatformNotReady(
            f"the add-on {addon.name} needs terraform's output {name}, which {what}",
            hint="Turn on in terraform.variables what gives the output, or take it out of the add-on",
            reason="output-missing",
        )
    return outputs[name]


def second_device_plugins(addon: Addon, node_os: NodeOs, values: Mapping[str, Any]) -> list[str]:
    """What the add-on would install a second time on nodes whose image has it: the switches to set to false, dotted.

    Two device plugins on one node both announce its GPUs, and pods are given the same one twice.
    """
    if node_os != "bottlerocket" or not addon.is_for(node_os):
        return []
    parts = _PARTS_BY_CHART.get(addon.chart_name, ())
    return [".".join(path) for path in parts if chartvalues.at(values, path) is not False]
