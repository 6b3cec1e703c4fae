"""What Airflow does with a failed task: decided by the class of the error, in one place."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryRule
from airflow.sdk.definitions.retry_policy import RetryAction, RetryDecision

from nim_rollouts.core.errors import NeedsHumanError, PermanentError, TransientError, one_line

log = logging.getLogger(__name__)

# A server's wish to be left alone is honoured, up to this.
LONGEST_WAIT_S = 900.0
# Of every task. Hours of download are not lost to an API server or a registry that is away for a minute or two:
# 5, 15, 45 and 135 seconds.
RETRIES = 4
FIRST_DELAY_S = 5.0
_GROWTH = 3


class ErrorClassRetryPolicy(ExceptionRetryPolicy):
    """The error tree as rules; on top of them the time that the other side asked to wait, and the reason in full.

    Any other exception falls through to the task's own retries: a defect or a library's hiccup costs a few of them.
    """

    def __init__(self) -> None:
        super().__init__(
            rules=[
                RetryRule(exception=[PermanentError, NeedsHumanError], action=RetryAction.FAIL),
                RetryRule(exception=TransientError, action=RetryAction.RETRY),
            ]
        )

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """The rule's decision. `retry_delay` None means the task's own delay."""
        decision = super().evaluate(exception, try_number, max_tries, context)
        wanted = getattr(exception, "retry_after_s", None)
        delay = decision.retry_delay
        if wanted:
            delay = timedelta(seconds=min(float(wanted), LONGEST_WAIT_S))
        elif isinstance(exception, TransientError):
            # Counted from the end: a clear adds tries to both numbers.
            retries = getattr((context or {}).get("task"), "retries", RETRIES)
            failed_before = max(0, retries - (max_tries - try_number + 1))
            delay = timedelta(seconds=FIRST_DELAY_S * _GROWTH**failed_before)
        # Airflow keeps the reason in a column of 500 characters.
        return RetryDecision(action=decision.action, retry_delay=delay, reason=one_line(exception)[:500])


def say_why(context: Any) -> None:
    """Callback of failures and retries: the log's last line is layer, reason and what to do."""
    exception = context.get("exception")
    if isinstance(exception, BaseException):
        log.error("%s", one_line(exception))
