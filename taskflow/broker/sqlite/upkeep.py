"""The `upkeep` verb: readies due jobs, reaps dead sessions, ends expired jobs,
drops old ones, repairs unsound rows, and shrinks the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Set
from typing import Any, Final, Literal

from taskflow.broker.protocol import MAX_ENDS, Upkept
from taskflow.broker.sqlite.job_table import Scrubbed
from taskflow.broker.sqlite.row import JobRow, claims_of
from taskflow.broker.sqlite.schedules import offers
from taskflow.broker.sqlite.session import SessionRow, kill_session, lease_count, session_rows, spare_after_outage
from taskflow.broker.sqlite.shrinking import STEP_EVERY
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.ids import ID_BYTES
from taskflow.model.record import CODES, Status
from taskflow.model.session import Outlook
from taskflow.model.transitions import Event

MOST_FORGOTTEN: Final = 500
"""The maximum number of ids that one call deletes, in addition to its moves. If a call
reaches it, the next call follows at once, because calls every two seconds might not keep up."""


def upkeep(transitions: Transitions, limit: int, *, ends: bool = False) -> Upkept:
    transitions.announcement.is_periodical = transitions.announcement.cleans = True
    scrub(transitions)
    spare_after_outage(transitions)
    reaped = _reap(transitions)
    left = limit
    moves = list[int]()
    for duty in (_ready_due, _release_leases, _expire):
        moves.append(duty(transitions, left))
        left -= moves[-1]
    readied, released, expired = moves
    dropped, forgotten = _drop(transitions, left)
    if transitions.shrinker is not None:
        transitions.shrinker.step(transitions.steady)
    offered = offers(transitions)
    ended, ends_dropped, has_more = _take_ends(transitions) if ends else ((), 0, False)
    return Upkept(
        readied=readied,
        reaped=reaped,
        released=released,
        expired=expired,
        dropped=dropped,
        next_in=0.0 if dropped >= left or forgotten >= MOST_FORGOTTEN or has_more else _next_in(transitions),
        offers=offered,
        ended=ended,
        ends_dropped=ends_dropped,
    )


def _take_ends(transitions: Transitions) -> tuple[tuple[bytes, ...], int, bool]:
    """Remove and return the first ends that were noted, the number of those that were dropped, and whether more are left."""
    transitions.flush()  # notes the ends of this call
    found = transitions.connection.execute(transitions.sql["first_ends"], (MAX_ENDS + 1,)).fetchall()
    taken, has_more = found[:MAX_ENDS], len(found) > MAX_ENDS
    if taken:
        transitions.connection.execute(transitions.sql["take_ends"], (taken[-1][0],))
    [(dropped,)] = transitions.connection.execute(transitions.sql["dropped_ends"])
    if dropped:
        transitions.connection.execute(transitions.sql["count_dropped_ends"], (-dropped,))
    return tuple(job_id for _, job_id in taken if len(job_id) == ID_BYTES), dropped, has_more


def outlook(transitions: Transitions, session: bytes) -> Outlook:
    transitions.tally.flush()
    [(is_ready, first_at)] = transitions.connection.execute(transitions.sql["outlook"])
    first_at = _sound(transitions, first_at)
    if any(lease_count(transitions, row) for row in session_rows(transitions, "dead_sessions")):
        return Outlook(bool(is_ready), 0.0)
    living = session_rows(transitions, "living_sessions")
    waits = _waits(transitions, living)
    if any(row.wants_ends and row.id == session for row in living) and transitions.has_end_subscriber()[1]:
        waits.append(0.0)
    if first_at is not None:
        waits.append(max(0.0, to_seconds(first_at - transitions.now)))
    return Outlook(bool(is_ready), min(waits, default=math.inf))


def _next_in(transitions: Transitions) -> float:
    """Return the seconds until the caller's next upkeep. With n live sessions, each calls it every
    n * `upkeep_every` seconds, or earlier if a job becomes due or a session lapses."""
    living = session_rows(transitions, "living_sessions")
    return min([transitions.rules.upkeep_every * max(1, len(living)), *_waits(transitions, living)])


def _waits(transitions: Transitions, living: list[SessionRow]) -> list[float]:
    """Return the seconds until the next job or schedule is due, until each session lapses, and until the file shrinks further."""
    waits = [to_seconds(row.beat_at + row.ttl + 1 - transitions.steady) for row in living]
    if transitions.shrinker is not None and transitions.shrinker.is_under_way:
        waits.append(STEP_EVERY)
    due_at = _sound(transitions, transitions.next_due())
    if due_at is not None:
        waits.append(to_seconds(due_at - transitions.now))
    return [max(0.0, wait) for wait in waits]


def _sound(transitions: Transitions, instant: Any) -> int | None:
    """Return the time if it is sound. Otherwise return the current time, so that upkeep checks the row at once."""
    return instant if instant is None or type(instant) is int else transitions.now


def _ready_due(transitions: Transitions, limit: int) -> int:
    bounds = (transitions.now, max(0, limit))
    by_queue = transitions.connection.execute(transitions.sql["due_jobs"], bounds).fetchall()
    if by_queue:
        transitions.connection.execute(transitions.sql["ready_due_jobs"], bounds)
    for queue, number in by_queue:
        transitions.tally.move(queue, Event.DUE, CODES[Status.SCHEDULED], CODES[Status.READY], number)
        transitions.announce_ready(queue, number)
    return sum(number for _, number in by_queue)


# --- dead sessions ---------------------------------------------------------------------------------------------


def _reap(transitions: Transitions) -> int:
    """Mark lapsed sessions as dead, and return their number. From then on their
    claims are refused, so no new lease can be missed when their leases are released."""
    boot_id = transitions.clock.boot_id()
    lapsed = [row for row in session_rows(transitions, "living_sessions") if row.has_lapsed(transitions.steady, boot_id)]
    for row in lapsed:
        kill_session(transitions, row)
    return len(lapsed)


def _release_leases(transitions: Transitions, limit: int) -> int:
    released = 0
    for row in session_rows(transitions, "dead_sessions"):
        jobs = transitions.leased("some_leases", *claims_of(row.id), max(0, limit - released))
        for job in jobs:
            _end_dead_lease(transitions, row, job)
        released += len(jobs)
        _forget_session(transitions, row)
    return released


def _end_dead_lease(transitions: Transitions, row: SessionRow, job: JobRow) -> None:
    if row.is_spared or row.is_of_another_boot(transitions.clock.boot_id()):
        transitions.hand_back(job, counts=True)
    else:
        transitions.crash(job, deploy=row.deploy)


def _forget_session(transitions: Transitions, row: SessionRow) -> None:
    long_ago = transitions.now - to_microseconds(transitions.rules.repeat_for)
    if row.dead_at is None or row.dead_at >= long_ago:
        return
    if not lease_count(transitions, row):
        transitions.connection.execute(transitions.sql["forget_session"], (row.number,))


# --- expiry and keeping ------------------------------------------------------------------------------------------


def _expire(transitions: Transitions, limit: int) -> int:
    seqs = transitions.connection.execute(transitions.sql["expired_jobs"], (transitions.now, max(0, limit))).fetchall()
    for (seq,) in seqs:
        job = transitions.job_by_seq(seq)
        if job is not None and job.status is not None and job.status.is_waiting and (job.expires_at or 0) <= transitions.now:
            transitions.finish(job, Event.EXPIRE, Status.CANCELLED, wording.EXPIRED)
    return len(seqs)


def _drop(transitions: Transitions, limit: int) -> tuple[int, int]:
    """Drop ended jobs that have been kept long enough or exceed their queue's cap, keeping only their
    ids and fences. Delete ids that no resent call can refer to any more. Return the number of each."""
    moved = _drop_over_cap(transitions, limit)
    left = max(0, limit - moved)
    faded = transitions.connection.execute(transitions.sql["faded_jobs"], (transitions.now, left)).fetchall()
    for queue, code, number, _ in faded:
        transitions.tally.move(queue, Event.DROP, code, None, number)
    dropped: int = sum(number for _, _, number, _ in faded)
    if any(tagged for *_, tagged in faded):
        transitions.connection.execute(transitions.sql["drop_tags_of_faded_jobs"], (transitions.now, left))
    forgotten = 0
    if dropped < left:
        forgotten = _drop_all_faded(transitions, dropped)
    elif dropped:
        forgotten = _drop_first_faded(transitions, dropped)
    return moved + dropped, forgotten


def _drop_all_faded(transitions: Transitions, number: int) -> int:
    if number:
        transitions.connection.execute(transitions.sql["drop_faded_jobs"], (transitions.now, transitions.now - _known_for(transitions)))
        transitions.connection.execute(transitions.sql["bury_faded_jobs"], (_known_for(transitions), transitions.now, number))
    return transitions.connection.execute(transitions.sql["forget_jobs"], (transitions.now, MOST_FORGOTTEN)).rowcount


def _drop_first_faded(transitions: Transitions, number: int) -> int:
    """Drop the first `number` jobs whose `fade_at` has passed. Then delete the ids of
    dropped jobs whose `fade_at` is earlier than that of the last of these jobs."""
    [(fade_at, last_id)] = transitions.connection.execute(transitions.sql["last_faded_job"], (transitions.now, number - 1))
    transitions.connection.execute(transitions.sql["bury_faded_jobs"], (_known_for(transitions), transitions.now, number))
    return transitions.connection.execute(transitions.sql["forget_jobs_before"], (fade_at, last_id, last_id, MOST_FORGOTTEN)).rowcount


def _drop_over_cap(transitions: Transitions, limit: int) -> int:
    transitions.tally.flush()
    most, moved = transitions.rules.kept_per_queue, 0
    for queue, _, done, failed in transitions.connection.execute(transitions.sql["crowded_queues"], (most, most)).fetchall():
        moved += _drop_oldest(transitions, queue, "done", max(0, min(done - most, limit - moved)))
        moved += _drop_oldest(transitions, queue, "failed", max(0, min(failed - most, limit - moved)))
    return moved


def _drop_oldest(transitions: Transitions, queue: int, kind: Literal["done", "failed"], number: int) -> int:
    if not number:
        return 0
    oldest = transitions.connection.execute(transitions.sql["oldest_" + kind], (queue, number)).fetchall()
    for code, count, _ in oldest:
        transitions.tally.move(queue, Event.DROP, code, None, count)
    if any(tagged for *_, tagged in oldest):
        transitions.connection.execute(transitions.sql["drop_tags_of_oldest_" + kind], (queue, number))
    transitions.connection.execute(transitions.sql["bury_oldest_" + kind], (_known_for(transitions), queue, number))
    transitions.tally.count(queue, wording.DROPPED_OVER_CAP, number)
    return number


def _known_for(transitions: Transitions) -> int:
    return to_microseconds(transitions.rules.repeat_for)


# --- unsound rows ----------------------------------------------------------------------------------------------

FEW_NAMES: Final = 256
"""The number of job names up to which unused ones are kept: dropping a name and adding it again would cost more."""

SCRUBBED_AT_ONCE: Final = 500
"""The number of jobs that one call checks, which takes about 2 ms."""


def scrub(transitions: Transitions) -> bool:
    """Check the next `SCRUBBED_AT_ONCE` jobs, and repair unsound ones. Return True after the last job; the next call then starts over."""
    place = transitions.scrubbed
    row = transitions.connection.execute(transitions.sql["some_jobs"], (place.seq, SCRUBBED_AT_ONCE)).fetchone()
    last, number, unsound, orphans, names = row
    for seq in json.loads(unsound):
        transitions.job_by_seq(seq)  # reading the job repairs it
    _release_orphans(transitions, json.loads(orphans))
    place.names.update(json.loads(names))
    if number < SCRUBBED_AT_ONCE:
        _drop_names(transitions, place.names)
        transitions.connection.execute(transitions.sql["drop_oversized"])
        transitions.scrubbed = Scrubbed()
        return True
    place.seq = last
    return False


def _release_orphans(transitions: Transitions, seqs: Iterable[int]) -> None:
    """Hand back jobs that are leased to an unknown session."""
    for seq in seqs:
        job = transitions.job_by_seq(seq)
        if job is not None and job.claim is not None:
            transitions.hand_back(job, counts=False)


def _drop_names(transitions: Transitions, used: Set[object]) -> None:
    """Drop names that no job uses any more, for example after a purge. `used` is complete: all jobs have been checked, new ones last."""
    numbers = {number for (number,) in transitions.connection.execute(transitions.sql["job_name_numbers"])}
    unused = numbers - used
    if len(numbers) <= FEW_NAMES or not unused:
        return
    transitions.connection.execute(transitions.sql["drop_job_names"], (json.dumps(sorted(unused)),))
    transitions.connection.execute(transitions.sql["count_drop_of_names"])
    transitions.job_names.forget()
