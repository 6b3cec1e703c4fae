"""What hangs on a finalizer whose controller is not there, and only that."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.core.finalizers import KEEPERS, Held, checksum, definitions_of, hanging, held
from nim_rollouts.core.verdicts import State, Subject
from nim_rollouts.core.verdicts.model import Blocker
from nim_rollouts.triggers.watching import judge_all

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NIM = "finalizer.nimcache.apps.nvidia.com"
CACHES = "nimcaches.apps.nvidia.com"
OPERATOR = Subject("Deployment", "operator", "nim-operator")


def cache(*finalizers: str, going: bool = True, uid: str = "u1") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "c", "namespace": "ns", "uid": uid, "finalizers": list(finalizers)}
    return {"kind": "NIMCache", "metadata": metadata | ({"deletionTimestamp": "x"} if going else {})}


def judged(obj: dict[str, Any], deployment: dict[str, Any] | None) -> Any:
    subject = Subject("NIMCache", "c", "ns", absent=True, uid="u1")
    snapshots = {
        "ns": {"NIMCache": [obj], "Job": [], "Pod": [], "PersistentVolumeClaim": []},
        "nim-operator": {"Deployment": [deployment] if deployment else [], "ReplicaSet": [], "Pod": [], "Event": []},
    }
    ((_, verdict),) = judge_all([subject], snapshots, NOW, [OPERATOR])
    return subject, verdict


def deployment(available: int) -> dict[str, Any]:
    return {"kind": "Deployment", "metadata": {"name": "operator"}, "status": {"availableReplicas": available}}


def test_without_its_operator_a_finalizer_is_stuck_at_once_with_all_that_one_needs_to_know() -> None:
    subject, verdict = judged(cache(NIM), None)
    assert (verdict.state, verdict.reason, verdict.layer) == (State.STUCK, "finalizer-stuck", "operator")
    assert subject.is_final(verdict)
    for word in (NIM, "the NIM operator", "Deployment operator does not exist"):
        assert word in verdict.message
    assert "Deployment/operator absent" in verdict.evidence


def test_an_operator_that_works_is_waited_for_and_one_that_is_down_is_told() -> None:
    _, verdict = judged(cache(NIM), deployment(1))
    assert (verdict.state, verdict.blocker) == (State.PROGRESSING, None)
    _, verdict = judged(cache(NIM), deployment(0))
    assert verdict.state is State.PROGRESSING
    assert verdict.blocker is not None and verdict.blocker.reason == "operator-unavailable"


@pytest.mark.parametrize("obj", [cache("somebody/else"), cache(), cache(NIM, going=False)])
def test_what_is_not_the_operators_to_let_go_of_does_not_hang_on_it(obj: dict[str, Any]) -> None:
    _, verdict = judged(obj, None)
    assert (verdict.state, verdict.blocker) == (State.PROGRESSING, None)


def test_an_object_that_is_gone_hangs_on_nothing() -> None:
    from nim_rollouts.core.verdicts.model import gone

    verdict = gone("deleted", "gone")
    assert hanging(verdict, None, ["operator"], Blocker("operator-unavailable", "away")) == verdict


def test_held_are_exactly_the_finalizers_of_absent_controllers() -> None:
    claim = {"kind": "NodeClaim", "metadata": {"name": "n", "uid": "u2", "finalizers": ["karpenter.sh/termination"]}}
    both = [cache(NIM, "somebody/else", going=False), claim]
    assert held(both, {CACHES}) == [Held("NIMCache", "c", "ns", "u1", NIM)]
    assert held(both, set()) == []
    assert definitions_of(both) == {CACHES, "nodepools.karpenter.sh"}


def test_an_approval_is_of_one_run_and_of_exactly_these() -> None:
    one, other = Held("NIMCache", "c", "ns", "u1", NIM), Held("NIMCache", "d", "ns", "u2", NIM)
    assert checksum([one, other], "r") == checksum([other, one], "r")
    different = {checksum([one], "r"), checksum([other], "r"), checksum([one, other], "r"), checksum([one], "r2")}
    assert len(different) == 4
    again = Held("NIMCache", "c", "ns", "u9", NIM)
    assert checksum([again], "r") != checksum([one], "r"), "a namesake is another object"


def test_every_keeper_says_what_nobody_does_in_its_place() -> None:
    assert all(one.name and one.promise and "." in one.definition for one in KEEPERS.values())
