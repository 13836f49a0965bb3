"""The memory broker of tests, which also knows what was sent to it."""

from __future__ import annotations

from collections.abc import Sequence

from taskflow.broker.engine import maintenance
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Entry, Ref, Scan
from taskflow.broker.engine.settle import read
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import Clock, microseconds_of
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.rules import Rules
from taskflow.model.schedule import Firing
from taskflow.model.verdict import Settled, Settlement
from taskflow.testing.assertions import SentJob


class _HeardStore(MemoryStore):
    """Answers as if a worker that hears of ends without a run were always running."""

    def _scan(self, scan: Scan, with_content: bool) -> list[Entry]:
        if scan.of == "hearers":
            return [Entry((b"",), Ref(Kind.SESSION, b""), None)]
        return super()._scan(scan, with_content)


class RecordingBroker(MemoryBroker):
    """Keeps the envelopes that were sent: a job's record does not have all of their fields."""

    def __init__(self, clock: Clock) -> None:
        self._heard = _HeardStore(clock)
        super().__init__(rules=Rules(), store=self._heard)
        self._clock = clock
        self._sent: dict[bytes, Envelope] = {}

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        answers = await super().enqueue(envelopes)
        self._note(envelopes)
        return answers

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        answers = await super().fire(firings)
        self._note([firing.envelope for firing in firings if firing.envelope is not None])
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers = await super().settle(settlements)
        self._note([envelope for settlement in settlements for envelope in settlement.follow_ups])
        return answers

    def _note(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            self._sent.setdefault(envelope.id, envelope)

    def live(self) -> list[SentJob]:
        """Return the jobs that have not ended, oldest first."""
        records = self.perform(read(list(self._sent)))
        live = [record for record in records if record is not None and not record.status.is_ended]
        return [SentJob(self._sent[record.id], microseconds_of(record.created_at)) for record in live]

    async def claim_one(self, session: bytes, request: int, job_id: bytes) -> Lease | None:
        """Claim a certain job. One that waits for its time is taken at once."""
        record = self._heard.claim_job(session, request, job_id)
        return None if record is None else Job.of_record(record).to_lease(self._clock.wall())

    def take_ends(self) -> tuple[tuple[bytes, ...], int]:
        """Remove and return the first ends of jobs without a run that were noted, and the number of those that were dropped."""
        return self.perform(maintenance.take_ends(self.rules))
