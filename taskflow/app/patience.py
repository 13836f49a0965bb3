"""How long a store that is away is waited for, and what is said when it stays away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from taskflow.model.errors import BrokerUnavailable

T = TypeVar("T")

FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.5
STOOD_STILL: Final = 0.25
"""Seconds by which a timer is late only when its loop was kept from its work."""

NO_ANSWER: Final = "it does not answer"


def pause_after(troubles: int, patience: float) -> float:
    """Seconds before the next try, after so many in a row that failed (at least one); there are several within one's patience."""
    return min(LONGEST_PAUSE, patience / 4, FIRST_PAUSE * 2.0 ** min(troubles - 1, 10))


def gave_up(patience: float, why: str) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"the broker has been away for {patience:g} s: {why}; what was asked may or may not have been done: "
        "see that it runs and can be reached, or raise enqueue_timeout="
    )


async def insist(verb: Callable[[], Awaitable[T]], patience: float) -> T:
    """Sends a verb again until it is answered, for `patience` seconds: ids make the repeat harmless. Then BrokerUnavailable.

    When the loop was kept from its work as the time ran out, by an iterable that is read, say, nobody knows whether an answer has come:
    then it is asked for once more.
    """
    give_up_at = time.monotonic() + patience
    troubles, why = 0, NO_ANSWER
    while True:
        try:
            async with asyncio.timeout(max(0.0, give_up_at - time.monotonic())):
                return await verb()
        except TimeoutError as error:
            if time.monotonic() < give_up_at + STOOD_STILL:
                raise gave_up(patience, why) from error
            give_up_at = time.monotonic() + patience
            continue
        except BrokerUnavailable as error:
            troubles, why = troubles + 1, str(error)
            if time.monotonic() + pause_after(troubles, patience) >= give_up_at:
                raise gave_up(patience, why) from error
        await asyncio.sleep(pause_after(troubles, patience))
