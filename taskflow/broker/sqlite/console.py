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

from taskflow.broker import topics, words
from taskflow.broker.console import Finding, JobFilter, Metrics, QueueRecord, Redone
from taskflow.broker.sqlite.durability import Durability
from taskflow.broker.sqlite.ownership import PRIVATE
from taskflow.broker.sqlite.row import Job
from taskflow.broker.sqlite.sessions import session_records
from taskflow.broker.sqlite.shelf import Shelf
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import BY_CODE, CODES, Event, Record, Status
from taskflow.model.session import SessionRecord

T = TypeVar("T")

ID_AFTER_ALL: Final = b"\xff" * 17
"""Greater than any id."""


class Call(Protocol):
    """How a broker runs a verb."""

    async def __call__(self, durability: Durability, verb: Callable[[Shelf], T]) -> T: ...


class Look(Protocol):
    """How a broker runs a verb that only reads."""

    async def __call__(self, verb: Callable[[Shelf], T]) -> T: ...


class SqliteConsole:
    """See `taskflow.broker.console.Console`."""

    def __init__(self, call: Call, look: Look) -> None:
        self._call = call
        self._look = look

    async def queues(self) -> list[QueueRecord]:
        return await self._look(queue_records)

    async def browse(self, chosen: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        return await self._look(lambda shelf: browse(shelf, chosen, before, limit))

    async def workers(self) -> list[SessionRecord]:
        return await self._look(session_records)

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return await self._call(Durability.FULL, lambda shelf: [_redo(shelf, shelf.job(job_id)) for job_id in ids])

    async def purge(self, chosen: JobFilter, *, limit: int = 1_000) -> int:
        return await self._call(Durability.FULL, lambda shelf: purge(shelf, chosen, limit))

    async def pause(self, queue: str) -> None:
        await self._call(Durability.FULL, lambda shelf: pause(shelf, queue))

    async def resume(self, queue: str) -> None:
        await self._call(Durability.FULL, lambda shelf: resume(shelf, queue))

    async def metrics(self) -> Metrics:
        return await self._look(metrics)

    async def examine(self) -> list[Finding]:
        return await self._look(examine)


# --- looking ---------------------------------------------------------------------------------------------------


def queue_records(shelf: Shelf) -> list[QueueRecord]:
    shelf.tally.flush()
    rows = shelf.connection.execute(shelf.sql["queue_records"]).fetchall()
    return [_queue_record(shelf, *row) for row in rows]


def _queue_record(shelf: Shelf, number: int, name: Any, is_paused: Any, *stored: Any) -> QueueRecord:
    """A name that is no text is shown as Python writes it; a count that is no number counts as 0."""
    counts = [count if isinstance(count, int) else 0 for count in stored]
    return QueueRecord(
        name=str(name),
        is_paused=bool(is_paused),
        counts={BY_CODE[code]: count for code, count in enumerate(counts)},
        oldest_ready_for=_oldest_ready_for(shelf, number) if counts[CODES[Status.READY]] else None,
        next_due_in=_next_due_in(shelf, number) if counts[CODES[Status.SCHEDULED]] else None,
    )


def _oldest_ready_for(shelf: Shelf, queue: int) -> float | None:
    [(due_at,)] = shelf.connection.execute(shelf.sql["oldest_ready"], (queue,))
    return None if due_at is None else to_seconds(shelf.now - due_at)


def _next_due_in(shelf: Shelf, queue: int) -> float | None:
    row = shelf.connection.execute(shelf.sql["next_due_of_queue"], (queue,)).fetchone()
    return None if row is None else to_seconds(row[0] - shelf.now)


def browse(shelf: Shelf, chosen: JobFilter, before: bytes | None, limit: int) -> list[Record]:
    parameters = _parameters(shelf, chosen)
    if parameters is None:
        return []
    page = (*parameters, ID_AFTER_ALL if before is None else before, max(0, limit))
    jobs = shelf.jobs("browse", *page)
    if shelf.has_mended:  # ids have changed by it perhaps, and with them the order
        jobs = shelf.jobs("browse", *page)
    return [shelf.record(job) for job in jobs if job.status is not None]


def _parameters(shelf: Shelf, chosen: JobFilter) -> tuple[object, ...] | None:
    """What `browse` and `to_purge` begin with; None when a name is unknown, so that nothing can be found."""
    queue = None if chosen.queue is None else shelf.queues.find(chosen.queue)
    job = None if chosen.job is None else shelf.job_names.find(chosen.job)
    if (chosen.queue is not None and queue is None) or (chosen.job is not None and job is None):
        return None
    ended_at = None if chosen.ended_before is None else shelf.now - to_microseconds(chosen.ended_before)
    poison = 1 if chosen.poison else None
    statuses = json.dumps([CODES[status] for status in chosen.statuses]) if chosen.statuses else None
    twice = [value for each in (queue, job, ended_at, poison, statuses) for value in (each, each)]
    return (shelf.now, *twice)


def metrics(shelf: Shelf) -> Metrics:
    shelf.tally.flush()
    totals: dict[str, dict[str, int]] = {}
    for queue, event, number in shelf.connection.execute(shelf.sql["totals"]):
        totals.setdefault(str(queue), {})[str(event)] = number if isinstance(number, int) else 0
    return Metrics(totals=totals)


def examine(shelf: Shelf) -> list[Finding]:
    [(_, _, path)] = [row for row in shelf.connection.execute("PRAGMA database_list") if row[1] == "main"]
    [(pages,)], [(page_size,)] = shelf.connection.execute("PRAGMA page_count"), shelf.connection.execute("PRAGMA page_size")
    free = shutil.disk_usage(os.path.dirname(path)).free
    size = pages * page_size
    return [
        Finding("file", "ok", f"{path}: {size:,} bytes, SQLite {sqlite3.sqlite_version}"),
        Finding("persistence", "ok", "an enqueue and an outcome are on the disk before they are answered"),
        _permissions(path),
        Finding("room", "ok" if free > max(size, _LITTLE_ROOM) else "problem", f"{free:,} bytes are free on its disk"),
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


def _redo(shelf: Shelf, job: Job | None) -> Redone:
    if job is None or not job.is_kept(shelf.now) or job.status is None:
        return Redone.UNKNOWN
    if not job.status.is_ended:
        return Redone.LIVE
    if job.status is Status.SUCCEEDED:
        return Redone.SUCCEEDED
    if any(shelf.holders(job.key)):
        return Redone.KEY_TAKEN
    job.make_fresh(shelf.now)
    shelf.enter(job, Event.REDO)
    return Redone.OK


def purge(shelf: Shelf, chosen: JobFilter, limit: int) -> int:
    parameters = _parameters(shelf, chosen)
    if parameters is None:
        return 0
    seqs = shelf.connection.execute(shelf.sql["to_purge"], (*parameters, max(0, limit))).fetchall()
    return sum(_purge_one(shelf, shelf.job_by_seq(seq)) for (seq,) in seqs)


def _purge_one(shelf: Shelf, job: Job | None) -> bool:
    if job is None or job.status in (None, Status.RUNNING):
        return False
    if job.status.is_waiting:
        shelf.end(job, Event.CANCEL, Status.CANCELLED, words.PURGED)
    shelf.bury(job)
    return True


def pause(shelf: Shelf, queue: str) -> None:
    shelf.connection.execute(shelf.sql["pause_queue"], (queue,))


def resume(shelf: Shelf, queue: str) -> None:
    shelf.connection.execute(shelf.sql["resume_queue"], (queue,))
    shelf.rung |= {topics.queue(queue), topics.ANY_QUEUE}
