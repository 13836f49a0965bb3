"""The console operations of the PostgreSQL broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg

from taskflow.broker.console import FailureGroupRecord, Finding, Metrics, Page, QueueRecord, Redone, View
from taskflow.broker.paging import Position, ScanRequest, ScanResult, page
from taskflow.broker.postgres import rows, schedules
from taskflow.broker.postgres.function_caller import FunctionCaller
from taskflow.broker.postgres.session import record_of_session
from taskflow.model.audit import Act, ActRecord, act_record_of, pack_act
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.failure_cause import MOST_BYTES
from taskflow.model.record import BY_CODE, CODES, ENDED, Status
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord


class PostgresConsole:
    """The console of a PostgreSQL store. Implements `taskflow.broker.console.Console`."""

    def __init__(self, broker: FunctionCaller) -> None:
        self._broker = broker

    async def queues(self) -> list[QueueRecord]:
        given = self._broker.wall()
        wall = given or (await self._broker.call_one("wall", None))["wall"]
        found = await self._broker.call("queues", *([] if given is None else [given]))
        return sorted((_queue_record(row, wall) for row in found), key=lambda record: record.name)

    async def page(self, view: View, *, cursor: str | None = None, limit: int = 100) -> Page:
        return await page(self._scan, view, cursor, limit)

    async def _scan(self, request: ScanRequest) -> ScanResult:
        view, status = request.view, request.status
        statuses = view.statuses if status is None else (status,)
        after_queue, after_id, after = _parts(request.after or ())
        found = await self._broker.call(
            "page",
            self._broker.wall(),
            *_filter(view, statuses),
            None if status is None else CODES[status],
            view.tag,
            *(after_queue, after_id, after),
            *(request.limit, request.most),
            columns=rows.PAGE_COLUMNS,
        )
        last = found[-1]
        return ScanResult(
            listed=[(rows.record_of(row), _position_of(row, status)) for row in found if row["is_listed"]],
            examined=last["examined"],
            end=None if last["id"] is None else _position_of(last, status),
            now=last["now_at"],
        )

    async def workers(self) -> list[SessionRecord]:
        found = await self._broker.call("workers", *self._broker.times())
        return sorted(map(record_of_session, found), key=lambda record: (record.session.name, record.session.id))

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        if not ids:
            return []
        row = await self._broker.call_one("redo", self._broker.wall(), list(ids))
        return [Redone[answer] for answer in row["answers"]]

    async def failure_groups(self, *, queue: str | None = None, job: str | None = None, limit: int = 100) -> list[FailureGroupRecord]:
        from taskflow.broker.failure_parts import FailurePart, failure_groups_of

        found = await self._broker.call("failure_parts", queue, job, max(0, limit))
        return failure_groups_of((rows.fields_of(FailurePart, row) for row in found), limit)

    async def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return [row["failed_ids"] for row in await self._broker.call("failed_ids", fingerprint, fingerprint + b"\xff" * MOST_BYTES)]

    async def purge(self, view: View, *, limit: int = 1_000) -> int:
        row = await self._broker.call_one("purge", self._broker.wall(), *_filter(view, view.statuses), max(0, limit), view.tag)
        purged: int = row["purged"]
        return purged

    async def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        if not ids:
            return []
        row = await self._broker.call_one("drop", self._broker.wall(), list(ids))
        return [BY_CODE.get(code) for code in row["statuses"]]

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

    async def record_act(self, act: Act) -> None:
        await self._broker.call("record_act", self._broker.wall(), act.id, pack_act(act))

    async def acts(self, *, before: int | None = None, limit: int = 100) -> list[ActRecord]:
        return [act_record_of(*row) for row in await self._broker.call("acts", before, max(0, limit))]

    async def metrics(self) -> Metrics:
        totals: dict[str, dict[str, int]] = {}
        for row in await self._broker.call("metrics"):
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


def _filter(view: View, statuses: Sequence[Status]) -> list[object]:
    return [
        view.queue,
        view.job,
        [CODES[status] for status in statuses] or None,
        None if view.ended_before is None else to_microseconds(view.ended_before),
        view.poison,
    ]


def _parts(position: Position) -> tuple[str | None, bytes | None, list[int] | None]:
    """Return the text, the bytes and the numbers of a position, as page() takes them."""
    text = next((value for value in position if isinstance(value, str)), None)
    octets = next((value for value in position if isinstance(value, bytes)), None)
    return text, octets, [value for value in position if isinstance(value, int)] or None


def _position_of(row: asyncpg.Record, status: Status | None) -> Position:
    position: Position = tuple(row[column] for column in _POSITION_COLUMNS[status])
    return position


_POSITION_COLUMNS: Final[Mapping[Status | None, tuple[str, ...]]] = {
    Status.HELD: ("seq",),
    Status.SCHEDULED: ("due_at", "seq"),
    Status.READY: ("queue", "priority", "due_at", "seq"),
    Status.RUNNING: ("session", "request", "number"),
    **dict.fromkeys(ENDED, ("ended_at", "seq")),
    None: ("id",),
}


def _queue_record(row: asyncpg.Record, wall: int) -> QueueRecord:
    return QueueRecord(
        name=row["name"],
        is_paused=row["is_paused"],
        counts={BY_CODE[code]: number for code, number in enumerate(row["counts"])},
        oldest_ready_for=None if row["ready_since"] is None else to_seconds(wall - row["ready_since"]),
        next_due_in=None if row["next_due"] is None else to_seconds(row["next_due"] - wall),
    )
