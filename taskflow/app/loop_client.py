"""A broker as one event loop uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from taskflow.app.coalesce import Coalescer
from taskflow.app.store_retry import insist
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.model.envelope import Envelope
from taskflow.model.record import Record, Status


class LoopClient:
    """Lanes that share round trips. Keyed envelopes have a lane of their own, sorted by key: a stranger's lock on one
    key must not hold up everybody's `delay()`, and two senders that lock in one order cannot block each other.

    Whatever is asked is asked again for `patience` seconds while the broker is away; then BrokerUnavailable.
    """

    def __init__(self, broker: Broker, *, patience: float) -> None:
        self.broker = broker
        self._patience = patience
        self._plain = Coalescer[Envelope, Added | Refused](broker.enqueue, patience=patience, size_of=_size)
        self._keyed = Coalescer[Envelope, Added | Refused](self._enqueue_by_key, patience=patience, size_of=_size)
        self.read = Coalescer[bytes, Record | None](self._read, patience=patience)

    def send(self, envelope: Envelope) -> asyncio.Future[Added | Refused]:
        return (self._plain if envelope.key is None else self._keyed)(envelope)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        return await insist(lambda: self.broker.enqueue(envelopes), self._patience)

    async def cancel(self, job_id: bytes) -> Status | None:
        [found] = await insist(lambda: self.broker.cancel([job_id]), self._patience)
        return found

    async def _enqueue_by_key(self, envelopes: list[Envelope]) -> list[Added | Refused]:
        order = sorted(range(len(envelopes)), key=lambda index: envelopes[index].key or b"")
        answers = await self.broker.enqueue([envelopes[index] for index in order])
        by_index = dict(zip(order, answers, strict=True))
        return [by_index[index] for index in range(len(envelopes))]

    async def _read(self, ids: list[bytes]) -> list[Record | None]:
        """Each id once, however many ask for it."""
        distinct = list(dict.fromkeys(ids))
        records = dict(zip(distinct, await self.broker.read(distinct), strict=True))
        return [records[job_id] for job_id in ids]


def _size(envelope: Envelope) -> int:
    return len(envelope.payload)
