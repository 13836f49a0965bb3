"""claim: ready jobs become leases."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Final

import msgspec

from taskflow.broker.sqlite.bulk import slices
from taskflow.broker.sqlite.given import Given
from taskflow.broker.sqlite.row import claims_of, expires_in, lease_of, pack_claims, pack_fence, parked_for
from taskflow.broker.sqlite.sessions import SessionRow, living
from taskflow.broker.sqlite.shelf import Shelf
from taskflow.model.envelope import ClaimId, Envelope, Lease, unpack_extras
from taskflow.model.record import CODES, Event, Status

_READY: Final = CODES[Status.READY]
_RUNNING: Final = CODES[Status.RUNNING]


def claim(shelf: Shelf, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
    taken = shelf.connection.execute(shelf.sql["take_request"], (request, session, request)).fetchall()
    if not taken:
        return _answer_again(shelf, living(shelf, session), request)
    found = _find(shelf, _order(shelf, queues, request, limit), limit)
    [(worker,)] = taken
    return _lease_all(shelf, session, worker, request, found) if found else []


def _answer_again(shelf: Shelf, row: SessionRow, request: int) -> list[Lease]:
    """The leases of the last request that are still the session's; none for an older one, whose asker has moved on."""
    if request < row.request:
        return []
    jobs = shelf.jobs("jobs_by_claim", *claims_of(row.id, request))
    return [lease_of(job, shelf.queues.name(job.queue), shelf.job_names.name(job.name), shelf.now) for job in jobs]


class _Queue(msgspec.Struct, array_like=True, frozen=True):
    """`ready` is how many jobs are ready in it, those that have expired too; where it is not known, as many as anybody may want."""

    number: int
    name: str
    ready: int = sys.maxsize


def _order(shelf: Shelf, queues: Sequence[str], request: int, limit: int) -> Iterable[_Queue]:
    """The queues to look into."""
    if queues:
        return [_Queue(number, name) for name in dict.fromkeys(queues) if (number := shelf.queues.find(name)) is not None]
    if shelf.tally.has_moved(_READY):
        shelf.tally.flush()
    return _ready_queues(shelf, request, max(limit, _LEAST_QUEUES))


_LEAST_QUEUES: Final = 32
"""That are read at once."""


def _ready_queues(shelf: Shelf, request: int, limit: int) -> Iterator[_Queue]:
    """Round robin, beginning with another one at each request; no more of them are read than are looked into."""
    count, found = _some_ready_queues(shelf, limit, request)
    yield from found
    first = request % max(1, count)
    for start, stop in ((first + len(found), count), (0, first)):
        for offset in range(start, stop, limit):
            yield from _some_ready_queues(shelf, min(limit, stop - offset), offset)[1]


def _some_ready_queues(shelf: Shelf, limit: int, offset: int) -> tuple[int, list[_Queue]]:
    [(count, packed)] = shelf.connection.execute(shelf.sql["ready_queues"], (limit, offset)).fetchall()
    return count, _QUEUES.decode(packed)


_QUEUES: Final = msgspec.json.Decoder(list[_Queue])


# --- what is found -----------------------------------------------------------------------------------------------


class _Ready(msgspec.Struct, array_like=True):
    """A job to be leased, as `told_of_ready` has it: its first five fields when it is a plain one. Id and payload come beside."""

    queue: int
    seq: int
    name: int
    created_at: int
    payload_bytes: int
    due_at: int | None = None
    priority: int = 0
    epoch: int = 0
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    parked_at: int | None = None
    key: str = ""
    extras: str = ""
    is_joined: int = 0
    expires_at: int | None = None
    queue_name: str = ""
    id: bytes = b""
    payload: bytes = b""

    @property
    def concerns_no_other(self) -> bool:
        """Its end is no matter of a key or a join."""
        return not (self.key or self.is_joined)

    @property
    def place(self) -> tuple[int, int, int]:
        return (-self.priority, self.created_at if self.due_at is None else self.due_at, self.seq)


_FOUND: Final = msgspec.json.Decoder(list[_Ready])

_place: Final = attrgetter("place")
_plain_place: Final = attrgetter("created_at", "seq")
_due_at: Final = attrgetter("due_at")
_seq: Final = attrgetter("seq")
_name: Final = attrgetter("name")
_queue: Final = attrgetter("queue")


def _find(shelf: Shelf, order: Iterable[_Queue], limit: int) -> list[_Ready]:
    """The first of each queue, in the order of the queues. Those of which all are wanted are asked for together: each statement lets go
    of the interpreter, which the loop's thread then has until it sleeps."""
    found, together, expected = list[_Ready](), list[_Queue](), 0
    for queue in order:
        left = limit - len(found)
        together.append(queue)
        expected += queue.ready
        if expected < left:
            continue
        if expected > left:
            found += _all_ready(shelf, together[:-1], left)
            found += _first_ready(shelf, queue, limit - len(found))
        else:
            found += _all_ready(shelf, together, left)
        if len(found) >= limit:
            return found
        together, expected = [], 0
    return found + _all_ready(shelf, together, limit - len(found))


def _all_ready(shelf: Shelf, queues: Sequence[_Queue], limit: int) -> list[_Ready]:
    """Of queues that have no more than so many."""
    if len(queues) < 2:
        return [ready for queue in queues for ready in _first_ready(shelf, queue, limit)]
    try:
        replies = shelf.fetch_rows("all_ready_jobs", [(queue.number,) for queue in queues], shelf.now)
    except sqlite3.DataError:  # see below
        return [ready for queue in queues for ready in _first_ready(shelf, queue, limit)]
    by_queue: dict[int, list[_Ready]] = {queue.number: [] for queue in queues}
    for ready in chain.from_iterable(_unpacked(*reply) for reply in replies):
        by_queue[ready.queue].append(ready)
    return [ready for queue in queues for ready in _in_order(by_queue[queue.number], queue)]


def _first_ready(shelf: Shelf, queue: _Queue, limit: int) -> list[_Ready]:
    """None of a queue that is paused."""
    if limit < 1:
        return []
    try:
        [reply] = shelf.connection.execute(shelf.sql["ready_jobs"], (queue.number, shelf.now, limit))
    except sqlite3.DataError:  # their payloads together are more than SQLite holds as one value (1 GB): less will do
        if limit == 1:
            raise
        return _first_ready(shelf, queue, limit // 2)
    return _in_order(_unpacked(*reply), queue)


def _unpacked(packed: str, ids: bytes | None, payloads: bytes | None) -> list[_Ready]:
    found = _FOUND.decode(packed)
    start, payloads = 0, payloads or b""
    for ready, job_id in zip(found, slices(ids, 16), strict=True):
        end = start + ready.payload_bytes
        ready.id, ready.payload = job_id, payloads[start:end]
        start = end
    return found


def _in_order(found: list[_Ready], queue: _Queue) -> list[_Ready]:
    """All of one queue: aggregates promise no order."""
    for ready in found:
        ready.queue_name = queue.name
    found.sort(key=_place if any(map(_due_at, found)) else _plain_place)
    return found


# --- what becomes of it ------------------------------------------------------------------------------------------


def _lease_all(shelf: Shelf, session: bytes, worker: str | bytes, request: int, found: list[_Ready]) -> list[Lease]:
    packed = pack_claims(session, request, len(found))
    shelf.execute_rows("lease_jobs", list(zip(map(_seq, found), packed, strict=True)), shelf.now, shelf.steady, worker)
    for queue, number in Counter(map(_queue, found)).items():
        shelf.tally.move(queue, Event.CLAIM, _READY, _RUNNING, number)
    names = {name: shelf.job_names.name(name) for name in set(map(_name, found))}
    leases, given = list[Lease](), list[Given]()
    for number, ready in enumerate(found):
        claim = ClaimId(session, request, number)
        leases.append(
            _plain_lease(ready, names[ready.name], claim) if ready.due_at is None else _lease(shelf, ready, names[ready.name], claim)
        )
        if ready.concerns_no_other:
            given.append(Given(ready.id, claim, ready.epoch + 1, pack_fence(ready.epoch + 1, packed[number]), ready.seq, ready.queue))
    shelf.given.keep(given)
    return leases


def _plain_lease(ready: _Ready, name: str, claim: ClaimId) -> Lease:
    plain = Envelope(id=ready.id, job=name, payload=ready.payload, queue=ready.queue_name)
    return Lease(envelope=plain, epoch=1, claim=claim, created_at=ready.created_at)


def _lease(shelf: Shelf, ready: _Ready, name: str, claim: ClaimId) -> Lease:
    return Lease(
        envelope=Envelope(
            id=ready.id,
            job=name,
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
        expires_in=expires_in(ready.expires_at, shelf.now),
    )
