"""What time brings: due jobs, dead sessions, expiry, the end of keeping."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from taskflow.broker import words
from taskflow.broker.protocol import Upkept
from taskflow.broker.sqlite import settling
from taskflow.broker.sqlite.row import Job, claims_of
from taskflow.broker.sqlite.scrub import scrub
from taskflow.broker.sqlite.sessions import SessionRow, lease_count, session_rows, spare_after_outage
from taskflow.broker.sqlite.shelf import Shelf
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import CODES, Event, Status
from taskflow.model.session import Outlook

MOST_FORGOTTEN: Final = 1_000
"""Ids that one call forgets at most: they are no moves, and take no time worth counting, but not no time at all. When there were so many
the caller is to come again at once: more may become due, every second, than a call in two seconds forgets."""


def upkeep(shelf: Shelf, limit: int) -> Upkept:
    scrub(shelf)
    spare_after_outage(shelf)
    reaped = _reap(shelf)
    left = limit
    moves = list[int]()
    for duty in (_ready_due, _release_leases, _expire):
        moves.append(duty(shelf, left))
        left -= moves[-1]
    readied, released, expired = moves
    dropped, forgotten = _drop(shelf, left)
    next_in = 0.0 if dropped >= left or forgotten >= MOST_FORGOTTEN else _next_in(shelf)
    return Upkept(readied=readied, reaped=reaped, released=released, expired=expired, dropped=dropped, next_in=next_in)


def outlook(shelf: Shelf) -> Outlook:
    shelf.tally.flush()
    [(is_ready, first_at)] = shelf.connection.execute(shelf.sql["outlook"])
    first_at = _sound(shelf, first_at)
    if any(lease_count(shelf, row) for row in session_rows(shelf, "dead_sessions")):
        return Outlook(bool(is_ready), 0.0)
    waits = _waits(shelf, session_rows(shelf, "living_sessions"))
    if first_at is not None:
        waits.append(max(0.0, to_seconds(first_at - shelf.now)))
    return Outlook(bool(is_ready), min(waits, default=math.inf))


def _next_in(shelf: Shelf) -> float:
    """The fleet's share: each of n sessions comes once in n turns, all of them when something falls due or a session lapses before."""
    living = session_rows(shelf, "living_sessions")
    return min([shelf.rules.upkeep_every * max(1, len(living)), *_waits(shelf, living)])


def _waits(shelf: Shelf, living: list[SessionRow]) -> list[float]:
    """Seconds until the next job is due, and until each session lapses."""
    waits = [to_seconds(row.beat_at + row.ttl + 1 - shelf.steady) for row in living]
    [(due_at,)] = shelf.connection.execute(shelf.sql["next_due"])
    due_at = _sound(shelf, due_at)
    if due_at is not None:
        waits.append(to_seconds(due_at - shelf.now))
    return [max(0.0, wait) for wait in waits]


def _sound(shelf: Shelf, instant: Any) -> int | None:
    """An instant that is none is due now: upkeep finds it."""
    return instant if instant is None or type(instant) is int else shelf.now


def _ready_due(shelf: Shelf, limit: int) -> int:
    bounds = (shelf.now, max(0, limit))
    by_queue = shelf.connection.execute(shelf.sql["due_jobs"], bounds).fetchall()
    if by_queue:
        shelf.connection.execute(shelf.sql["ready_due_jobs"], bounds)
    for queue, number in by_queue:
        shelf.tally.move(queue, Event.DUE, CODES[Status.SCHEDULED], CODES[Status.READY], number)
        shelf.ring_queue(queue)
    return sum(number for _, number in by_queue)


# --- dead sessions ---------------------------------------------------------------------------------------------


def _reap(shelf: Shelf) -> int:
    """Dead first, released after: a claim that comes in between finds the session gone, and no lease is forgotten."""
    boot_id = shelf.clock.boot_id()
    lapsed = [row for row in session_rows(shelf, "living_sessions") if row.has_lapsed(shelf.steady, boot_id)]
    for row in lapsed:
        shelf.connection.execute(shelf.sql["kill_session"], (shelf.now, row.number))
    return len(lapsed)


def _release_leases(shelf: Shelf, limit: int) -> int:
    released = 0
    for row in session_rows(shelf, "dead_sessions"):
        jobs = shelf.leased("some_leases", *claims_of(row.id), max(0, limit - released))
        for job in jobs:
            _release(shelf, row, job)
        released += len(jobs)
        _forget_session(shelf, row)
    return released


def _release(shelf: Shelf, row: SessionRow, job: Job) -> None:
    if row.is_spared or row.is_of_another_boot(shelf.clock.boot_id()):
        settling.hand_back(shelf, job, counts=True)
    else:
        settling.crash(shelf, job)


def _forget_session(shelf: Shelf, row: SessionRow) -> None:
    long_ago = shelf.now - to_microseconds(shelf.rules.repeat_for)
    if row.dead_at is None or row.dead_at >= long_ago:
        return
    if not lease_count(shelf, row):
        shelf.connection.execute(shelf.sql["forget_session"], (row.number,))


# --- expiry and keeping ------------------------------------------------------------------------------------------


def _expire(shelf: Shelf, limit: int) -> int:
    seqs = shelf.connection.execute(shelf.sql["expired_jobs"], (shelf.now, max(0, limit))).fetchall()
    for (seq,) in seqs:
        job = shelf.job_by_seq(seq)
        if job is not None and job.status is not None and job.status.is_waiting and (job.expires_at or 0) <= shelf.now:
            shelf.end(job, Event.EXPIRE, Status.CANCELLED, words.EXPIRED)
    return len(seqs)


def _drop(shelf: Shelf, limit: int) -> tuple[int, int]:
    """First to be nothing but an id, when its keep is over; then, when no call can be resent any more, nothing at all. How many of each."""
    moved = _drop_over_cap(shelf, limit)
    left = max(0, limit - moved)
    faded = shelf.connection.execute(shelf.sql["faded_jobs"], (shelf.now, left)).fetchall()
    for queue, code, number in faded:
        shelf.tally.move(queue, Event.DROP, code, None, number)
    dropped: int = sum(number for _, _, number in faded)
    forgotten = 0
    if dropped < left:
        forgotten = _drop_all_faded(shelf, dropped)
    elif dropped:
        forgotten = _drop_first_faded(shelf, dropped)
    return moved + dropped, forgotten


def _drop_all_faded(shelf: Shelf, number: int) -> int:
    if number:
        shelf.connection.execute(shelf.sql["drop_faded_jobs"], (shelf.now, shelf.now - _known_for(shelf)))
        shelf.connection.execute(shelf.sql["bury_faded_jobs"], (_known_for(shelf), shelf.now, number))
    return shelf.connection.execute(shelf.sql["forget_jobs"], (shelf.now, MOST_FORGOTTEN)).rowcount


def _drop_first_faded(shelf: Shelf, number: int) -> int:
    """The limit is used up by them: of the ids only those go whose turn would have come before the last of them."""
    [(fade_at, last_id)] = shelf.connection.execute(shelf.sql["last_faded_job"], (shelf.now, number - 1))
    shelf.connection.execute(shelf.sql["bury_faded_jobs"], (_known_for(shelf), shelf.now, number))
    return shelf.connection.execute(shelf.sql["forget_jobs_before"], (fade_at, last_id, last_id, MOST_FORGOTTEN)).rowcount


def _drop_over_cap(shelf: Shelf, limit: int) -> int:
    shelf.tally.flush()
    most, moved = shelf.rules.kept_per_queue, 0
    for queue, _, done, failed in shelf.connection.execute(shelf.sql["crowded_queues"], (most, most)).fetchall():
        moved += _drop_oldest(shelf, queue, "done", max(0, min(done - most, limit - moved)))
        moved += _drop_oldest(shelf, queue, "failed", max(0, min(failed - most, limit - moved)))
    return moved


def _drop_oldest(shelf: Shelf, queue: int, kind: Literal["done", "failed"], number: int) -> int:
    if not number:
        return 0
    for code, count in shelf.connection.execute(shelf.sql["oldest_" + kind], (queue, number)).fetchall():
        shelf.tally.move(queue, Event.DROP, code, None, count)
    shelf.connection.execute(shelf.sql["bury_oldest_" + kind], (_known_for(shelf), queue, number))
    shelf.tally.count(queue, words.DROPPED_OVER_CAP, number)
    return number


def _known_for(shelf: Shelf) -> int:
    return to_microseconds(shelf.rules.repeat_for)
