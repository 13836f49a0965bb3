"""The console of the SQLite broker."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
import stat
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from taskflow.broker.console import Finding, JobFilter, Metrics, QueueRecord, Redone
from taskflow.broker.sqlite.ownership import PRIVATE
from taskflow.broker.sqlite.row import JobRow
from taskflow.broker.sqlite.schedules import amend_schedule, schedule_records
from taskflow.broker.sqlite.session import session_records
from taskflow.broker.sqlite.transactions import Durability
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import BY_CODE, CODES, Record, Status
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import Event

T = TypeVar("T")

ID_AFTER_ALL: Final = b"\xff" * 17
"""A byte string greater than any id."""


class CallStore(Protocol):
    """A function that runs a verb on the broker."""

    async def __call__(self, durability: Durability, verb: Callable[[Transitions], T]) -> T: ...


class Look(Protocol):
    """A function that runs a read-only verb on the broker."""

    async def __call__(self, verb: Callable[[Transitions], T]) -> T: ...


class SqliteConsole:
    """Implements `taskflow.broker.console.Console`."""

    def __init__(self, call: CallStore, look: Look) -> None:
        self._call = call
        self._look = look

    async def queues(self) -> list[QueueRecord]:
        return await self._look(queue_records)

    async def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        return await self._look(lambda transitions: browse(transitions, job_filter, before, limit))

    async def workers(self) -> list[SessionRecord]:
        return await self._look(session_records)

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return await self._call(Durability.FULL, lambda transitions: [_redo(transitions, transitions.job(job_id)) for job_id in ids])

    async def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        return await self._call(Durability.FULL, lambda transitions: purge(transitions, job_filter, limit))

    async def pause(self, queue: str) -> None:
        await self._call(Durability.FULL, lambda transitions: pause(transitions, queue))

    async def resume(self, queue: str) -> None:
        await self._call(Durability.FULL, lambda transitions: resume(transitions, queue))

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        return await self._look(lambda transitions: schedule_records(transitions, names))

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        return await self._call(Durability.FULL, lambda transitions: amend_schedule(transitions, name, amendment))

    async def metrics(self) -> Metrics:
        return await self._look(metrics)

    async def examine(self) -> list[Finding]:
        return await self._look(examine)


# --- looking ---------------------------------------------------------------------------------------------------


def queue_records(transitions: Transitions) -> list[QueueRecord]:
    transitions.tally.flush()
    rows = transitions.connection.execute(transitions.sql["queue_records"]).fetchall()
    return [_queue_record(transitions, *row) for row in rows]


def _queue_record(transitions: Transitions, number: int, name: Any, is_paused: Any, *stored: Any) -> QueueRecord:
    """Return a queue's record. A name that is not text is shown as a Python literal; a count that is not a number becomes 0."""
    counts = [count if isinstance(count, int) else 0 for count in stored]
    return QueueRecord(
        name=str(name),
        is_paused=bool(is_paused),
        counts={BY_CODE[code]: count for code, count in enumerate(counts)},
        oldest_ready_for=_oldest_ready_for(transitions, number) if counts[CODES[Status.READY]] else None,
        next_due_in=_next_due_in(transitions, number) if counts[CODES[Status.SCHEDULED]] else None,
    )


def _oldest_ready_for(transitions: Transitions, queue: int) -> float | None:
    [(due_at,)] = transitions.connection.execute(transitions.sql["oldest_ready"], (queue,))
    return None if due_at is None else to_seconds(transitions.now - due_at)


def _next_due_in(transitions: Transitions, queue: int) -> float | None:
    row = transitions.connection.execute(transitions.sql["next_due_of_queue"], (queue,)).fetchone()
    return None if row is None else to_seconds(row[0] - transitions.now)


def browse(transitions: Transitions, job_filter: JobFilter, before: bytes | None, limit: int) -> list[Record]:
    parameters = _parameters(transitions, job_filter)
    if parameters is None:
        return []
    page = (*parameters, ID_AFTER_ALL if before is None else before, max(0, limit))
    jobs = transitions.jobs("browse", *page)
    if transitions.has_mended:  # mending may have changed ids, and so the order
        jobs = transitions.jobs("browse", *page)
    return [transitions.record(job) for job in jobs if job.status is not None]


def _parameters(transitions: Transitions, job_filter: JobFilter) -> tuple[object, ...] | None:
    """Return the first parameters of `browse` and `to_purge`, or None if a name is unknown and so nothing can match."""
    queue = None if job_filter.queue is None else transitions.queues.find(job_filter.queue)
    job = None if job_filter.job is None else transitions.job_names.find(job_filter.job)
    if (job_filter.queue is not None and queue is None) or (job_filter.job is not None and job is None):
        return None
    ended_at = None if job_filter.ended_before is None else transitions.now - to_microseconds(job_filter.ended_before)
    poison = 1 if job_filter.poison else None
    statuses = json.dumps([CODES[status] for status in job_filter.statuses]) if job_filter.statuses else None
    twice = [value for each in (queue, job, ended_at, poison, statuses) for value in (each, each)]
    return (transitions.now, *twice)


def metrics(transitions: Transitions) -> Metrics:
    transitions.tally.flush()
    totals: dict[str, dict[str, int]] = {}
    for queue, event, number in transitions.connection.execute(transitions.sql["totals"]):
        totals.setdefault(str(queue), {})[str(event)] = number if isinstance(number, int) else 0
    return Metrics(totals=totals)


def examine(transitions: Transitions) -> list[Finding]:
    [(_, _, path)] = [row for row in transitions.connection.execute("PRAGMA database_list") if row[1] == "main"]
    [(pages,)], [(page_size,)] = transitions.connection.execute("PRAGMA page_count"), transitions.connection.execute("PRAGMA page_size")
    free = shutil.disk_usage(os.path.dirname(path)).free
    size = pages * page_size
    return [
        Finding("file", "ok", f"{path}: {size:,} bytes, SQLite {sqlite3.sqlite_version}"),
        Finding("persistence", "ok", "enqueues and outcomes are on disk before they are answered"),
        _permissions(path),
        Finding("room", "ok" if free > max(size, _LITTLE_ROOM) else "problem", f"{free:,} bytes free on its disk"),
    ]


def _permissions(path: str) -> Finding:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if not mode & ~PRIVATE:
        return Finding("permissions", "ok", "only its owner can read and write the file")
    can = "read and write" if mode & 0o022 else "read"
    remedy = f"unless they share it, run `chmod 600 {shlex.quote(path)}`"
    return Finding("permissions", "note", f"other users can {can} the file (mode {mode:04o}): {remedy}")


_LITTLE_ROOM: Final = 100 * 1024 * 1024


# --- acting ----------------------------------------------------------------------------------------------------


def _redo(transitions: Transitions, job: JobRow | None) -> Redone:
    if job is None or not job.is_kept(transitions.now) or job.status is None:
        return Redone.UNKNOWN
    if not job.status.is_ended:
        return Redone.LIVE
    if job.status is Status.SUCCEEDED:
        return Redone.SUCCEEDED
    if any(transitions.holders(job.key)):
        return Redone.KEY_TAKEN
    job.make_fresh(transitions.now)
    transitions.enter(job, Event.REDO)
    return Redone.OK


def purge(transitions: Transitions, job_filter: JobFilter, limit: int) -> int:
    parameters = _parameters(transitions, job_filter)
    if parameters is None:
        return 0
    seqs = transitions.connection.execute(transitions.sql["to_purge"], (*parameters, max(0, limit))).fetchall()
    return sum(_purge_one(transitions, transitions.job_by_seq(seq)) for (seq,) in seqs)


def _purge_one(transitions: Transitions, job: JobRow | None) -> bool:
    if job is None or job.status in (None, Status.RUNNING):
        return False
    if job.status.is_waiting:
        transitions.finish(job, Event.CANCEL, Status.CANCELLED, wording.PURGED)
    transitions.bury(job)
    return True


def pause(transitions: Transitions, queue: str) -> None:
    transitions.connection.execute(transitions.sql["pause_queue"], (queue,))


def resume(transitions: Transitions, queue: str) -> None:
    transitions.connection.execute(transitions.sql["resume_queue"], (queue,))
    transitions.tally.flush()
    transitions.announcement.ready[queue] += transitions.ready_in(queue)
