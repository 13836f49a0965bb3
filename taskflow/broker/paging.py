"""Reads pages of jobs: scans a view status by status, and keeps the position in a cursor. Each store scans its own indexes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.broker.admin import EXAMINED, Admin, Page, View
from taskflow.model.clock import instant_of, to_microseconds
from taskflow.model.printable import shown
from taskflow.model.record import BY_CODE, CODES, ENDED, Record, Status

Position = tuple[int | bytes | str, ...]
"""A job's position in an index: the values by which the index orders its jobs."""

POSITION_TYPES: Final[Mapping[Status | None, tuple[type, ...]]] = {
    Status.HELD: (int,),
    Status.SCHEDULED: (int, int),
    Status.READY: (str, int, int, int),
    Status.RUNNING: (bytes, int, int),
    **dict.fromkeys(ENDED, (int, int)),
    None: (bytes,),
}
"""The types of a position's values, by the status that the index covers.

HELD: arrival number. SCHEDULED: due time, arrival number. READY: queue, priority, due time, arrival number. RUNNING: session, request,
the lease's number in the answer. Ended: time of the end, arrival number. None, for a tag: id.
"""

AT_ONCE: Final = 500
"""How many jobs `pages` requests at once."""

DECODED_AT_ONCE: Final = 5
"""How many jobs are decoded before the event loop runs other tasks. A job takes about 0.1 ms."""

MAX_CHECKED: Final = 120
"""The maximum number of jobs read for a page whose conditions the store can't check. Each of these jobs has to be decoded."""


class ScanRequest(NamedTuple):
    """A request for jobs of one index of a store.

    `view`    selects the jobs; the store checks `queue`, `job`, `ended_before` and `poison`, and `statuses` if there is a tag
    `status`  the status whose jobs are scanned; None to scan the jobs with the view's tag
    `after`   the position after which to begin; None to begin with the first job
    `limit`   the maximum number of jobs to list
    `most`    the maximum number of jobs to read
    """

    view: View
    status: Status | None
    after: Position | None
    limit: int
    most: int


class ScanResult(NamedTuple):
    """The jobs that a store listed for a request.

    `listed`    jobs that match, each as a function that decodes it, with its position
    `examined`  how many jobs were read
    `end`       the position of the last job that was read; None if no jobs are left
    `now`       the store's time, in microseconds
    """

    listed: list[tuple[Callable[[], Record], Position]]
    examined: int
    end: Position | None
    now: int


Scan = Callable[[ScanRequest], Awaitable[ScanResult]]


async def page(
    scan: Scan, view: View, cursor: str | None, limit: int, types: Mapping[Status | None, tuple[type, ...]] = POSITION_TYPES
) -> Page:
    """Return up to `limit` jobs of a view, starting at the cursor, or at the first job if it's None. Raises ValueError if `limit` is below
    1, or if the cursor is damaged or belongs to another view, and TypeError if it isn't a str."""
    if limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1")
    sections: list[Status | None] = [None] if view.tag is not None else [status for status in Status if status in (view.statuses or Status)]
    begin, until, position = (sections[0], None, None) if cursor is None else _decoded(cursor, sections, types)
    most = EXAMINED if view.is_checked_by_store else min(EXAMINED, MAX_CHECKED)
    records, examined, gave_up = list[Record](), 0, False
    for status in sections[sections.index(begin) :]:
        after, position = position, None
        while True:
            if len(records) == limit or examined >= most or gave_up:
                cursor = _encoded(status, until, after)
                return Page(records=records, cursor=cursor, examined=examined, stopped_early=len(records) < limit)
            wanted = limit - len(records) if view.is_checked_by_store else most
            got = await scan(ScanRequest(view, status, after, wanted, most - examined))
            examined, after, until = examined + got.examined, got.end, got.now if until is None else until
            gave_up = after is not None and len(got.listed) < wanted
            for number, (decode, at) in enumerate(got.listed, 1):
                if number % DECODED_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if _matches(record := decode(), view, got.now, until):
                    records.append(record)
                if len(records) == limit and number < len(got.listed):
                    after = at
                    break
            if after is None:
                break
    return Page(records=records, cursor=None, examined=examined, stopped_early=False)


async def pages(admin: Admin, view: View, limit: int = AT_ONCE) -> AsyncIterator[list[Record]]:
    """Yield the jobs of a view, page by page."""
    cursor: str | None = None
    while True:
        page = await admin.page(view, cursor=cursor, limit=limit)
        if page.records:
            yield page.records
        if (cursor := page.cursor) is None:
            return


async def first(admin: Admin, view: View, most: int, limit: int = AT_ONCE) -> list[Record]:
    """Return the first `most` jobs of a view, or all if it has fewer. They are read in pages of at most `limit` jobs."""
    found = list[Record]()
    async for records in pages(admin, view, limit):
        found += records
        if len(found) >= most:
            break
    return found[:most]


def _matches(record: Record, view: View, now: int, until: int) -> bool:
    """Return True if a job meets the conditions that no store checks. Jobs added after the first page do not. If a job's time is in the
    future, the clock was set back or the time is damaged, so the job doesn't count as added later."""
    if instant_of(until) < record.created_at <= instant_of(now):
        return False
    if view.created_before is not None and record.created_at > instant_of(now - to_microseconds(view.created_before)):
        return False
    if view.header is not None:
        name, value = view.header
        if name not in record.headers or value not in (None, record.headers[name]):
            return False
    return view.error is None or view.error.casefold() in _error_of(record).casefold()


def _error_of(record: Record) -> str:
    last = record.errors[-1:]
    return "\n".join([record.reason or "", *(f"{error.type}: {error.message}" for error in last)])


# --- cursors --------------------------------------------------------------------------------------------------

_MAX_CURSOR: Final = 2_000
_MAX_TIME: Final = 2**53
_MAX_NUMBER: Final = 2**63
"""The bound on a position's numbers. It admits damaged times far in the future, because the next page may begin after such a job."""


def _encoded(status: Status | None, until: int | None, after: Position | None) -> str:
    packed = msgspec.msgpack.encode((None if status is None else CODES[status], until, after))
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


_decode: Final = msgspec.msgpack.Decoder(tuple[int | None, int | None, tuple[Any, ...] | None]).decode


def _decoded(
    cursor: str, sections: list[Status | None], types: Mapping[Status | None, tuple[type, ...]]
) -> tuple[Status | None, int | None, Position | None]:
    """Return a cursor's status, time and position. Raises TypeError if it isn't a str, ValueError if it is damaged or of another view."""
    if not isinstance(cursor, str):
        raise TypeError(f"cursor={shown(cursor)}: expected the cursor of the previous page, which is a str")
    try:
        if len(cursor) > _MAX_CURSOR:
            raise ValueError("it is too long")
        packed = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        code, until, position = _decode(packed)
        status = None if code is None else BY_CODE[code]
        if position is not None and not _is_position(position, types[status]):
            raise ValueError("its position does not fit this index")
        if until is not None and not 0 <= until < _MAX_TIME:
            raise ValueError("its time is out of bounds")
    except (ValueError, KeyError, msgspec.MsgspecError) as error:
        raise ValueError("the cursor is damaged: use the one from the previous page, unchanged") from error
    if status not in sections:
        raise ValueError("the cursor belongs to another view: use it with the filters of the previous page")
    return status, until, position


def _is_position(position: Position, types: tuple[type, ...]) -> bool:
    return tuple(map(type, position)) == types and all(
        abs(value) < _MAX_NUMBER if isinstance(value, int) else 0 < len(value) <= 400 and (isinstance(value, bytes) or "\0" not in value)
        for value in position
    )
