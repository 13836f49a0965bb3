"""Keys, schedules, and which waiters a store wakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from taskflow.broker import topics
from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.errors import SessionLost, StoreFull
from taskflow.model.record import LIVE, Status
from taskflow.model.schedule import Amendment, Definition, Firing, Offer, ScheduleRecord
from taskflow.model.transitions import Event, Transition
from tests.conformance.mutants.mutant import Mutant
from tests.reference.job import StoredJob
from tests.reference.schedules import StoredSchedule
from tests.reference.store import SessionState


class KeyOutlivesItsJob(Mutant):
    breaks = frozenset({"holders_waiting", "key_released", "admin_retry"})
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


class WindowEndsWithItsJob(Mutant):
    breaks = frozenset({"throttle_first"})
    because = "a throttle that checks only live jobs lets a quick job run again and again"

    def _standing(self, envelope: Envelope) -> bytes | None:
        found = super()._standing(envelope)
        job = None if found is None else self.jobs.get(found)
        return found if job is not None and job.status in LIVE else None


class FirstCallWins(Mutant):
    breaks = frozenset({"debounce_last"})
    because = "a debounced save keeps the first version, and the last is lost"

    def debounce(self, job: StoredJob, envelope: Envelope) -> Refused:
        return Refused(envelope.id, job.id, "key")


class ResumesAtTheBack(Mutant):
    breaks = frozenset({"job_pause"})
    because = "a pause by rescheduling moves the longest-waiting jobs behind all others (good_job#1353)"

    def park(self, job: StoredJob, handed_back: Transition) -> Transition:
        transition = super().park(job, handed_back)
        self.places[job.id] = self.now
        return transition


class RunsBesideItsHolder(Mutant):
    breaks = frozenset({"admin_run_now_leaves", "key_waits_behind", "key_gives_way", "key_cancelled", "poison_follow_up", "ends_heard"})
    because = "two jobs of one key run at once when the first is replaced during its run"

    def add(self, job: StoredJob, behind: StoredJob | None) -> None:
        super().add(job, behind=None)


class BlocksItsOwnRetry(Mutant):
    breaks = frozenset({"key_gives_way", "poison_follow_up", "ends_heard"})
    because = "a retry and the replacement that waits behind it both live on"

    def waiting_behind(self, job: StoredJob) -> StoredJob | None:
        return None


class AddsWhatHasEnded(Mutant):
    breaks = frozenset({"enqueue_repeat", "enqueue_clash"})
    because = "the id is searched among live jobs only, and a resend runs the job twice"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        job = self.jobs.get(envelope.id)
        if job is not None and job.status in (Status.SUCCEEDED, Status.FAILED):
            del self.jobs[envelope.id]
        return super()._enqueue_one(envelope)


class KeyOfARunIsFree(Mutant):
    breaks = frozenset({"key_keeps", "key_survives_retry", "key_cancelled", "settle_follow_ups"})
    because = "the lock is released when the job starts, and two jobs of one key run"

    def _enqueue_one(self, envelope: Envelope) -> Added | Refused:
        waiting, running = self.holders(envelope.key)
        if waiting is None and running is not None and envelope.on_conflict is OnConflict.KEEP and envelope.id not in self.jobs:
            self.add(StoredJob.of(envelope, self.next_seq(), self.clock.wall()), behind=None)
            return Added(envelope.id)
        return super()._enqueue_one(envelope)


class HidesAStoppingRun(Mutant):
    breaks = frozenset({"holders_running"})
    because = "a run that is asked to stop is taken for stopped, and its files are removed while it uses them"

    def live_holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [self.jobs.get(job_id or b"") for job_id in super().live_holders(keys)]
        return [None if job is None or job.cancel_requested is not None else job.id for job in found]


class KeepsAKeyForEver(Mutant):
    breaks = frozenset({"holders_none", "holders_waiting"})
    because = "the lock is searched among all jobs, including ended ones"

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
    because = "a sender whose clock is an hour slow jumps every queue"

    def add(self, job: StoredJob, behind: StoredJob | None) -> None:
        job.due_at = min(job.due_at, job.envelope.at or job.due_at)
        super().add(job, behind)


class FiresWhateverIsNext(Mutant):
    breaks = frozenset({"schedule_cas"})
    because = "two schedulers that check the same minute both send its job (arq#196)"

    class Schedule(StoredSchedule):
        def expects(self, firing: Firing) -> bool:
            return not self.is_paused and self.digest == firing.digest


class FiresAnyDefinition(Mutant):
    breaks = frozenset({"schedule_cas"})
    because = "an old process fires with the arguments from before the deploy"

    class Schedule(StoredSchedule):
        def expects(self, firing: Firing) -> bool:
            return not self.is_paused and self.next_at == firing.expected


class CountsRepeats(Mutant):
    breaks = frozenset({"schedule_advances"})
    because = "an operator sees skipped runs that were never skipped"

    class Schedule(StoredSchedule):
        def record_job(self, now: int, job_id: bytes, refused_for: str | None) -> None:
            super().record_job(now, job_id, refused_for and "key")


class FiresWithoutTheJob(Mutant):
    breaks = frozenset({"schedule_fires", "schedule_cas", "key_replaces"})
    because = "the scheduler dies between two steps, and the instant is lost (bullmq#2790)"

    def _fire_one(self, schedule: StoredSchedule | None, firing: Firing) -> Added | Refused | None:
        answer = super()._fire_one(schedule, firing)
        if isinstance(answer, Added) and firing.envelopes:
            del self.jobs[firing.envelopes[-1].id]
        return None if isinstance(answer, Added) else answer


class FiresHalfWhenFull(Mutant):
    breaks = frozenset({"schedule_full"})
    because = "the broker is full for a minute, and a monthly report is lost for a month"

    def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        try:
            return super().fire(firings)
        except StoreFull:
            for firing in firings:
                if (schedule := self.schedules.get(firing.name)) is not None:
                    schedule.next_at = firing.next_at
            raise


class OffersToEverybody(Mutant):
    breaks = frozenset({"schedule_offer"})
    because = "fifty workers send the same job, and the store refuses forty-nine"

    def offers(self) -> tuple[Offer, ...]:
        offers = super().offers()
        for offer in offers:
            self.schedules[offer.name].offer_next(self.now + 1)
        return offers


class RingsForNobody(Mutant):
    breaks = frozenset({"schedule_due"})
    because = "a stored schedule begins only when some worker next checks"

    def _announce_look(self, names: Iterable[str]) -> None:
        pass


class StartsAnewWhenPutAgain(Mutant):
    breaks = frozenset({"schedule_put_repeat", "schedule_handover"})
    because = "an interval that restarts with each deploy never ends where deploys are frequent"

    class Schedule(StoredSchedule):
        def bring_into_force(self, definition: Definition, now: int) -> None:
            super().bring_into_force(definition, now)
            self.forget_next(now)


class LosesThePastInstant(Mutant):
    breaks = frozenset({"schedule_changed"})
    because = "a deploy at 9:00:01 loses the run of 9:00"

    class Schedule(StoredSchedule):
        def forget_next(self, now: int) -> None:
            self.next_at = None
            self.offer_next(now)


class LetsPutsTakeDeclared(Mutant):
    breaks = frozenset({"schedule_taken"})
    because = "two parts of an application overwrite each other's schedules"

    def _define(self, definition: Definition, declarer: SessionState | None, since: int) -> bool:
        if declarer is None and (schedule := self.schedules.get(definition.name)) is not None:
            schedule.is_declared = False
        return super()._define(definition, declarer, since)


class NeverSleeps(Mutant):
    breaks = frozenset({"schedule_declared", "schedule_handover", "admin_amend_schedule"})
    because = "removed tasks linger (solid_queue#310)"

    def _kill_session(self, state: SessionState) -> None:
        state.dead_at = self.now


class DeclaresForTheDead(Mutant):
    breaks = frozenset({"schedule_session"})
    because = "a worker that was declared dead still declares its old schedules"

    def define(self, definitions: Sequence[Definition], session: bytes | None, age: float) -> list[bool]:
        try:
            return super().define(definitions, session, age)
        except SessionLost:
            return super().define(definitions, None, age)


class MakesUpForPauses(Mutant):
    breaks = frozenset({"schedule_paused"})
    because = "all instants that the pause held back on purpose are fired when it ends"

    def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        before = None if name not in self.schedules else self.schedules[name].next_at
        done = super().amend_schedule(name, amendment)
        if amendment is Amendment.RESUME and name in self.schedules:
            self.schedules[name].next_at = before
        return done


class ShowsNothingOfItsSchedules(Mutant):
    breaks = frozenset({"admin_schedules"})
    because = "a schedule is not found by its name if the name is not ASCII"

    def schedule_records(self, names: Sequence[str] | None) -> list[ScheduleRecord]:
        return [record for record in super().schedule_records(names) if record.name.isascii()]


class NudgesEverybody(Mutant):
    breaks = frozenset({"nudge_few", "nudge_full", "nudge_paused"})
    because = "a lone job costs as many claims as there are idle workers"

    def take_nudges(self) -> Mapping[str, int]:
        return dict.fromkeys(super().take_nudges(), 1_000_000)


class NudgesOne(Mutant):
    breaks = frozenset({"nudge_few", "nudge_paused"})
    because = "one worker is nudged for a thousand jobs, and the others sleep until they poll"

    def take_nudges(self) -> Mapping[str, int]:
        return dict.fromkeys(super().take_nudges(), 1)


class KeepsTheRestToItself(Mutant):
    breaks = frozenset({"nudge_next"})
    because = "a worker with little room gets the nudge for many jobs"

    def claim(self, session_id: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        leases = super().claim(session_id, request, queues, limit)
        self.readied.clear()
        return leases


class TellsEverybodyOfEachEnd(Mutant):
    breaks = frozenset({"ended_told"})
    because = "every process that waits for a result is woken by every job"

    def finish(self, job: StoredJob, event: Event, status: Status, reason: str | None = None, *, keep: float | None = None) -> None:
        super().finish(job, event, status, reason, keep=keep)
        self.to_wake |= {topics.job(other) for other in self.jobs}
