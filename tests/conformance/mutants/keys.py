"""Keys, replacements and joins."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.errors import StoreFull
from taskflow.model.record import Status
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob


class KeyOutlivesItsJob(Mutant):
    breaks = frozenset({"key_released", "console_retry"})
    because = "a unique lock outlives its job (sidekiq-unique-jobs#379)"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        dead = next((job for job in self.jobs.values() if envelope.key is not None and job.envelope.key == envelope.key), None)
        if (
            dead is not None
            and dead.id != envelope.id
            and envelope.on_conflict is OnConflict.KEEP
            and self.holders(envelope.key) == (None, None)
        ):
            return Refused(envelope.id, dead.id, "key")
        return super()._enqueue_one(envelope)


class RunsBesideItsHolder(Mutant):
    breaks = frozenset({"key_waits_behind", "key_gives_way", "key_cancelled", "poison_follow_up", "ends_heard"})
    because = "two of one key run at once when the first is replaced as it runs"

    def add(self, job: StoredJob, behind: StoredJob | None) -> None:
        super().add(job, behind=None)


class BlocksItsOwnRetry(Mutant):
    breaks = frozenset({"key_gives_way", "poison_follow_up", "ends_heard"})
    because = "a retry and the replacement that waits behind it both live on"

    def waiting_behind(self, job: StoredJob) -> StoredJob | None:
        return None


class AddsWhatHasEnded(Mutant):
    breaks = frozenset({"enqueue_repeat", "enqueue_clash"})
    because = "the id is looked up among live jobs only, and a resend runs it twice"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        job = self.jobs.get(envelope.id)
        if job is not None and job.status in (Status.SUCCEEDED, Status.FAILED):
            del self.jobs[envelope.id]
        return super()._enqueue_one(envelope)


class KeyOfARunIsFree(Mutant):
    breaks = frozenset({"key_keeps", "key_survives_retry", "key_cancelled", "settle_follow_ups"})
    because = "the lock is taken until the job starts, and two of one key run"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        waiting, running = self.holders(envelope.key)
        if waiting is None and running is not None and envelope.on_conflict is OnConflict.KEEP and envelope.id not in self.jobs:
            self.add(StoredJob.of(envelope, self.next_seq(), self.clock.wall()), behind=None)
            return Added(envelope.id)
        return super()._enqueue_one(envelope)


class HidesAStoppingRun(Mutant):
    breaks = frozenset({"holders_running"})
    because = "what is asked to stop is taken for stopped, and its files are removed under its feet"

    def live_holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [self.jobs.get(job_id or b"") for job_id in super().live_holders(keys)]
        return [None if job is None or job.cancel_requested is not None else job.id for job in found]


class KeepsAKeyForEver(Mutant):
    breaks = frozenset({"holders_none", "holders_waiting"})
    because = "the lock is looked up in the table of all jobs, ended ones too"

    def live_holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [next((job.id for job in self.jobs.values() if job.envelope.key == key), None) for key in keys]


class RunsBesideACancelledOne(Mutant):
    breaks = frozenset({"key_cancelled"})
    because = "the cancellation frees the key at once, though the run goes on for as long as it likes"

    def add(self, job: StoredJob, behind: StoredJob | None) -> None:
        super().add(job, None if behind is not None and behind.cancel_requested is not None else behind)


class ARefusalEndsTheBatch(Mutant):
    breaks = frozenset({"key_neighbours"})
    because = "one bad item fails its neighbours"

    def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        answers = list[Added | Refused]()
        for envelope in envelopes:
            last = answers[-1] if answers else None
            is_over = isinstance(last, Refused) and last.because == "key"
            answers.append(Refused(envelope.id, envelope.id, "key") if is_over else super().enqueue([envelope])[0])
        return answers


class FillsUpToTheBrim(Mutant):
    breaks = frozenset({"enqueue_full"})
    because = "a batch is added in part, and refused as a whole"

    def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        try:
            return super().enqueue(envelopes)
        except StoreFull:
            self._enqueue_one(envelopes[0])
            raise


class RoundsInstants(Mutant):
    breaks = frozenset({"enqueue_adds"})
    because = "instants are kept in seconds, and a job starts early"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        at = None if envelope.at is None else envelope.at // 1_000_000 * 1_000_000
        return super()._enqueue_one(msgspec.structs.replace(envelope, at=at))


class ThePastComesFirst(Mutant):
    breaks = frozenset({"enqueue_past"})
    because = "a clock that is slow by an hour jumps every queue"

    def add(self, job: StoredJob, behind: StoredJob | None) -> None:
        job.due_at = min(job.due_at, job.envelope.at or job.due_at)
        super().add(job, behind)
