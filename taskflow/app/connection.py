"""A broker as one event loop uses it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from taskflow.app.coalesce import Coalescer
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


class Connection:
    """Lanes that share round trips. Keyed envelopes have a lane of their own, sorted by key: a stranger's lock on one
    key must not hold up everybody's `delay()`, and two senders that lock in one order cannot block each other."""

    def __init__(self, broker: Broker, *, enqueue_timeout: float) -> None:
        self.broker = broker
        self._timeout = enqueue_timeout
        self._plain = Coalescer[Envelope, Added | Refused](self.enqueue, size_of=_size)
        self._keyed = Coalescer[Envelope, Added | Refused](self._enqueue_by_key, size_of=_size)
        self.read = Coalescer[bytes, Record | None](broker.read)

    async def send(self, envelope: Envelope) -> Added | Refused:
        return await (self._plain if envelope.key is None else self._keyed)(envelope)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        """Resent until it is answered, for `enqueue_timeout` seconds: ids make the repeat harmless."""
        give_up_at = time.monotonic() + self._timeout
        pause = FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(max(0.0, give_up_at - time.monotonic())):
                    return await self.broker.enqueue(envelopes)
            except TimeoutError:
                raise BrokerUnavailable(
                    f"the broker did not answer within {self._timeout:g} s: {len(envelopes)} job(s) may not be sent"
                ) from None
            except BrokerUnavailable:
                if time.monotonic() + pause >= give_up_at:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _enqueue_by_key(self, envelopes: list[Envelope]) -> list[Added | Refused]:
        order = sorted(range(len(envelopes)), key=lambda index: envelopes[index].key or b"")
        answers = await self.enqueue([envelopes[index] for index in order])
        by_index = dict(zip(order, answers, strict=True))
        return [by_index[index] for index in range(len(envelopes))]


def _size(envelope: Envelope) -> int:
    return len(envelope.payload)
