"""Adds the admin interface's operations, as plain methods, to the reference broker's store."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from datetime import datetime
from functools import partial
from operator import attrgetter, itemgetter

from taskflow.broker.admin import FailureGroupRecord, Finding, Metrics, QueueInfo, Rebuilt, Redone, View
from taskflow.broker.paging import Position, ScanRequest, ScanResult
from taskflow.broker.protocol import PURGED_TTL
from taskflow.model import wording
from taskflow.model.audit import Action, ActionRecord, action_record_of, pack_action
from taskflow.model.clock import Clock, instant_of, microseconds_of, to_microseconds, to_seconds
from taskflow.model.errors import BrokerRefused
from taskflow.model.fingerprint import fingerprint_in
from taskflow.model.measures import Measures, MeasuresRecord, add_up, unpack_measures
from taskflow.model.record import ENDED, WAITING, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import Event
from tests.reference.job import StoredJob
from tests.reference.upkeep import UpkeepStore


class ReferenceStore(UpkeepStore):
    """The complete store, with all operations and the admin interface's operations."""

    def __init__(self, clock: Clock, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(clock, rules, capacity)
        self.measures = dict[bytes, tuple[int, Measures]]()
        self.acts = deque[tuple[int, int, bytes, bytes]](maxlen=rules.max_actions)
        """The audit log: number, time, id and body of each action, oldest first."""

    def queue_records(self) -> list[QueueInfo]:
        names = sorted(set(self.counts) | self.paused)
        return [
            QueueInfo(
                name=name,
                is_paused=name in self.paused,
                counts={status: self._count(name, status) for status in Status},
                oldest_ready_for=self._oldest_ready_for(name),
                next_due_in=self._next_due_in(name),
            )
            for name in names
        ]

    def _count(self, queue: str, status: Status) -> int:
        """Return the count without adding an entry for a queue that is only paused."""
        return self.counts[queue][status] if queue in self.counts else 0

    def _oldest_ready_for(self, queue: str) -> float | None:
        """Return the age of the oldest ready job in seconds, or None if there is none.
        It is not necessarily the first in the queue, which is ordered by priority."""
        due = [entry[1] for entry in self.ready.get(queue, ()) if self.is_ready(entry)]
        return to_seconds(self.now - min(due)) if due else None

    def _next_due_in(self, queue: str) -> float | None:
        if not self._count(queue, Status.SCHEDULED):
            return None
        due = min(job.due_at for job in self.jobs.values() if job.status is Status.SCHEDULED and job.queue == queue)
        return to_seconds(due - self.now)

    def scan(self, request: ScanRequest) -> ScanResult:
        """List jobs in the order of their positions. This sorts the jobs behind `request.after`, as far as they are read."""
        placed = [(at, job) for at, job in self._placed(request) if request.after is None or at > request.after]
        listed, examined, end = list[tuple[Callable[[], Record], Position]](), 0, None
        for position, job in heapq.nsmallest(request.most, placed, key=itemgetter(0)):
            examined, end = examined + 1, position
            if self._matches(job, request.view):
                listed.append((partial(copy, job.to_record()), position))
                if len(listed) == request.limit:
                    break
        return ScanResult(listed, examined, end if examined < len(placed) else None, self.now)

    def _placed(self, request: ScanRequest) -> Iterable[tuple[Position, StoredJob]]:
        """Return the jobs of one status, or those with the tag, each with its position. The position of the first is the smallest."""
        status, view = request.status, request.view
        if status is None:
            return [((_newest_first(job.id),), job) for job in self.tagged.get(view.tag or "", {}).values()]
        if status is Status.RUNNING:
            return [((*claim,), job) for state in self.sessions.values() for claim, job in state.leases.items()]
        queues = [name for name, counts in self.counts.items() if counts[status] and view.queue in (None, name)]
        if not queues:
            return []
        if status is Status.READY:
            entries = ((queue, entry) for queue in queues for entry in self.ready[queue] if self.is_ready(entry))
            return [((queue, *entry[:-1]), self.jobs[entry[-1]]) for queue, entry in entries]
        jobs = [job for job in self.jobs.values() if job.status is status and view.queue in (None, job.queue)]
        if status is Status.SCHEDULED:
            return [((job.due_at, job.seq), job) for job in jobs]
        return [((-(job.ended_at or 0), -job.seq) if status in ENDED else (job.seq,), job) for job in jobs]

    def _candidates(self, view: View) -> Iterable[StoredJob]:
        return (self.jobs if view.tag is None else self.tagged.get(view.tag, {})).values()

    def _matches(self, job: StoredJob, view: View) -> bool:
        now = self.now
        before = None if view.ended_before is None else to_microseconds(view.ended_before)
        return (
            job.is_kept(now)
            and view.queue in (None, job.queue)
            and view.job in (None, job.envelope.job)
            and (not view.statuses or job.status in view.statuses)
            and (before is None or (job.ended_at is not None and job.ended_at <= now - before))
            and (not view.poison or (bool(job.is_poison) and job.status is Status.FAILED))
        )

    def session_records(self) -> list[SessionRecord]:
        shown = [state for state in self.sessions.values() if state.dead_at is None or state.leases]
        records = [state.to_record(self.steady, self.clock.boot_id()) for state in shown]
        return sorted(records, key=lambda record: (record.session.name, record.session.id))

    def redo(self, ids: Sequence[bytes]) -> list[Redone]:
        return [self._redo_one(self.jobs.get(job_id)) for job_id in ids]

    def _redo_one(self, job: StoredJob | None) -> Redone:
        if job is None or not job.is_kept(self.now):
            return Redone.UNKNOWN
        if job.status not in ENDED:
            return Redone.LIVE
        if job.status is Status.SUCCEEDED:
            return Redone.SUCCEEDED
        if self.keys.get(job.key or b""):
            return Redone.KEY_TAKEN
        self.leave_group(job)
        job.make_fresh(self.now)
        if job.key is not None:
            self.keys[job.key] = [job]
        self.enter(job, Event.REDO)
        return Redone.OK

    def run_now(self, ids: Sequence[bytes]) -> list[Status | None]:
        return [self._run_one_now(self.jobs.get(job_id)) for job_id in ids]

    def _run_one_now(self, job: StoredJob | None) -> Status | None:
        if job is None or not job.is_kept(self.now):
            return None
        found = job.status
        if found is Status.SCHEDULED:
            job.due_at = self.now
            self.enter(job, Event.DUE)
        return found

    def failure_groups(self, queue: str | None, job: str | None, limit: int) -> list[FailureGroupRecord]:
        from taskflow.broker.failure_parts import FailurePart, failure_groups_of

        parts = list[FailurePart]()
        for (cause, name, of_queue), jobs in self.failed.items():
            if queue in (None, of_queue) and job in (None, name):
                first_at, last = min(map(_ended_at, jobs.values())), max(jobs.values(), key=_ended_at)
                parts.append(FailurePart(cause, name, len(jobs), first_at, _ended_at(last), last.id))
        return failure_groups_of(parts, limit)

    def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return [job_id for (cause, *_), jobs in self.failed.items() if fingerprint_in(cause) == fingerprint for job_id in jobs]

    def purge(self, view: View, *, limit: int = 1_000) -> int:
        found = [job for job in self._candidates(view) if job.status is not Status.RUNNING and self._matches(job, view)]
        purged, has_end_subscriber = found[:limit], self.has_end_subscriber()
        for job in purged:
            if job.status in WAITING:
                self.finish(job, Event.CANCEL, Status.CANCELLED, wording.PURGED, keep=PURGED_TTL)
                if has_end_subscriber:
                    continue
            self.bury(job)
        return len(purged)

    def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        return [self._drop_one(self.jobs.get(job_id)) for job_id in ids]

    def _drop_one(self, job: StoredJob | None) -> Status | None:
        if job is None or not job.is_kept(self.now):
            return None
        found = job.status
        if found in ENDED:
            self.bury(job)
        return found

    def pause(self, queue: str) -> None:
        self.paused.add(queue)

    def resume(self, queue: str) -> None:
        self.paused.discard(queue)
        self.readied[queue] += len(self.ready[queue])

    def record_action(self, action: Action) -> None:
        if not any(act_id == action.id for _, _, act_id, _ in self.acts):
            number = self.acts[-1][0] + 1 if self.acts else 1
            self.acts.append((number, self.now, action.id, pack_action(action)))

    def act_records(self, before: int | None, limit: int) -> list[ActionRecord]:
        found = [(number, at, body) for number, at, _, body in reversed(self.acts) if before is None or number < before]
        return [action_record_of(*each) for each in found[:limit]]

    def record_measures(self, record_id: bytes, measures: bytes) -> None:
        self.measures.setdefault(record_id, (self.now, unpack_measures(measures)))

    def history_records(self, since: datetime, until: datetime) -> list[MeasuresRecord]:
        """Return the periods as if upkeep had just run."""
        found = dict[tuple[int, int], Measures]()
        for at, measures in self.measures.values():
            for minutes, keep in ((1, 180), (10, 2 * 1_440), (60, 30 * 1_440)):
                period = minutes * 60_000_000
                at = at // period * period
                if self.now < at + period + keep * 60_000_000:
                    if microseconds_of(since) - period < at < microseconds_of(until):
                        add_up(found.setdefault((at, minutes * 60), {}), measures)
                    break
        return [MeasuresRecord(at=instant_of(at), seconds=seconds, measures=all_) for (at, seconds), all_ in sorted(found.items())]

    def metrics(self) -> Metrics:
        return Metrics(totals={queue: {str(event): count for event, count in events.items()} for queue, events in self.totals.items()})

    def rebuild(self) -> Rebuilt:
        if any(worker.is_alive for worker in self.session_records()):
            raise BrokerRefused("a worker is running")
        return Rebuilt()

    def findings(self) -> list[Finding]:
        return [
            Finding("persistence", "note", "jobs are lost when this process ends: use this broker for tests, and for jobs that may be lost")
        ]


def _newest_first(job_id: bytes) -> bytes:
    """Return bytes that sort in the reverse order of ids."""
    return bytes(255 - byte for byte in job_id)


_ended_at = attrgetter("ended_at")
