"""The price table is dated and whole, and an estimate says what it does not know."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from nim_rollouts.core.approval import cost_text
from nim_rollouts.core.cost import PriceTable, estimate, load_prices, resource_type, sizes
from nim_rollouts.core.errors import SpecError
from nim_rollouts.core.instances import INSTANCES

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "include" / "prices"


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return load_prices((FOLDER / "us-west-2.yaml").read_text(), "include/prices/us-west-2.yaml", "us-west-2")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_table_has_date_and_source_and_prices_that_can_be(file: Path) -> None:
    found = load_prices(file.read_text(), file.name, file.stem)
    assert date(2025, 1, 1) <= found.as_of <= date.today()
    assert len(found.source) > 40
    assert all(0 < hour < 200 for hour in found.instances.values())
    assert not set(found.resources) & set(found.free)


def test_every_gpu_type_that_the_product_knows_is_priced_or_said(table: PriceTable) -> None:
    told = {*table.instances, *table.unpriced_instances}
    assert [name for name, one in INSTANCES.items() if one.gpus and name not in told] == []


def test_every_resource_type_of_the_root_module_is_priced_or_free(table: PriceTable) -> None:
    text = "".join(path.read_text() for path in (ROOT / "include" / "terraform" / "eks").glob("*.tf"))
    kinds = set(re.findall(r'^resource "([a-z0-9_]+)"', text, re.MULTILINE))
    assert "aws_nat_gateway" in kinds
    assert kinds - set(table.resources) - set(table.free) == set()


def test_a_price_list_of_another_region_or_without_a_unit_is_refused() -> None:
    text = (FOLDER / "us-west-2.yaml").read_text()
    with pytest.raises(SpecError, match=r"x\.yaml:\d+: the region"):
        load_prices(text, "x.yaml", "eu-west-1")
    with pytest.raises(SpecError, match="either `hour` or `month`"):
        load_prices(text.replace("aws_eip: {hour: 0.005}", "aws_eip: {usage: something}"), "x.yaml", "us-west-2")


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("aws_eip.nat[0]", "aws_eip"),
        ('module.a["x.y"].aws_eip.nat["b.c"]', "aws_eip"),
        ("module.a.module.b[1].aws_vpc.this", "aws_vpc"),
        ("data.aws_region.current", "aws_region"),
    ],
)
def test_the_type_in_an_address(address: str, kind: str) -> None:
    assert resource_type(address) == kind


def test_what_a_platform_adds_is_summed_by_the_month(table: PriceTable) -> None:
    changes = [
        ("aws_eks_cluster.this", "create"),
        ("aws_nat_gateway.this[0]", "create"),
        ("aws_eip.nat[0]", "create"),
        ("aws_eks_node_group.system[0]", "create"),
        ("aws_efs_file_system.models", "create"),
        ("aws_vpc.this", "create"),
        ("aws_rds_cluster.x", "create"),
    ]
    nodes = {"aws_eks_node_group.system[0]": {"before": None, "after": ["m6i.large", 2]}}
    found = estimate(changes, table, sizes=nodes, gpu_types=["g5.48xlarge", "g5.12xlarge"], gpu_nodes=2)
    by_what = {line.what: line for line in found.adds}
    assert by_what["aws_eks_cluster"].monthly == pytest.approx(73.0)
    assert by_what["m6i.large (aws_eks_node_group)"].monthly == pytest.approx(2 * 0.096 * 730)
    assert found.gpu is not None
    assert (found.gpu.what, found.gpu.count) == ("g5.12xlarge", 2)
    assert found.gpu.monthly == pytest.approx(2 * 5.672 * 730)
    assert found.added == pytest.approx((0.10 + 0.045 + 0.005 + 2 * 0.096 + 2 * 5.672) * 730)
    # Known to have no price, known to cost by use, known to be free: three different things.
    assert found.unpriced == ["aws_rds_cluster"]
    assert any(text.startswith("aws_efs_file_system: 0.30 per GB") for text in found.usage)
    assert found.free == 1
    text = cost_text(found)
    assert "| 2 x g5.12xlarge for the service (the cheapest that fits," in text and "yet) | 8,281.12 |" in text
    assert "Not priced, and not free for that:** aws_rds_cluster" in text
    assert "2026-" in text and "us-west-2" in text


def test_what_ends_is_named_by_itself_and_what_is_replaced_costs_as_before(table: PriceTable) -> None:
    changes = [
        ("aws_nat_gateway.this[0]", "delete"),
        ("aws_eks_cluster.this", "replace"),
        ("aws_eks_node_group.system[0]", "update"),
        ("aws_eks_node_group.more", "replace"),
    ]
    nodes = {
        "aws_eks_node_group.system[0]": {"before": ["m6i.large", 2], "after": ["m6i.large", 3]},
        "aws_eks_node_group.more": {"before": ["m5.large", 1], "after": ["m5.xlarge", 1]},
    }
    found = estimate(changes, table, sizes=nodes)
    assert [(line.what, line.count) for line in found.adds] == [
        ("m5.xlarge (aws_eks_node_group)", 1),
        ("m6i.large (aws_eks_node_group)", 1),
    ]
    assert {line.what for line in found.ends} == {"aws_nat_gateway", "m5.large (aws_eks_node_group)"}
    assert "and ends" in cost_text(found)


def test_what_is_not_known_is_said(table: PriceTable) -> None:
    changes = [("aws_eks_node_group.a", "create"), ("aws_eks_node_group.b", "create")]
    nodes = {"aws_eks_node_group.b": {"before": None, "after": ["z9.huge", 1]}}
    found = estimate(changes, table, sizes=nodes, gpu_types=["g99.xlarge"], gpu_nodes=1)
    assert (found.adds, found.gpu) == ([], None)
    assert found.unpriced == [
        "aws_eks_node_group of a type that the plan does not tell",
        "aws_eks_node_group of z9.huge",
        "instance type g99.xlarge",
    ]
    text = cost_text(found)
    assert "Nothing that has a price by the month is added." in text and "0.00" not in text
    nowhere = estimate(changes, None, gpu_types=["g5.xlarge"], gpu_nodes=1)
    assert "Unknown" in cost_text(nowhere) and "0.00" not in cost_text(nowhere)


def test_the_sizes_in_a_plan_are_those_of_node_groups_alone() -> None:
    group = {"instance_types": ["m6i.large"], "scaling_config": [{"desired_size": 2}], "secret": "no"}
    shown = {
        "resource_changes": [
            {"address": "aws_eks_node_group.a", "type": "aws_eks_node_group",
             "change": {"actions": ["create"], "before": None, "after": group}},
            {"address": "aws_eks_node_group.b", "type": "aws_eks_node_group",
             "change": {"actions": ["no-op"], "before": group, "after": group}},
            {"address": "aws_vpc.v", "type": "aws_vpc", "change": {"actions": ["create"], "after": {"x": 1}}},
        ]
    }  # fmt: skip
    assert sizes(shown) == {"aws_eks_node_group.a": {"before": None, "after": ["m6i.large", 2]}}
