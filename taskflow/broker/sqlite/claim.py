"""The `claim` verb, which leases ready jobs to a worker's session."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import msgspec

from taskflow.broker.sqlite.lease_cache import CachedLease
from taskflow.broker.sqlite.row import JobRow, claims_of, lease_of, pack_claims, pack_fence, slices, unpack_claim
from taskflow.broker.sqlite.session import SessionRow, living
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import envelope as envelopes, wording
from taskflow.model.envelope import ClaimId, Envelope, Lease, unpack_extras
from taskflow.model.errors import SessionLost
from taskflow.model.ids import ID_BYTES
from taskflow.model.record import CODES, Status
from taskflow.model.transitions import Event

_READY: Final = CODES[Status.READY]
_RUNNING: Final = CODES[Status.RUNNING]


def claim(transitions: Transitions, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
    taken = _take(transitions, session, request)
    if not taken:
        row = living(transitions, session)  # repairs the row if it is unsound
        if row.request >= request:
            return _repeat_claim(transitions, row, request)
        taken = _take(transitions, session, request)
    found = _find(transitions, _order(transitions, queues, request, limit), limit)
    [(worker,)] = taken
    if type(worker) is not str:
        worker = living(transitions, session).name
    return _lease_all(transitions, session, worker, request, found) if found else []


def _take(transitions: Transitions, session: bytes, request: int) -> list[tuple[Any]]:
    return transitions.connection.execute(transitions.sql["take_request"], (request, session, request)).fetchall()


FAR_BEHIND: Final = 1_000
"""No worker can be this many requests behind. If one seems to be, the stored request number must be wrong."""


def _repeat_claim(transitions: Transitions, row: SessionRow, request: int) -> list[Lease]:
    """Return those leases of the last request that the session still holds, or none if the request is older."""
    if request + FAR_BEHIND < row.request:
        raise SessionLost(wording.SESSION_LOST)
    if request < row.request:
        return []
    jobs = transitions.leased("jobs_by_claim", *claims_of(row.id, request))
    return [_lease_of(transitions, job, unpack_claim(job.claim)) for job in jobs if job.claim is not None]


class _Queue(msgspec.Struct, array_like=True, frozen=True):
    """A queue to claim from. `ready` counts its ready jobs, including expired
    ones. If the count is unknown, `ready` is larger than any limit."""

    number: int
    ready: int = sys.maxsize


def _order(transitions: Transitions, queues: Sequence[str], request: int, limit: int) -> Iterable[_Queue]:
    """Return the queues to claim from, in order."""
    if queues:
        return [_Queue(number) for name in dict.fromkeys(queues) if (number := transitions.queues.find(name)) is not None]
    if transitions.tally.has_moved(_READY):
        transitions.tally.flush()
    return _ready_queues(transitions, request, max(limit, _LEAST_QUEUES))


_LEAST_QUEUES: Final = 32
"""The minimum number of queues to read at once."""


def _ready_queues(transitions: Transitions, request: int, limit: int) -> Iterator[_Queue]:
    """Yield the queues with ready jobs, starting with a different one at each request. Only as many as needed are read."""
    count, found = _some_ready_queues(transitions, limit, request)
    yield from found
    first = request % max(1, count)
    for start, stop in ((first + len(found), count), (0, first)):
        for offset in range(start, stop, limit):
            yield from _some_ready_queues(transitions, min(limit, stop - offset), offset)[1]


def _some_ready_queues(transitions: Transitions, limit: int, offset: int) -> tuple[int, list[_Queue]]:
    [(count, packed)] = transitions.connection.execute(transitions.sql["ready_queues"], (limit, offset)).fetchall()
    return count, _QUEUES.decode(packed)


_QUEUES: Final = msgspec.json.Decoder(list[_Queue])


# --- what is found -----------------------------------------------------------------------------------------------


class _Ready(msgspec.Struct, array_like=True):
    """A ready job to lease, decoded from the columns of `ready_columns` (see claim.sql). A plain
    job has only the first five fields. The id and the payload arrive in separate columns.

    If `payload_bytes` is negative, the row must be read separately, because a value may be unsound or the payload is long.
    """

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
    id: bytes = b""
    payload: bytes = b""

    @property
    def bytes_to_fetch(self) -> int:
        """The number of payload bytes to fetch if the row is read separately. A payload that is too long is not fetched."""
        size = self.payload_bytes if self.payload_bytes >= 0 else -1 - self.payload_bytes
        return size if size <= MOST_BYTES else 0

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


def _find(transitions: Transitions, order: Iterable[_Queue], limit: int) -> list[_Ready]:
    """Return up to `limit` ready jobs, taking the queues in order.

    One statement reads all queues that the claim empties, because each additional one would release the interpreter
    lock. If the event loop's thread then took the lock, this thread would have to wait until the loop is idle."""
    longest = max(_SHORT, min(_LONG, MOST_BYTES // max(1, limit)))
    found, together, expected = list[_Ready](), list[_Queue](), 0
    for queue in order:
        left = limit - len(found)
        together.append(queue)
        expected += queue.ready
        if expected < left:
            continue
        if expected > left:
            found += _all_ready(transitions, together[:-1], left, longest)
            found += _first_ready(transitions, queue, limit - len(found), longest)
        else:
            found += _all_ready(transitions, together, left, longest)
        if len(found) >= limit:
            return found
        together, expected = [], 0
    return found + _all_ready(transitions, together, limit - len(found), longest)


MOST_BYTES: Final = 64 << 20
"""The maximum total size of the payloads in one answer, in bytes. The next request gets the rest."""

_LONG, _SHORT = 65_536, 4_096
"""The maximum size in bytes of a payload that is fetched together with others: the first for a claim of a few jobs, the second for many."""


def _all_ready(transitions: Transitions, queues: Sequence[_Queue], limit: int, longest: int) -> list[_Ready]:
    """Return all ready jobs of some queues, which together have at most `limit`."""
    if len(queues) < 2:
        return [ready for queue in queues for ready in _first_ready(transitions, queue, limit, longest)]
    replies = transitions.fetch_rows("all_ready_jobs", [(queue.number,) for queue in queues], longest, longest, longest, transitions.now)
    by_queue: dict[int, list[_Ready]] = {queue.number: [] for queue in queues}
    for ready in chain.from_iterable(_unpacked(*reply) for reply in replies):
        by_queue[ready.queue].append(ready)
    return [ready for queue in queues for ready in _in_order(by_queue[queue.number])][:limit]


def _first_ready(transitions: Transitions, queue: _Queue, limit: int, longest: int) -> list[_Ready]:
    """Return the first ready jobs of a queue, or none if it is paused."""
    if limit < 1:
        return []
    [reply] = transitions.connection.execute(
        transitions.sql["ready_jobs"], (longest, longest, longest, queue.number, transitions.now, limit)
    )
    return _in_order(_unpacked(*reply))


def _unpacked(packed: str, ids: bytes | None, payloads: bytes | None) -> list[_Ready]:
    found = _FOUND.decode(packed)
    each_id, start, payloads = iter(slices(ids, ID_BYTES)), 0, payloads or b""
    for ready in found:
        if (size := ready.payload_bytes) >= 0:
            end = start + size
            ready.id, ready.payload = next(each_id), payloads[start:end]
            start = end
        else:  # epoch and failures show what was fetched
            if ready.epoch:
                next(each_id)
            if ready.failures:
                start += -1 - size
    return found


def _in_order(found: list[_Ready]) -> list[_Ready]:
    """Sort the jobs of one queue, because SQL aggregates guarantee no order."""
    found.sort(key=_place if any(map(_due_at, found)) else _plain_place)
    return found


# --- what becomes of it ------------------------------------------------------------------------------------------


def _lease_all(transitions: Transitions, session: bytes, worker: str | bytes, request: int, found: list[_Ready]) -> list[Lease]:
    """Lease the jobs in order. If a job must be read separately and its repaired row is no longer ready, the job is left out."""
    names = {number: name for number in set(map(_name, found)) if isinstance(name := transitions.job_names.read(number), str)}
    queues = {number: transitions.queues.name(number) for number in set(map(_queue, found))}
    packed, taken, leases, cached, size = pack_claims(session, request, len(found)), list[_Ready](), list[Lease](), list[CachedLease](), 0
    for ready in found:
        claim = ClaimId(session, request, number := len(leases))
        lease = _lease_from_columns(transitions, ready, names.get(ready.name), queues[ready.queue], claim)
        if lease is None:
            size += ready.bytes_to_fetch
            if size > MOST_BYTES and leases:
                transitions.announce_ready(ready.queue)
                break
            lease = _lease_from_row(transitions, ready, claim)
            if lease is None:
                continue
        taken.append(ready)
        leases.append(lease)
        if not (ready.key or ready.is_joined):  # no key or join depends on the job's end
            fence = pack_fence(lease.epoch, packed[number])
            cached.append(CachedLease(lease.envelope.id, claim, lease.epoch, fence, ready.seq, ready.queue))
    rows = list(zip(map(_seq, taken), packed, strict=False))
    transitions.execute_rows("lease_jobs", rows, transitions.now, transitions.steady, worker)
    for queue, number in Counter(map(_queue, taken)).items():
        transitions.tally.move(queue, Event.CLAIM, _READY, _RUNNING, number)
    transitions.lease_cache.keep(cached)
    return leases


def _lease_from_columns(transitions: Transitions, ready: _Ready, name: str | None, queue: str, claim: ClaimId) -> Lease | None:
    """Return the lease, or None if the job must be read separately or has an unreadable name or options."""
    if name is None or ready.payload_bytes < 0:
        return None
    if ready.due_at is None:
        plain = Envelope(id=ready.id, job=name, payload=ready.payload, queue=queue)
        return Lease(envelope=plain, epoch=1, claim=claim, created_at=ready.created_at)
    try:
        extras = unpack_extras(bytes.fromhex(ready.extras)) if ready.extras else {}
    except Exception:
        return None
    envelope = Envelope(
        id=ready.id,
        job=name,
        payload=ready.payload,
        queue=queue,
        priority=ready.priority,
        key=bytes.fromhex(ready.key) if ready.key else None,
        **extras,
    )
    return envelopes.lease_of(ready, envelope, epoch=ready.epoch + 1, claim=claim, now=transitions.now)


def _lease_from_row(transitions: Transitions, ready: _Ready, claim: ClaimId) -> Lease | None:
    """Return the lease, or None if the repaired row is no longer ready in its queue."""
    job = transitions.job_by_seq(ready.seq)
    if job is None or job.status is not Status.READY or job.queue != ready.queue:
        return None
    job.epoch += 1
    ready.is_joined = int(job.key is not None or job.joins is not None)  # the fields did not include the key
    return _lease_of(transitions, job, claim)


def _lease_of(transitions: Transitions, job: JobRow, claim: ClaimId) -> Lease:
    return lease_of(job, transitions.queues.name(job.queue), transitions.job_names.read(job.name), claim, transitions.now)
