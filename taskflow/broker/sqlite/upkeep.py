"""What time brings: due jobs, dead sessions, expiry, the end of keeping."""

from __future__ import annotations

from collections import Counter

from taskflow.broker import words
from taskflow.broker.protocol import Upkept
from taskflow.broker.sqlite import settling
from taskflow.broker.sqlite.row import Job, claims_of, text_of
from taskflow.broker.sqlite.sessions import SessionRow, session_rows, spare_after_outage
from taskflow.broker.sqlite.shelf import Shelf
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import CODES, Event, Status
from taskflow.model.verdict import RunError, append_error

MOST_FORGOTTEN = 10_000
"""Ids that one call forgets at most: they are no moves, and take no time worth counting, but not no time at all."""


def upkeep(shelf: Shelf, limit: int) -> Upkept:
    spare_after_outage(shelf)
    reaped = _reap(shelf)
    left = limit
    moves = list[int]()
    for duty in (_ready_due, _release_leases, _expire, _drop):
        moves.append(duty(shelf, left))
        left -= moves[-1]
    readied, released, expired, dropped = moves
    next_in = 0.0 if left <= 0 else _next_in(shelf)
    return Upkept(readied=readied, reaped=reaped, released=released, expired=expired, dropped=dropped, next_in=next_in)


def _next_in(shelf: Shelf) -> float:
    """The fleet's share: each of n sessions comes once in n turns, all of them when something falls due before."""
    turn = shelf.rules.upkeep_every * max(1, len(session_rows(shelf, "living_sessions")))
    [(due_at,)] = shelf.connection.execute(shelf.sql["next_due"])
    return turn if due_at is None else min(turn, max(0.0, to_seconds(due_at - shelf.now)))


def _ready_due(shelf: Shelf, limit: int) -> int:
    due = shelf.connection.execute(shelf.sql["due_jobs"], (shelf.now, max(0, limit))).fetchall()
    shelf.connection.executemany(shelf.sql["ready_job"], [(seq,) for seq, _ in due])
    for queue, number in Counter(queue for _, queue in due).items():
        shelf.tally.move(queue, Event.DUE, CODES[Status.SCHEDULED], CODES[Status.READY], number)
        shelf.ring_queue(queue)
    return len(due)


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
        jobs = shelf.jobs("some_leases", *claims_of(row.id), max(0, limit - released))
        for job in jobs:
            _release(shelf, row, job)
        released += len(jobs)
        _forget_session(shelf, row)
    return released


def _release(shelf: Shelf, row: SessionRow, job: Job) -> None:
    if row.is_spared or row.is_of_another_boot(shelf.clock.boot_id()):
        settling.hand_back(shelf, job, counts=True)
    else:
        _crash(shelf, job)


def _forget_session(shelf: Shelf, row: SessionRow) -> None:
    long_ago = shelf.now - to_microseconds(shelf.rules.repeat_for)
    if row.dead_at is None or row.dead_at >= long_ago:
        return
    [(leases,)] = shelf.connection.execute(shelf.sql["lease_count"], claims_of(row.id))
    if not leases:
        shelf.connection.execute(shelf.sql["forget_session"], (row.number,))


def _crash(shelf: Shelf, job: Job) -> None:
    job.crashes += 1
    lost = RunError(words.CRASHED, words.worker_lost(text_of(job.worker), job.crashes), "", job.failures + 1)
    job.errors = append_error(job.errors, lost, shelf.now)
    if job.crashes > shelf.rules.max_crashes and job.cancel_requested is None:
        settling.poison(shelf, job, Event.CRASH, words.lost_in_a_row(job.crashes))
    else:
        wait = to_microseconds(shelf.rules.crash_wait(job.crashes))
        shelf.wait_again(job, Event.CRASH, shelf.now + wait if wait else None)


# --- expiry and keeping ------------------------------------------------------------------------------------------


def _expire(shelf: Shelf, limit: int) -> int:
    ids = shelf.connection.execute(shelf.sql["expired_jobs"], (shelf.now, max(0, limit))).fetchall()
    for (job_id,) in ids:
        job = shelf.job(job_id)
        assert job is not None
        shelf.end(job, Event.EXPIRE, Status.CANCELLED, words.EXPIRED)
    return len(ids)


def _drop(shelf: Shelf, limit: int) -> int:
    """First to be nothing but an id, when its keep is over; then, when no call can be resent any more, nothing at all."""
    moved = _drop_over_cap(shelf, limit)
    left = max(0, limit - moved)
    faded = shelf.connection.execute(shelf.sql["faded_jobs"], (shelf.now, left)).fetchall()
    for seq, _, queue, code, ended_at, _ in faded:
        _bury(shelf, seq, queue, code, ended_at)
    if len(faded) < left:
        shelf.connection.execute(shelf.sql["forget_jobs"], (shelf.now, MOST_FORGOTTEN))
    elif faded:
        _, last_id, _, _, _, fade_at = faded[-1]
        shelf.connection.execute(shelf.sql["forget_jobs_before"], (fade_at, last_id, last_id, MOST_FORGOTTEN))
    return moved + len(faded)


def _drop_over_cap(shelf: Shelf, limit: int) -> int:
    shelf.tally.flush()
    most, moved = shelf.rules.kept_per_queue, 0
    for queue, _, done, failed in shelf.connection.execute(shelf.sql["crowded_queues"], (most, most)).fetchall():
        for statement, kept in (("oldest_done", done), ("oldest_failed", failed)):
            excess = max(0, min(kept - most, limit - moved))
            oldest = shelf.connection.execute(shelf.sql[statement], (queue, excess)).fetchall() if excess else []
            for seq, code, ended_at in oldest:
                _bury(shelf, seq, queue, code, ended_at)
                shelf.tally.count(queue, words.DROPPED_OVER_CAP)
            moved += len(oldest)
    return moved


def _bury(shelf: Shelf, seq: int, queue: int, code: int, ended_at: int) -> None:
    shelf.tally.move(queue, Event.DROP, code, None)
    shelf.connection.execute(shelf.sql["bury_job"], (shelf.forgettable_at(ended_at), seq))
