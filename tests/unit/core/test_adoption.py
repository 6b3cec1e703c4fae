"""Which planned creations are looked for after an apply that was cut off, and how they are taken over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nim_rollouts.core import adoption


def change(
    address: str, *actions: str, after: Any = None, importing: Any = None, mode: str = "managed"
) -> dict[str, Any]:
    type_ = address.partition(".")[0]
    body = {"actions": list(actions), "after": after, **({"importing": importing} if importing else {})}
    return {"address": address, "type": type_, "mode": mode, "change": body}


def test_only_creations_that_would_make_a_second_one_are_looked_for() -> None:
    shown = {
        "resource_changes": [
            change("aws_vpc.this", "create", after={"cidr_block": "10.0.0.0/16", "id": None, "tags_all": {"a": "b"}}),
            change("aws_iam_role_policy_attachment.this", "create", after={}),
            change("aws_eip.nat", "update", after={}),
            change("aws_nat_gateway.this", "delete", "create", after={}),
            change("aws_subnet.this", "no-op", after={}),
            change("data.aws_region.this", "read", mode="data"),
            {**change("aws_security_group.old", "create", after={}), "deposed": "abcd"},
        ]
    }
    (found,) = adoption.creations(shown)
    assert (found.address, found.type, found.tags) == ("aws_vpc.this", "aws_vpc", {"a": "b"})
    assert found.values == {"cidr_block": "10.0.0.0/16", "tags_all": {"a": "b"}}, "unknown values are left out"


def test_what_the_state_holds_or_the_plan_imports_is_not_taken_again() -> None:
    child = {"resources": [{"mode": "managed", "type": "aws_eip", "values": {"id": "eip-1"}}]}
    vpc = {"mode": "managed", "type": "aws_vpc", "values": {"id": "vpc-1"}}
    shown = {
        "prior_state": {"values": {"root_module": {"resources": [vpc], "child_modules": [child]}}},
        "resource_changes": [change("aws_subnet.this", "no-op", importing={"id": "subnet-1"})],
    }
    assert adoption.in_state(shown) == {("aws_vpc", "vpc-1"), ("aws_eip", "eip-1"), ("aws_subnet", "subnet-1")}
    assert adoption.in_state({}) == set()


def test_a_replacement_that_is_made_first_is_told_apart() -> None:
    changes = [
        change("aws_security_group.efs", "create", "delete", after={}),
        change("aws_eip.nat", "delete", "create"),
    ]
    assert [one.address for one in adoption.replaced({"resource_changes": changes})] == ["aws_security_group.efs"]


def test_what_terraform_said_it_made_survives_a_line_that_was_cut_off() -> None:
    def event(kind: str, address: str, action: str = "create", identifier: str = "x-1") -> str:
        return json.dumps({"type": kind, "hook": {"resource": {"addr": address}, "action": action, "id_key": "id",
                                                  "id_value": identifier}})  # fmt: skip

    lines = [event("apply_start", "a.a"), event("apply_complete", "a.a"), event("apply_complete", "a.b", "update"),
             event("apply_complete", "a.c", identifier=""), event("apply_complete", "a.d")[:-9], "3"]  # fmt: skip
    assert adoption.made(lines) == {"a.a": "x-1"}


@pytest.mark.parametrize(
    ("identifier", "written"),
    [("vpc-1", '"vpc-1"'), ("${var.x}%{if}", '"$${var.x}%%{if}"'), ('a"b', '"a\\"b"'), ("rôle", '"rôle"')],
)
def test_an_id_is_text_for_terraform_whatever_it_holds(identifier: str, written: str) -> None:
    blocks = adoption.import_blocks({'aws_subnet.this["us-west-2a"]': identifier})
    assert blocks == f'import {{\n  to = aws_subnet.this["us-west-2a"]\n  id = {written}\n}}\n'
