"""Operations of the engine that run interleaved over one store, as on a server: each effect is atomic, and between two effects anything may
happen. A seed decides, so that each run can be repeated."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine.broker import EngineBroker
from taskflow.broker.engine.records import HELD, RUNNING, Flag, Kind
from taskflow.broker.engine.seam import Claimed, Operation, Query, Ref
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.wakeups import Waiter
from taskflow.model.clock import ManualClock
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import HandedBack, Retried, RunError, Settled, Settlement, Snoozed, Succeeded, Verdict

T = TypeVar("T")

KEYS: Final = (b"a" * 16, b"b" * 16)
ERROR: Final = RunError(type="E", message="m")
SENDERS, SENDS, WORKERS = 4, 12, 3
BEHIND_SCENES: Final = 4
MAX_WAIT: Final = 5
"""In seconds: no job waits longer for its time."""

MAX_ROUNDS: Final = 400
"""Jobs that still wait after this many rounds at the end will wait for ever."""


class Violation(Exception):
    """A rule was broken."""


class InterleavedBroker(EngineBroker):
    """Runs other tasks between the effects of an operation, and checks the records after each of them."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(Rules(max_crashes=1_000, session_ttl=1e6))
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.dice = dice
        self.keys: dict[Ref, bytes | None] = {}
        """The key of each job that was sent."""

    async def lag(self) -> None:
        for _ in range(self.dice.choice((0, 1, 1, 2, 5))):
            await asyncio.sleep(0)

    async def run(self, operation: Operation[T]) -> T:
        try:
            effect = next(operation)
            while True:
                await self.lag()
                answer = self.store.perform(effect)
                if not isinstance(effect, Query):
                    self.check()
                await self.lag()
                effect = operation.send(answer)
        except StopIteration as end:
            found: T = end.value
            return found

    async def claim_records(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        await self.lag()
        claimed = self.store.claim(session, request, queues, limit)
        self.check()
        await self.lag()
        return claimed

    async def examine(self) -> list[Finding]:
        raise NotImplementedError

    async def rebuild(self) -> Rebuilt:
        raise NotImplementedError

    def listen(self, topics: Sequence[str]) -> Waiter:
        raise NotImplementedError

    def headers(self) -> dict[Ref, dict[str, Any]]:
        """Return the headers of all jobs that were sent and are known."""
        found = self.store.query(Query(tuple(self.keys))).records
        return {ref: record.header for ref, record in found.items() if record is not None}

    def check(self) -> None:
        """Check what must hold at each instant."""
        headers = self.headers()
        for key in KEYS:
            live = {ref.id: header for ref, header in headers.items() if self.keys[ref] == key and header["status"] <= RUNNING}
            named = self._named(key)
            if live.keys() != set(named):
                raise Violation(f"the record of the key names {named}, and the live jobs are {list(live)}")
            waiting = [header for header in live.values() if header["status"] != RUNNING]
            if len(waiting) > 1 or len(live) - len(waiting) > 1:
                raise Violation(f"{len(live) - len(waiting)} run with one key, and {len(waiting)} wait")
            if len(named) > 1 and (live[named[0]]["status"], live[named[1]]["status"]) != (RUNNING, HELD):
                raise Violation("a job waits behind one that does not run")
            if named and live[named[0]]["flags"] & Flag.BEHIND:
                raise Violation("the holder of a key is BEHIND")

    def _named(self, key: bytes) -> list[bytes]:
        record = self.store.query(Query((Ref(Kind.KEY, key),))).records[Ref(Kind.KEY, key)]
        return [] if record is None else [job_id for job_id in (record.header["holder"], record.header["next"]) if job_id is not None]


async def call(make: Callable[[], Awaitable[T]]) -> T:
    """Call an operation again while others keep changing its records, as clients do."""
    for _ in range(100):
        try:
            return await make()
        except BrokerUnavailable:
            continue
    raise Violation("a call came to no end")


class Scene:
    """Senders, workers and an operator, all at once."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.broker = InterleavedBroker(self.dice)
        self._numbers = itertools.count(1)
        self._sent = list[bytes]()
        self._is_over = False

    def _envelope(self, **fields: Any) -> Envelope:
        envelope = Envelope(id=next(self._numbers).to_bytes(16, "big"), job="a_job", payload=b"", **fields)
        self.broker.keys[Ref(Kind.JOB, envelope.id)] = envelope.key
        self._sent.append(envelope.id)
        return envelope

    def _call(self, **fields: Any) -> Envelope:
        """Return a call with a key or without one, due at once or later."""
        fields.setdefault("key", self.dice.choice((None, *KEYS, *KEYS)))
        fields.setdefault("on_conflict", OnConflict.REPLACE if self.dice.random() < 0.7 else OnConflict.KEEP)
        fields.setdefault("after", self.dice.choice((0.0, 0.0, 0.0, 2.0)))
        return self._envelope(**fields)

    def _batch(self) -> list[Envelope]:
        """Return a lone call, one that releases some job once more than that awaits, or a job with the members that it awaits."""
        chance = self.dice.random()
        if chance < 0.3 or not self._sent:
            return [self._call()]
        if chance < 0.4:
            return [self._call(joins=(self.dice.choice(self._sent[-6:]),))]
        members = self.dice.choice((1, 2, 3, 4))
        parent = self._call(awaits=members, on_conflict=OnConflict.REPLACE)
        # a member that were refused for its key would never release its parent
        keys = [self.dice.choice((None, None, *KEYS)) for _ in range(members)]
        return [parent, *(self._call(key=key, joins=(parent.id,), on_conflict=OnConflict.REPLACE) for key in keys)]

    async def _send(self) -> None:
        for _ in range(SENDS):
            batch = self._batch()
            await call(lambda batch=batch: self.broker.enqueue(batch))  # type: ignore[misc]
            if self.dice.random() < 0.25:
                ids = list(dict.fromkeys(self.dice.choices(self._sent, k=2)))
                await call(lambda ids=ids: self.broker.cancel(ids))  # type: ignore[misc]
            if self.dice.random() < 0.15:
                ids = list(dict.fromkeys(self.dice.choices(self._sent, k=3)))
                await call(lambda ids=ids: self.broker.admin.retry(ids))  # type: ignore[misc]
                await call(lambda ids=ids: self.broker.admin.run_now(ids))  # type: ignore[misc]
            self.broker.clock.advance(self.dice.choice((0.0, 0.0, 1.0)))

    def _verdict(self) -> Verdict:
        if self._is_over:
            return Succeeded(b"")
        return self.dice.choice(
            (Succeeded(b""), Succeeded(b""), Retried(ERROR), Retried(ERROR, 1.0), Snoozed(1.0), HandedBack(counts=False))
        )

    def _settlement(self, lease: Lease) -> Settlement:
        follow_ups = (self._call(),) if not self._is_over and self.dice.random() < 0.2 else ()
        verdict = Succeeded(b"") if follow_ups else self._verdict()
        key = lease.envelope.key
        return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict, follow_ups=follow_ups, key=key)

    async def _work(self) -> None:
        while not self._is_over:
            session = next(self._numbers).to_bytes(16, "big")
            await call(lambda: self.broker.register(Session(id=session, name="host:1", ttl=1e6)))  # noqa: B023
            for request in range(1, 6):
                await self._work_once(session, request)
            await call(lambda: self.broker.beat(Beat(session=session, leaving=True)))  # noqa: B023

    async def _work_once(self, session: bytes, request: int) -> None:
        settlements = [self._settlement(lease) for lease in await self.broker.claim(session, request, (), 3)]
        if self.dice.random() < 0.8:  # otherwise the session leaves with its leases
            await self._settle(settlements)
        if self.dice.random() < 0.3:
            await call(lambda: self.broker.upkeep(100))
        await asyncio.sleep(0)

    async def _settle(self, settlements: Sequence[Settlement]) -> None:
        try:
            answers = await self.broker.settle(settlements)
        except BrokerUnavailable:  # what took effect may be answered as stale now, if the job has run again since
            await call(lambda: self.broker.settle(settlements))
        else:
            if set(answers) - {Settled.OK}:
                raise Violation(f"a job was taken from a living session: {answers}")

    async def run(self) -> None:
        """Run everything, including what is left at the end. Raises Violation."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._work())
            async with asyncio.TaskGroup() as senders:
                for _ in range(SENDERS):
                    senders.create_task(self._send())
            self._is_over = True
        await self._finish()

    async def _finish(self) -> None:
        session = Session(id=bytes(16), name="host:1", ttl=1e6)
        await self.broker.register(session)
        idle = 0
        for request in range(1, MAX_ROUNDS):
            self.broker.clock.advance(1)
            await self.broker.upkeep(1_000)
            leases = await self.broker.claim(session.id, request, (), 100)
            await self.broker.settle([self._settlement(lease) for lease in leases])
            live = [header for header in self.broker.headers().values() if header["status"] <= RUNNING]
            if not live:
                return
            idle = 0 if leases else idle + 1
            if idle > MAX_WAIT:
                raise Violation(f"{len(live)} jobs wait for ever")
        raise Violation("jobs do not end")


class BehindScene(Scene):
    """A job waits behind a run with its key and for two others, and all three end at once."""

    async def run(self) -> None:
        session = Session(id=next(self._numbers).to_bytes(16, "big"), name="host:1", ttl=1e6)
        await self.broker.register(session)
        await self.broker.enqueue([self._call(key=KEYS[0], after=0.0)])
        [holder] = await self.broker.claim(session.id, 1, (), 1)
        joined = self._call(key=KEYS[0], after=0.0, awaits=2, on_conflict=OnConflict.REPLACE)
        members = [self._call(key=None, after=0.0, joins=(joined.id,)) for _ in range(self.dice.choice((2, 3)))]  # or one too many
        await self.broker.enqueue([joined, *members])
        self._is_over = True
        async with asyncio.TaskGroup() as ends:
            for lease in (holder, *await self.broker.claim(session.id, 2, (), 3)):
                ends.create_task(self._settle([self._settlement(lease)]))
        await self._finish()


def run(seed: int) -> None:
    """Raise an exception if a rule is broken in the run with this seed."""
    for number in range(BEHIND_SCENES):
        asyncio.run(BehindScene(seed * BEHIND_SCENES + number).run())
    asyncio.run(Scene(seed).run())
