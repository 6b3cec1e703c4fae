"""What the next plan takes over: what a killed apply has made, and the log group that EKS makes once more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from nim_rollouts.clients.store import FolderStore
from nim_rollouts.core.errors import TerraformUnavailable
from nim_rollouts.hooks import interrupted

LOGS = "/aws/eks/lab/cluster"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    monkeypatch.setattr("nim_rollouts.hooks.infrastructure.variables", lambda environment: {})
    environment = SimpleNamespace(
        name="lab", cluster=SimpleNamespace(name="lab"), aws_conn_id="aws_default", region="us-west-2"
    )
    return SimpleNamespace(environment=environment, store=FolderStore(tmp_path), run_id="manual__1")


@mock_aws
@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("logs", [None, LOGS])
def test_what_is_taken_over(session: Any, cut_off: bool, logs: str | None) -> None:
    if logs:
        boto3.client("logs", "us-west-2").create_log_group(logGroupName=logs)
    terraform: Any = SimpleNamespace(work_dir=Path("/nonexistent"), began=True)
    if cut_off:
        with pytest.raises(TerraformUnavailable), interrupted.applying(session, "sum", terraform):
            raise TerraformUnavailable("killed")
    said: list[str] = []
    found = interrupted._adoption(terraform, session, said.append)
    if not cut_off and not logs:
        assert found is None and said == []
        return
    assert found is not None and (found.interrupted, found.logs) == (cut_off, logs)
    assert len(said) == cut_off


def test_an_account_that_does_not_tell_is_no_failure(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An apply that meets the group would say so, with the block that takes it over."""

    def denied(*_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "DescribeLogGroups")

    monkeypatch.setattr("nim_rollouts.clients.terraform_lookup.written_again", denied)
    said: list[str] = []
    assert interrupted._adoption(SimpleNamespace(), session, said.append) is None  # type: ignore[arg-type]
    assert len(said) == 1 and "AccessDeniedException" in said[0]
