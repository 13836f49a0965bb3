"""How long a store that is away is waited for, and what is said when it stays away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from taskflow.model.errors import BrokerUnavailable
from taskflow.model.retry import Pauses, Retries

T = TypeVar("T")

PAUSES: Final = Pauses(0.02, 0.5)
STOOD_STILL: Final = 0.25
"""Seconds by which a timer is late only when its loop was kept from its work."""

NO_ANSWER: Final = "it does not answer"


def retries_within(patience: float) -> Retries:
    """Pauses short enough for several tries within `patience` seconds."""
    return Retries(PAUSES.at_most(patience / 4))


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
    retries, why = retries_within(patience), NO_ANSWER
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
            pause, why = retries.failed(), str(error)
            if time.monotonic() + pause >= give_up_at:
                raise gave_up(patience, why) from error
        await asyncio.sleep(pause)
