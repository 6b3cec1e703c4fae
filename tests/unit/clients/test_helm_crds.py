"""The one order in which an add-on ends."""

from __future__ import annotations

from typing import Any

import pytest

from nim_rollouts.clients import helm_crds
from nim_rollouts.core.addons import AddonSecret, Requires
from nim_rollouts.core.errors import LeftoversFound, Superseded
from nim_rollouts.core.manifests import MANAGED_BY, MANAGER
from nim_rollouts.core.spec import Addon
from tests.unit.operators.conftest import FakeCluster, obj

NAME = "things.example.com"
ADDON = Addon(
    name="r",
    namespace="n",
    chart="charts/c",
    requires=Requires(crds=[NAME]),
    secrets=[AddonSecret(name="filled", from_output="x", key="k")],
)


class Ground:
    """A cluster with the add-on's definition and Secret, and what is done to them, in order."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.order = self.cluster.log
        names = {"group": "example.com", "names": {"kind": "Thing"}, "versions": [{"name": "v1", "served": True}]}
        self.cluster.put(obj("CustomResourceDefinition", NAME, spec=names))
        self.cluster.put(obj("Secret", "filled", "n", {MANAGED_BY: MANAGER}))
        self.meanwhile: list[dict[str, Any]] = []

    def uninstall(self, addon: Addon, *, wait_s: float) -> bool:
        self.order.append(f"uninstall {addon.name} within {wait_s:.0f} s")
        for one in self.meanwhile:
            self.cluster.put(one)
        return True

    def gone(self, objects: list[dict[str, Any]]) -> None:
        self.order.append("gone " + " ".join(one["metadata"]["name"] for one in objects))

    def check(self) -> None:
        self.order.append("check")

    def remove(self, **given: Any) -> dict[str, Any]:
        given = {"wait_s": 9, "gone": self.gone, "check": self.check, **given}
        return helm_crds.remove(self.cluster, self, ADDON, **given)  # type: ignore[arg-type]

    @property
    def has_definition(self) -> bool:
        return ("CustomResourceDefinition", None, NAME) in self.cluster.objects


@pytest.fixture
def ground() -> Ground:
    return Ground()


def thing(name: str, **metadata: Any) -> dict[str, Any]:
    made = obj("Thing", name, "n")
    made["metadata"].update(metadata)
    return made


RELEASED = {"annotations": {"meta.helm.sh/release-name": "r", "meta.helm.sh/release-namespace": "n"}}


OWNED = {"ownerReferences": [{"kind": "DaemonSet", "name": "x", "uid": "1"}]}


def test_the_order(ground: Ground) -> None:
    """What Helm was told to keep is not waited for."""
    ground.cluster.put(thing("kept", **RELEASED))
    ground.cluster.put(thing("late", **RELEASED, deletionTimestamp="2026-01-01T00:00:00Z"))
    ground.cluster.put(thing("made", **OWNED))
    assert ground.remove() == {"uninstalled": True, "crds": [NAME]}
    assert ground.order == [
        "check",
        "uninstall r within 9 s",
        "delete Secret/filled",
        "gone late made",
        "check",
        f"delete CustomResourceDefinition/{NAME}",
        f"gone {NAME}",
    ]


def test_nothing_is_done_while_the_operator_is_needed(ground: Ground) -> None:
    ground.cluster.put(thing("theirs"))
    with pytest.raises(LeftoversFound, match="operator of add-on r is still needed by Thing/theirs in n"):
        ground.remove()
    assert ground.order == []


def test_what_came_meanwhile_keeps_its_definition_and_is_not_told_that_the_operator_stays(ground: Ground) -> None:
    ground.meanwhile = [thing("quick")]
    with pytest.raises(LeftoversFound, match="Thing/quick") as told:
        ground.remove()
    assert ground.has_definition and "delete Secret/filled" in ground.order
    assert "stays" not in str(told.value)
    assert "install the add-on again" in told.value.hint


@pytest.mark.parametrize("at", [1, 2])
def test_a_claim_that_was_lost_ends_it_at_either_step(ground: Ground, at: int) -> None:
    def check() -> None:
        ground.check()
        if ground.order.count("check") == at:
            raise Superseded("a newer run has it")

    with pytest.raises(Superseded):
        ground.remove(check=check)
    assert ground.has_definition
    assert ("uninstall r within 9 s" in ground.order) is (at == 2)


def test_without_a_wait_of_its_own_it_looks_until_all_is_gone(ground: Ground) -> None:
    assert ground.remove(gone=None) == {"uninstalled": True, "crds": [NAME]}
    held = Ground()
    held.cluster.objects["CustomResourceDefinition", None, NAME]["metadata"]["finalizers"] = ["cleanup"]
    with pytest.raises(LeftoversFound, match=f"{NAME} has not gone within 0 s"):
        held.remove(gone=None, wait_s=0)
