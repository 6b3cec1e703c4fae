"""What counts as going: what AWS deletes, and what nothing else holds; decided over any tangle of things."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nim_rollouts.core.inventory import Scope, Thing, going, judge

LAB = Scope("lab", "lab", frozenset(["vpc-1"]))
GATEWAY = Thing("NAT gateway", "nat-1", vpc="vpc-1", holds=("subnet subnet-1",), state="deleting", going=True)


def instance(name: str, state: str) -> Thing:
    holds = (f"volume vol-{name}", f"network interface eni-{name}", "subnet subnet-1")
    return Thing("instance", name, vpc="vpc-1", holds=holds, state=state, going=state == "shutting-down")


def parts(name: str) -> list[Thing]:
    disk = Thing("volume", f"vol-{name}", tags={"nim-rollouts/environment": "lab"}, held_by=(f"instance {name}",))
    wire = Thing("network interface", f"eni-{name}", vpc="vpc-1", holds=("security group sg-1", "subnet subnet-1"))
    return [disk, wire]


def leaving(*things: Thing) -> dict[str, bool]:
    return {f"{one.kind} {one.id}": one.going for one in judge(things, [], [], LAB).leftovers}


GROUP = Thing("security group", "sg-1", vpc="vpc-1")
SUBNET = Thing("subnet", "subnet-1", vpc="vpc-1")


def test_what_an_instance_that_ends_holds_goes_with_it_and_so_does_what_that_holds() -> None:
    """Its disk and its interface; the group by the interface alone, the subnet by both and a gateway."""
    told = leaving(instance("i-1", "shutting-down"), *parts("i-1"), GROUP, SUBNET, GATEWAY)
    assert len(told) == 6 and all(told.values())


@pytest.mark.parametrize("state", ["running", "stopping"])
def test_one_holder_that_stays_is_enough_to_stay(state: str) -> None:
    things = [instance("i-1", "shutting-down"), *parts("i-1"), instance("i-2", state), *parts("i-2"), GROUP, SUBNET]
    stays = {"instance i-2", "volume vol-i-2", "network interface eni-i-2", "security group sg-1", "subnet subnet-1"}
    assert {name for name, is_going in leaving(*things).items() if not is_going} == stays


def test_a_claims_volume_does_not_go_with_its_instance() -> None:
    """The driver detaches it, and keeps it: the claim holds it, whoever it was attached to."""
    volume, _ = parts("i-1")
    claimed = replace(volume, held_by=(*volume.held_by, "claim monitoring/prometheus-0"))
    assert leaving(instance("i-1", "shutting-down"), claimed)["volume vol-i-1"] is False


def test_groups_that_name_each_other_do_not_go_because_of_that() -> None:
    """Also where something that is going holds one of them: a person has to take the rules away."""
    one = Thing("security group", "sg-1", vpc="vpc-1", holds=("security group sg-2",))
    other = Thing("security group", "sg-2", vpc="vpc-1", holds=("security group sg-1",))
    assert leaving(one, other, *parts("i-1"), instance("i-1", "shutting-down")) == {
        "security group sg-1": False,
        "security group sg-2": False,
        "volume vol-i-1": True,
        "network interface eni-i-1": True,
        "instance i-1": True,
    }


def tangle(rng: random.Random) -> list[Thing]:
    """Some things, of which some are going; each edge is told by the holder or by the held, some holders are none."""
    names = [f"{n}" for n in range(rng.randint(1, 8))]
    things = {name: Thing("t", name, going=rng.random() < 0.3) for name in names}
    for _ in range(rng.randint(0, 2 * len(names))):
        holder, held = rng.choice(names), rng.choice(names)
        if rng.random() < 0.5:
            things[holder] = replace(things[holder], holds=(*things[holder].holds, f"t {held}"))
        else:
            by = f"t {holder}" if rng.random() < 0.8 else f"claim {holder}"
            things[held] = replace(things[held], held_by=(*things[held].held_by, by))
    return list(things.values())


def stays(name: str, things: list[Thing], below: tuple[str, ...] = ()) -> bool:
    """Asked upwards: itself not going, and held by nothing, by itself in a circle, or by something that stays."""
    thing = next((one for one in things if one.ref == name), None)
    if thing is None or name in below:
        return True
    holders = {*thing.held_by, *(one.ref for one in things if name in one.holds)}
    return not thing.going and (not holders or any(stays(one, things, (*below, name)) for one in holders))


@pytest.mark.parametrize("seed", range(20))
def test_of_any_tangle_exactly_what_does_not_stay_is_going(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        things = tangle(rng)
        assert going(things) == {one.ref for one in things if not stays(one.ref, things)}
        rng.shuffle(things)
        assert going(things) == {one.ref for one in things if not stays(one.ref, things)}, "in any order"
