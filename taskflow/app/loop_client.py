"""Sends the calls of one event loop to the broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from taskflow.app.coalesce import NO_ANSWER, Coalescer, gave_up, pauses_within
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.broker.retry import retry
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record

T = TypeVar("T")

BLOCKED_FOR: Final = 0.25
"""If a timer fires this many seconds late, something blocked its event loop."""


class LoopClient:
    """Sends the calls of one event loop to the broker, coalesced into shared round trips.

    Envelopes with a key are sent separately, sorted by key. So a lock that another program holds on a key does not delay calls without a
    key, and two senders cannot deadlock, because both lock keys in the same order.

    While the store does not answer, each call is repeated for `timeout` seconds; then it raises BrokerUnavailable.
    """

    def __init__(self, broker: Broker, *, timeout: float) -> None:
        self.broker = broker
        self._timeout = timeout
        self._plain = Coalescer[Envelope, Added | Refused](broker.enqueue, timeout=timeout, size_of=_size)
        self._keyed = Coalescer[Envelope, Added | Refused](self._enqueue_by_key, timeout=timeout, size_of=_size)
        self.read = Coalescer[bytes, Record | None](self._read, timeout=timeout)

    def send(self, envelope: Envelope) -> asyncio.Future[Added | Refused]:
        return (self._plain if envelope.key is None else self._keyed)(envelope)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        return await retry_within(lambda: self.broker.enqueue(envelopes), self._timeout)

    async def call(self, verb: Callable[[Broker], Awaitable[T]]) -> T:
        """Call a verb, and repeat the call until the store answers. The verb must be safe to repeat."""
        return await retry_within(lambda: verb(self.broker), self._timeout)

    async def _enqueue_by_key(self, envelopes: list[Envelope]) -> list[Added | Refused]:
        order = sorted(range(len(envelopes)), key=lambda index: envelopes[index].key or b"")
        answers = await self.broker.enqueue([envelopes[index] for index in order])
        by_index = dict(zip(order, answers, strict=True))
        return [by_index[index] for index in range(len(envelopes))]

    async def _read(self, ids: list[bytes]) -> list[Record | None]:
        """Read each id once, even if several callers asked for it."""
        distinct = list(dict.fromkeys(ids))
        records = dict(zip(distinct, await self.broker.read(distinct), strict=True))
        return [records[job_id] for job_id in ids]


async def retry_within(verb: Callable[[], Awaitable[T]], timeout: float) -> T:
    """Call `verb` until the store answers, for at most `timeout` seconds; then raise
    BrokerUnavailable. Ids make it harmless to repeat a call.

    If the event loop was blocked when the time ran out, for example by a slow iterable, an
    answer may have arrived unread. Then `verb` is called again.
    """
    why = NO_ANSWER

    def note(error: Exception, failures: int) -> None:
        nonlocal why
        why = str(error)

    while True:
        give_up_at = time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                return await retry(verb, pauses_within(timeout), on=BrokerUnavailable, note=note, give_up_at=give_up_at)
        except TimeoutError as error:
            if time.monotonic() < give_up_at + BLOCKED_FOR:
                raise gave_up(timeout, why) from error
        except BrokerUnavailable as error:
            raise gave_up(timeout, why) from error


def _size(envelope: Envelope) -> int:
    return len(envelope.payload)
