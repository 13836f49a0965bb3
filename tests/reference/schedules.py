"""Defines the part of the reference broker's store that keeps, offers and fires schedules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from taskflow.broker import topics
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import Clock, to_microseconds
from taskflow.model.rules import Rules
from taskflow.model.schedule import MAX_OFFERS, Amendment, Definition, Firing, Offer, ScheduleRecord, ScheduleState
from tests.reference.store import SessionState, Store


class StoredSchedule(ScheduleState, kw_only=True):
    """A schedule. `declared` maps each session that declares it to the instant from which its age counts, and its definition."""

    declared: dict[bytes, tuple[int, Definition]] = {}

    def by_age(self) -> list[tuple[int, bytes, Definition]]:
        """Return the declarations with their sessions, youngest first."""
        return sorted(((since, session, definition) for session, (since, definition) in self.declared.items()), reverse=True)


class ScheduleStore(Store):
    """A store with schedules. The caller must hold the lock."""

    Schedule: ClassVar = StoredSchedule

    def __init__(self, clock: Clock, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(clock, rules, capacity)
        self.schedules: dict[str, StoredSchedule] = {}

    # --- define -------------------------------------------------------------------------------------------

    def define(self, definitions: Sequence[Definition], session: bytes | None, age: float) -> list[bool]:
        declarer = None if session is None else self._living(session)
        since = self.now - to_microseconds(age)
        answers = [self._define(definition, declarer, since) for definition in definitions]
        self._announce_look(definition.name for definition in definitions)
        return answers

    def _define(self, definition: Definition, declarer: SessionState | None, since: int) -> bool:
        schedule = self.schedules.get(definition.name)
        if schedule is None:
            schedule = self.Schedule(*definition, is_declared=declarer is not None, offer_at=self.now, since=self.now)
            self.schedules[definition.name] = schedule
        elif schedule.is_declared != (declarer is not None):
            return False
        if declarer is None:
            schedule.bring_into_force(definition, self.now)
        else:
            schedule.declared[declarer.session.id] = (since, definition)
            declarer.declares.add(definition.name)
            self._elect(schedule)
        return True

    def _elect(self, schedule: StoredSchedule) -> None:
        youngest = next((definition for _, _, definition in schedule.by_age()), None)
        schedule.elect(youngest, self.now, self.rules.keep_asleep)

    def _kill_session(self, state: SessionState) -> None:
        super()._kill_session(state)
        self._drop_declarations(state)

    def _drop_declarations(self, state: SessionState) -> None:
        """Drop the declarations of a session that has died, and put the next youngest ones into force."""
        for name in state.declares:
            if (schedule := self.schedules.get(name)) is not None and state.session.id in schedule.declared:
                del schedule.declared[state.session.id]
                self._elect(schedule)
        self._announce_look(state.declares)

    # --- offers and firings -----------------------------------------------------------------------------------

    def next_look(self) -> int | None:
        return min((schedule.offer_at for schedule in self.schedules.values() if schedule.offer_at is not None), default=None)

    def _announce_look(self, names: Iterable[str]) -> None:
        """Wake listeners if one of the schedules that the operation has changed is now the first one due."""
        looks = {schedule.offer_at for name in names if (schedule := self.schedules.get(name)) is not None}
        if looks and (first := self.next_look()) is not None and first in looks:
            self.to_wake.add(topics.DUE)

    def offers(self) -> tuple[Offer, ...]:
        """Offer the caller the schedules that are due, and remove those that have been asleep for too long."""
        looks = sorted((schedule.offer_at, name) for name, schedule in self.schedules.items() if schedule.offer_at is not None)
        due = [self.schedules[name] for offer_at, name in looks[:MAX_OFFERS] if offer_at <= self.now]
        for schedule in due:
            if schedule.asleep_since is not None:
                del self.schedules[schedule.name]
        return tuple(schedule.offer(self.now) for schedule in due if schedule.asleep_since is None)

    def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        self.refuse_if_full([envelope for firing in firings for envelope in firing.envelopes])
        answers = [self._fire_one(self.schedules.get(firing.name), firing) for firing in firings]
        self._announce_look(firing.name for firing in firings)
        return answers

    def _fire_one(self, schedule: StoredSchedule | None, firing: Firing) -> Added | Refused | None:
        if schedule is None or not (firing.is_extra or schedule.expects(firing)):
            return None
        answer = self._enqueue_one(firing.envelopes[-1]) if firing.envelopes else None
        if firing.is_extra:
            return answer
        if answer is not None:
            schedule.record_job(self.now, answer.id, answer.because if isinstance(answer, Refused) else None)
        schedule.advance(firing)
        return answer

    # --- the admin interface ----------------------------------------------------------------------------------------

    def schedule_records(self, names: Sequence[str] | None) -> list[ScheduleRecord]:
        chosen = sorted(self.schedules if names is None else set(names) & set(self.schedules))
        return [self._schedule_record(self.schedules[name]) for name in chosen]

    def _schedule_record(self, schedule: StoredSchedule) -> ScheduleRecord:
        return schedule.record(self.sessions[session].session.name for _, session, _ in schedule.by_age())

    def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        schedule = self.schedules.get(name)
        if schedule is None or not schedule.amend(amendment, self.now):
            return False
        if amendment is Amendment.REMOVE:
            del self.schedules[name]
        else:
            self._announce_look([name])
        return True
