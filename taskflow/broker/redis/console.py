"""The console operations of the Redis broker."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Final, Protocol

from taskflow.broker.console import FailureGroupRecord, Finding, Metrics, Page, QueueRecord, Redone, View
from taskflow.broker.paging import Position, ScanRequest, ScanResult, page
from taskflow.broker.redis.connect.server import RedisTarget
from taskflow.broker.redis.connect.server_info import ServerInfo
from taskflow.broker.redis.jobs import records_of, shown
from taskflow.broker.redis.large_payloads import LargePayloads
from taskflow.broker.redis.packing import pack, unpack
from taskflow.broker.redis.schedules import schedule_records
from taskflow.broker.redis.session import session_records
from taskflow.model.audit import Act, ActRecord, act_record_of, pack_act
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.errors import BrokerRefused
from taskflow.model.failure_cause import MOST_BYTES
from taskflow.model.ids import ID_BYTES
from taskflow.model.record import BY_CODE, CODES, ENDED, Status
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord

PAGE: Final = 500
"""The maximum number of jobs that one script call reads, which takes the server a few milliseconds."""

READ_AT_ONCE: Final = 100
LISTED_AT_ONCE: Final = 25
"""The most jobs that one script reads for a page, and the most that it lists. Either takes the server half a millisecond, in which it
serves no other client (`python -m benchmarks console-pages`)."""


class Calls(Protocol):
    """The attributes and methods of the broker that the console uses."""

    server: RedisTarget
    prefix: str
    large_payloads: LargePayloads

    def call(self, name: str, arguments: bytes) -> Awaitable[Any]: ...

    async def ask(self, *command: Any) -> Any: ...

    async def server_info(self) -> ServerInfo: ...


class RedisConsole:
    """The console of a Redis store. Implements `taskflow.broker.console.Console`.

    There is no index of all jobs, because it would add a third to the size of each job. `purge` reads the index of one status after the
    other, as `page` does.
    """

    def __init__(self, broker: Calls) -> None:
        self._broker = broker
        self._call = broker.call

    async def queues(self) -> list[QueueRecord]:
        rows, wall = unpack(await self._call("queues", pack([])))
        return sorted((_queue_record(row, wall) for row in rows or ()), key=lambda record: record.name)

    async def page(self, view: View, *, cursor: str | None = None, limit: int = 100) -> Page:
        return await page(self._scan, view, cursor, limit)

    async def _scan(self, request: ScanRequest) -> ScanResult:
        view, status = request.view, request.status
        statuses = view.statuses if status is None else (status,)
        code = False if status is None else CODES[status]
        portion = min(request.limit, LISTED_AT_ONCE), min(request.most, READ_AT_ONCE)
        arguments = [_filter(view, statuses), code, view.tag or False, request.after or False, *portion]
        reply = await self._call("page", pack(arguments))
        wall, _, examined, end, places = unpack(reply[0])
        records = await self._broker.large_payloads.in_records(records_of(reply)[0])
        listed = [(records[job_id], _position(place, status)) for job_id, place in zip(reply[1::2], places, strict=True)]
        return ScanResult(listed, examined, _position(end, status) if end else None, int(wall))

    async def workers(self) -> list[SessionRecord]:
        return session_records(await self._call("workers", pack([])))

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return [Redone[answer.decode()] for answer in await self._call("redo", pack([list(ids)]))]

    async def failure_groups(self, *, queue: str | None = None, job: str | None = None, limit: int = 100) -> list[FailureGroupRecord]:
        """Count the jobs of each cell (see base.lua), some at a time, so that no call occupies the server for long."""
        from taskflow.broker.failure_parts import FailurePart, failure_groups_of, moment

        parts, after = list[FailurePart](), b""
        while cells := (reply := unpack(await self._call("failure_parts", pack([after or False, PAGE]))))[0]:
            names = {number: shown(text) for number, text in zip(reply[1][::2], reply[1][1::2], strict=True)}
            for cell, number, first, last, last_id in cells:
                of_queue, of_job = (names.get(int.from_bytes(cell[at : at + 4]), "") for at in (8, 12))
                if number and queue in (None, of_queue[2:]) and job in (None, of_job[2:]):
                    parts.append(FailurePart(cell[:8] + cell[16:], of_job[2:], number, moment(first), moment(last), last_id))
            after = cells[-1][0]
        return failure_groups_of(parts, limit)

    async def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        cells = await self._call("failure_cells", pack([fingerprint, fingerprint + b"\xff" * MOST_BYTES]))
        prefix = self._broker.prefix.encode() + b"failures:"
        return [job_id for cell in cells for job_id in await self._broker.ask("ZRANGE", prefix + cell, 0, -1)]

    async def purge(self, view: View, *, limit: int = 1_000) -> int:
        purged = 0
        async for ids in self._candidates(view):
            purged += await self._purge(ids, view, limit - purged)
            if purged >= limit:
                break
        if purged:
            await self._call("sweep", pack([]))
        return purged

    async def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        found = [BY_CODE.get(code) for code in await self._call("drop", pack([list(ids)]))]
        await self._call("sweep", pack([]))
        return found

    async def pause(self, queue: str) -> None:
        await self._call("pause", pack([queue, True]))

    async def resume(self, queue: str) -> None:
        await self._call("pause", pack([queue, False]))

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        asked = sorted(set(names)) if names is not None else await self._call("schedules", pack([False]))
        found = list[ScheduleRecord]()
        for first in range(0, len(asked), PAGE):
            found += schedule_records(await self._call("schedules", pack([asked[first : first + PAGE]])))
        return sorted(found, key=lambda record: record.name)

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        return bool(await self._call("amend_schedule", pack([name, amendment.value])))

    async def record_act(self, act: Act) -> None:
        await self._call("record_act", pack([act.id, pack_act(act)]))

    async def acts(self, *, before: int | None = None, limit: int = 100) -> list[ActRecord]:
        found = await self._call("acts", pack([before or False, limit]))
        return [_act_record(*found[i : i + 2]) for i in range(0, len(found), 2)]

    async def metrics(self) -> Metrics:
        stored, texts = unpack(await self._call("metrics", pack([])))
        names = {texts[i]: shown(texts[i + 1])[2:] for i in range(0, len(texts), 2)}
        totals: dict[str, dict[str, int]] = {}
        for i in range(0, len(stored), 2):
            queue, _, event = shown(stored[i]).partition(":")
            if (name := names.get(int(queue))) is not None:
                totals.setdefault(name, {})[event] = int(stored[i + 1])
        return Metrics(totals=totals)

    async def examine(self) -> list[Finding]:
        settings = dict[str, str]()
        with contextlib.suppress(BrokerRefused):  # managed servers forbid it
            reply = await self._broker.ask("CONFIG", "GET", "append*", "save")
            settings = {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}
        server, info = self._broker.server, await self._broker.server_info()
        return info.findings(str(server), settings=settings, is_fsync=server.fsync)

    # --- candidates -------------------------------------------------------------------------------------------------

    async def _candidates(self, view: View) -> AsyncIterator[list[bytes]]:
        """Yield the ids of all jobs that may match, some at a time. To delete them does not shift the others.

        Ended jobs come first: a purge cancels waiting ones, and while workers hear of ends it leaves these to be read.
        """
        statuses = sorted(_statuses(view) - {Status.RUNNING}, key=lambda status: (status.is_waiting, CODES[status]))
        for code in [False] if view.tag is not None else [CODES[status] for status in statuses]:
            after: Any = False
            while True:
                arguments = [code, view.tag or False, view.queue or False, after, READ_AT_ONCE]
                place, *ids = await self._call("candidates", pack(arguments))
                if not (after := unpack(place)):
                    break
                yield ids

    async def _purge(self, ids: list[bytes], view: View, limit: int) -> int:
        if not ids or limit <= 0:
            return 0
        purged: int = await self._call("purge", pack([ids, _filter(view, view.statuses), limit]))
        return purged


def _statuses(view: View) -> frozenset[Status]:
    asked = frozenset(view.statuses or Status)
    if view.poison or view.ended_before is not None:
        asked &= ENDED
    return asked


def _filter(view: View, statuses: Sequence[Status]) -> list[object]:
    """Return the filter in the form that `matcher` in console.lua expects."""
    return [
        view.queue or False,
        view.job or False,
        [CODES[status] for status in statuses] or False,
        False if view.ended_before is None else to_microseconds(view.ended_before),
        view.poison,
    ]


def _position(stored: list[Any], status: Status | None) -> Position:
    """Return a position from a script's answer, with the name of a queue as text."""
    if status is Status.READY:
        return (shown(stored[0]), *map(int, stored[1:]))
    return tuple(value if isinstance(value, bytes) else int(value) for value in stored)


def _queue_record(row: list[Any], wall: int) -> QueueRecord:
    name, is_paused, counts, ready_since, next_due = row
    return QueueRecord(
        name=shown(name),
        is_paused=is_paused,
        counts={BY_CODE[code]: int(number) for code, number in enumerate(counts)},
        oldest_ready_for=to_seconds(wall - ready_since) if ready_since is not False else None,
        next_due_in=to_seconds(next_due - wall) if next_due is not False else None,
    )


def _act_record(stored: bytes, number: bytes) -> ActRecord:
    """Decode a member of the key `acts`: the time, the act's id and its body."""
    return act_record_of(int(number) if number.isdigit() else None, int.from_bytes(stored[:8], "big"), stored[8 + ID_BYTES :])
