"""The console of the SQLite broker."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from taskflow.broker.console import FailureGroupRecord, Finding, Metrics, Page, QueueRecord, Redone, View
from taskflow.broker.paging import ScanRequest, ScanResult, page
from taskflow.broker.protocol import PURGED_FOR
from taskflow.broker.sqlite.ownership import PRIVATE
from taskflow.broker.sqlite.pages import STORED_POSITION_TYPES, matching, numbers_of, scan
from taskflow.broker.sqlite.queued_verb import Durability
from taskflow.broker.sqlite.row import JobRow
from taskflow.broker.sqlite.schedules import amend_schedule, schedule_records
from taskflow.broker.sqlite.session import session_records
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import wording
from taskflow.model.audit import Act, ActRecord, act_record_of, pack_act
from taskflow.model.clock import to_seconds
from taskflow.model.failure_cause import MOST_BYTES, UNKNOWN
from taskflow.model.ids import ID_BYTES
from taskflow.model.record import BY_CODE, CODES, Status
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord
from taskflow.model.stored_values import LATEST
from taskflow.model.transitions import Event

T = TypeVar("T")

READ_AT_ONCE: Final = 200
"""The most jobs that one transaction reads for a page, which takes a few milliseconds. A checkpoint waits for it, and with the checkpoint
the writer that makes it."""


class VerbCaller(Protocol):
    """The broker methods that the console uses: `call` runs a verb, and `look` one that only reads."""

    async def call(self, durability: Durability, verb: Callable[[Transitions], T]) -> T: ...

    async def look(self, verb: Callable[[Transitions], T]) -> T: ...


class SqliteConsole:
    """Implements `taskflow.broker.console.Console`."""

    def __init__(self, broker: VerbCaller) -> None:
        self._broker = broker

    async def queues(self) -> list[QueueRecord]:
        return await self._broker.look(queue_records)

    async def page(self, view: View, *, cursor: str | None = None, limit: int = 100) -> Page:
        return await page(self._scan, view, cursor, limit, STORED_POSITION_TYPES)

    async def _scan(self, request: ScanRequest) -> ScanResult:
        portion = request._replace(most=min(request.most, READ_AT_ONCE))
        return await self._broker.look(lambda transitions: scan(transitions, portion))

    async def workers(self) -> list[SessionRecord]:
        return await self._broker.look(session_records)

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return await self._broker.call(Durability.FULL, lambda transitions: [_redo(transitions, transitions.job(job_id)) for job_id in ids])

    async def failure_groups(self, *, queue: str | None = None, job: str | None = None, limit: int = 100) -> list[FailureGroupRecord]:
        return await self._broker.look(lambda transitions: failure_groups(transitions, queue, job, limit))

    async def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        """Read the ids in portions, because the index gives only the numbers of the rows, and reading all of these takes long."""
        ids, seqs = list[bytes](), await self._broker.look(lambda transitions: _failed_seqs(transitions, fingerprint))
        for first in range(0, len(seqs), _IDS_AT_ONCE):
            packed = json.dumps(seqs[first : first + _IDS_AT_ONCE])
            ids += await self._broker.look(lambda transitions: _ids_of_failed(transitions, packed))  # noqa: B023 - it is called at once
        return ids

    async def purge(self, view: View, *, limit: int = 1_000) -> int:
        return await self._broker.call(Durability.FULL, lambda transitions: purge(transitions, view, limit))

    async def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        return await self._broker.call(Durability.FULL, lambda transitions: [_drop(transitions, transitions.job(job_id)) for job_id in ids])

    async def pause(self, queue: str) -> None:
        await self._broker.call(Durability.FULL, lambda transitions: pause(transitions, queue))

    async def resume(self, queue: str) -> None:
        await self._broker.call(Durability.FULL, lambda transitions: resume(transitions, queue))

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        return await self._broker.look(lambda transitions: schedule_records(transitions, names))

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        return await self._broker.call(Durability.FULL, lambda transitions: amend_schedule(transitions, name, amendment))

    async def record_act(self, act: Act) -> None:
        await self._broker.call(Durability.FULL, lambda transitions: record_act(transitions, act))

    async def acts(self, *, before: int | None = None, limit: int = 100) -> list[ActRecord]:
        return await self._broker.look(lambda transitions: act_records(transitions, before, limit))

    async def metrics(self) -> Metrics:
        return await self._broker.look(metrics)

    async def examine(self) -> list[Finding]:
        return await self._broker.look(examine)


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


def act_records(transitions: Transitions, before: int | None, limit: int) -> list[ActRecord]:
    rows = transitions.connection.execute(transitions.sql["acts"], (LATEST if before is None else before, max(0, limit)))
    return [act_record_of(*row) for row in rows]


def failure_groups(transitions: Transitions, queue: str | None, job: str | None, limit: int) -> list[FailureGroupRecord]:
    """Count the failed jobs. Other programs may have changed what the rows contain."""
    from taskflow.broker.failure_parts import FailurePart, failure_groups_of, moment

    names = numbers_of(transitions, queue, job)
    if names is None:
        return []
    of_queue, of_job = names
    wanted = (of_queue, of_queue, of_job, of_job, max(0, limit), *[of_queue] * 4)
    parts = list[FailurePart]()
    for cause, number, n, first_at, last_at, last_id in transitions.connection.execute(transitions.sql["failure_parts"], wanted):
        name = transitions.job_names.read(number)
        name, last_id = name if isinstance(name, str) else "", last_id if isinstance(last_id, bytes) else bytes(ID_BYTES)
        parts.append(FailurePart(cause, name, n, moment(first_at), moment(last_at), last_id))
    return failure_groups_of(parts, limit)


def _failed_seqs(transitions: Transitions, fingerprint: bytes) -> list[int]:
    if fingerprint == UNKNOWN:
        [(seqs,)] = transitions.connection.execute(transitions.sql["unknown_failures"])
    else:
        [(seqs,)] = transitions.connection.execute(transitions.sql["failures_of"], (fingerprint, fingerprint + b"\xff" * MOST_BYTES))
    found: list[int] = json.loads(seqs)
    return found


def _ids_of_failed(transitions: Transitions, seqs: str) -> list[bytes]:
    [(ids,)] = transitions.connection.execute(transitions.sql["ids_of_failed"], (seqs,))
    return [*map(bytes.fromhex, json.loads(ids))]


_IDS_AT_ONCE: Final = 1_000


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
        _pages(transitions),
        _permissions(path),
        Finding("room", "ok" if free > max(size, _LITTLE_ROOM) else "problem", f"{free:,} bytes free on its disk"),
    ]


CHECKED_FOR: Final = 2.0
"""Seconds that the check of the file's pages may take. It is a read transaction, for which a checkpoint waits."""


def _pages(transitions: Transitions) -> Finding:
    """Check the structure of the file's pages, for a limited time."""
    until = time.monotonic() + CHECKED_FOR
    transitions.connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        damage = [text for (text,) in transitions.connection.execute("PRAGMA main.quick_check(1)") if text != "ok"]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise
        return Finding("pages", "note", f"no damage found within {CHECKED_FOR:g} s; `PRAGMA quick_check` in the shell of SQLite checks all")
    except sqlite3.DatabaseError as error:
        damage = [str(error)]
    finally:
        transitions.connection.set_progress_handler(None, 0)
    if damage:
        return Finding("pages", "problem", f"the file is damaged: {' '.join(damage)[:200]}; restore a backup, or `.recover` it")
    return Finding("pages", "ok", "quick_check found no damage")


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


def purge(transitions: Transitions, view: View, limit: int) -> int:
    parameters = matching(transitions, view, view.statuses)
    if parameters is None:
        return 0
    statement, *tag = ["to_purge"] if view.tag is None else ["to_purge_with_tag", view.tag]
    seqs = transitions.connection.execute(transitions.sql[statement], (*tag, *parameters, max(0, limit))).fetchall()
    has_subscriber, _ = transitions.has_end_subscriber()
    return sum(_purge_one(transitions, transitions.job_by_seq(seq), has_subscriber) for (seq,) in sorted(seqs))  # in order of arrival


def _purge_one(transitions: Transitions, job: JobRow | None, has_subscriber: bool) -> bool:
    if job is None or job.status in (None, Status.RUNNING):
        return False
    if job.status.is_waiting:
        transitions.finish(job, Event.CANCEL, Status.CANCELLED, wording.PURGED, keep=PURGED_FOR)
        if has_subscriber:
            return True
    transitions.bury(job)
    return True


def _drop(transitions: Transitions, job: JobRow | None) -> Status | None:
    if job is None or not job.is_kept(transitions.now):
        return None
    found = job.status
    if found is not None and found.is_ended:
        transitions.bury(job)
    return found


def pause(transitions: Transitions, queue: str) -> None:
    transitions.connection.execute(transitions.sql["pause_queue"], (queue,))


def resume(transitions: Transitions, queue: str) -> None:
    transitions.connection.execute(transitions.sql["resume_queue"], (queue,))
    transitions.tally.flush()
    transitions.announcement.ready[queue] += transitions.ready_in(queue)


def record_act(transitions: Transitions, act: Act) -> None:
    transitions.connection.execute(transitions.sql["record_act"], (act.id, transitions.now, pack_act(act)))
    transitions.connection.execute(transitions.sql["drop_acts"], (transitions.rules.most_acts,))
