"""What AWS still has: exact names, and unknown is not empty."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nim_rollouts.hooks import inventory


def test_the_control_planes_log_group_is_looked_for_by_its_exact_name() -> None:
    def paginate(**query: Any) -> list[dict[str, Any]]:
        names = ["/aws/eks/prod/cluster", "/aws/eks/prod/cluster-insights"]
        assert all(name.startswith(query["logGroupNamePrefix"]) for name in names)
        return [{"logGroups": [{"logGroupName": name} for name in names]}]

    logs = SimpleNamespace(get_paginator=lambda _: SimpleNamespace(paginate=paginate))
    assert inventory._log_groups(logs, "/aws/eks/prod/cluster") == ["/aws/eks/prod/cluster"]
