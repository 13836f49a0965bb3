"""Cancelling, and what an operator does and sees."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import itemgetter

import msgspec

from taskflow.broker import topics
from taskflow.broker.admin import FailureGroupRecord, Finding, Rebuilt, Redone, View
from taskflow.broker.paging import Position, ScanRequest
from taskflow.model.audit import Action, ActionRecord
from taskflow.model.clock import Clock, instant_of
from taskflow.model.measures import MeasuresRecord
from taskflow.model.record import ENDED, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class CancelsTheEnded(Mutant):
    breaks = frozenset({"cancel_ended"})
    because = "a finished job becomes CANCELLED, and its result is ignored"

    def _cancel_one(self, job: StoredJob | None) -> Status | None:
        found = None if job is None else job.status
        answer = super()._cancel_one(job)
        if job is not None and found in (Status.SUCCEEDED, Status.FAILED):
            job.status = Status.CANCELLED
        return answer


class CancelDoesNotNudge(Mutant):
    breaks = frozenset({"listen_session"})
    because = "a run goes on until its worker's next beat"

    def _cancel_one(self, job: StoredJob | None) -> Status | None:
        found = super()._cancel_one(job)
        if found is Status.RUNNING:
            self.to_wake.clear()
        return found


class PurgesWhatRuns(Mutant):
    breaks = frozenset({"admin_purge"})
    because = "DELETE FROM jobs: a worker settles a job that does not exist"

    def purge(self, view: View, *, limit: int = 1_000) -> int:
        purged = super().purge(view, limit=limit)
        for job in list(self.jobs.values()):
            if job.status is Status.RUNNING and self._matches(job, view):
                self.finish(job, Event.CANCEL, Status.CANCELLED, "purged")
                self.bury(job)
        return purged


class DropsLiveJobs(Mutant):
    breaks = frozenset({"admin_drop"})
    because = "an operator mistypes an id, and a waiting job is dropped without a run"

    def _drop_one(self, job: StoredJob | None) -> Status | None:
        if job is None or job.status is not Status.READY:
            return super()._drop_one(job)
        self.finish(job, Event.CANCEL, Status.CANCELLED, "purged")
        super()._drop_one(job)
        return Status.READY


class RedoTakesTheKeyTwice(Mutant):
    breaks = frozenset({"admin_retry"})
    because = "an operator retries a job whose key another job has by now"

    def _redo_one(self, job: StoredJob | None) -> Redone:
        if job is not None and job.envelope.key is not None and job.status in (Status.FAILED, Status.CANCELLED):
            self.keys.pop(job.envelope.key, None)
        return super()._redo_one(job)


class RunsNothingNow(Mutant):
    breaks = frozenset({"listen_ready", "admin_run_now_leaves", "admin_run_now"})
    because = "the job remains SCHEDULED, whatever the answer says"

    def _run_one_now(self, job: StoredJob | None) -> Status | None:
        return None if job is None or not job.is_kept(self.now) else job.status


class RunsNowBesideItsKey(Mutant):
    breaks = frozenset({"admin_run_now_leaves"})
    because = "a HELD job is made READY, and two runs have one key"

    def _run_one_now(self, job: StoredJob | None) -> Status | None:
        if job is None or job.status is not Status.HELD:
            return super()._run_one_now(job)
        job.awaits, job.behind, job.due_at = 0, None, self.now
        self.enter(job, Event.RELEASE)
        return Status.HELD


class CancelSaysNothing(Mutant):
    breaks = frozenset({"cancel_running", "cancel_waiting"})
    because = "only jobs that the call ended are answered, and the caller takes a running job for unknown"

    def _cancel_one(self, job: StoredJob | None) -> Status | None:
        found = super()._cancel_one(job)
        return None if found is Status.RUNNING else found


class ReadsWhatIsOver(Mutant):
    breaks = frozenset({"read_kept"})
    because = "how long a record is kept depends on when upkeep runs"

    def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        jobs = [self.jobs.get(job_id) for job_id in ids]
        return [None if job is None or job.status is None else job.to_record() for job in jobs]


class NudgesOnlyForTheNew(Mutant):
    breaks = frozenset({"listen_ready"})
    because = "a retry that is READY at once waits for the next poll"

    def make_ready(self, job: StoredJob, event: Event) -> None:
        readied = self.readied.copy()
        super().make_ready(job, event)
        if event is not Event.ENQUEUE:
            self.readied = readied


class DueIsNotTold(Mutant):
    breaks = frozenset({"listen_due"})
    because = "a worker that sleeps until the next due time misses an earlier one that was added since"

    def enter(self, job: StoredJob, event: Event) -> None:
        super().enter(job, event)
        self.to_wake.discard(topics.DUE)


class SaysNothingOfPersistence(Mutant):
    breaks = frozenset({"admin_examine"})
    because = "no operator learns that the jobs end with the process"

    def findings(self) -> list[Finding]:
        return []


class RebuildsBesideWorkers(Mutant):
    breaks = frozenset({"admin_rebuild"})
    because = "workers change the counts that are being computed"

    def rebuild(self) -> Rebuilt:
        return Rebuilt()


class TellsTheTimeOfReading(Mutant):
    breaks = frozenset({"admin_acts"})
    because = "the entry's time is set by a column's default that is computed when it is read"

    def act_records(self, before: int | None, limit: int) -> list[ActionRecord]:
        return [msgspec.structs.replace(record, at=instant_of(self.now)) for record in super().act_records(before, limit)]


class RecordsTheRepeat(Mutant):
    breaks = frozenset({"admin_acts_repeat"})
    because = "an append-only log without an id: a resent call is a second entry"

    def record_action(self, action: Action) -> None:
        super().record_action(msgspec.structs.replace(action, id=secrets.token_bytes(16)))


class RecordsTheRepeatedMeasures(Mutant):
    breaks = frozenset({"history_repeat"})
    because = "a resent call counts a minute's runs twice"

    def record_measures(self, record_id: bytes, measures: bytes) -> None:
        super().record_measures(secrets.token_bytes(16), measures)


class KeepsMinutes(Mutant):
    breaks = frozenset({"history_records", "history_levels"})
    because = "a chart of a month reads 43,200 rows, and each worker has its own"

    def history_records(self, since: datetime, until: datetime) -> list[MeasuresRecord]:
        return [MeasuresRecord(at=instant_of(at), seconds=60, measures=each) for at, each in self.measures.values()]


class TrustsMeasures(Mutant):
    breaks = frozenset({"history_spoilt"})
    because = "one row of another program hides a month's history"

    def record_measures(self, record_id: bytes, measures: bytes) -> None:
        msgspec.msgpack.decode(measures)
        super().record_measures(record_id, measures)


class KeepsEveryAct(Mutant):
    breaks = frozenset({"admin_acts_bounded"})
    because = "no program ever deletes from an audit table"

    def __init__(self, clock: Clock, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(clock, msgspec.structs.replace(rules, max_actions=1_000_000), capacity)


class CountsAsMayBe(Mutant):
    breaks = frozenset({"admin_failures"})
    because = "the largest groups are chosen before the filter, as by a cached list of them"

    def failure_groups(self, queue: str | None, job: str | None, limit: int) -> list[FailureGroupRecord]:
        largest = {group.fingerprint for group in super().failure_groups(None, None, 1)}
        return [group for group in super().failure_groups(queue, job, limit) if group.fingerprint in largest or not (queue or job)]


class ListsOtherCausesToo(Mutant):
    breaks = frozenset({"admin_failures_ids"})
    because = "a range of an index that ends too late"

    def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return [job_id for (cause, *_), jobs in self.failed.items() if cause >= fingerprint for job_id in jobs]


class PagesAreCountedOff(Mutant):
    breaks = frozenset({"page_cursor"})
    because = "a page is read by OFFSET: each job that has left the list meanwhile makes it skip another"

    def _placed(self, request: ScanRequest) -> Iterable[tuple[Position, StoredJob]]:
        placed = super()._placed(request)
        if request.status is not Status.FAILED:
            return placed
        return [((0, number), job) for number, (_, job) in enumerate(sorted(placed, key=itemgetter(0)))]


class OldEndsComeFirst(Mutant):
    breaks = frozenset({"page_order", "page_bounded"})
    because = "the index is read from its beginning, so the failures of an hour ago hide those of now"

    def _placed(self, request: ScanRequest) -> Iterable[tuple[Position, StoredJob]]:
        placed = super()._placed(request)
        return [((job.ended_at or 0, job.seq), job) for _, job in placed] if request.status in ENDED else placed


class AnEndLosesTheTags(Mutant):
    breaks = frozenset({"upkeep_bounded", "page_tag", "admin_purge_tag", "tags_kept", "tags_dropped"})
    because = "the index holds live jobs only, and an import's failed ones are not found"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        super().finish(job, event, status, reason, keep=keep)
        for tag in job.envelope.tags:
            self.tagged[tag].pop(job.id)

    def bury(self, job: StoredJob) -> None:
        for tag in job.envelope.tags:
            self.tagged[tag][job.id] = job
        super().bury(job)
