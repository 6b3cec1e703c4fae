"""What a plan would add to the bill, by one dated table of list prices (include/prices/<region>.yaml).

An estimate for whoever decides, not an invoice: what exists is counted by the month, what is used (data, gigabytes) is
named and left out. What has no price in the table is said to have none; nothing is taken to be free in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from pydantic import Field, model_validator

from nim_rollouts.core.errors import SpecError
from nim_rollouts.core.fields import Strict
from nim_rollouts.core.yamlsource import parse, validate

Change = tuple[str, str]
Sizes = Mapping[str, Mapping[str, Any]]
"""Address of a node group -> {"before": [type, count] or None, "after": [type, count] or None}, from the plan."""

_BEFORE, _AFTER = ("delete", "replace", "update"), ("create", "replace", "update")


class Price(Strict):
    """Of one resource type: an hour or a month of its existence, and in words what its use costs."""

    hour: float | None = Field(default=None, ge=0)
    month: float | None = Field(default=None, ge=0)
    usage: str | None = None
    by_instances: bool = False

    @model_validator(mode="after")
    def _one_unit(self) -> Price:
        if (self.hour is None) == (self.month is None):
            raise ValueError("a price needs either `hour` or `month`")
        return self


class PriceTable(Strict):
    """One region's prices."""

    api_version: Literal["nim-rollouts/v1"] = Field(alias="apiVersion")
    kind: Literal["Prices"]
    region: str
    currency: Literal["USD"]
    as_of: date
    source: str = Field(min_length=20)
    hours_per_month: int = Field(ge=672, le=744)
    instances: dict[str, float]
    unpriced_instances: list[str] = Field(default_factory=list)
    resources: dict[str, Price]
    free: list[str]

    def instance_month(self, name: str) -> float | None:
        """A month of an instance type on demand; None when the table has no price of it."""
        hour = self.instances.get(name)
        return None if hour is None else hour * self.hours_per_month

    def month(self, price: Price) -> float:
        """A month of one resource."""
        return price.month if price.month is not None else (price.hour or 0.0) * self.hours_per_month


@dataclass(frozen=True)
class Line:
    """One line of the estimate: what, how many, for how much a month altogether."""

    what: str
    count: int
    monthly: float


@dataclass(frozen=True)
class Estimate:
    """`table` None: there are no prices for the region, and nothing else is known."""

    table: PriceTable | None
    adds: list[Line] = field(default_factory=list)
    ends: list[Line] = field(default_factory=list)
    gpu: Line | None = None
    usage: list[str] = field(default_factory=list)
    unpriced: list[str] = field(default_factory=list)
    free: int = 0

    @property
    def added(self) -> float:
        """A month of what the plan adds, the GPU nodes included."""
        return sum(line.monthly for line in self.adds) + (self.gpu.monthly if self.gpu else 0.0)

    @property
    def ended(self) -> float:
        """A month of what the plan takes away."""
        return sum(line.monthly for line in self.ends)


def load_prices(text: str, source: str, region: str) -> PriceTable:
    """The table in `text`.

    :raises SpecError: with file and line
    """
    document = parse(text, source)
    table = validate(PriceTable, document)
    if table.region != region:
        raise SpecError(
            f'{document.at(("region",))}: the region "{table.region}" is not that of the file ("{region}")',
            hint="Make the two equal",
        )
    return table


def sizes(shown: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a price needs to know beside the type, of the resources in `terraform show -json`: the node groups' types
    and numbers of nodes. No other value of a plan is looked at."""
    found = {}
    for item in shown.get("resource_changes", []):
        if item.get("type") == "aws_eks_node_group" and item["change"]["actions"] != ["no-op"]:
            change = item["change"]
            found[item["address"]] = {"before": _nodes(change.get("before")), "after": _nodes(change.get("after"))}
    return found


def _nodes(values: Mapping[str, Any] | None) -> list[Any] | None:
    if not values:
        return None
    types, scaling = values.get("instance_types") or [], values.get("scaling_config") or [{}]
    count = scaling[0].get("desired_size")
    # Without a type EKS takes its own default; what is known only after the apply is not known here.
    return [types[0], int(count)] if types and count is not None else None


def estimate(
    changes: Iterable[Change],
    table: PriceTable | None,
    *,
    sizes: Sizes | None = None,
    gpu_types: Iterable[str] = (),
    gpu_nodes: int = 0,
) -> Estimate:
    """What these changes add to a month's bill and take off it.

    :param gpu_types: instance types of which each could hold one pod of the deployment; the cheapest is counted
    :param gpu_nodes: how many of them: one a replica
    """
    if table is None:
        return Estimate(None)
    adds, ends, unpriced = _Lines(table), _Lines(table), Counter[str]()
    usage: dict[str, str] = {}
    free = 0
    for address, action in changes:
        kind = resource_type(address)
        price = table.resources.get(kind)
        if price is None:
            free += kind in table.free
            unpriced.update([] if kind in table.free else [kind])
            continue
        if price.usage and action in _AFTER:
            usage[kind] = price.usage
        size = (sizes or {}).get(address, {})
        # A replacement is paid for as before, unless its size is another.
        if action in _BEFORE and (action == "delete" or price.by_instances):
            ends.put(kind, price, size.get("before"), unpriced)
        if action in _AFTER and (action == "create" or price.by_instances):
            adds.put(kind, price, size.get("after"), unpriced)
    gpu = _gpu(table, list(gpu_types), gpu_nodes, unpriced)
    said = [f"{kind}: {text}" for kind, text in sorted(usage.items())]
    named = [f"{count} {kind}" if count > 1 else kind for kind, count in sorted(unpriced.items())]
    same = adds.same(ends)
    return Estimate(table, adds.lines(same), ends.lines(same), gpu, said, named, free)


def resource_type(address: str) -> str:
    """The type in a resource's address: `module.a["x.y"].aws_eip.nat[0]` is an aws_eip."""
    depth, parts, part = 0, [], ""
    for letter in address:
        depth += (letter == "[") - (letter == "]")
        if letter == "." and depth == 0:
            parts.append(part)
            part = ""
        elif depth == 0 and letter != "]":
            part += letter
    parts.append(part)
    while len(parts) > 2 and parts[0] == "module":
        parts = parts[2:]
    return parts[1] if parts[0] == "data" and len(parts) > 1 else parts[0]


class _Lines:
    def __init__(self, table: PriceTable) -> None:
        self._table = table
        self._found: dict[tuple[str, float], int] = {}

    def put(self, kind: str, price: Price, nodes: Any, unpriced: Counter[str]) -> None:
        if not price.by_instances:
            monthly = self._table.month(price)
            self._add(kind, monthly, 1)
            return
        name, count = nodes or (None, 0)
        each = self._table.instance_month(name) if name else None
        if each is None:
            unpriced[f"{kind} of {name or 'a type that the plan does not tell'}"] += 1
        elif count:
            self._add(f"{name} ({kind})", each, count)

    def _add(self, what: str, each: float, count: int) -> None:
        if each:
            self._found[what, each] = self._found.get((what, each), 0) + count

    def same(self, other: _Lines) -> dict[tuple[str, float], int]:
        return {key: min(count, other._found.get(key, 0)) for key, count in self._found.items()}

    def lines(self, without: Mapping[tuple[str, float], int]) -> list[Line]:
        left = {key: count - without.get(key, 0) for key, count in self._found.items()}
        found = [Line(what, count, each * count) for (what, each), count in left.items() if count > 0]
        return sorted(found, key=lambda line: (-line.monthly, line.what))


def _gpu(table: PriceTable, types: list[str], nodes: int, unpriced: Counter[str]) -> Line | None:
    if not types or nodes < 1:
        return None
    priced = {name: each for name in types if (each := table.instance_month(name)) is not None}
    unpriced.update(f"instance type {name}" for name in types if name not in priced)
    if not priced:
        return None
    cheapest = min(priced, key=lambda name: (priced[name], name))
    return Line(cheapest, nodes, priced[cheapest] * nodes)
