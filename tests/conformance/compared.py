"""A broker beside the reference broker as its model: each operation is sent to both, and everything that they answer and show is
compared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from taskflow.broker.admin import View
from taskflow.broker.paging import pages
from taskflow.broker.protocol import Broker
from taskflow.model.clock import ManualClock, to_microseconds
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import SessionLost
from taskflow.model.record import LIVE, Record
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settlement
from tests.support.harnesses import Capability, ReferenceHarness, StoreHarness
from tests.support.invariants import InvariantChecker, Shown
from tests.support.world import World

# Short enough that every bound is met within a few dozen steps.
TIGHT: Final = Rules(
    session_ttl=20.0,
    ghost_after=10.0,
    max_crashes=2,
    crash_backoff=(0.0, 5.0),
    hand_back_backoff=(0.0, 0.0, 5.0, 12.0),
    repeat_for=30.0,
    keep_failed=90.0,
    keep_cancelled=15.0,
    kept_per_queue=3,
)


_LOST: Any = "the session is lost"


class Snapshot(NamedTuple):
    store: Any
    model: Any
    over_since: dict[bytes, int]
    forgettable: set[bytes]


async def _in_order(broker: Broker, view: View, limit: int) -> list[Record]:
    return [record async for records in pages(broker.admin, view, limit) for record in records]


class Difference(AssertionError):
    """The broker behaves differently from its model."""


class ComparedBroker:
    """A broker with its model. The reference broker itself has no model: only the invariants judge it."""

    def __init__(self, harness: type[StoreHarness], *, rules: Rules = TIGHT, is_compared: bool | None = None) -> None:
        self.clock = ManualClock()
        self.world = World(harness, clock=self.clock, rules=rules)
        compared = harness is not ReferenceHarness if is_compared is None else is_compared
        self._model = World(ReferenceHarness, clock=self.clock, rules=rules) if compared else None
        self._checker = InvariantChecker()
        self._ids: list[bytes] = []
        self._known = set[bytes]()
        self._over_since: dict[bytes, int] = {}
        self._forgettable = set[bytes]()
        self.steps = 0

    def can(self, capability: Capability) -> bool:
        return capability not in self.world.harness.lacks

    def may_have_forgotten(self, job_or_session: bytes) -> bool:
        """Whether it ended at least `repeat_for` ago. [upkeep_drops] and [register_dead] promise that its id is known for at least that
        long. They leave open which later upkeep forgets it."""
        return job_or_session in self._forgettable

    def _record_what_is_over(self, shown: Shown) -> None:
        now, repeat_for = self.clock.wall(), to_microseconds(self.world.rules.repeat_for)
        living = {worker.session.id for worker in shown.workers if not worker.is_dying}
        living |= {job_id for job_id, record in shown.records.items() if record is not None and record.status in LIVE}
        self._known |= living
        self._over_since = {each: min(now, self._over_since.get(each, now)) for each in self._known - living}
        self._forgettable = self._forgettable - living | {each for each, since in self._over_since.items() if since + repeat_for <= now}

    # --- operations ---------------------------------------------------------------------------------------------------------

    async def enqueue(self, envelopes: Sequence[Envelope]) -> None:
        self._expect(envelopes)
        await self._ask("enqueue", lambda broker: broker.enqueue(envelopes))

    def _expect(self, envelopes: Sequence[Envelope]) -> None:
        self._checker.expect(envelopes)
        self._ids += [envelope.id for envelope in envelopes if envelope.id not in self._ids]

    async def do(self, verb: str, *arguments: Any) -> None:
        """Let both execute an operation of the broker or of its admin interface."""
        await self._ask(verb, lambda broker: getattr(broker if hasattr(broker, verb) else broker.admin, verb)(*arguments))

    async def claim(self, session: Session, request: int, queues: Sequence[str], limit: int) -> list[Lease] | None:
        """Return the broker's leases, or None when the session is lost."""
        leases: Any = await self._ask("claim", lambda broker: broker.claim(session.id, request, queues, limit))
        return None if leases is _LOST else leases

    async def beat(self, beat: Beat) -> None:
        await self._ask("die" if beat.died_of else "beat", lambda broker: broker.beat(beat))

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        for settlement in settlements:
            self._expect(settlement.follow_ups)
        await self._ask("settle", lambda broker: broker.settle(settlements))

    async def cancel(self, ids: Sequence[bytes]) -> None:
        for job_id in ids:  # one by one: a broker may decide if a later item sees its job released by an earlier one
            await self._cancel(job_id)

    async def _cancel(self, job_id: bytes) -> None:
        await self._ask("cancel", lambda broker: broker.cancel([job_id]))

    async def page(self, view: View, limit: int) -> None:
        """Request all pages of the view."""
        await self._ask("page", lambda broker: _in_order(broker, view, limit))

    # --- mishaps -------------------------------------------------------------------------------------------------------

    async def restart(self) -> None:
        await self.world.restart()
        await self._look("restart")

    def snapshot(self) -> Snapshot:
        model = None if self._model is None else self._model.snapshot()
        return Snapshot(self.world.snapshot(), model, dict(self._over_since), set(self._forgettable))

    async def restore(self, snapshot: Snapshot) -> None:
        await self.world.restore(snapshot.store)
        if self._model is not None:
            await self._model.restore(snapshot.model)
        self._checker.restore()
        self._known = set(snapshot.over_since)
        self._over_since, self._forgettable = dict(snapshot.over_since), set(snapshot.forgettable)
        await self._look("restore")

    async def close(self) -> None:
        await self.world.close()
        if self._model is not None:
            await self._model.close()

    # --- comparing -----------------------------------------------------------------------------------------------------

    async def _ask(self, verb: str, call: Callable[[Broker], Awaitable[Any]]) -> Any:
        """Return the broker's answer; `_LOST` represents SessionLost."""
        self.steps += 1
        answer = await _answer(call(self.world.broker))
        if self._model is not None:
            _same(f"the answer to {verb}", _plain(answer), _plain(await _answer(call(self._model.broker))))
        await self._look(verb)
        return answer

    async def _look(self, verb: str) -> None:
        shown = await _show(self.world.broker, self._ids)
        if self._model is not None:
            model = await _show(self._model.broker, self._ids)
            for job_id in self._ids:
                _same(f"a record after {verb}", shown.records[job_id], model.records[job_id])
            _same(f"the queues after {verb}", shown.queues, model.queues)
            _same(f"the totals after {verb}", shown.metrics, model.metrics)
            _same(f"the workers after {verb}", shown.workers, model.workers)
            _same(f"the index of tags after {verb}", self.world.harness.tagged(), self._model.harness.tagged())
        self._checker.check(verb, shown)
        self._record_what_is_over(shown)


async def _answer(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except SessionLost:
        return _LOST


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Difference(f"{what}:\n  the broker: {found}\n  its model:  {expected}")


def _plain(answer: Any) -> Any:
    """Reduce a lease's envelope to what a worker reads: a store need not keep the wait that it was sent with."""
    if isinstance(answer, list) and answer and isinstance(answer[0], Lease):
        return [_plain_lease(lease) for lease in answer]
    return answer


def _plain_lease(lease: Lease) -> tuple[Any, ...]:
    envelope = lease.envelope
    return (
        lease.epoch, lease.claim, lease.created_at, lease.failures, lease.crashes, lease.snoozes, lease.hand_backs, lease.parked_for,
        lease.expires_in,
        envelope.id, envelope.job, envelope.payload, envelope.queue, envelope.priority, envelope.key, envelope.max_attempts,
        envelope.timeout, envelope.retry, envelope.keep_result, envelope.headers,
        envelope.tags,
    )  # fmt: skip


async def _show(broker: Broker, ids: Sequence[bytes]) -> Shown:
    records = await broker.read(ids)
    totals = (await broker.admin.metrics()).totals
    return Shown(
        records=dict(zip(ids, records, strict=True)),
        queues=await broker.admin.queues(),
        metrics={
            queue: {event: count for event, count in events.items() if count} for queue, events in totals.items() if any(events.values())
        },
        workers=await broker.admin.workers(),
    )
