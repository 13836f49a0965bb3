"""Scans of jobs for pages: see `broker/paging.py`."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final

from taskflow.broker.admin import View
from taskflow.broker.engine.job import Job, claim_bytes, claim_id
from taskflow.broker.engine.records import FAILED, Flag
from taskflow.broker.engine.seam import Entry, Operation, Query, Scan, Snapshot
from taskflow.broker.paging import Position, ScanRequest, ScanResult
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import ClaimId
from taskflow.model.record import BY_CODE, CODES, ENDED, Record, Status

AT_ONCE: Final = 200
"""How many jobs are read in one round trip."""

MAX_FADED: Final = 200
"""The maximum number of jobs read in one scan that are no longer kept. Thousands may wait for maintenance, mostly in a row."""


def scan(request: ScanRequest) -> Operation[ScanResult]:
    """List up to `request.limit` jobs after `request.after` that match the view, in order. Examine at most `request.most` jobs, and
    at most `MAX_FADED` that are no longer kept."""
    listed, examined, faded, after = list[tuple[Callable[[], Record], Position]](), 0, 0, request.after
    while True:
        wanted = AT_ONCE if examined else request.limit  # if some didn't match, read more at once
        wanted = min(wanted, AT_ONCE, request.most - examined, MAX_FADED - faded)
        entries, seen, has_more = yield from _read(request, after, wanted)
        for number, entry in enumerate(entries, 1):
            examined, after = examined + 1, _shown(request.status, entry)
            assert entry.record is not None
            job = Job.of_record(entry.record)
            if _is_at(request.status, entry) and matches(job, request.view, seen.now):
                listed.append((job.to_record, after))
            faded += not job.is_kept(seen.now)
            if len(listed) == request.limit or examined == request.most or faded == MAX_FADED:
                return ScanResult(listed, examined, after if has_more or number < len(entries) else None, seen.now)
        if not has_more:
            return ScanResult(listed, examined, None, seen.now)


def _read(request: ScanRequest, after: Position | None, limit: int) -> Operation[tuple[list[Entry], Snapshot, bool]]:
    """Read the next jobs. Return their entries, the snapshot, and whether more jobs follow."""
    view, status = request.view, request.status
    if status is not None and status in _MERGED and view.queue is None:
        return (yield from _read_merged(status, after, limit))
    one_more = limit + 1
    seen: Snapshot = yield Query(scans=(_scan_of(view, status, after, one_more),), with_content=True)
    entries = [entry for entry in seen.scans[0] if status is None or BY_CODE.get(_status(entry)) is status]
    return entries[:limit], seen, len(seen.scans[0]) == one_more


def _status(entry: Entry) -> int:
    assert entry.record is not None
    code: int = entry.record.header["status"]
    return code


def _scan_of(view: View, status: Status | None, after: Position | None, limit: int) -> Scan:
    """Return a scan for the jobs of one status or one tag, starting after a page position."""
    queue = () if view.queue is None else (view.queue,)
    match status:
        case None:
            tag = view.tag or ""
            return Scan("tags", limit, (tag,), None if after is None else (tag, _flipped(after[0])), backwards=True)
        case Status.HELD:
            return Scan("held", limit, after=after)
        case Status.SCHEDULED:
            return Scan("scheduled", limit, queue, None if after is None else (*queue, *after))
        case Status.READY:
            return Scan("ready", limit, queue, after)
        case Status.RUNNING:
            return Scan("leases", limit, after=None if after is None else claim_bytes(ClaimId(*after)))  # type: ignore[arg-type]
        case _:
            prefix = (CODES[status], *queue)
            return Scan("ended", limit, prefix, None if after is None else (*prefix, *map(_negative, after)), backwards=True)


def _shown(status: Status | None, entry: Entry) -> Position:
    """Convert the position of an entry to a page position."""
    position = entry.position
    if status is None:
        return (_flipped(entry.ref.id),)
    if status is Status.RUNNING:
        return tuple(claim_id(*position))
    if status in ENDED:
        return (-position[-2], -position[-1])
    return position[-2:] if status is Status.SCHEDULED else position


def _is_at(status: Status | None, entry: Entry) -> bool:
    """Return False for an outdated entry of an ended job. Redis leaves one behind when it ends an unreadable job as FAILED."""
    record = entry.record
    assert record is not None
    return status not in ENDED or record.damage is not None or record.header["ended_at"] == entry.position[-2]


def _flipped(value: int | bytes | str) -> bytes:
    """Return bytes that sort in the reverse order."""
    assert isinstance(value, bytes)
    return bytes(255 - byte for byte in value)


def _negative(value: int | bytes | str) -> int:
    assert isinstance(value, int)
    return -value


def matches(job: Job, view: View, now: int) -> bool:
    """Return True if a job is still kept and matches the view. The view's tag isn't checked."""
    header = job.header
    before = None if view.ended_before is None else now - to_microseconds(view.ended_before)
    return (
        job.is_kept(now)
        and view.queue in (None, job.queue)
        and view.job in (None, header["job"])
        and (not view.statuses or BY_CODE[job.status] in view.statuses)
        and (before is None or (header["ended_at"] is not None and header["ended_at"] <= before))
        and (not view.poison or (job.has(Flag.POISON) and job.status == FAILED))
    )


# --- jobs of all queues ---------------------------------------------------------------------------------------

_MERGED: Final = frozenset((*ENDED, Status.SCHEDULED))


def _read_merged(status: Status, after: Position | None, limit: int) -> Operation[tuple[list[Entry], Snapshot, bool]]:
    """Like `_read`, but merge the jobs of all queues: the earliest due time first, or the latest end first."""
    counted: Snapshot = yield Query(groups=(("status", ()),))
    names = [group.prefix[0] for group in counted.groups[0] if group.prefix[1] == CODES[status]]
    behind = after if after is None or status is Status.SCHEDULED else (_negative(after[0]), _negative(after[1]))
    at_once = min(limit + 1, 2 + 2 * limit // max(1, len(names)))  # entries of each queue
    heads = yield from _heads(status, dict.fromkeys(names, behind), at_once)
    have_more = {name for name, queue in heads.items() if len(queue) == at_once}
    merged, entries = [(_order(status, queue[0]), name) for name, queue in heads.items() if queue], list[Entry]()
    heapq.heapify(merged)
    while merged and len(entries) <= limit:
        _, name = heapq.heappop(merged)
        entry = heads[name].popleft()
        entries.append(entry)
        if not heads[name] and name in have_more and len(entries) <= limit:
            missing = limit + 1 - len(entries)  # neighbours are often of one queue, because workers claim them together
            heads |= yield from _heads(status, {name: entry.position[-2:]}, missing)
            if len(heads[name]) < missing:
                have_more.discard(name)
        if heads[name]:
            heapq.heappush(merged, (_order(status, heads[name][0]), name))
    chosen = entries[:limit]
    seen: Snapshot = yield Query(tuple(entry.ref for entry in chosen), with_content=True)
    found = [Entry(entry.position, entry.ref, seen.records[entry.ref]) for entry in chosen]
    return [entry for entry in found if entry.record is not None], seen, len(entries) > limit


def _heads(status: Status, behind: dict[str, Position | None], limit: int) -> Operation[dict[str, deque[Entry]]]:
    """Return up to `limit` entries of each queue. `behind` maps a queue to the position after which to read, or to None to read from the
    start."""
    scans = list[Scan]()
    for name, after in behind.items():
        prefix = (name,) if status is Status.SCHEDULED else (CODES[status], name)
        of = "scheduled" if status is Status.SCHEDULED else "ended"
        last = None if after is None else (*prefix, *after)
        scans.append(Scan(of, limit, prefix, last, backwards=status is not Status.SCHEDULED, with_records=False))
    seen: Snapshot = yield Query(scans=tuple(scans))
    return {name: deque(entries) for name, entries in zip(behind, seen.scans, strict=True)}


def _order(status: Status, entry: Entry) -> Position:
    return entry.position[-2:] if status is Status.SCHEDULED else (-entry.position[-2], -entry.position[-1])
