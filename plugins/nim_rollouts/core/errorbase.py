"""What every error of ours has, the three branches of the tree, and the cutting out of secrets. See `core.errors`."""

from __future__ import annotations

import re
from typing import ClassVar

# NGC personal and service keys: the prefix is documented by NGC, the rest is base64url-like text.
_NGC_KEY = re.compile(r"nvapi-[A-Za-z0-9_\-]{4,}")
# What base64 makes of "nvapi-" at each of the three alignments. The encoded text around it is found by words, each
# looked at once: one pattern for both would start anew at every letter of a long word.
_ENCODED_MARK = re.compile(r"bnZhcGkt|52YXBpL|udmFwaS")
_ENCODED_WORD = re.compile(r"[A-Za-z0-9+/=_\-]{6,}")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=\-]{20,}")
_EKS_TOKEN = re.compile(r"k8s-aws-v1\.[A-Za-z0-9_\-]+")


def redact(text: str) -> str:
    """Replace anything that looks like an NGC key (also in base64), an EKS token or an Authorization value."""
    text = _NGC_KEY.sub("nvapi-***", text)
    if _ENCODED_MARK.search(text):
        text = _ENCODED_WORD.sub(lambda word: "***" if _ENCODED_MARK.search(word.group()) else word.group(), text)
    text = _EKS_TOKEN.sub("k8s-aws-v1.***", text)
    return _BEARER.sub(lambda match: f"{match.group(1)} ***", text)


class NimRolloutsError(Exception):
    """Base of every error of ours.

    :param message: what is wrong and where, one sentence without a full stop
    :param hint: what to do about it, one sentence without a full stop
    :param reason: slug, when it is finer than the class's own
    :param layer: layer at fault, when it is another than the class's own
    """

    default_reason: ClassVar[str] = "error"
    default_layer: ClassVar[str] = "nim-rollouts"
    default_hint: ClassVar[str] = ""

    def __init__(
        self, message: str, *, hint: str | None = None, reason: str | None = None, layer: str | None = None
    ) -> None:
        message = redact(message)
        # Only the message goes into args: pickling (Airflow moves exceptions between processes) rebuilds from it,
        # and the rest follows in __dict__.
        super().__init__(message)
        self.message = message
        self.hint = redact(self.default_hint if hint is None else hint)
        self.reason = reason or self.default_reason
        self.layer = layer or self.default_layer

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class TransientError(NimRolloutsError):
    """A retry may help. `retry_after_s`: seconds that the other side asked to wait, or None."""

    default_reason = "transient"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        reason: str | None = None,
        layer: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, reason=reason, layer=layer)
        self.retry_after_s = retry_after_s


class NeedsHumanError(NimRolloutsError):
    """Waiting for a person: a quota, an entitlement, an approval, a permission."""

    default_reason = "needs-human"


class PermanentError(NimRolloutsError):
    """Final: no retry can help."""

    default_reason = "permanent"
