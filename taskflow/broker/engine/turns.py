"""Turns: tenants that share a line take turns, however many jobs each tenant has sent.

A line contains jobs of one priority: the READY jobs of a queue, or the jobs that wait at a gate. It's ordered by `due_at`. For a job with a
tenant, `due_at` is a place instead of a time: the place of the line's first job, or the next place after the tenant's last job if that is
later. So the n-th jobs of all tenants are next to each other. In a line without such jobs, places begin at the current time.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from taskflow.broker.engine.draft import Draft, Plain, decide
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import After, Operation, Query, Record, Ref, Scan, Snapshot
from taskflow.model.clock import MICROSECONDS
from taskflow.model.limits import GATE_ID_BYTES
from taskflow.model.rules import Rules

MAX_FORGOTTEN: Final = 500
IDLE_TTL: Final = 60 * MICROSECONDS
"""The minimum time in microseconds for which a tenant's place is kept after its last use."""

Line = tuple[str, str | bytes, int]
"""The index that contains a line's jobs, and the beginning of their positions: the queue or the gate, and the negated priority."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[str, Any, int]).decode


def line_of(queue: str, priority: int) -> Line:
    return "fair", queue, -priority


def first_of(line: Line) -> Scan:
    return Scan(line[0], 1, line[1:], with_records=False)


def turn_ref(line: Line, tenant: bytes) -> Ref:
    return Ref(Kind.TURN, hashlib.sha256(_encode((line, tenant))).digest()[:GATE_ID_BYTES])


def take(draft: Draft, job: Job, line: Line) -> None:
    """Give a job with a tenant its place in a line. A job that comes back from a worker keeps its old place, but never gets ahead of the
    line's first job."""
    header, tenant, scan = job.header, job.extra("fair"), first_of(line)
    if tenant is None:  # another program has changed it
        return
    ref = turn_ref(line, tenant)
    draft.require([ref], heads=[scan])
    first = draft.head(scan)
    place: int = draft.now if first is None else first.position[2]
    if header.get("since") is not None:
        due_at = header["due_at"]
        header["due_at"] = draft.now if isinstance(due_at, After) else due_at if first is None else max(due_at, place)
        return
    turn = draft.plain(*ref) or Plain(ref, {}, _encode(line))
    turn.header = {"place": max(place, turn.header.get("place", 0) + 1), "used_at": draft.now}
    draft.put(turn)
    header["due_at"], header["since"] = turn.header["place"], draft.now


def forget(rules: Rules) -> Operation[None]:
    """Drop the records of tenants that have been idle for `IDLE_TTL`, and whose line is empty or has moved past their last place."""
    seen: Snapshot = yield Query(scans=(Scan("turns", MAX_FORGOTTEN),))
    idle = {entry.ref: _line_in(entry.record) for entry in seen.scans[0] if entry.position[0] < seen.now - IDLE_TTL}
    lines = {line for line in idle.values() if line is not None}
    heads: Snapshot = yield Query(scans=tuple(map(first_of, lines)))
    places = {line: entries[0].position[2] for line, entries in zip(lines, heads.scans, strict=True) if entries}

    def one(draft: Draft, ref: Ref) -> None:
        turn, line = draft.plain(*ref), idle[ref]
        if turn is not None and line in places and turn.header["place"] >= places[line]:
            turn.header["used_at"] = draft.now
            draft.put(turn)
        elif turn is not None:
            draft.drop(ref)

    yield from decide(list(idle), one, rules, Query(tuple(idle)), locked=None)


def _line_in(record: Record | None) -> Line | None:
    """Return the line of a tenant's record, or None if another program has written something else."""
    try:
        of, line, rank = _decode(record.state if record is not None and record.state is not None else b"")
    except msgspec.MsgspecError:
        return None
    return (of, line, rank) if (of == "fair" and isinstance(line, str)) or (of == "gated" and isinstance(line, bytes)) else None
