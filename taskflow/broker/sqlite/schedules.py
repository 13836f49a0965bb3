"""The verbs `define` and `fire`, and the offers and records of schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Final

import msgspec

from taskflow.broker.protocol import Added, Refused
from taskflow.broker.sqlite.enqueue import add_all, refuse_if_full
from taskflow.broker.sqlite.row import storable
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model.clock import to_microseconds
from taskflow.model.schedule import (
    MAX_NAME,
    MAX_OFFERED_BYTES,
    MAX_OFFERS,
    Amendment,
    Definition,
    Firing,
    Offer,
    ScheduleRecord,
    ScheduleState,
)
from taskflow.model.stored_values import LATEST, FieldReader, maybe, octets, text, whole

_LEFT_OUT_FOR: Final = to_microseconds(3_600.0)
"""How long a schedule is left out of the offers if its name or definition cannot be read."""


class ScheduleRow(ScheduleState, kw_only=True):
    """A row of the schedules table. If its name or definition cannot be read, its digest is empty, and it is not offered."""

    number: int | None = None


# --- rows --------------------------------------------------------------------------------------------------------


def _rows(transitions: Transitions, statement: str, *parameters: object) -> list[ScheduleRow]:
    return [_row(row) for row in transitions.connection.execute(transitions.sql[statement], parameters).fetchall()]


def _find(transitions: Transitions, name: str) -> ScheduleRow | None:
    return next(iter(_rows(transitions, "schedule_by_name", storable(name))), None)


def _row(stored: tuple[Any, ...]) -> ScheduleRow:
    """Read a row. An unreadable value is replaced by a default, which is written when the schedule is saved."""
    reader = FieldReader()
    row = dict(zip(ScheduleRow.__struct_fields__, stored, strict=True))
    values = {column: reader.read(column, row[column], decode, default) for column, (decode, default) in _READINGS.items()}
    schedule = ScheduleRow(**values, number=row["number"])
    if not {found.column for found in reader.unreadable}.isdisjoint(Definition._fields):
        schedule.digest = b""
        schedule.name = schedule.name or f"unreadable-{schedule.number}"
    return schedule


def _name(stored: Any) -> str:
    name = text(stored)
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"expected at most {MAX_NAME} characters, got {len(name):,}")
    return name


def _count(stored: Any) -> int:
    return whole(stored, 0, 1 << 53)


def _instant(stored: Any) -> int | None:
    return maybe(stored, lambda at: whole(at, 0, LATEST))


_READINGS: Final[dict[str, tuple[Callable[[Any], Any], Any]]] = {
    "name": (_name, ""),
    "digest": (octets, b""),
    "body": (octets, b""),
    "is_declared": (bool, False),
    "look_at": (_instant, 0),
    "is_paused": (bool, False),
    **dict.fromkeys(("next_at", "last_at", "fired_at", "asleep_since", "since"), (_instant, None)),
    "last_id": (lambda stored: maybe(stored, octets), None),
    **dict.fromkeys(("fired", "skipped", "missed"), (_count, 0)),
}


def _write(transitions: Transitions, schedule: ScheduleRow) -> None:
    transitions.connection.execute(transitions.sql["save_schedule"], msgspec.structs.astuple(schedule))


def _save(transitions: Transitions, schedule: ScheduleRow, before: ScheduleRow | None = None) -> None:
    """Write a schedule if it has changed, and announce when it is due: if it is the first one due, listeners are nudged."""
    if schedule == before:
        return
    _write(transitions, schedule)
    if schedule.look_at is not None:
        transitions.announcement.add_due(schedule.look_at)


def _remove(transitions: Transitions, schedule: ScheduleRow) -> None:
    transitions.connection.execute(transitions.sql["remove_schedule"], (schedule.number,))


# --- define ------------------------------------------------------------------------------------------------------


def define(transitions: Transitions, definitions: Sequence[Definition], session: bytes | None, age: float) -> list[bool]:
    """Store definitions. The session, if one is given, must be living."""
    since = transitions.now - to_microseconds(age)
    return [_define(transitions, definition, session, since) for definition in definitions]


def _define(transitions: Transitions, definition: Definition, session: bytes | None, since: int) -> bool:
    found = _find(transitions, definition.name)
    now = transitions.now
    schedule = found or ScheduleRow(*definition, is_declared=session is not None, look_at=now, since=now)
    if schedule.is_declared != (session is not None):
        return False
    before = copy(found)
    if session is None:
        schedule.bring_into_force(definition, now)
    else:
        transitions.connection.execute(transitions.sql["declare"], (definition.name, session, since, definition.digest, definition.body))
        _elect(transitions, schedule)
    _save(transitions, schedule, before)
    return True


def _elect(transitions: Transitions, schedule: ScheduleRow) -> None:
    row = transitions.connection.execute(transitions.sql["youngest_declaration"], (schedule.name,)).fetchone()
    youngest = None if row is None else Definition(schedule.name, *row)
    schedule.elect(youngest, transitions.now, transitions.rules.keep_asleep)


def drop_declarations(transitions: Transitions, session: bytes) -> None:
    """Drop the declarations of a session that has died, and put the next youngest ones into force."""
    for (name,) in transitions.connection.execute(transitions.sql["drop_declarations"], (session,)).fetchall():
        for schedule in _rows(transitions, "schedule_by_name", name):
            if schedule.is_declared:
                before = copy(schedule)
                _elect(transitions, schedule)
                _save(transitions, schedule, before)


# --- offers and firings --------------------------------------------------------------------------------------------


def offers(transitions: Transitions) -> tuple[Offer, ...]:
    """Offer the caller the schedules that are due, and remove those that have been asleep for too long."""
    due = _rows(transitions, "due_schedules", transitions.now, MAX_OFFERS, MAX_OFFERED_BYTES)
    return tuple(offer for schedule in due if (offer := _offer(transitions, schedule)) is not None)


def _offer(transitions: Transitions, schedule: ScheduleRow) -> Offer | None:
    if schedule.asleep_since is not None:
        _remove(transitions, schedule)
        return None
    if schedule.is_declared:
        _elect(transitions, schedule)  # again, because a session's row may have been lost or repaired
    offer = schedule.offer(transitions.now)
    is_offered = bool(schedule.digest) and not schedule.is_paused and schedule.asleep_since is None
    if not is_offered:
        schedule.look(transitions.now + _LEFT_OUT_FOR)
    _write(transitions, schedule)  # without a nudge, because the caller will call upkeep again
    return offer if is_offered else None


def fire(transitions: Transitions, firings: Sequence[Firing], capacity: int | None) -> list[Added | Refused | None]:
    refuse_if_full(transitions, [firing.envelope for firing in firings if firing.envelope is not None], capacity)
    return [_fire(transitions, _find(transitions, firing.name), firing) for firing in firings]


def _fire(transitions: Transitions, schedule: ScheduleRow | None, firing: Firing) -> Added | Refused | None:
    if schedule is None or not schedule.expects(firing):
        return None
    answer = None
    if firing.envelope is not None:
        [answer] = add_all(transitions, [firing.envelope])
        schedule.note_job(transitions.now, answer.id, answer.because if isinstance(answer, Refused) else None)
    schedule.advance(firing)
    _save(transitions, schedule)
    return answer


# --- the console -----------------------------------------------------------------------------------------------------


def schedule_records(transitions: Transitions, names: Sequence[str] | None) -> list[ScheduleRecord]:
    if names is None:
        return [_record(transitions, schedule) for schedule in _rows(transitions, "all_schedules")]
    found = (_find(transitions, name) for name in sorted(set(names)))
    return [_record(transitions, schedule) for schedule in found if schedule is not None]


def _record(transitions: Transitions, schedule: ScheduleRow) -> ScheduleRecord:
    declarers = transitions.connection.execute(transitions.sql["declarers"], (schedule.name,))
    return schedule.record(FieldReader().read("declarers", name, text, "") for (name,) in declarers)


def amend_schedule(transitions: Transitions, name: str, amendment: Amendment) -> bool:
    schedule = _find(transitions, name)
    if schedule is None or not schedule.amend(amendment, transitions.now):
        return False
    if amendment is Amendment.REMOVE:
        _remove(transitions, schedule)
    else:
        _save(transitions, schedule)
    return True
