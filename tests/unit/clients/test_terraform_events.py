"""terraform's events as progress lines, and its diagnostics as errors that say what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nim_rollouts.clients.terraform_events import LOCK_IN_USE_S, Diagnostic, Progress, failure, lock_info
from nim_rollouts.core.errors import (
    AccessDenied,
    NeedsHumanError,
    NimRolloutsError,
    TerraformFailed,
    TerraformUnavailable,
)
from nim_rollouts.operators.retry import RETRIES


def hook(kind: str, address: str, action: str, seconds: int | None = None) -> str:
    body: dict[str, Any] = {"resource": {"addr": address}, "action": action}
    if seconds is not None:
        body["elapsed_seconds"] = seconds
    return json.dumps({"@level": "info", "type": kind, "hook": body})


def test_progress_counts_what_is_done() -> None:
    progress = Progress(total=2)
    assert progress.line(hook("apply_start", "aws_vpc.this", "create")) == "[0 of 2] creating aws_vpc.this"
    assert (
        progress.line(hook("apply_progress", "aws_vpc.this", "create", 10))
        == "[0 of 2] still creating aws_vpc.this after 10 s"
    )
    assert (
        progress.line(hook("apply_complete", "aws_vpc.this", "create", 12)) == "[1 of 2] created aws_vpc.this in 12 s"
    )
    assert progress.line(hook("apply_complete", "aws_eip.a", "delete", 0)) == "[2 of 2] destroyed aws_eip.a in 0 s"
    assert progress.done == [("aws_vpc.this", "create", 12.0), ("aws_eip.a", "delete", 0.0)]


def test_without_a_total_no_count_is_invented() -> None:
    assert Progress().line(hook("apply_start", "aws_vpc.this", "update")) == "updating aws_vpc.this"


def test_summary_and_counts() -> None:
    progress = Progress()
    changes = {"add": 3, "change": 0, "remove": 1, "operation": "apply"}
    line = json.dumps({"@message": "Apply complete!", "type": "change_summary", "changes": changes})
    assert progress.line(line) == "Apply complete!"
    assert progress.counts == {"add": 3, "change": 0, "remove": 1}


@pytest.mark.parametrize("raw", ["", "not json", "[1]", '{"type": "version"}', '{"type": "refresh_start", "hook": {}}'])
def test_what_says_nothing_is_not_shown(raw: str) -> None:
    assert Progress().line(raw) is None


def test_reads_are_not_steps() -> None:
    progress = Progress(total=1)
    assert progress.line(hook("apply_complete", "data.aws_partition.x", "read", 0)) is None
    assert progress.done == []


LOCKED = Diagnostic(
    "error",
    "Error acquiring the state lock",
    "Error message: operation error S3: PutObject, StatusCode: 412, api error PreconditionFailed\n"
    "Lock Info:\n  ID:        7a3dee47-c2fe\n  Path:      bucket/key\n  Operation: OperationTypeApply\n"
    "  Who:       airflow@worker-1\n  Version:   1.11.4\n  Created:   2026-11-23 20:03:59.319934981 +0000 UTC\n"
    "  Info:      \n\n\nTerraform acquires a state lock to protect the state.",
)


def test_lock_info_is_read() -> None:
    lock = lock_info([Diagnostic("error", "x"), LOCKED])
    assert lock is not None
    assert (lock.id, lock.operation, lock.who) == ("7a3dee47-c2fe", "apply", "airflow@worker-1")
    assert lock.created_epoch() == pytest.approx(1795464239.32, abs=0.01)
    assert lock_info([Diagnostic("error", "Invalid value")]) is None


def test_a_fresh_lock_is_waited_for_an_old_one_needs_a_human() -> None:
    created = 1795464239.32
    fresh = failure("apply", [LOCKED], "", 1, created + 60)
    assert isinstance(fresh, TerraformUnavailable) and fresh.reason == "state-locked"
    old = failure("apply", [LOCKED], "", 1, created + LOCK_IN_USE_S + 1)
    assert isinstance(old, NeedsHumanError) and old.reason == "state-locked"
    assert "airflow@worker-1" in old.message and "terraform force-unlock 7a3dee47-c2fe" in old.hint


@pytest.mark.parametrize(
    ("detail", "kind", "reason"),
    [
        ("api error RequestLimitExceeded: slow down", TerraformUnavailable, "aws-throttled"),
        ("dial tcp 127.0.0.1:1: connect: connection refused", TerraformUnavailable, "aws-unreachable"),
        ("api error ExpiredToken: the token has expired", TerraformUnavailable, "aws-unreachable"),
        ("api error DependencyViolation: has a dependent object", TerraformUnavailable, "dependency-violation"),
        ("api error VpcLimitExceeded: The maximum number of VPCs has been reached", NeedsHumanError, "quota"),
        ("api error UnauthorizedOperation: You are not authorized", AccessDenied, "access-denied"),
        ("api error EntityAlreadyExists: Role with name x already exists.", TerraformFailed, "already-exists"),
        ("api error InvalidParameterValue: no", TerraformFailed, "terraform-failed"),
    ],
)
def test_diagnostics_become_the_error_whose_class_fits(detail: str, kind: type[NimRolloutsError], reason: str) -> None:
    error = failure("apply", [Diagnostic("error", "creating EC2 VPC", detail, "aws_vpc.this")], "", 1, 0)
    assert type(error) is kind and error.reason == reason
    assert "creating EC2 VPC (aws_vpc.this): " in error.message
    assert error.hint or kind is TerraformUnavailable


def test_a_stale_plan_is_told_apart() -> None:
    error = failure("apply", [Diagnostic("error", "Saved plan is stale", "It is older.")], "", 1, 0)
    assert isinstance(error, TerraformFailed) and error.reason == "plan-stale"


def test_no_more_than_three_diagnostics_in_a_message() -> None:
    error = failure("plan", [Diagnostic("error", f"problem {n}") for n in range(5)], "", 1, 0)
    assert "problem 2" in error.message and "problem 3" not in error.message and "and 2 more" in error.message


def test_text_errors_of_commands_without_json() -> None:
    stderr = (
        "\x1b[31m\n\nError: Failed to query available provider packages\n\n  on main.tf line 3:\n   3: terraform {\n\n"
        "Could not retrieve the list of versions.\nTry again.\n\nMore.\n"
    )
    error = failure("init", [], stderr, 1, 0)
    assert error.message == (
        "terraform init: Failed to query available provider packages: "
        "Could not retrieve the list of versions. Try again"
    )


def test_a_command_that_says_nothing() -> None:
    assert "ended with status 3 and said nothing" in failure("show", [], "", 3, 0).message


def test_keys_do_not_get_into_a_message() -> None:
    error = failure("plan", [Diagnostic("error", "bad value nvapi-abcdefgh12345678")], "", 1, 0)
    assert "abcdefgh" not in str(error)


def test_what_exists_already_comes_with_the_block_that_takes_it_over() -> None:
    """The classic after an apply that was cut off: a log group, and a thing whose id no message tells."""
    errors = [
        Diagnostic("error", "creating CloudWatch Logs Log Group (/aws/eks/lab/cluster)",
                   "ResourceAlreadyExistsException: The specified log group already exists",
                   "aws_cloudwatch_log_group.cluster[0]"),
        Diagnostic("error", "creating Security Group (x)", "InvalidGroup.Duplicate", "module.a.aws_security_group.efs"),
        Diagnostic("error", "another", "Forbidden", "aws_vpc.this"),
    ]  # fmt: skip
    error = failure("apply", errors, "", 1, 0)
    assert error.reason == "already-exists"
    assert 'import {\n  to = aws_cloudwatch_log_group.cluster[0]\n  id = "/aws/eks/lab/cluster"\n}' in error.hint
    assert 'to = module.a.aws_security_group.efs\n  id = "<its id' in error.hint and "aws_vpc" not in error.hint


def test_a_lock_names_what_is_known_of_its_holder_and_the_exact_command() -> None:
    known = {"airflow@worker-1": "there try 1 of terraform_apply has worked"}
    error = failure("plan", [LOCKED], "", 1, 1795464239.32 + 60, where="cd /w && ", holders=known)
    assert "airflow@worker-1 since 2026-11-23 20:03:59" in error.message and "try 1 of terraform_apply" in error.message
    assert "`cd /w && terraform force-unlock 7a3dee47-c2fe`" in error.hint


def test_a_lock_of_ours_elsewhere_is_waited_for_as_long_as_an_apply_takes() -> None:
    """Ours can be an apply that a dead worker left, which waits for a cluster; a stranger's may be a plan."""
    known = {"airflow@worker-1": "there try 1 of terraform_apply has worked"}
    ours = failure("plan", [LOCKED], "", 1, 1795464239.32 + 60, holders=known)
    assert isinstance(ours, TerraformUnavailable) and RETRIES * (ours.retry_after_s or 0) >= 40 * 60
    theirs = failure("plan", [LOCKED], "", 1, 1795464239.32 + 60)
    assert isinstance(theirs, TerraformUnavailable) and theirs.retry_after_s == 60
