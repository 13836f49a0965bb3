"""The `register` and `beat` verbs, and the records of sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from taskflow.broker.sqlite.row import CLAIM_BYTES, claims_of, pack_claim, pack_progress, slices, storable, text_of, unpack_claim
from taskflow.broker.sqlite.schedules import drop_declarations
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import ClaimId
from taskflow.model.errors import SessionLost
from taskflow.model.ids import ID_BYTES
from taskflow.model.rules import LONGEST
from taskflow.model.session import Beat, BeatAnswer, Session, SessionRecord, deploy_of, session_record_of
from taskflow.model.stored_values import FieldReader, maybe, number, octets, text, whole
from taskflow.model.transitions import Event, Transition


class SessionRow(msgspec.Struct, frozen=True):
    """A row of the sessions table, in the order of its columns."""

    number: int
    id: bytes
    name: str | bytes
    ttl_seconds: float
    about: bytes
    registered_at: int
    boot_id: str
    beat_at: int
    is_spared: int
    dead_at: int | None
    request: int
    wants_ends: int

    @property
    def ttl(self) -> int:
        return to_microseconds(self.ttl_seconds)

    def deploy(self) -> str:
        return deploy_of(self.about)

    def has_lapsed(self, steady: int, boot_id: str) -> bool:
        return self.is_of_another_boot(boot_id) or steady - self.beat_at > self.ttl

    def is_of_another_boot(self, boot_id: str) -> bool:
        """Return True if the machine has rebooted since the session was
        registered. Its worker is gone, and its steady times are meaningless."""
        return self.boot_id != boot_id


def session_rows(transitions: Transitions, statement: str, *parameters: object) -> list[SessionRow]:
    rows = transitions.connection.execute(transitions.sql[statement], parameters).fetchall()
    return [session for row in rows if (session := _session(transitions, row)) is not None]


# --- unsound rows --------------------------------------------------------------------------------------------


def _session(transitions: Transitions, row: tuple[Any, ...]) -> SessionRow | None:
    """Return a row as a session, or None if its id is unsound. Any other unsound value
    is replaced by a default, which is also written if the transaction may write."""
    reader, readings = FieldReader(), _readings(transitions)
    columns = zip(SessionRow.__struct_fields__, row, strict=True)
    session = SessionRow(*(reader.read(column, stored, *readings[column]) for column, stored in columns))
    is_early = session.beat_at > transitions.steady and not session.is_of_another_boot(transitions.clock.boot_id())
    if is_early:
        session = msgspec.structs.replace(session, beat_at=transitions.steady)
    if (reader.unreadable or is_early) and transitions.may_write:
        transitions.connection.execute(transitions.sql["repair_session"], (*msgspec.structs.astuple(session)[2:], session.number))
    return session if session.id else None


def _readings(transitions: Transitions) -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Return the decoder and the default of each column."""
    return {
        "number": (int, 0),  # SQLite enforces the type of this column
        "id": (lambda stored: octets(stored, ID_BYTES), b""),
        "name": (_read_name, ""),
        "ttl_seconds": (lambda stored: number(stored, 0.0, LONGEST), transitions.rules.session_ttl),
        "about": (octets, b""),
        "registered_at": (whole, transitions.now),
        "boot_id": (_read_boot_id, transitions.clock.boot_id()),
        "beat_at": (whole, transitions.steady),
        "is_spared": (whole, 0),
        "dead_at": (lambda stored: maybe(stored, whole), transitions.now),
        "request": (lambda stored: whole(stored, 0, MOST_REQUESTS), 0),
        "wants_ends": (whole, 0),
    }


def _read_name(stored: Any) -> str | bytes:
    text(stored)
    named: str | bytes = stored
    return named


def _read_boot_id(stored: Any) -> str:
    if not isinstance(stored, str):
        raise TypeError(f"expected text, got {type(stored).__name__}")
    return stored


MOST_REQUESTS: Final = 1 << 40
"""Larger than the request number of any real session."""


# --- register ----------------------------------------------------------------------------------------------------


def register(transitions: Transitions, session: Session) -> None:
    spare_after_outage(transitions)
    known = _find(transitions, session.id)
    if known is None:
        shown = (session.id, storable(session.name), session.ttl, session.pack_about())
        values = (*shown, transitions.now, transitions.clock.boot_id(), transitions.steady, int(session.wants_ends))
        transitions.connection.execute(transitions.sql["add_session"], values)
    elif known.dead_at is not None:
        raise SessionLost(wording.session_reaped(session.name))
    else:
        transitions.connection.execute(transitions.sql["show_session"], (session.pack_about(), known.number))
    _take_pulse(transitions)


def spare_after_outage(transitions: Transitions) -> None:
    """Give a session one more ttl if no session at all has sent a heartbeat for that long:
    the store must have been unavailable. A session is spared only once between heartbeats."""
    [(pulse,)] = transitions.connection.execute(transitions.sql["pulse"])
    silence = transitions.steady - pulse
    if silence <= 0:
        return
    for row in session_rows(transitions, "silent_sessions", silence):
        if silence > row.ttl:
            transitions.connection.execute(transitions.sql["spare_session"], (transitions.steady, row.number))


def _take_pulse(transitions: Transitions) -> None:
    transitions.connection.execute(transitions.sql["take_pulse"], (transitions.steady,))


def _find(transitions: Transitions, session: bytes) -> SessionRow | None:
    row = transitions.connection.execute(transitions.sql["session_by_id"], (session,)).fetchone()
    return None if row is None else _session(transitions, row)


def living(transitions: Transitions, session: bytes) -> SessionRow:
    """Return the session's row. Raises SessionLost if it is dead or unknown."""
    row = _find(transitions, session)
    if row is None or row.dead_at is not None:
        raise SessionLost(wording.SESSION_LOST)
    return row


# --- beat ----------------------------------------------------------------------------------------------------


def beat(transitions: Transitions, beat: Beat) -> BeatAnswer:
    transitions.announcement.is_periodical = True
    spare_after_outage(transitions)
    row = living(transitions, beat.session)
    transitions.connection.execute(transitions.sql["take_beat"], (transitions.steady, row.number))
    _take_pulse(transitions)
    if beat.died_of:
        _die(transitions, row, beat.died_of)
    held, stopping = _held(transitions, row)
    _take_reports(transitions, held, beat)
    ghosts = _take_back_ghosts(transitions, held, beat)
    if beat.leaving:
        _leave(transitions, row)
        held.clear()
    return BeatAnswer(
        lost=tuple(claim for claim in beat.claims if claim not in held),
        stopping=tuple(claim for claim in beat.claims if claim in held and claim in stopping),
        ghosts=ghosts,
    )


def _held(transitions: Transitions, row: SessionRow) -> tuple[set[ClaimId], set[ClaimId]]:
    """Return the claims that the session holds, and those whose jobs were asked to stop."""
    [(held, stopping)] = transitions.connection.execute(transitions.sql["held_claims"], claims_of(row.id))
    return set(map(unpack_claim, slices(held, CLAIM_BYTES))), set(map(unpack_claim, slices(stopping, CLAIM_BYTES)))


def _take_reports(transitions: Transitions, held: set[ClaimId], beat: Beat) -> None:
    """Save the beat's last report on each held claim."""
    now = transitions.now
    reports = {report.claim: report for report in beat.reports if report.claim in held}
    progress = {report.claim: report.progress for report in beat.reports if report.progress is not None}
    rows = [
        (pack_claim(claim), now - to_microseconds(report.running_for), pack_progress(progress.get(claim)))
        for claim, report in reports.items()
    ]
    transitions.execute_rows("save_reports", rows)


def _take_back_ghosts(transitions: Transitions, held: set[ClaimId], beat: Beat) -> int:
    """Requeue jobs whose old leases the beat does not name, remove the claims from `held`, and return the number of jobs."""
    old = transitions.steady - to_microseconds(transitions.rules.ghost_after)
    ghosts = 0
    for claim in sorted(claim for claim in held.difference(beat.claims) if claim.request <= beat.seen):
        packed = pack_claim(claim)
        for job in transitions.leased("jobs_by_claim", packed, packed):
            if job.claimed_steady <= old:
                held.discard(claim)
                transitions.requeue(job, Transition(Event.GHOST, job.counters))
                ghosts += 1
    return ghosts


def kill_session(transitions: Transitions, row: SessionRow) -> None:
    """Mark a session as dead. Every session ends here."""
    transitions.connection.execute(transitions.sql["kill_session"], (transitions.now, row.number))
    drop_declarations(transitions, row.id)


def _leave(transitions: Transitions, row: SessionRow) -> None:
    kill_session(transitions, row)
    for job in transitions.leased("jobs_by_claim", *claims_of(row.id)):
        transitions.hand_back(job, counts=True)


def _die(transitions: Transitions, row: SessionRow, died_of: str) -> None:
    kill_session(transitions, row)
    for job in transitions.leased("jobs_by_claim", *claims_of(row.id)):
        transitions.crash(job, died_of, deploy=row.deploy)


# --- records ---------------------------------------------------------------------------------------------------


def session_records(transitions: Transitions) -> list[SessionRecord]:
    counted = [(row, lease_count(transitions, row)) for row in session_rows(transitions, "all_sessions")]
    shown = [
        session_record_of(
            id=row.id,
            name=text_of(row.name),
            ttl=row.ttl_seconds,
            about=row.about,
            registered_at=row.registered_at,
            silent_for=transitions.steady - row.beat_at,
            leases=leases,
            is_dying=row.dead_at is not None,
        )
        for row, leases in counted
        if row.dead_at is None or leases
    ]
    return sorted(shown, key=lambda record: (record.session.name, record.session.id))


def lease_count(transitions: Transitions, row: SessionRow) -> int:
    [(count,)] = transitions.connection.execute(transitions.sql["lease_count"], claims_of(row.id))
    return int(count)
