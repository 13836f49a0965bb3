"""Schedules that fire twice, not at all, or by the wrong definition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskflow.broker.protocol import Added, Refused
from taskflow.model.errors import SessionLost, StoreFull
from taskflow.model.schedule import Amendment, Definition, Firing, Offer, ScheduleRecord
from tests.conformance.mutants.mutant import Mutant
from tests.reference.schedules import StoredSchedule
from tests.reference.store import SessionState


class FiresWhateverIsNext(Mutant):
    breaks = frozenset({"schedule_cas"})
    because = "two schedulers that look at the same minute both send its job (arq#196)"

    class Schedule(StoredSchedule):
        def expects(self, firing: Firing) -> bool:
            return not self.is_paused and self.digest == firing.digest


class FiresAnyDefinition(Mutant):
    breaks = frozenset({"schedule_cas"})
    because = "an old process fires the arguments of before the deploy"

    class Schedule(StoredSchedule):
        def expects(self, firing: Firing) -> bool:
            return not self.is_paused and self.next_at == firing.expected


class CountsRepeats(Mutant):
    breaks = frozenset({"schedule_advances"})
    because = "an operator reads of skipped runs that were never skipped"

    class Schedule(StoredSchedule):
        def note_job(self, now: int, job_id: bytes, refused_for: str | None) -> None:
            super().note_job(now, job_id, refused_for and "key")


class FiresWithoutTheJob(Mutant):
    breaks = frozenset({"schedule_fires", "schedule_cas", "key_replaces"})
    because = "the scheduler dies between two steps, and the instant is lost (bullmq#2790)"

    def _fire_one(self, schedule: StoredSchedule | None, firing: Firing) -> Added | Refused | None:
        answer = super()._fire_one(schedule, firing)
        if isinstance(answer, Added) and firing.envelope is not None:
            del self.jobs[firing.envelope.id]
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
            self.schedules[offer.name].look(self.now + 1)
        return offers


class RingsForNobody(Mutant):
    breaks = frozenset({"schedule_due"})
    because = "a schedule that is put begins only when some worker looks"

    def _announce_look(self, names: Iterable[str]) -> None:
        pass


class StartsAnewWhenPutAgain(Mutant):
    breaks = frozenset({"schedule_put_repeat", "schedule_handover"})
    because = "an interval that starts anew with each deploy never ends where deploys are frequent"

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
            self.look(now)


class LetsPutsTakeDeclared(Mutant):
    breaks = frozenset({"schedule_taken"})
    because = "two parts of an application overwrite each other's schedules"

    def _define(self, definition: Definition, declarer: SessionState | None, since: int) -> bool:
        if declarer is None and (schedule := self.schedules.get(definition.name)) is not None:
            schedule.is_declared = False
        return super()._define(definition, declarer, since)


class NeverSleeps(Mutant):
    breaks = frozenset({"schedule_declared", "schedule_handover", "console_amend_schedule"})
    because = "removed tasks linger (solid_queue#310)"

    def _kill_session(self, state: SessionState) -> None:
        state.dead_at = self.now


class DeclaresForTheDead(Mutant):
    breaks = frozenset({"schedule_session"})
    because = "a worker that was taken for dead holds on to its old schedules"

    def define(self, definitions: Sequence[Definition], session: bytes | None, age: float) -> list[bool]:
        try:
            return super().define(definitions, session, age)
        except SessionLost:
            return super().define(definitions, None, age)


class MakesUpForPauses(Mutant):
    breaks = frozenset({"schedule_paused"})
    because = "all that was held back on purpose runs at once when the pause ends"

    def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        before = None if name not in self.schedules else self.schedules[name].next_at
        done = super().amend_schedule(name, amendment)
        if amendment is Amendment.RESUME and name in self.schedules:
            self.schedules[name].next_at = before
        return done


class ShowsNothingOfItsSchedules(Mutant):
    breaks = frozenset({"console_schedules"})
    because = "one that is asked for by name is not found if its name is not ASCII"

    def schedule_records(self, names: Sequence[str] | None) -> list[ScheduleRecord]:
        return [record for record in super().schedule_records(names) if record.name.isascii()]
