"""Which instance types can hold a request at all."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from nim_rollouts.core.errors import GpuFit
from nim_rollouts.core.instances import INSTANCES, cpus_of_size, fits, may_have_gpus
from nim_rollouts.core.quantity import parse_quantity
from rehearsal.karpenter import catalogue

G5 = ["g5.2xlarge", "g5.4xlarge", "g5.8xlarge", "g5.12xlarge", "g5.16xlarge", "g5.24xlarge", "g5.48xlarge"]


def test_what_we_know_of_a_type_is_what_the_stand_in_starts() -> None:
    """Two sources, written apart: a slip in one of them shows."""
    known = catalogue.load().types
    common = INSTANCES.keys() & known.keys()
    assert {one.partition(".")[0] for one in common} >= {"g5", "g6", "c6i", "m6i", "r6i"}
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


def test_of_a_type_that_is_not_known_nothing_is_held_against_it() -> None:
    assert fits({"cpu": "100", "nvidia.com/gpu": "4"}, ["g5.xlarge", "g9.huge", "g9.48xlarge"]) == [
        "g9.huge",
        "g9.48xlarge",
    ]
    # One that is known and fits makes it no matter; and a name can tell enough.
    assert fits({"cpu": "1"}, ["g9.huge", "g5.xlarge"]) == ["g5.xlarge"]
    with pytest.raises(GpuFit, match="g9.xlarge, m9.48xlarge cannot, by the name"):
        fits({"cpu": "100", "nvidia.com/gpu": "4"}, ["g9.xlarge", "m9.48xlarge"])


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


def test_a_type_has_gpus_and_a_product_or_neither() -> None:
    assert all(bool(one.gpus) == bool(one.gpu_product) == bool(one.gpu_memory_gib) for one in INSTANCES.values())


@pytest.mark.parametrize(
    ("name", "cpus", "gib"),
    [("c7i.48xlarge", 192, 384), ("m6a.32xlarge", 128, 512), ("r7a.large", 2, 16), ("c5.18xlarge", 72, 144)],
)
def test_families_without_gpus(name: str, cpus: int, gib: int) -> None:
    assert (INSTANCES[name].cpus, INSTANCES[name].memory_gib) == (cpus, gib)


@pytest.mark.parametrize("name", sorted(INSTANCES))
def test_a_sizes_name_tells_its_vcpus(name: str) -> None:
    """What is taken for certain of types that are not known here holds for those that are."""
    assert cpus_of_size(name.partition(".")[2]) == INSTANCES[name].cpus
    assert may_have_gpus(name) or not INSTANCES[name].gpus


def test_the_message_names_the_key_that_asks_too_much() -> None:
    with pytest.raises(GpuFit) as caught:
        fits({"memory": "9000Gi"}, ["g5.12xlarge"], where="cache.resources")
    assert "cache.resources" in str(caught.value) and "service.resources" not in str(caught.value)
