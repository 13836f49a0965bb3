"""Reports the death of a worker process to the broker, so that its jobs need not wait until the ttl has passed."""

from __future__ import annotations

import asyncio
from typing import Final

from taskflow.broker.protocol import Broker
from taskflow.broker.retry import retry
from taskflow.model.errors import BrokerError, BrokerUnavailable, SessionLost
from taskflow.model.retry import Pauses
from taskflow.model.session import Beat

ANSWER_WITHIN: Final = 5.0
"""Seconds to wait for the broker's answer."""

PAUSES: Final = Pauses(0.1, 0.5)


async def report_death(broker: Broker, session_id: bytes, cause: str) -> bool:
    """Report to the broker that the session's process is dead. Each of its jobs then counts as crashed with this cause ("SIGSEGV").

    Return False if the broker refuses, or does not answer within `ANSWER_WITHIN`. In that case, upkeep declares
    the session dead later, without a cause. Broker errors are not raised. A repeated report does no harm.
    """
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            beat = Beat.of_death(session_id, cause)
            await retry(lambda: broker.beat(beat), PAUSES, on=BrokerUnavailable)
    except SessionLost:
        return True
    except (BrokerError, TimeoutError):
        return False
    return True
