"""The error tree: what helps, what is shown, what is never shown."""

from __future__ import annotations

import base64
import pickle

import pytest

from nim_rollouts.core import errors
from nim_rollouts.core.errors import (
    ClaimHeld,
    NeedsHumanError,
    NgcKeyError,
    NimRolloutsError,
    PermanentError,
    TransientError,
    WaitFailed,
    WaitStuck,
    as_facts,
    error_classes,
    is_retryable,
    one_line,
    redact,
)
from nim_rollouts.core.verdicts import State, Verdict

KEY = "nvapi-canary-0123456789"


def test_every_class_has_a_branch_a_slug_and_a_layer() -> None:
    classes = list(error_classes())
    concrete = [one for one in classes if one not in (TransientError, NeedsHumanError, PermanentError)]
    assert len(concrete) > 20
    for one in concrete:
        assert issubclass(one, (TransientError, NeedsHumanError, PermanentError)), one
        assert one.default_reason != NimRolloutsError.default_reason, one
        assert one.default_reason == one.default_reason.lower() and " " not in one.default_reason
        assert one.default_layer != NimRolloutsError.default_layer, one


def test_the_class_decides_about_a_retry() -> None:
    assert is_retryable(TransientError("x"))
    assert is_retryable(RuntimeError("unknown"))
    assert not is_retryable(ClaimHeld("x"))
    assert not is_retryable(NeedsHumanError("x"))


def test_one_line_says_layer_reason_message_and_hint() -> None:
    error = ClaimHeld("the claim\nis held", hint="Wait")
    assert one_line(error) == "layer=claim reason=claim-held: the claim is held. Wait"
    assert one_line(ValueError("a")) == "layer=unknown reason=ValueError: a"


def test_an_encoded_key_is_cut_out_too_and_soon() -> None:
    for lead in ("", "a", "ab"):
        encoded = base64.b64encode(f"{lead}{KEY}".encode()).decode()
        assert "canary" not in (shown := redact(f'illegal value "{encoded}" in Secret')) and encoded[10:] not in shown
    assert redact("A" * 200_000) == "A" * 200_000


@pytest.mark.parametrize(
    "secret", [KEY, "Bearer abcdefghijklmnopqrstuvwx", "Basic JG9hdXRodG9rZW46bnZhcGktY2FuYXJ5", "k8s-aws-v1.aHR0cHM6"]
)
def test_secrets_are_cut_out_wherever_they_come_from(secret: str) -> None:
    shown = secret.removeprefix("Bearer ").removeprefix("Basic ")
    error = WaitFailed(f"got {secret}", hint=f"use {secret}", evidence=[secret])
    for text in (str(error), repr(error), one_line(error), str(as_facts(error)), one_line(ValueError(secret))):
        assert shown not in text
    assert (
        redact("a sentence with basic words and a bearer of news") == "a sentence with basic words and a bearer of news"
    )


def test_errors_cross_processes() -> None:
    error = TransientError("x", hint="h", reason="r", layer="l", retry_after_s=7)
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.hint, again.reason, again.layer, again.retry_after_s) == ("x", "h", "r", "l", 7)
    assert pickle.loads(pickle.dumps(NgcKeyError("y"))).hint == NgcKeyError.default_hint


def test_verdicts_become_errors() -> None:
    verdict = Verdict(State.FAILED, "job-exhausted", "gave up", ["Job/a"])
    failed = WaitFailed.of("NIMCache/a", verdict)
    stuck = WaitStuck.of("NIMCache/a", verdict, deadline_s=60)
    assert (failed.reason, failed.evidence) == ("job-exhausted", ["Job/a"])
    assert "NIMCache/a is stuck after 60 s: gave up" in str(stuck)
    assert as_facts(failed)["evidence"] == ["Job/a"]


def test_slugs_of_different_classes_differ() -> None:
    slugs = [one.default_reason for one in error_classes() if not one.__subclasses__()]
    assert sorted(slugs) == sorted(set(slugs)), errors.__name__
