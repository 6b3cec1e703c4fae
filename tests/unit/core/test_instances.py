"""Which instance types can hold a request at all."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from nim_rollouts.core.errors import GpuFit
from nim_rollouts.core.instances import INSTANCES, fits
from nim_rollouts.core.quantity import parse_quantity
from rehearsal.karpenter import catalogue

G5 = ["g5.2xlarge", "g5.4xlarge", "g5.8xlarge", "g5.12xlarge", "g5.16xlarge", "g5.24xlarge", "g5.48xlarge"]


def test_what_we_know_of_a_type_is_what_the_stand_in_starts() -> None:
    """Two sources, written apart: a slip in one of them shows."""
    known = catalogue.load().types
    common = INSTANCES.keys() & known.keys()
    assert {one.partition(".")[0] for one in common} >= {"g5", "g6"}
    for name in common:
        ours, theirs = INSTANCES[name], known[name]
        assert (ours.cpus, ours.memory_gib, ours.gpus) == (theirs.cpus, theirs.memory_gib, theirs.accelerators), name
        # Ours is the careful side: what it promises, a node has.
        for resource, amount in ours.allocatable.items():
            assert amount <= Fraction(theirs.allocatable(300).get(resource, Decimal(0))), (name, resource)


def test_the_blueprints_request_fits_the_large_ones_only() -> None:
    assert fits({"cpu": "40", "nvidia.com/gpu": "2"}, G5) == ["g5.12xlarge", "g5.24xlarge", "g5.48xlarge"]


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"cpu": "40", "nvidia.com/gpu": "16"}, "g5.12xlarge lacks nvidia.com/gpu (4 of 16)"),
        ({"cpu": "48"}, "g5.12xlarge lacks cpu (47.04 of 48)"),
        ({"memory": "192Gi"}, "g5.12xlarge lacks memory"),
        ({"example.com/fpga": "1"}, "lacks any example.com/fpga"),
    ],
)
def test_what_does_not_fit_says_why(resources: dict[str, str], says: str) -> None:
    with pytest.raises(GpuFit) as caught:
        fits(resources, ["g5.12xlarge"])
    assert says in str(caught.value)


def test_the_hint_names_types_that_could() -> None:
    with pytest.raises(GpuFit) as caught:
        fits({"nvidia.com/gpu": "8"}, ["g5.12xlarge"])
    assert "g5.48xlarge" in caught.value.hint
    with pytest.raises(GpuFit, match="unknown: g9.huge"):
        fits({"cpu": "1"}, ["g9.huge"])


def test_the_gpu_must_be_the_profiles() -> None:
    assert fits({"nvidia.com/gpu": "1"}, ["g5.xlarge", "g6.xlarge"], ["l4"]) == ["g6.xlarge"]
    with pytest.raises(GpuFit, match="a GPU H100"):
        fits({"nvidia.com/gpu": "1"}, G5, ["H100"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("500m", Fraction(1, 2)), ("50Gi", 50 * 1024**3), ("1e3", 1000), ("1.5k", 1500), (".5", Fraction(1, 2))],
)
def test_quantities(text: str, value: Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "4O", "Gi", "1 Gi x", "1Kii", "nan", "1e", "--1"])
def test_not_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        parse_quantity(text)


def test_every_type_has_a_gpu() -> None:
    assert all(one.gpus > 0 and one.gpu_product for one in INSTANCES.values())


def test_the_message_names_the_key_that_asks_too_much() -> None:
    with pytest.raises(GpuFit) as caught:
        fits({"memory": "9000Gi"}, ["g5.12xlarge"], where="cache.resources")
    assert "cache.resources" in str(caught.value) and "service.resources" not in str(caught.value)
