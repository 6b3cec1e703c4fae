"""Where two states of an object differ."""

from __future__ import annotations

from nim_rollouts.core.differences import differing


def test_paths_are_two_names_deep_and_lists_whole() -> None:
    before = {"spec": {"a": {"b": {"c": 1}}, "list": [1], "same": {"x": 1}}, "provisioner": "p"}
    after = {"spec": {"a": {"b": {"c": 2}}, "list": [1, 2], "same": {"x": 1}, "limits": {"cpu": 1}}, "provisioner": "q"}
    assert differing(before, after) == ["provisioner", "spec.a", "spec.limits", "spec.list"]
    assert differing(after, before) == differing(before, after)


def test_metadata_and_status_are_no_content() -> None:
    before = {"apiVersion": "v1", "metadata": {"labels": {}}, "status": {"a": 1}, "spec": {}}
    assert differing(before, {**before, "metadata": {"labels": {"b": "c"}}, "status": {}}) == []


def test_what_is_there_on_one_side_alone_differs() -> None:
    assert differing({"spec": {}}, {"spec": {}, "data": {"a": "b"}}) == ["data"]
