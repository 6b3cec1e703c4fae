"""The end of a teardown's wait: what had to go in AWS together with the objects is gone there too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nim_rollouts.core.errors import LeftoversFound, TransientError

if TYPE_CHECKING:
    from nim_rollouts.operators.base import Stage
    from nim_rollouts.triggers.plans import Plan


def refuse_remains(stage: Stage, plan: Plan, told: bool) -> None:
    """Nothing, if AWS has none of what had to go with the objects.

    :param told: the trigger saw some of it when the time was up
    :raises LeftoversFound: it is still there
    """
    from nim_rollouts.hooks.remains import look

    if plan.cloud is None or not (left := look(stage.session, plan.cloud, plan.removed)):
        return
    if not told:
        raise TransientError("AWS shows again what it had none of a moment ago", layer="teardown",
                             reason="verdict-changed")  # fmt: skip
    for one in left:
        stage.log.error("still there: %s", one.text)
    raise LeftoversFound(
        f"AWS still has {len(left)} {plan.cloud}: {', '.join(one.text for one in left[:10])}",
        hint=plan.cloud.remedy + ", then clear this task",
    )
