"""The reference broker, which guards its store with a lock so that all threads and event loops of the process can share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from taskflow.broker import topics
from taskflow.broker.admin import FailureGroupRecord, Finding, LimitInfo, Metrics, Page, QueueInfo, Rebuilt, Redone, View
from taskflow.broker.paging import ScanRequest, ScanResult, page
from taskflow.broker.protocol import MAX_NUDGED_WHEN_DUE, Added, Notes, Refused, UpkeepResult
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model.audit import Action, ActionRecord
from taskflow.model.clock import Seams
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.limits import Gate
from taskflow.model.measures import MeasuresRecord
from taskflow.model.record import LIVE, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.schedule import Amendment, Definition, Firing, ScheduleRecord
from taskflow.model.session import Beat, BeatAnswer, Session, SessionRecord
from taskflow.model.verdict import Settled, Settlement
from tests.reference.admin import ReferenceStore

T = TypeVar("T")


class ReferenceBroker:
    """Keeps jobs in this process's memory: for tests, and for jobs that may be lost with the process.

    `capacity` is the maximum number of live jobs; None means no limit.
    """

    def __init__(
        self, *, seams: Seams | None = None, rules: Rules | None = None, capacity: int | None = None, store: ReferenceStore | None = None
    ) -> None:
        seams = seams or Seams()
        self._store = store or ReferenceStore(seams.clock, rules or Rules(), capacity)
        self._lock = threading.Lock()
        self.flag = WakeUpFlag()

    @property
    def admin(self) -> ReferenceConsole:
        return ReferenceConsole(self)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        return self._atomically(lambda: self._store.enqueue(envelopes))

    async def register(self, session: Session) -> tuple[str, ...]:
        return self._atomically(lambda: self._store.register(session))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        return self._atomically(lambda: self._store.claim(session, request, queues, limit))

    async def claim_one(self, session: bytes, request: int, job_id: bytes) -> Lease | None:
        """Claim a certain job, for tests that run jobs where they are sent. A job that waits for its time is taken at once."""
        return self._atomically(lambda: self._store.claim_one(session, request, job_id))

    def live(self) -> list[tuple[Envelope, int]]:
        """Return the envelopes of the jobs that have not ended, oldest first, and when each was added, for tests."""
        return self._atomically(lambda: [(job.envelope, job.created_at) for job in self._store.jobs.values() if job.status in LIVE])

    async def beat(self, beat: Beat) -> BeatAnswer:
        return self._atomically(lambda: self._store.beat(beat))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return self._atomically(lambda: self._store.settle(settlements))

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return self._atomically(lambda: self._store.cancel(ids))

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        return self._atomically(lambda: self._store.read(ids))

    async def notes(self, job: bytes, first: int = 0) -> Notes:
        return Notes()

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._atomically(lambda: self._store.live_holders(keys))

    async def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult:
        return self._atomically(lambda: self._store.upkeep(limit, ends=ends))

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        return self._atomically(lambda: self._store.define(definitions, session, age))

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        return self._atomically(lambda: self._store.fire(firings))

    def listen(self, topics: Sequence[str]) -> Waiter:
        return self.flag.listen(topics)

    def sibling(self) -> ReferenceBroker:
        """Return this broker: it has no connection, so all threads can share it."""
        return self

    async def close(self) -> None:
        """Do nothing: the jobs are kept for as long as this object exists."""

    def _atomically(self, verb: Callable[[], T]) -> T:
        with self._lock:
            self._store.begin_verb()
            answer = verb()
            to_wake, self._store.to_wake = self._store.to_wake, set()
            nudges = self._store.take_nudges()
        if topics.DUE in to_wake:
            to_wake.discard(topics.DUE)
            self.flag.wake_some([topics.DUE], MAX_NUDGED_WHEN_DUE)
        if to_wake:
            self.flag.wake(to_wake)
        for queue, jobs in nudges.items():
            self.flag.wake_some([topics.queue(queue), topics.ANY_QUEUE], jobs)
        return answer


class ReferenceConsole:
    def __init__(self, broker: ReferenceBroker) -> None:
        self._store = broker._store
        self._atomically = broker._atomically

    async def queues(self) -> list[QueueInfo]:
        return self._atomically(self._store.queue_records)

    async def page(self, view: View, *, cursor: str | None = None, limit: int = 100) -> Page:
        return await page(self._scan, view, cursor, limit)

    async def _scan(self, request: ScanRequest) -> ScanResult:
        return self._atomically(lambda: self._store.scan(request))

    async def workers(self) -> list[SessionRecord]:
        return self._atomically(self._store.session_records)

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return self._atomically(lambda: self._store.redo(ids))

    async def run_now(self, ids: Sequence[bytes]) -> list[Status | None]:
        return self._atomically(lambda: self._store.run_now(ids))

    async def failure_groups(self, *, queue: str | None = None, job: str | None = None, limit: int = 100) -> list[FailureGroupRecord]:
        return self._atomically(lambda: self._store.failure_groups(queue, job, limit))

    async def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return self._atomically(lambda: self._store.failed_ids(fingerprint))

    async def purge(self, view: View, *, limit: int = 1_000) -> int:
        return self._atomically(lambda: self._store.purge(view, limit=limit))

    async def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        return self._atomically(lambda: self._store.drop(ids))

    async def pause(self, queue: str) -> None:
        self._atomically(lambda: self._store.pause(queue))

    async def resume(self, queue: str) -> None:
        self._atomically(lambda: self._store.resume(queue))

    async def pause_job(self, job: str) -> None:
        self._atomically(lambda: self._store.pause_job(job))

    async def resume_job(self, job: str) -> bool:
        return self._atomically(lambda: self._store.resume_job(job))

    async def paused_jobs(self) -> list[str]:
        return self._atomically(lambda: sorted(self._store.paused_jobs))

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        return self._atomically(lambda: self._store.schedule_records(names))

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        return self._atomically(lambda: self._store.amend_schedule(name, amendment))

    async def record_action(self, action: Action) -> None:
        self._atomically(lambda: self._store.record_action(action))

    async def actions(self, *, before: int | None = None, limit: int = 100) -> list[ActionRecord]:
        return self._atomically(lambda: self._store.act_records(before, limit))

    async def flow(self, flow: bytes, *, first: int = 0, limit: int = 1_000) -> list[Record]:
        return []  # it has no flows

    async def flows(self, limit: int = 20) -> list[Record]:
        return []

    async def cancel_flow(self, flow: bytes) -> int:
        raise NotImplementedError

    async def limits(self, limit: str | None = None, *, job: bytes | None = None) -> list[LimitInfo]:
        return []  # it has no limits

    async def set_limit(self, gate: Gate, *, is_set: bool) -> None:
        raise NotImplementedError

    async def metrics(self) -> Metrics:
        return self._atomically(self._store.metrics)

    async def record_measures(self, record_id: bytes, measures: bytes) -> None:
        self._atomically(lambda: self._store.record_measures(record_id, measures))

    async def history(self, since: datetime, until: datetime) -> list[MeasuresRecord]:
        return self._atomically(lambda: self._store.history_records(since, until))

    async def examine(self) -> list[Finding]:
        return self._atomically(self._store.findings)

    async def rebuild(self) -> Rebuilt:
        return self._atomically(self._store.rebuild)
