"""The second half of a teardown's wait: what AWS has besides, looked at now and then, until nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from nim_rollouts.clients.remains import Remain
from nim_rollouts.core.errors import InventoryUnknown, one_line

Say = Callable[[str], None]

# A line at least this often, in seconds.
LINE_S = 60.0
_SHOWN = 5


async def until_nothing_remains(
    look: Callable[[], list[Remain]], what: str, *, until: datetime, every_s: float, attended: bool, say: Say
) -> list[Remain]:
    """Look until nothing is left, or until the deadline, or as long as waiting is of use. Returns what is left.

    :param look: blocking; runs in a thread
    :param attended: False: there is no cluster any more, so nobody removes what AWS itself is not removing
    :raises InventoryUnknown: AWS does not tell, still not at the deadline
    :raises AccessDenied: a right is missing; no waiting grants it
    """
    said, news = datetime.now(UTC) - timedelta(days=1), ""
    while True:
        late = datetime.now(UTC) >= until
        try:
            left = await asyncio.to_thread(look)
        except InventoryUnknown as unknown:
            if late:
                raise
            words = f"cannot look: {one_line(unknown)}"
        else:
            if not left:
                say(f"{what}: none is left")
                return []
            if late or not (attended or all(one.going for one in left)):
                return left
            words = f"{what} still there: {in_words(left)}"
        if words != news or (datetime.now(UTC) - said).total_seconds() >= LINE_S:
            said, news = datetime.now(UTC), words
            say(f"{words} [{max((until - said).total_seconds(), 0):.0f} s left]")
        # The last look is at the deadline, not a whole pause before it.
        pause = min(every_s, max((until - datetime.now(UTC)).total_seconds(), 0.1))
        await asyncio.sleep(pause)


def in_words(left: list[Remain]) -> str:
    """The first of them, and how many there are."""
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return ", ".join(one.text for one in left[:_SHOWN]) + more
