"""Tells the broker that a worker process has died, by whoever has seen it: its jobs need not wait until it has been silent for its ttl."""

from __future__ import annotations

import asyncio
from typing import Final

from taskflow.broker.protocol import Broker
from taskflow.broker.retry import retry
from taskflow.model.errors import BrokerError, BrokerUnavailable, SessionLost
from taskflow.model.retry import Pauses
from taskflow.model.session import Beat

PATIENCE: Final = 5.0
"""Seconds."""

PAUSES: Final = Pauses(0.1, 0.5)


async def tell_death(broker: Broker, session_id: bytes, cause: str) -> bool:
    """The session of the process is dead, and each of its leases a crash of that cause ("signal SIGSEGV"), for others to take.

    False when the broker has not answered in `PATIENCE`, or has refused: then upkeep finds the session silent, and knows no cause.
    Raises none of the broker's errors. To tell it twice, or of a session that is dead already, does no harm.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            beat = Beat.of_death(session_id, cause)
            await retry(lambda: broker.beat(beat), PAUSES, on=BrokerUnavailable)
    except SessionLost:
        return True
    except (BrokerError, TimeoutError):
        return False
    return True
