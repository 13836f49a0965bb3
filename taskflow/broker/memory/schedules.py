"""Adds schedules to the memory broker's store: their definitions, whose turn it is to fire them, and their next instants."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from datetime import datetime

from taskflow.broker import topics
from taskflow.broker.memory.store import SessionState, Store
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import Clock, instant_of, to_microseconds
from taskflow.model.rules import Rules
from taskflow.model.schedule import MAX_OFFERS, OFFERED_FOR, Amendment, Definition, Firing, Offer, ScheduleRecord


class StoredSchedule:
    """A schedule. `look_at` is when it is to be offered, or looked at again if it sleeps; None never. `declared` has the sessions that
    declare it, each with the instant from which its age counts."""

    def __init__(self, definition: Definition, *, is_declared: bool) -> None:
        self.definition = definition
        self.is_declared = is_declared
        self.is_paused = False
        self.next_at: int | None = None
        self.look_at: int | None = None
        self.last_at: int | None = None
        self.fired_at: int | None = None
        self.last_id: bytes | None = None
        self.fired = self.skipped = self.missed = 0
        self.asleep_since: int | None = None
        self.declared: dict[bytes, tuple[int, Definition]] = {}


class ScheduleStore(Store):
    """A store with schedules. The caller must hold the lock."""

    def __init__(self, clock: Clock, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(clock, rules, capacity)
        self.schedules: dict[str, StoredSchedule] = {}
        self.looks: list[tuple[int, str]] = []

    # --- define -------------------------------------------------------------------------------------------

    def define(self, definitions: Sequence[Definition], session: bytes | None, age: float) -> list[bool]:
        if session is None:
            return [self._put(definition) for definition in definitions]
        state = self._living(session)
        since = self.now - to_microseconds(age)
        return [self._declare(definition, state, since) for definition in definitions]

    def _put(self, definition: Definition) -> bool:
        schedule = self.schedules.get(definition.name)
        if schedule is None:
            schedule = self.schedules[definition.name] = StoredSchedule(definition, is_declared=False)
            self._look(schedule, self.now)
        elif schedule.is_declared:
            return False
        self._bring_into_force(schedule, definition)
        return True

    def _declare(self, definition: Definition, state: SessionState, since: int) -> bool:
        schedule = self.schedules.get(definition.name)
        if schedule is None:
            schedule = self.schedules[definition.name] = StoredSchedule(definition, is_declared=True)
            self._look(schedule, self.now)
        elif not schedule.is_declared:
            return False
        schedule.declared[state.session.id] = (since, definition)
        state.declares.add(definition.name)
        self._elect(schedule)
        return True

    def _elect(self, schedule: StoredSchedule) -> None:
        """Bring the youngest living declaration into force. If there is none, the schedule sleeps."""
        schedule.declared = {session: declared for session, declared in schedule.declared.items() if self._is_living(session)}
        if not schedule.declared:
            if schedule.asleep_since is None:
                schedule.asleep_since = self.now
                self._look(schedule, None)
            return
        if schedule.asleep_since is not None:
            schedule.asleep_since = None
            self._look(schedule, self.now)
        self._bring_into_force(schedule, schedule.declared[self._youngest(schedule)][1])

    def _youngest(self, schedule: StoredSchedule) -> bytes:
        return max(schedule.declared, key=lambda session: (schedule.declared[session][0], session))

    def _is_living(self, session: bytes) -> bool:
        return session in self.sessions and self._lives(self.sessions[session])

    def _bring_into_force(self, schedule: StoredSchedule, definition: Definition) -> None:
        if definition.digest == schedule.definition.digest:
            return
        schedule.definition = definition
        self._forget_next(schedule)

    def _forget_next(self, schedule: StoredSchedule) -> None:
        """Have the next instant computed anew, unless it has passed and is still to be fired."""
        if schedule.next_at is None or schedule.next_at > self.now:
            schedule.next_at = None
            self._look(schedule, self.now)

    def _kill(self, state: SessionState) -> None:
        super()._kill(state)
        for name in state.declares:
            if (schedule := self.schedules.get(name)) is not None:
                self._elect(schedule)

    # --- offers ---------------------------------------------------------------------------------------------

    def _look(self, schedule: StoredSchedule, at: int | None) -> None:
        """Set when the schedule is offered next. A paused one is not; one that sleeps is looked at only to remove it."""
        if schedule.asleep_since is not None:
            at = schedule.asleep_since + to_microseconds(self.rules.keep_asleep)
        schedule.look_at = None if schedule.is_paused and schedule.asleep_since is None else at
        if schedule.look_at is not None:
            entry = (schedule.look_at, schedule.definition.name)
            heapq.heappush(self.looks, entry)
            if self.looks[0] == entry:
                self.rung.add(topics.DUE)

    def next_look(self) -> int | None:
        while self.looks:
            at, name = self.looks[0]
            if (schedule := self.schedules.get(name)) is not None and schedule.look_at == at:
                return at
            heapq.heappop(self.looks)
        return None

    def offers(self) -> tuple[Offer, ...]:
        """Return the schedules that are due, and leave each of them to the caller for a while."""
        offers = list[Offer]()
        while len(offers) < MAX_OFFERS and (at := self.next_look()) is not None and at <= self.now:
            schedule = self.schedules[heapq.heappop(self.looks)[1]]
            if schedule.asleep_since is not None:
                del self.schedules[schedule.definition.name]
                continue
            self._look(schedule, self.now + to_microseconds(OFFERED_FOR))
            offers.append(Offer(**schedule.definition._asdict(), next_at=schedule.next_at, now=self.now))
        return tuple(offers)

    # --- fire -----------------------------------------------------------------------------------------------

    def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        self.refuse_if_full([firing.envelope for firing in firings if firing.envelope is not None])
        return [self._fire_one(self.schedules.get(firing.name), firing) for firing in firings]

    def _fire_one(self, schedule: StoredSchedule | None, firing: Firing) -> Added | Refused | None:
        if schedule is None or schedule.is_paused or not self._is_as_expected(schedule, firing):
            return None
        answer = None
        if firing.envelope is not None:
            answer = self._enqueue_one(firing.envelope)
            self._note(schedule, answer)
        schedule.missed += firing.missed
        schedule.next_at = firing.next_at
        self._look(schedule, firing.look_at)
        return answer

    def _is_as_expected(self, schedule: StoredSchedule, firing: Firing) -> bool:
        return schedule.definition.digest == firing.digest and schedule.next_at == firing.expected

    def _note(self, schedule: StoredSchedule, answer: Added | Refused) -> None:
        schedule.last_at, schedule.fired_at = schedule.next_at, self.now
        if isinstance(answer, Added):
            schedule.fired += 1
            schedule.last_id = answer.id
        elif answer.because == "key":
            schedule.skipped += 1

    # --- the console ----------------------------------------------------------------------------------------

    def schedule_records(self, names: Sequence[str] | None) -> list[ScheduleRecord]:
        chosen = sorted(self.schedules if names is None else set(names) & set(self.schedules))
        return [self._schedule_record(self.schedules[name]) for name in chosen]

    def _schedule_record(self, schedule: StoredSchedule) -> ScheduleRecord:
        declared = sorted(schedule.declared.items(), key=lambda item: (item[1][0], item[0]), reverse=True)
        return ScheduleRecord(
            **schedule.definition._asdict(),
            is_declared=schedule.is_declared,
            is_paused=schedule.is_paused,
            next_at=_instant(schedule.next_at),
            last_at=_instant(schedule.last_at),
            fired_at=_instant(schedule.fired_at),
            last_id=schedule.last_id,
            fired=schedule.fired,
            skipped=schedule.skipped,
            missed=schedule.missed,
            declarers=tuple(self.sessions[session].session.name for session, _ in declared if self._is_living(session)),
            asleep_since=_instant(schedule.asleep_since),
        )

    def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        schedule = self.schedules.get(name)
        if schedule is None:
            return False
        if amendment is Amendment.REMOVE:
            if schedule.is_declared and schedule.asleep_since is None:
                return False
            del self.schedules[name]
        elif amendment is Amendment.PAUSE:
            schedule.is_paused = True
            self._look(schedule, schedule.look_at)
        elif schedule.is_paused:
            schedule.is_paused = False
            schedule.next_at = None
            self._look(schedule, self.now)
        return True


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else instant_of(microseconds)
