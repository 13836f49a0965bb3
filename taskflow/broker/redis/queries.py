"""Packs queries for the scripts, and decodes their answers: see query.lua."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskflow.broker.engine.records import Index, Kind
from taskflow.broker.engine.seam import Entry, Group, Query, Record, Ref, Scan, Snapshot
from taskflow.broker.redis.contents import Contents
from taskflow.broker.redis.layout import BY_NAME, MEMBERS, behind, bounds, id_at, position_bytes, split, text_bytes, texts_in
from taskflow.broker.redis.records import UNREADABLE, record_of


def packed_query(query: Query) -> list[Any]:
    """Return a query as the scripts take it."""
    refs = [value for ref in query.refs for value in ref]
    return [refs, [_packed_scan(scan) for scan in query.scans], [_packed_groups(*each) for each in query.groups], query.with_totals]


def _packed_scan(scan: Scan) -> list[Any]:
    index = BY_NAME[scan.of]
    least, ends = bounds(scan.of, scan.prefix, scan.after, scan.until, backwards=scan.backwards)
    only = scan.prefix[0] if scan.prefix and scan.of in ("ready", "leases") else False
    limit = max(0, scan.limit)
    if not (least < ends or ends == b""):
        limit = 0
    head = text_bytes(only) if isinstance(only, str) else only
    return [scan.of, least, ends, scan.backwards, limit, scan.with_records, index.kind, id_at(scan.of), head]


def _packed_groups(name: str, prefix: tuple[Any, ...]) -> list[Any]:
    index = BY_NAME[name]
    begin = b"\xff" if None in prefix else position_bytes(MEMBERS[name], prefix) if index.listed else b""  # no position has None
    return [name, begin, behind(begin), texts_in(index), 0, index.counted]


async def snapshot_of(query: Query, reply: Sequence[Any], steady: int | None, contents: Contents) -> Snapshot:
    """Decode the answer to a query. `steady` replaces the server's clock."""
    now, its_steady, stored, scanned, grouped, totals, *_ = reply
    with_content = query.with_content
    records: dict[Ref, Record | None] = dict.fromkeys(query.refs)
    for ref, its in zip(query.refs, stored, strict=False):
        if its is not None:
            records[ref] = record_of(*ref, its, with_content=with_content)
    scans = tuple([_entries(scan, found, with_content) for scan, found in zip(query.scans, scanned, strict=True)])
    if with_content:
        records, scans = await _filled(records, scans, contents)
    groups = tuple([_groups(BY_NAME[name], prefix, found) for (name, prefix), found in zip(query.groups, grouped, strict=True)])
    events = {_event_of(name): int(number) for name, number in zip(totals[::2], totals[1::2], strict=True)}
    return Snapshot(now, its_steady if steady is None else steady, b"", records, scans, groups, events)


def unreadable_in(seen: Snapshot) -> list[bytes]:
    """Return the ids of the jobs that cannot be read at all."""
    found = [record for record in seen.records.values() if record is not None]
    found += [entry.record for entries in seen.scans for entry in entries if entry.record is not None]
    return list(
        {
            each.ref.id: None
            for each in found
            if each.ref.kind == Kind.JOB and each.damage is not None and each.damage.startswith(UNREADABLE)
        }
    )


async def _filled(
    records: dict[Ref, Record | None], scans: tuple[list[Entry], ...], contents: Contents
) -> tuple[dict[Ref, Record | None], tuple[list[Entry], ...]]:
    """Put contents in the place of references."""
    all_records = [record for record in records.values() if record is not None]
    all_records += [entry.record for entries in scans for entry in entries if entry.record is not None]
    filled = await contents.fill(all_records)
    if all(one is other for one, other in zip(filled, all_records, strict=True)):
        return records, scans
    by_ref = {record.ref: record for record in filled}
    return (
        {ref: record and by_ref[ref] for ref, record in records.items()},
        tuple([[entry._replace(record=entry.record and by_ref[entry.ref]) for entry in entries] for entries in scans]),
    )


def _entries(scan: Scan, found: Sequence[Any], with_content: bool) -> list[Entry]:
    member, kind = MEMBERS[scan.of], BY_NAME[scan.of].kind
    entries = list[Entry]()
    for at in range(0, len(found), 2 if scan.with_records else 1):
        position, record_id = split(member, found[at])
        record = None
        if scan.with_records:
            if at + 1 >= len(found) or found[at + 1] is None:
                continue  # another program has removed the record
            record = record_of(kind, record_id, found[at + 1], with_content=with_content)
        entries.append(Entry(position, Ref(kind, record_id), record))
    return entries


def _event_of(name: bytes) -> tuple[str, str]:
    event, _, queue = name.partition(b":")
    return queue.decode(errors="backslashreplace"), event.decode(errors="backslashreplace")


def _groups(index: Index, prefix: tuple[Any, ...], found: Sequence[Any]) -> list[Group]:
    groups = list[Group]()
    if not index.listed:
        for name, number in zip(found[::2], found[1::2], strict=True):
            place = (name[1:].decode(errors="backslashreplace"), name[0] - ord("0"))
            if int(number) > 0 and place[: len(prefix)] == prefix:
                groups.append(Group(place, int(number), None, None))
        return sorted(groups)
    member = MEMBERS[index.name]
    for first, last, size in zip(found[::3], found[1::3], found[2::3], strict=True):
        position = split(member, first)[0]
        if position[: len(prefix)] == prefix:
            last_position = split(member, last)[0] if index.counted else None
            groups.append(Group(position[: index.groups], size, position, last_position))
    return groups
