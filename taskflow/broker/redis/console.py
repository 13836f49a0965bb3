"""The console operations of the Redis broker."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from taskflow.broker.console import Finding, JobFilter, Metrics, QueueRecord, Redone
from taskflow.broker.redis.fields import ID_BYTES
from taskflow.broker.redis.jobs import records_of, shown
from taskflow.broker.redis.large_payloads import LargePayloads
from taskflow.broker.redis.packing import pack, unpack
from taskflow.broker.redis.schedules import schedule_records
from taskflow.broker.redis.session import session_records
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import BY_CODE, CODES, ENDED, Record, Status
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord

PAGE: Final = 500
"""The maximum number of jobs that one script call reads, which takes the server a few milliseconds."""


PURGED_AT_ONCE: Final = 200


class RedisConsole:
    """The console of a Redis store. Implements `taskflow.broker.console.Console`.

    There is no index of all jobs, because it would add a third to the size of each job. `browse` scans the keys, a thousand at a time, or
    reads only the indexes for the statuses in the filter.
    """

    def __init__(
        self,
        call: Callable[[str, bytes], Awaitable[Any]],
        ask: Callable[..., Awaitable[Any]],
        prefix: str,
        examine: Callable[[], Awaitable[list[Finding]]],
        large_payloads: LargePayloads,
    ) -> None:
        """`call` runs a script; `ask` sends a command."""
        self._call = call
        self._ask = ask
        self._examine = examine
        self._large_payloads = large_payloads
        self._prefix = prefix.encode()
        self._rest: dict[tuple[JobFilter, bytes | None], list[_Newest]] = {}

    async def queues(self) -> list[QueueRecord]:
        rows, wall = unpack(await self._call("queues", pack([])))
        return sorted((_queue_record(row, wall) for row in rows or ()), key=lambda record: record.name)

    async def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        """Return a page of records, newest first. If the next call asks for the following page, no new scan is needed."""
        newest = self._rest.pop((job_filter, before), None)
        if newest is None:
            candidates = {job_id async for job_id in self._candidates(job_filter) if before is None or job_id < before}
            heapq.heapify(newest := [_Newest(job_id) for job_id in candidates])
        found: list[Record] = []
        while newest and len(found) < limit:
            ids = [heapq.heappop(newest).id for _ in range(min(len(newest), PAGE))]
            reply = await self._call("browse", pack([ids, _filter(job_filter), limit - len(found)]))
            records = await self._large_payloads.in_records(records_of(reply)[0])
            found += [records[job_id] for job_id in ids if job_id in records]
            for job_id in reversed(ids):  # ids beyond the limit belong to the next page
                if len(found) == limit and job_id < found[-1].id:
                    heapq.heappush(newest, _Newest(job_id))
        self._rest = {(job_filter, found[-1].id): newest} if found else {}
        return found

    async def workers(self) -> list[SessionRecord]:
        return session_records(await self._call("workers", pack([])))

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return [Redone[answer.decode()] for answer in await self._call("redo", pack([list(ids)]))]

    async def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        """Delete jobs in batches. Ids from an index are all read before the first
        job is deleted, because each deletion moves the others in the index."""
        purged = await self._purge_all(job_filter, limit)
        if purged:
            await self._call("sweep", pack([]))
        return purged

    async def _purge_all(self, job_filter: JobFilter, limit: int) -> int:
        purged, page = 0, list[bytes]()
        candidates = self._candidates(job_filter)
        if Status.READY not in _statuses(job_filter):
            candidates = _each([job_id async for job_id in candidates])
        async for job_id in candidates:
            page.append(job_id)
            if len(page) == PURGED_AT_ONCE:
                purged += await self._purge(page, job_filter, limit - purged)
                page = []
            if purged >= limit:
                return purged
        return purged + await self._purge(page, job_filter, limit - purged)

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
        return bool(await self._call("amend", pack([name, amendment.value])))

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
        return await self._examine()

    # --- candidates -------------------------------------------------------------------------------------------------

    async def _candidates(self, job_filter: JobFilter) -> AsyncIterator[bytes]:
        """Yield the ids of all jobs that may match the filter. Some may occur twice."""
        statuses = _statuses(job_filter)
        indexes = [index for index, of in _INDEXES.items() if of & statuses]
        pages = self._scan() if Status.READY in statuses else self._indexed(indexes)
        async for page in pages:
            for job_id in page:
                yield job_id

    async def _scan(self) -> AsyncIterator[list[bytes]]:
        prefix = self._prefix + b"j:"
        cursor: Any = 0
        while True:
            cursor, keys = await self._ask("SCAN", cursor, "MATCH", prefix + b"*", "COUNT", 2 * PAGE)
            yield [key[len(prefix) :] for key in keys if len(key) == len(prefix) + ID_BYTES]
            if int(cursor) == 0:
                return

    async def _indexed(self, indexes: list[str]) -> AsyncIterator[list[bytes]]:
        for index in indexes:
            place = 0
            while place >= 0:
                place, *ids = await self._call("candidates", pack([index, place, PAGE]))
                yield ids

    async def _purge(self, ids: list[bytes], job_filter: JobFilter, limit: int) -> int:
        if not ids or limit <= 0:
            return 0
        purged: int = await self._call("purge", pack([ids, _filter(job_filter), limit]))
        return purged


_INDEXES: Final = {
    "held": frozenset({Status.HELD}),
    "due": frozenset({Status.SCHEDULED}),
    "leases": frozenset({Status.RUNNING}),
    "ended": ENDED,
}


async def _each(ids: list[bytes]) -> AsyncIterator[bytes]:
    for job_id in ids:
        yield job_id


class _Newest:
    """A heap entry for a job id. The greatest id, which is the newest job's, sorts first."""

    __slots__ = ("id",)

    def __init__(self, job_id: bytes) -> None:
        self.id = job_id

    def __lt__(self, other: _Newest) -> bool:
        return self.id > other.id


def _statuses(job_filter: JobFilter) -> frozenset[Status]:
    asked = frozenset(job_filter.statuses or Status)
    if job_filter.poison or job_filter.ended_before is not None:
        asked &= ENDED
    return asked


def _filter(job_filter: JobFilter) -> list[object]:
    """Return the filter in the form that `matching` in console.lua expects."""
    return [
        job_filter.queue or False,
        job_filter.job or False,
        [CODES[status] for status in job_filter.statuses] or False,
        False if job_filter.ended_before is None else to_microseconds(job_filter.ended_before),
        job_filter.poison,
    ]


def _queue_record(row: list[Any], wall: int) -> QueueRecord:
    name, is_paused, counts, ready_since, next_due = row
    return QueueRecord(
        name=shown(name),
        is_paused=is_paused,
        counts={BY_CODE[code]: int(number) for code, number in enumerate(counts)},
        oldest_ready_for=to_seconds(wall - ready_since) if ready_since is not False else None,
        next_due_in=to_seconds(next_due - wall) if next_due is not False else None,
    )
