"""A broker, the clock that it reads, and functions that create its inputs. Nothing depends on chance or real time."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest

from taskflow.broker.protocol import Added, Broker, Refused, UpkeepResult
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.errors import SessionLost
from taskflow.model.ids import IdFactory, key_digest
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer, Report, Session, WorkHint
from taskflow.model.verdict import Settled, Settlement
from tests.support.harnesses import Capability, StoreHarness

Job = Envelope | Lease | bytes
"""What identifies a job in a test."""

EVERYTHING = 10_000

PAYLOADS = (b"\x01payload", b"\x01payload", b"\x01" + bytes(700))
"""Used in turn. A store may hold large payloads in a different way."""


ODD_QUEUES = ("a", "a:b", "a:due", "a:0", "a/b", ":", "/", "..", "queue:a", "queues", "due", "1", "1:2", "taskflow.a", "-" * 100)
"""Names that a store could confuse with another queue's name or with its own keys."""


class World:
    """An open broker of one kind. Close it, or use it as an async context manager."""

    def __init__(
        self,
        harness: type[StoreHarness],
        *,
        clock: ManualClock | None = None,
        rules: Rules | None = None,
        capacity: int | None = None,
        seed: int = 0,
    ) -> None:
        self.clock = clock or ManualClock()
        self.rules = rules or Rules()
        self._seed = seed
        self._chance = random.Random(seed)
        self.an_id = IdFactory(Seams(self.clock, self._chance))
        self.seams = Seams(self.clock, random.Random(seed))
        self.harness = harness(self.seams, self.rules, capacity)
        self.broker: Broker = self.harness.open()
        self._requests = Counter[bytes]()
        self._bystander: Session | None = None
        self._others = list[World]()
        self._payloads = itertools.cycle(PAYLOADS)

    def under(self, *, capacity: int | None = None, **rules: Any) -> World:
        """Return a new, empty world of the same kind with other rules. It is closed together with this one."""
        changed = msgspec.structs.replace(self.rules, **rules)
        other = World(type(self.harness), clock=self.clock, rules=changed, capacity=capacity, seed=self._seed)
        self._others.append(other)
        return other

    def limited(self, capacity: int) -> World:
        """Return a new world whose store accepts about this many live jobs."""
        return self.under(capacity=capacity)

    def needs(self, capability: Capability) -> None:
        """Skip the test if the store lacks the capability, with the reason that its kind gives."""
        if capability in self.harness.lacks:
            pytest.skip(f"{self.harness.name}: {self.harness.lacks[capability]}")

    # --- makers ----------------------------------------------------------------------------------------------

    def an_envelope(self, *, key: str | None = None, **fields: Any) -> Envelope:
        """Return a call of the job "work" in the queue "default", unless the fields say otherwise. `key` is a user's key, not a digest."""
        given: dict[str, Any] = {"job": "work", "payload": next(self._payloads), **fields}
        given.setdefault("id", self.an_id())
        digest = None if key is None else key_digest(given.get("queue", "default"), given["job"], key)
        return Envelope(key=digest, **given)

    def an_unregistered_session(self, name: str = "worker", **fields: Any) -> Session:
        return Session(id=self._chance.randbytes(16), name=name, **{"ttl": self.rules.session_ttl, **fields})

    async def a_session(self, name: str = "worker", **fields: Any) -> Session:
        session = self.an_unregistered_session(name, **fields)
        await self.broker.register(session)
        return session

    async def add(self, **fields: Any) -> Envelope:
        """Create an envelope and enqueue it."""
        envelope = self.an_envelope(**fields)
        [answer] = await self.enqueue(envelope)
        assert isinstance(answer, Added), answer
        return envelope

    async def running(self, session: Session | None = None, **fields: Any) -> Lease:
        """Enqueue and lease a job, in a separate queue so that no other job is claimed instead."""
        session = session or await self.a_session()
        envelope = await self.add(**{"queue": f"queue-{self._chance.getrandbits(48)}", **fields})
        [lease] = await self.claim(session, [envelope.queue])
        return lease

    # --- operations -------------------------------------------------------------------------------------------------

    async def enqueue(self, *envelopes: Envelope) -> list[Added | Refused]:
        return await self.broker.enqueue(envelopes)

    async def claim(self, session: Session, queues: Sequence[str] = (), limit: int = EVERYTHING) -> list[Lease]:
        """Send the session's next claim request."""
        self._requests[session.id] += 1
        return await self.claim_again(session, queues, limit)

    async def claim_again(self, session: Session, queues: Sequence[str] = (), limit: int = EVERYTHING) -> list[Lease]:
        """Send the session's last claim request once more."""
        return await self.broker.claim(session.id, self.last_request(session), queues, limit)

    def last_request(self, session: Session) -> int:
        return self._requests[session.id]

    async def beat(
        self, session: Session, *leases: Lease, seen: int | None = None, reports: Sequence[Report] = (), leaving: bool = False
    ) -> BeatAnswer:
        """Send a heartbeat that names these leases and has seen the answers to all requests, unless specified otherwise."""
        claims = tuple(lease.claim for lease in leases)
        seen = self.last_request(session) if seen is None else seen
        return await self.broker.beat(Beat(session=session.id, claims=claims, seen=seen, reports=tuple(reports), leaving=leaving))

    async def work_hint(self, session: Session) -> WorkHint:
        """Return the work hint that a session without leases gets when it asks for one."""
        answer = await self.broker.beat(Beat(session=session.id, seen=self.last_request(session), looks=True))
        assert answer.work_hint is not None
        return answer.work_hint

    async def die(self, session: Session, cause: str = "exit code 77") -> BeatAnswer:
        """Report that the session's process has died, as a supervisor does."""
        return await self.broker.beat(Beat.of_death(session.id, cause))

    async def settle(self, *settlements: Settlement) -> list[Settled]:
        return await self.broker.settle(settlements)

    async def cancel(self, job: Job) -> Status | None:
        [found] = await self.broker.cancel([id_of(job)])
        return found

    async def read(self, job: Job) -> Record | None:
        [record] = await self.broker.read([id_of(job)])
        return record

    async def record(self, job: Job) -> Record:
        """Return the record of a job that must exist."""
        record = await self.read(job)
        assert record is not None, "the job is not there"
        return record

    async def status(self, job: Job) -> Status | None:
        record = await self.read(job)
        return None if record is None else record.status

    async def upkeep(self, limit: int = EVERYTHING) -> UpkeepResult:
        return await self.broker.upkeep(limit)

    # --- time and mishaps ----------------------------------------------------------------------------------------

    async def pass_time(self, seconds: float) -> UpkeepResult:
        """Let time pass, and call maintenance for what has become due. Sessions that send no heartbeat meanwhile may lapse."""
        self.clock.advance(seconds)
        return await self.upkeep()

    async def lapse(self, session: Session, *, beside: Sequence[Session] = ()) -> None:
        """Let the session's ttl pass while other sessions send heartbeats: if all were silent, it would be an outage of the store."""
        for _ in range(2):
            await self.let_others_beat(beside)
            self.clock.advance(session.ttl * 0.6)
        await self.let_others_beat(beside)

    async def reap(self, session: Session, *, beside: Sequence[Session] = ()) -> UpkeepResult:
        """Let the session lapse, and release its leases."""
        await self.lapse(session, beside=beside)
        return await self.upkeep()

    async def let_others_beat(self, beside: Sequence[Session] = ()) -> None:
        """Send heartbeats of these sessions if they are alive, and of a bystander, so that the store does not see an outage."""
        if self._bystander is None:
            self._bystander = await self.a_session("bystander", ttl=1_000_000.0)
        for session in (self._bystander, *beside):
            with contextlib.suppress(SessionLost):
                await self.beat(session, seen=0)

    async def restart(self) -> None:
        """Close the broker, and open another one on the same store."""
        self.needs(Capability.RESTART)
        await self.broker.close()
        self.broker = self.harness.open()

    def snapshot(self) -> Any:
        return self.harness.save()

    async def restore(self, snapshot: Any) -> None:
        """Restore the store to a snapshot, so that it loses later changes. Time and clients are not reset."""
        await self.broker.close()
        self.harness.put_back(snapshot)
        self.broker = self.harness.open()
        self._bystander = None

    # --- the end ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        for other in self._others:
            await other.close()
        await self.broker.close()
        self.harness.remove()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def id_of(job: Job) -> bytes:
    if isinstance(job, Lease):
        return job.envelope.id
    return job.id if isinstance(job, Envelope) else job


def ids_of(jobs: Sequence[Job]) -> list[bytes]:
    return [id_of(job) for job in jobs]


def fences_of(leases: Sequence[Lease]) -> list[tuple[bytes, int, ClaimId]]:
    """Return the jobs with their fences, which determine whether two answers to a claim are the same."""
    return [(lease.envelope.id, lease.epoch, lease.claim) for lease in leases]
