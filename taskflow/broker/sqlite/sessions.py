"""Sessions: register, claim, beat."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgpack
import msgspec

from taskflow.broker import words
from taskflow.broker.sqlite import settling
from taskflow.broker.sqlite.row import (
    Job,
    claims_of,
    lease_of,
    make_lease,
    pack_claim,
    pack_progress,
    storable,
    text_of,
    unpack_claim,
)
from taskflow.broker.sqlite.shelf import Shelf
from taskflow.model.clock import instant_of, to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, unpack_extras
from taskflow.model.errors import SessionLost
from taskflow.model.record import CODES, Event, Status
from taskflow.model.session import Beat, BeatAnswer, Session, SessionRecord


class SessionRow(msgspec.Struct, frozen=True):
    """A row of the sessions' table, in the order of its columns."""

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

    @property
    def ttl(self) -> int:
        return to_microseconds(self.ttl_seconds)

    def has_lapsed(self, steady: int, boot_id: str) -> bool:
        return self.is_of_another_boot(boot_id) or steady - self.beat_at > self.ttl

    def is_of_another_boot(self, boot_id: str) -> bool:
        """The machine has started again since: its workers are gone, and their steady times mean nothing now."""
        return self.boot_id != boot_id


def session_rows(shelf: Shelf, statement: str) -> list[SessionRow]:
    return [SessionRow(*row) for row in shelf.connection.execute(shelf.sql[statement])]


# --- life ----------------------------------------------------------------------------------------------------


def register(shelf: Shelf, session: Session) -> None:
    spare_after_outage(shelf)
    known = _find(shelf, session.id)
    if known is None:
        about = msgpack.packb([session.queues, session.concurrency])
        values = (session.id, storable(session.name), session.ttl, about, shelf.now, shelf.clock.boot_id(), shelf.steady)
        shelf.connection.execute(shelf.sql["add_session"], values)
    elif known.dead_at is not None:
        raise SessionLost(words.session_reaped(session.name))
    _take_pulse(shelf)


def spare_after_outage(shelf: Shelf) -> None:
    """When nobody has beaten for a session's whole ttl, the store was away, not the workers: one more ttl, once."""
    [(pulse,)] = shelf.connection.execute(shelf.sql["pulse"])
    silence = shelf.steady - pulse
    if silence <= 0:
        return
    for row in session_rows(shelf, "living_sessions"):
        if not row.is_spared and silence > row.ttl:
            shelf.connection.execute(shelf.sql["spare_session"], (shelf.steady, row.number))


def _take_pulse(shelf: Shelf) -> None:
    shelf.connection.execute(shelf.sql["take_pulse"], (shelf.steady,))


def _find(shelf: Shelf, session: bytes) -> SessionRow | None:
    row = shelf.connection.execute(shelf.sql["session_by_id"], (session,)).fetchone()
    return None if row is None else SessionRow(*row)


def _living(shelf: Shelf, session: bytes) -> SessionRow:
    row = _find(shelf, session)
    if row is None or row.dead_at is not None:
        raise SessionLost(words.SESSION_LOST)
    return row


# --- claim ---------------------------------------------------------------------------------------------------


def claim(shelf: Shelf, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
    row = _living(shelf, session)
    if request <= row.request:
        return _answer_again(shelf, row, request)
    shelf.connection.execute(shelf.sql["take_request"], (request, row.number))
    leases = list[Lease]()
    for number, name in _order(shelf, queues, request):
        if len(leases) >= limit:
            break
        leases += _lease_from(shelf, row, request, number, name, len(leases), limit - len(leases))
    return leases


def _answer_again(shelf: Shelf, row: SessionRow, request: int) -> list[Lease]:
    """The leases of the last request that are still the session's; none for an older one, whose asker has moved on."""
    if request < row.request:
        return []
    jobs = shelf.jobs("jobs_by_claim", *claims_of(row.id, request))
    return [lease_of(job, shelf.queues.name(job.queue), shelf.job_names.name(job.name), shelf.now) for job in jobs]


def _order(shelf: Shelf, queues: Sequence[str], request: int) -> list[tuple[int, str]]:
    """Number and name of the queues to look into, those that are paused left out."""
    shelf.tally.flush()
    if queues:
        open_queue = shelf.sql["open_queue"]
        found = [(shelf.connection.execute(open_queue, (name,)).fetchone(), name) for name in queues]
        return [(row[0], name) for row, name in found if row is not None]
    ready: list[tuple[int, str]] = shelf.connection.execute(shelf.sql["ready_queues"]).fetchall()
    turn = request % len(ready) if ready else 0
    return ready[turn:] + ready[:turn]


def _lease_from(shelf: Shelf, row: SessionRow, request: int, queue: int, queue_name: str, first: int, limit: int) -> list[Lease]:
    leases, changes = list[Lease](), list[tuple[object, ...]]()
    now, steady = shelf.now, shelf.steady
    ready = shelf.connection.execute(shelf.sql["ready_jobs"], (queue, now, limit)).fetchall()
    for number, found in enumerate(ready, first):
        seq, job_id, name, priority, created_at, payload, key, extras, epoch, failures, crashes, snoozes, hand_backs, parked_at = found
        claim_id = ClaimId(row.id, request, number)
        changes.append((pack_claim(claim_id), now, steady, row.name, seq))
        job_name = shelf.job_names.name(name)
        more = unpack_extras(extras) if extras is not None else {}
        envelope = Envelope(id=job_id, job=job_name, payload=payload, queue=queue_name, priority=priority, key=key, **more)
        leases.append(make_lease(envelope, epoch + 1, claim_id, created_at, failures, crashes, snoozes, hand_backs, parked_at, now))
    if leases:
        shelf.connection.executemany(shelf.sql["lease_job"], changes)
        shelf.tally.move(queue, Event.CLAIM, CODES[Status.READY], CODES[Status.RUNNING], len(leases))
    return leases


# --- beat ----------------------------------------------------------------------------------------------------


def beat(shelf: Shelf, beat: Beat) -> BeatAnswer:
    spare_after_outage(shelf)
    row = _living(shelf, beat.session)
    shelf.connection.execute(shelf.sql["take_beat"], (shelf.steady, row.number))
    _take_pulse(shelf)
    leases = leases_of(shelf, row)
    _take_reports(shelf, leases, beat)
    ghosts = _take_back_ghosts(shelf, leases, beat)
    if beat.leaving:
        _leave(shelf, row, leases)
    return BeatAnswer(
        lost=tuple(claim for claim in beat.claims if claim not in leases),
        stopping=tuple(claim for claim in beat.claims if claim in leases and leases[claim].cancel_requested is not None),
        ghosts=ghosts,
    )


def leases_of(shelf: Shelf, row: SessionRow) -> dict[ClaimId, Job]:
    """What the session holds, in the order in which it was claimed."""
    jobs = shelf.jobs("jobs_by_claim", *claims_of(row.id))
    return {unpack_claim(job.claim): job for job in jobs if job.claim is not None}


def _take_reports(shelf: Shelf, leases: dict[ClaimId, Job], beat: Beat) -> None:
    for report in beat.reports:
        job = leases.get(report.claim)
        if job is not None:
            job.started_at = shelf.now - to_microseconds(report.running_for)
            job.progress = pack_progress(report.progress) or job.progress
            shelf.connection.execute(shelf.sql["save_report"], (job.started_at, job.progress, job.seq))


def _take_back_ghosts(shelf: Shelf, leases: dict[ClaimId, Job], beat: Beat) -> int:
    """Leases old enough that the session does not name go back to their place; they are taken out of `leases`."""
    named = frozenset(beat.claims)
    old = shelf.steady - to_microseconds(shelf.rules.ghost_after)
    ghosts = [claim for claim, job in leases.items() if claim not in named and claim.request <= beat.seen and job.claimed_steady <= old]
    for claim in ghosts:
        job = leases.pop(claim)
        shelf.wait_again(job, Event.GHOST)
    return len(ghosts)


def _leave(shelf: Shelf, row: SessionRow, leases: dict[ClaimId, Job]) -> None:
    shelf.connection.execute(shelf.sql["kill_session"], (shelf.now, row.number))
    for job in leases.values():
        settling.hand_back(shelf, job, counts=True)
    leases.clear()


# --- records ---------------------------------------------------------------------------------------------------


def session_records(shelf: Shelf) -> list[SessionRecord]:
    counted = [(row, _lease_count(shelf, row)) for row in session_rows(shelf, "all_sessions")]
    shown = [_to_record(row, leases, shelf.steady) for row, leases in counted if row.dead_at is None or leases]
    return sorted(shown, key=lambda record: (record.session.name, record.session.id))


def _lease_count(shelf: Shelf, row: SessionRow) -> int:
    [(count,)] = shelf.connection.execute(shelf.sql["lease_count"], claims_of(row.id))
    return int(count)


def _to_record(row: SessionRow, leases: int, steady: int) -> SessionRecord:
    queues, concurrency, *_ = _about(row)
    return SessionRecord(
        session=Session(id=row.id, name=text_of(row.name) or "", ttl=row.ttl_seconds, queues=tuple(queues), concurrency=concurrency),
        registered_at=_instant(row.registered_at),
        seconds_since_beat=max(0.0, to_seconds(steady - row.beat_at)),
        leases=leases,
        is_dying=row.dead_at is not None,
    )


def _about(row: SessionRow) -> list[Any]:
    about: list[Any] = msgpack.unpackb(row.about)
    return about


def _instant(microseconds: int) -> datetime:
    return instant_of(microseconds)
