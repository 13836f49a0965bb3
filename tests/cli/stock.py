"""A store with jobs in every state, created by the broker's own operations."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.fingerprint import cause_of
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Failed, RunError
from tests.support.verdicts import cancelled, failed, retried, succeeded

RULES = Rules(max_crashes=0)
"""The first crash makes a job poison."""


@dataclass(frozen=True)
class Stock:
    """Ids as text. Two jobs are ready in the queue "mail", all others are in "default"."""

    ready: list[str]
    scheduled: str
    running: str
    succeeded: str
    failed: str
    poison: str
    cancelled: str

    @property
    def all(self) -> list[str]:
        """Return all ids in the order of the list: by status, the next to run first, the last to end first."""
        return [self.scheduled, *self.ready[::-1], self.running, self.succeeded, self.poison, self.failed, self.cancelled]


async def a_stock(broker: Broker) -> Stock:
    worker = _Worker(broker)
    await worker.begin()
    [won] = await worker.take(await worker.add(job="good"))
    await broker.settle([succeeded(won)])
    [lost] = await worker.take(await worker.add(job="bad", max_attempts=2))
    await broker.settle([retried(lost)])
    [lost] = await worker.take([lost.envelope])
    await broker.settle([failed(lost)])
    poisoned = await worker.add(job="bad")
    victim = _Worker(broker, b"the poison's own")
    await victim.begin()
    await victim.take(poisoned)
    await victim.die()
    [given_up] = await worker.take(await worker.add(job="bad"))
    await broker.settle([cancelled(given_up, "no longer needed")])
    [later] = await worker.add(job="late", after=3600.0)
    [busy] = await worker.take(await worker.add(job="long", headers={"from": "web"}))
    ready = [*await worker.add(job="send", queue="mail"), *await worker.add(job="send", queue="mail", priority=5)]
    return Stock(
        ready=[id_text(envelope.id) for envelope in ready],
        scheduled=id_text(later.id),
        running=id_text(busy.envelope.id),
        succeeded=id_text(won.envelope.id),
        failed=id_text(lost.envelope.id),
        poison=id_text(poisoned[0].id),
        cancelled=id_text(given_up.envelope.id),
    )


async def failed_with(broker: Broker, error: RunError, deploy: str = "", **fields: Any) -> None:
    """Add a job that has failed for good on this deploy."""
    worker = _Worker(broker, secrets.token_bytes(16))
    await worker.begin()
    [lease] = await worker.take(await worker.add(**fields))
    await broker.settle([failed(lease, error, cause=cause_of(Failed(error), deploy))])


class _Worker:
    """Claims one job at a time, when called."""

    def __init__(self, broker: Broker, session: bytes = b"somebody's worke") -> None:
        self._broker = broker
        self._session = Session(id=session, name="somewhere:1", queues=("default",), concurrency=7, ttl=3600.0)
        self._request = 0
        self._new_id = IdFactory()

    async def begin(self) -> None:
        await self._broker.register(self._session)

    async def die(self) -> None:
        await self._broker.beat(Beat.of_death(self._session.id, "signal SIGKILL"))

    async def add(self, **fields: Any) -> list[Envelope]:
        envelope = Envelope(**{"id": self._new_id(), "payload": SECRET_ARGUMENTS, **fields})
        await self._broker.enqueue([envelope])
        return [envelope]

    async def take(self, expected: Sequence[Envelope]) -> list[Lease]:
        self._request += 1
        leases = await self._broker.claim(self._session.id, self._request, [expected[0].queue], 1)
        assert [lease.envelope.id for lease in leases] == [envelope.id for envelope in expected]
        return leases


SECRET_ARGUMENTS = b"\x01the arguments, which nobody is to see"
