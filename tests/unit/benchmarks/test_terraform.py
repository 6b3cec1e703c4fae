"""bench-terraform compares pairs, and says plainly whether the goal is met."""

from __future__ import annotations

from benchmarks.terraform.__main__ import GOAL_S, result, text


def test_the_overhead_is_that_of_pairs_not_of_medians() -> None:
    """A machine that slows down between two repetitions would else be taken for one of the sides."""
    bare = [
        {"init": 1.0, "plan": 2.0, "apply": 7.0, "no-op plan": 2.0},
        {"init": 9.0, "plan": 9.0, "apply": 9.0, "no-op plan": 9.0},
    ]
    ours = [{"plan": 4.0, "apply": 7.0, "no-op plan": 2.5, "no-op apply": 0.1},
            {"plan": 19.0, "apply": 9.5, "no-op plan": 11.5, "no-op apply": 0.5}]  # fmt: skip
    measured = result({"bare": bare, "ours": ours})
    assert measured["figures"]["plan + apply"] == {
        "bare_s": 18.5, "ours_s": 19.75, "overhead_s": 1.25, "least_s": 1.0, "most_s": 1.5}  # fmt: skip
    assert measured["figures"]["no-op"]["overhead_s"] == 1.8 < GOAL_S and measured["met"]
    assert "plan + apply" in text(measured)
    ours[0]["no-op plan"] += 2.0
    assert not result({"bare": bare, "ours": ours})["met"]
