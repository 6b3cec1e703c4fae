"""How a teardown is refused, or ends before all is gone. Part of the tree of `errors`."""

from __future__ import annotations

from nim_rollouts.core.errorbase import NeedsHumanError, PermanentError, TransientError


class NotConfirmed(NeedsHumanError):
    """More than one deployment was to go, and the environment's name was not typed."""

    default_reason, default_layer = "confirm-missing", "safeguard"
    default_hint = "Type the environment's name into the form's field confirm and trigger again"


class EnvironmentProtected(NeedsHumanError):
    """The environment's file says that it is not to be taken down."""

    default_reason, default_layer = "environment-protected", "safeguard"


class LeftoversFound(PermanentError):
    """A teardown found things that are still there."""

    default_reason, default_layer = "leftovers", "teardown"


class InventoryUnknown(TransientError):
    """A teardown could not look everywhere; unknown is not empty."""

    default_reason, default_layer = "inventory-unknown", "teardown"
