"""The history of measures. Each worker records its measures every minute. Upkeep adds them up over one minute, ten minutes and an hour."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from taskflow.broker.engine.decisions import decide
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Operation, Query, Ref, Scan, Snapshot
from taskflow.model.clock import instant_of, microseconds_of, to_microseconds
from taskflow.model.measures import Measures, MeasuresRecord, add_up, pack_measures, unpack_measures
from taskflow.model.rules import Rules
from taskflow.model.stored_values import LATEST


class Level(NamedTuple):
    """A level of history: periods of equal length, each kept for `keep` after its end. `period` and `keep` are in seconds."""

    period: int
    keep: int


LEVELS: Final = (Level(60, 150), Level(60, 3 * 3_600), Level(600, 2 * 86_400), Level(3_600, 30 * 86_400))
"""A record of level 0 comes from a single worker. Once its time on a level is over, a record is added to the next level."""

MAX_ROLLED: Final = 64
MAX_READ: Final = 10_000
"""The maximum number of records of a level that one query reads."""


def record(record_id: bytes, measures: bytes, rules: Rules) -> Operation[None]:
    """Store a worker's measures since its last record, under the current minute. If the record already exists, change nothing."""
    ref = Ref(Kind.HISTORY, record_id)

    def one(draft: Draft, ref: Ref) -> None:
        if draft.plain(*ref) is None:
            draft.put(_period(ref, 0, draft.now, measures))

    yield from decide([ref], one, rules, [ref])


def read(since: datetime, until: datetime) -> Operation[list[MeasuresRecord]]:
    """Read the periods between two times, page by page: with thousands of workers, the last minutes have more records than one query
    reads."""
    first, last = microseconds_of(since), microseconds_of(until)
    scans = [
        Scan("history", MAX_READ, prefix=(level,), after=(level, first - to_microseconds(period)), until=(level, last))
        for level, (period, _) in enumerate(LEVELS)
    ]
    found = dict[tuple[int, int], Measures]()
    while scans:
        seen: Snapshot = yield Query(scans=tuple(scans))
        for entry in (entry for entries in seen.scans for entry in entries):
            level, at, *_ = entry.position
            period = LEVELS[level].period
            if entry.record is not None and first - to_microseconds(period) < at < last:
                measures = unpack_measures(entry.record.state)
                found[at, period] = add_up(found[at, period], measures) if (at, period) in found else measures
        full = [(scan, entries[-1]) for scan, entries in zip(scans, seen.scans, strict=True) if len(entries) == MAX_READ]
        scans = [scan._replace(after=entry.position) for scan, entry in full]
    return [
        MeasuresRecord(at=instant_of(at), seconds=period, measures=measures)
        for (at, period), measures in sorted(found.items(), key=lambda each: each[0])
        if 0 <= at <= LATEST
    ]


def roll(rules: Rules) -> Operation[None]:
    """Merge up to `MAX_ROLLED` records that have outlived their level into records of the next one. After the last level, drop them."""
    seen: Snapshot = yield Query(scans=(Scan("rolling", MAX_ROLLED),))
    sources = dict[Ref, list[Ref]]()
    for entry in seen.scans[0]:
        if entry.record is not None and entry.position[0] <= seen.now:
            level = entry.record.header["level"] + 1
            sources.setdefault(_target(level, entry.record.header["at"]), []).append(entry.ref)

    def one(draft: Draft, target: Ref) -> None:
        parts = [part for ref in sources[target] if (part := draft.plain(*ref)) is not None]
        level = target.id[0]
        if parts and 0 < level < len(LEVELS):
            known = draft.plain(*target)
            measures = unpack_measures(None if known is None else _state(known))
            for part in parts:
                add_up(measures, unpack_measures(_state(part)))
            draft.put(_period(target, level, parts[0].header["at"], pack_measures(measures)))
        for part in parts:
            draft.drop(part.ref)

    refs = [*sources, *(ref for each in sources.values() for ref in each)]
    yield from decide(list(sources), one, rules, refs, locked=False)


def _period(ref: Ref, level: int, at: int, measures: bytes) -> Plain:
    period, keep = map(to_microseconds, LEVELS[level])
    begins_at = at // period * period
    return Plain(ref, {"level": level, "at": begins_at, "rolls_at": begins_at + period + keep}, measures)


def _target(level: int, at: int) -> Ref:
    if not (0 < level < len(LEVELS) and 0 <= at <= LATEST):  # written by another program, or past the last level
        return Ref(Kind.HISTORY, b"\xff")
    period = to_microseconds(LEVELS[level].period)
    return Ref(Kind.HISTORY, bytes([level]) + (at // period).to_bytes(8, "big"))


def _state(record: Plain) -> bytes | None:
    return record.state if isinstance(record.state, bytes) else None
