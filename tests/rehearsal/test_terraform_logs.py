"""The control plane's log group, which EKS makes once more after terraform has deleted it (terraform-aws-eks #2446)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.rehearsal.aws_standin import client, start
from tests.rehearsal.terraform_kills import HEAD, Ground

pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")

APPLY, DESTROY = ["terraform_plan", "terraform_apply"], ["plan_destroy", "terraform_destroy"]
GROUP = "/aws/eks/lab/cluster"
ROOT = (
    HEAD
    + """
resource "aws_cloudwatch_log_group" "control_plane" {
  name              = "/aws/eks/${var.cluster_name}/cluster"
  retention_in_days = 30
}
"""
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_is_taken_over_by_the_next_deploy_and_by_the_next_teardown(tmp_path: Path) -> None:
    r, process = start(tmp_path)
    try:
        ground, logs = Ground(r, tmp_path), client(r, "logs")
        ground.root("lab", ROOT)
        logs.create_log_group(logGroupName=GROUP)
        ended = ground.attempt("lab", APPLY)
        assert ended["ok"], ended
        (group,) = logs.describe_log_groups()["logGroups"]
        assert group["retentionInDays"] == 30, "what EKS makes keeps its logs for ever"
        assert ground.attempt("lab", DESTROY)["ok"] and logs.describe_log_groups()["logGroups"] == []
        # The last of what the control plane had to say comes after its end.
        logs.create_log_group(logGroupName=GROUP)
        assert ground.attempt("lab", DESTROY, run_id="again")["ok"] and logs.describe_log_groups()["logGroups"] == []
    finally:
        process.terminate()
        process.wait(30)
