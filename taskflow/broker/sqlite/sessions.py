"""Sessions: register, claim, beat."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import msgpack
import msgspec

from taskflow.broker import words
from taskflow.broker.sqlite import settling
from taskflow.broker.sqlite.bulk import slices
from taskflow.broker.sqlite.row import (
    CLAIM_BYTES,
    claims_of,
    lease_of,
    pack_claim,
    pack_progress,
    parked_for,
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


def session_rows(shelf: Shelf, statement: str, *parameters: object) -> list[SessionRow]:
    return [SessionRow(*row) for row in shelf.connection.execute(shelf.sql[statement], parameters)]


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
    for row in session_rows(shelf, "silent_sessions", silence):
        if silence > row.ttl:
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
    found = list[_Ready]()
    for queue, name in _order(shelf, queues, request):
        if len(found) >= limit:
            break
        found += _first_ready(shelf, queue, name, limit - len(found))
    return _lease_all(shelf, row, request, found) if found else []


def _answer_again(shelf: Shelf, row: SessionRow, request: int) -> list[Lease]:
    """The leases of the last request that are still the session's; none for an older one, whose asker has moved on."""
    if request < row.request:
        return []
    jobs = shelf.jobs("jobs_by_claim", *claims_of(row.id, request))
    return [lease_of(job, shelf.queues.name(job.queue), shelf.job_names.name(job.name), shelf.now) for job in jobs]


def _order(shelf: Shelf, queues: Sequence[str], request: int) -> Sequence[tuple[int, str]]:
    """Number and name of the queues to look into, those that are paused left out."""
    shelf.tally.flush()
    if queues:
        open_queue = shelf.sql["open_queue"]
        found = [(shelf.connection.execute(open_queue, (name,)).fetchone(), name) for name in queues]
        return [(row[0], name) for row, name in found if row is not None]
    [(packed,)] = shelf.connection.execute(shelf.sql["ready_queues"])
    ready = _QUEUES.decode(packed)
    turn = request % len(ready) if ready else 0
    return ready[turn:] + ready[:turn]


_QUEUES: Final = msgspec.json.Decoder(list[tuple[int, str]])


class _Ready(msgspec.Struct, array_like=True):
    """A job to be leased, as `ready_jobs` tells of it; its queue, id and payload come beside."""

    seq: int
    name: int
    priority: int
    created_at: int
    due_at: int
    epoch: int
    failures: int
    crashes: int
    snoozes: int
    hand_backs: int
    parked_at: int | None
    payload_bytes: int
    key: str
    extras: str
    queue: int = 0
    queue_name: str = ""
    id: bytes = b""
    payload: bytes = b""

    @property
    def place(self) -> tuple[int, int, int]:
        return (-self.priority, self.due_at, self.seq)


_READY: Final = msgspec.json.Decoder(list[_Ready])


def _first_ready(shelf: Shelf, queue: int, queue_name: str, limit: int) -> list[_Ready]:
    try:
        [(packed, ids, payloads)] = shelf.connection.execute(shelf.sql["ready_jobs"], (queue, shelf.now, limit))
    except sqlite3.DataError:  # their payloads together are more than SQLite holds as one value (1 GB): less will do
        if limit == 1:
            raise
        return _first_ready(shelf, queue, queue_name, limit // 2)
    found = _READY.decode(packed)
    start = 0
    for ready, job_id in zip(found, slices(ids, 16), strict=True):
        ready.queue, ready.queue_name, ready.id = queue, queue_name, job_id
        ready.payload = payloads[start : start + ready.payload_bytes]
        start += ready.payload_bytes
    found.sort(key=_place)  # aggregates promise no order
    return found


_place: Final = attrgetter("place")


def _lease_all(shelf: Shelf, row: SessionRow, request: int, found: list[_Ready]) -> list[Lease]:
    claims = [ClaimId(row.id, request, number) for number in range(len(found))]
    changes = [(ready.seq, pack_claim(claim)) for ready, claim in zip(found, claims, strict=True)]
    shelf.execute_rows("lease_jobs", changes, shelf.now, shelf.steady, row.name)
    for queue, alike in groupby(found, lambda ready: ready.queue):
        shelf.tally.move(queue, Event.CLAIM, CODES[Status.READY], CODES[Status.RUNNING], sum(1 for _ in alike))
    return [_lease(shelf, ready, claim) for ready, claim in zip(found, claims, strict=True)]


def _lease(shelf: Shelf, ready: _Ready, claim: ClaimId) -> Lease:
    return Lease(
        envelope=Envelope(
            id=ready.id,
            job=shelf.job_names.name(ready.name),
            payload=ready.payload,
            queue=ready.queue_name,
            priority=ready.priority,
            key=bytes.fromhex(ready.key) if ready.key else None,
            **(unpack_extras(bytes.fromhex(ready.extras)) if ready.extras else {}),
        ),
        epoch=ready.epoch + 1,
        claim=claim,
        created_at=ready.created_at,
        failures=ready.failures,
        crashes=ready.crashes,
        snoozes=ready.snoozes,
        hand_backs=ready.hand_backs,
        parked_for=parked_for(ready.parked_at, shelf.now),
    )


# --- beat ----------------------------------------------------------------------------------------------------


def beat(shelf: Shelf, beat: Beat) -> BeatAnswer:
    spare_after_outage(shelf)
    row = _living(shelf, beat.session)
    shelf.connection.execute(shelf.sql["take_beat"], (shelf.steady, row.number))
    _take_pulse(shelf)
    if beat.died_of:
        _die(shelf, row, beat.died_of)
    held, stopping = _held(shelf, row)
    _take_reports(shelf, held, beat)
    ghosts = _take_back_ghosts(shelf, held, beat)
    if beat.leaving:
        _leave(shelf, row)
        held.clear()
    return BeatAnswer(
        lost=tuple(claim for claim in beat.claims if claim not in held),
        stopping=tuple(claim for claim in beat.claims if claim in held and claim in stopping),
        ghosts=ghosts,
    )


def _held(shelf: Shelf, row: SessionRow) -> tuple[set[ClaimId], set[ClaimId]]:
    """The claims of the session, and those of them whose jobs were asked to stop."""
    [(held, stopping)] = shelf.connection.execute(shelf.sql["held_claims"], claims_of(row.id))
    return set(map(unpack_claim, slices(held, CLAIM_BYTES))), set(map(unpack_claim, slices(stopping, CLAIM_BYTES)))


def _take_reports(shelf: Shelf, held: set[ClaimId], beat: Beat) -> None:
    """The last one of a claim counts."""
    now = shelf.now
    reports = {report.claim: report for report in beat.reports if report.claim in held}
    progress = {report.claim: report.progress for report in beat.reports if report.progress is not None}
    rows = [
        (pack_claim(claim), now - to_microseconds(report.running_for), pack_progress(progress.get(claim)))
        for claim, report in reports.items()
    ]
    shelf.execute_rows("save_reports", rows)


def _take_back_ghosts(shelf: Shelf, held: set[ClaimId], beat: Beat) -> int:
    """Leases old enough that the session does not name go back to their place; they are taken out of `held`."""
    old = shelf.steady - to_microseconds(shelf.rules.ghost_after)
    ghosts = 0
    for claim in sorted(claim for claim in held.difference(beat.claims) if claim.request <= beat.seen):
        packed = pack_claim(claim)
        for job in shelf.jobs("jobs_by_claim", packed, packed):
            if job.claimed_steady <= old:
                held.discard(claim)
                shelf.wait_again(job, Event.GHOST)
                ghosts += 1
    return ghosts


def _leave(shelf: Shelf, row: SessionRow) -> None:
    shelf.connection.execute(shelf.sql["kill_session"], (shelf.now, row.number))
    for job in shelf.jobs("jobs_by_claim", *claims_of(row.id)):
        settling.hand_back(shelf, job, counts=True)


def _die(shelf: Shelf, row: SessionRow, cause: str) -> None:
    shelf.connection.execute(shelf.sql["kill_session"], (shelf.now, row.number))
    for job in shelf.jobs("jobs_by_claim", *claims_of(row.id)):
        settling.crash(shelf, job, cause)


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
        registered_at=instant_of(row.registered_at),
        seconds_since_beat=max(0.0, to_seconds(steady - row.beat_at)),
        leases=leases,
        is_dying=row.dead_at is not None,
    )


def _about(row: SessionRow) -> list[Any]:
    about: list[Any] = msgpack.unpackb(row.about)
    return about
