"""The console operations of the PostgreSQL broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import asyncpg

from taskflow.broker.console import Finding, JobFilter, Metrics, QueueRecord, Redone
from taskflow.broker.postgres import rows, schedules
from taskflow.broker.postgres.session import record_of_session
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import BY_CODE, CODES, Record
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord


class Calls(Protocol):
    """The broker methods that the console uses."""

    async def call(self, name: str, *arguments: Any, columns: str = "*") -> list[asyncpg.Record]: ...

    async def call_one(self, name: str, *arguments: Any) -> asyncpg.Record: ...

    async def trouble_with_listening(self) -> str | None: ...

    def wall(self) -> int | None: ...

    def times(self) -> tuple[int | None, int | None]: ...


class PostgresConsole:
    """The console of a PostgreSQL store. Implements `taskflow.broker.console.Console`."""

    def __init__(self, broker: Calls) -> None:
        self._broker = broker

    async def queues(self) -> list[QueueRecord]:
        given = self._broker.wall()
        wall = given or (await self._broker.call_one("wall", None))["wall"]
        found = await self._broker.call("queues", *([] if given is None else [given]))
        return sorted((_queue_record(row, wall) for row in found), key=lambda record: record.name)

    async def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        found = await self._broker.call(
            "browse", self._broker.wall(), *_filter(job_filter), before, max(0, limit), columns=rows.RECORD_COLUMNS
        )
        return [rows.record_of(row) for row in found]

    async def workers(self) -> list[SessionRecord]:
        found = await self._broker.call("workers", *self._broker.times())
        return sorted(map(record_of_session, found), key=lambda record: (record.session.name, record.session.id))

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        if not ids:
            return []
        row = await self._broker.call_one("redo", self._broker.wall(), list(ids))
        return [Redone[answer] for answer in row["answers"]]

    async def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        row = await self._broker.call_one("purge", self._broker.wall(), *_filter(job_filter), max(0, limit))
        purged: int = row["purged"]
        return purged

    async def pause(self, queue: str) -> None:
        await self._broker.call("pause", queue)

    async def resume(self, queue: str) -> None:
        await self._broker.call_one("resume", queue)

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        return [schedules.record_of(row) for row in await self._broker.call("schedules", None if names is None else list(names))]

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        row = await self._broker.call_one("amend_schedule", self._broker.wall(), name, amendment.value)
        is_done: bool = row["is_done"]
        return is_done

    async def metrics(self) -> Metrics:
        totals: dict[str, dict[str, int]] = {}
        for row in await self._broker.call("events"):
            totals.setdefault(row["queue"], {})[row["what"]] = row["n"]
        return Metrics(totals=totals)

    async def examine(self) -> list[Finding]:
        [row] = await self._broker.call("server_info")
        trouble = await self._broker.trouble_with_listening()
        risk = next((risk for setting, risk in _RISKS.items() if row[setting] == "off"), None)
        return [
            Finding("server", "ok", f"PostgreSQL {row['version']}"),
            Finding(
                "persistence",
                "ok" if risk is None else "problem",
                "changes are on disk before they are answered" if risk is None else risk,
            ),
            Finding("wake-ups", "ok", "notifications arrive") if trouble is None else Finding("wake-ups", "note", trouble),
            Finding("room", "ok", f"the tables take {row['size']:,} bytes"),
        ]


_RISKS: Final = {
    "fsync": "fsync is off: a crash of the machine may lose or damage everything",
    "full_page_writes": "full_page_writes is off: a crash of the machine may damage everything, unless its file system writes whole pages",
    "synchronous_commit": "synchronous_commit is off: a crash of the server may lose the latest changes, although they were answered",
}


def _filter(job_filter: JobFilter) -> list[object]:
    return [
        job_filter.queue,
        job_filter.job,
        [CODES[status] for status in job_filter.statuses] or None,
        None if job_filter.ended_before is None else to_microseconds(job_filter.ended_before),
        job_filter.poison,
    ]


def _queue_record(row: asyncpg.Record, wall: int) -> QueueRecord:
    return QueueRecord(
        name=row["name"],
        is_paused=row["is_paused"],
        counts={BY_CODE[code]: number for code, number in enumerate(row["counts"])},
        oldest_ready_for=None if row["ready_since"] is None else to_seconds(wall - row["ready_since"]),
        next_due_in=None if row["next_due"] is None else to_seconds(row["next_due"] - wall),
    )
