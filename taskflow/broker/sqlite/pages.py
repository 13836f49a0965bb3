"""Reads jobs in the order of an index, for the pages of the console."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from taskflow.broker.console import View
from taskflow.broker.paging import POSITION_TYPES, Position, ScanRequest, ScanResult
from taskflow.broker.sqlite.row import JobRow
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model.clock import to_microseconds
from taskflow.model.record import CODES, ENDED, Record, Status

STORED_POSITION_TYPES: Final = {**POSITION_TYPES, Status.SCHEDULED: (int, int, int), Status.RUNNING: (bytes,)}
"""The index of scheduled jobs has the queue's number before that of arrival, and a claim is 28 bytes."""

AFTER_ALL: Final = b"\xff" * 17
"""A byte string greater than any id."""

IndexEntry = tuple[int, Any, Any]
"""The seq of a job, whether it matches the filter, and a value by which it is ordered."""

_LATEST: Final = 1 << 62
_ABOVE_ALL: Final = b"\xff" * 8
"""Sorts after every priority. One that was damaged may be text or bytes, which SQLite sorts after all numbers."""


def scan(transitions: Transitions, request: ScanRequest) -> ScanResult:
    found = _scan(transitions, request)
    return _scan(transitions, request) if transitions.has_repaired else found  # repairing may have changed the order


def _scan(transitions: Transitions, request: ScanRequest) -> ScanResult:
    parameters = matching(transitions, request.view, request.view.statuses if request.status is None else (request.status,))
    if parameters is None:
        return ScanResult([], 0, None, transitions.now)
    listed, examined, last = list[tuple[Record, Position]](), 0, None
    for seq, is_match, _ in _READERS[request.status](transitions, request, parameters):
        examined, last = examined + 1, seq
        if is_match and (job := transitions.job_by_seq(seq)) is not None and job.status is not None:
            listed.append((transitions.record(job), _position_of(transitions, job, request.status)))
        if len(listed) == request.limit or examined == request.most:
            break
    else:
        last = None
    job = None if last is None else transitions.job_by_seq(last)
    return ScanResult(listed, examined, None if job is None else _position_of(transitions, job, request.status), transitions.now)


def numbers_of(transitions: Transitions, queue: str | None, job: str | None) -> tuple[int | None, int | None] | None:
    """Return the numbers of a queue's and a job's name, None where none is given; or None if a name is unknown."""
    queue_number = None if queue is None else transitions.queues.find(queue)
    job_number = None if job is None else transitions.job_names.find(job)
    if (queue is not None and queue_number is None) or (job is not None and job_number is None):
        return None
    return queue_number, job_number


def matching(transitions: Transitions, view: View, statuses: Sequence[Status]) -> tuple[object, ...] | None:
    """Return the parameters of `matching`, or None if a name is unknown and so nothing can match."""
    numbers = numbers_of(transitions, view.queue, view.job)
    if numbers is None:
        return None
    queue, job = numbers
    ended_at = None if view.ended_before is None else transitions.now - to_microseconds(view.ended_before)
    poison = 1 if view.poison else None
    codes = json.dumps([CODES[status] for status in statuses]) if statuses else None
    twice = [value for each in (queue, job, ended_at, poison, codes) for value in (each, each)]
    return (transitions.now, *twice)


def _position_of(transitions: Transitions, job: JobRow, status: Status | None) -> Position:
    if status is None:
        return (job.id,)
    if status is Status.HELD:
        return (job.seq,)
    if status is Status.SCHEDULED:
        return (job.due_at, job.queue, job.seq)
    if status is Status.READY:
        return (transitions.queues.name(job.queue), job.priority, job.due_at, job.seq)
    if status is Status.RUNNING:
        return (job.claim or b"",)
    return (job.ended_at or 0, job.seq)


# --- readers --------------------------------------------------------------------------------------------------


def _rows(transitions: Transitions, name: str, *parameters: object) -> Iterator[IndexEntry]:
    """Yield rows, reading no more of the index than the caller takes. A job whose order cannot be read is repaired."""
    for row in transitions.connection.execute(transitions.sql[name], parameters):
        if type(row[2]) in (int, bytes):
            yield row
        else:
            transitions.job_by_seq(row[0])


def _held(transitions: Transitions, request: ScanRequest, matching: tuple[object, ...]) -> Iterator[IndexEntry]:
    return _rows(transitions, "page_held", *matching, *(request.after or (-_LATEST,)), request.most)


def _scheduled(transitions: Transitions, request: ScanRequest, matching: tuple[object, ...]) -> Iterator[IndexEntry]:
    return _rows(transitions, "page_scheduled", *matching, *(request.after or (-1, -1, -1)), request.most)


def _running(transitions: Transitions, request: ScanRequest, matching: tuple[object, ...]) -> Iterator[IndexEntry]:
    return _rows(transitions, "page_running", *matching, *(request.after or (b"",)), request.most)


def _tagged(transitions: Transitions, request: ScanRequest, matching: tuple[object, ...]) -> Iterator[IndexEntry]:
    return _rows(transitions, "page_tag", *matching, request.view.tag, *(request.after or (AFTER_ALL,)), request.most)


def _ready(transitions: Transitions, request: ScanRequest, matching: tuple[object, ...]) -> Iterator[IndexEntry]:
    begin, *after = request.after or ("",)
    for number, name in _queues(transitions, request.view.queue):
        priority, *position = after if name == begin and after else (_ABOVE_ALL, -1, 0)
        while name >= str(begin) and priority is not None:
            yield from _rows(transitions, "page_ready", *matching, number, priority, *position, request.most)
            [(priority,)] = transitions.connection.execute(transitions.sql["next_priority"], (number, priority))
            position = [-1, 0]


def _ended(transitions: Transitions, request: ScanRequest, matching: tuple[object, ...]) -> Iterator[IndexEntry]:
    """Yield the jobs of all queues in the order of their ends, each queue's from its own part of the index."""
    name = "page_failed" if request.status is Status.FAILED else "page_done"
    after = request.after or (_LATEST, 0)
    each = [_rows(transitions, name, *matching, number, *after, request.most) for number, _ in _queues(transitions, request.view.queue)]
    return heapq.merge(*each, key=lambda row: (row[2], row[0]), reverse=True)


def _queues(transitions: Transitions, only: str | None) -> list[tuple[int, str]]:
    if only is not None:
        number = transitions.queues.find(only)
        return [] if number is None else [(number, only)]
    numbers = transitions.connection.execute(transitions.sql["used_queues"]).fetchall()
    return sorted([(number, transitions.queues.name(number)) for (number,) in numbers], key=lambda queue: queue[1])


_READERS: Final[Mapping[Status | None, Callable[[Transitions, ScanRequest, tuple[object, ...]], Iterator[IndexEntry]]]] = {
    Status.HELD: _held,
    Status.SCHEDULED: _scheduled,
    Status.READY: _ready,
    Status.RUNNING: _running,
    **dict.fromkeys(ENDED, _ended),
    None: _tagged,
}
