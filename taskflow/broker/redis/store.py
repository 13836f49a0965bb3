"""The store of records on Redis. It knows none of the rules for jobs: see `taskflow/broker/engine/seam.py`."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol

from taskflow.broker.engine.records import Index, Kind
from taskflow.broker.engine.seam import (
    ABSENT,
    Answer,
    Apply,
    Claimed,
    Effect,
    Ended,
    Entry,
    Faded,
    Group,
    HandedOver,
    Put,
    Query,
    Record,
    Ref,
    Rev,
    Run,
    Scan,
    Snapshot,
    Step,
    dispatch,
    refuse_repeated,
)
from taskflow.broker.redis.connections import Command
from taskflow.broker.redis.layout import (
    BY_NAME,
    GROUPS_AT_ONCE,
    MEMBERS,
    behind,
    bounds,
    id_at,
    number_in,
    position_bytes,
    split,
    text_bytes,
    texts_in,
)
from taskflow.broker.redis.packing import (
    MAX_ENDED,
    Grouped,
    Steps,
    answer_of,
    is_possible,
    pack,
    packed_envelopes,
    packed_limited,
    packed_runs,
)
from taskflow.broker.redis.records import INLINE, INLINE_RESULT, UNREADABLE, Contents, ahead, record_of
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerError, StoreFull
from taskflow.model.ids import id_text

log: Final = logging.getLogger("taskflow")

_MISSING: Final = b"MISSING"
"""A script's reply if content that was sent ahead has disappeared."""

_ANY_SIZE: Final = 1 << 40


class Call(Protocol):
    def __call__(
        self, name: str, arguments: bytes, *, ahead: Sequence[Command] = (), on_disk: bool = False
    ) -> Coroutine[Any, Any, Any]: ...


class RedisStore:
    """Runs the store's methods as scripts.

    `steady`   returns a test clock's steady time, or None to use the server's
    `lost`     returns the error for contents that the server lost before their call arrived
    `on_disk`  True to wait until new jobs and schedules are on the server's disk
    """

    def __init__(
        self,
        call: Call,
        contents: Contents,
        steady: Callable[[], int | None],
        lost: Callable[[], Awaitable[BrokerError]],
        *,
        on_disk: bool = False,
    ) -> None:
        self._call, self.contents, self._steady, self._lost, self._on_disk = call, contents, steady, lost, on_disk

    async def perform(self, effect: Effect) -> Any:
        """Perform a store call that an operation yielded, and return the answer."""
        return await dispatch(self, effect)

    async def query(self, query: Query, awaited: Sequence[bytes] = (), listener: str = "") -> Snapshot:
        """Answer a query, and register `listener` for the ends of the jobs in `awaited` that have not ended."""
        return (await self.look(query, awaited, listener))[0]

    async def look(
        self, query: Query, awaited: Sequence[bytes] = (), listener: str = "", max_kept: int | None = None
    ) -> tuple[Snapshot, bool]:
        """Answer a query, after storing jobs that it finds unreadable as FAILED. If `max_kept` is given, the query is for upkeep: it also
        registers `listener` for the next due time, nudges listeners again for READY jobs, and returns True if `fade` has work."""
        for_upkeep: Any = max_kept is not None and max_kept
        reply = await self._call("query", pack([*packed_query(query), list(awaited), listener, for_upkeep]))
        seen = await self._snapshot_of(query, reply)
        if damaged := unreadable_in(seen):
            await self._set_aside([value for job_id in damaged for value in (job_id, False)])
            reply = await self._call("query", pack([*packed_query(query), [], "", for_upkeep]))
            seen = await self._snapshot_of(query, reply)
        return seen, bool(reply[6])

    async def _snapshot_of(self, query: Query, reply: Sequence[Any]) -> Snapshot:
        """Decode the answer to a query, and read the groups that the script did not reach."""
        seen = await snapshot_of(query, reply, self._steady(), self.contents)
        for (name, prefix), groups, portion in zip(query.groups, seen.groups, reply[4], strict=True):
            index, member = BY_NAME[name], MEMBERS[name]
            while index.listed and len(portion) >= 3 * GROUPS_AT_ONCE:
                more = _packed_groups(name, prefix)
                more[1] = behind(position_bytes(member, split(member, portion[-3])[0][: index.groups]))
                portion = (await self._call("query", pack([[], [], [more], False, [], "", False])))[4][0]
                groups += _groups(index, prefix, portion)
        return seen

    async def _set_aside(self, found: Sequence[Any]) -> None:
        """Replace unreadable jobs with FAILED ones. In `found`, each id is followed by the queue in which the job was READY, or False."""
        jobs = ", ".join(map(id_text, found[::2]))
        log.error("jobs became unreadable because another program changed them; storing them as FAILED: %s", jobs)
        await self._call("aside", pack(found))

    async def apply(self, apply: Apply) -> tuple[list[Answer], Snapshot | None]:
        refuse_repeated(apply.steps)
        if not apply.steps:
            return [], None if apply.then is None else await self.query(apply.then)
        steps, (answers, reply) = await self._apply(apply.steps, grows=apply.grows, then=apply.then)
        seen = None if apply.then is None else await self._snapshot_of(apply.then, reply)
        return [answer_of(answer, steps) for answer in answers], seen

    async def _apply(self, given: Sequence[Step], *, grows: bool, then: Query | None) -> tuple[Steps, Any]:
        rev = new_rev()
        steps = Steps(given, rev, INLINE)
        query: Any = False if then is None else packed_query(then)
        script = "grow" if grows else "apply"
        try:
            reply = await self._call(
                script,
                pack([*steps.arguments(), query]),
                ahead=ahead(self.contents.prefix, steps.contents),
                on_disk=self._on_disk and (grows or _defines(given)),
            )
        except StoreFull:
            await self.contents.forget(steps.contents)
            if grows or not steps.contents:
                raise
            reply = _MISSING
        if reply == _MISSING and not grows:  # a full server accepts contents within the call itself
            steps = Steps(given, rev, _ANY_SIZE)
            reply = await self._call(script, pack([*steps.arguments(), query]), ahead=ahead(self.contents.prefix, steps.contents))
        if reply == _MISSING:
            raise await self._lost()
        return steps, reply

    async def claim(
        self, session: bytes, request: int, queues: Sequence[str], limit: int, listener: str, *, is_listed: bool
    ) -> tuple[list[bytes], bool, int] | None:
        """Lease jobs. Return their ids and records alternately, whether the server will notify the listener of new jobs, and the store's
        time. Return None if there is no such living session. Jobs found unreadable are stored as FAILED."""
        head = request.to_bytes(8, "big")
        reply = await self._call("claim", pack([new_rev(), session, request, head, list(queues), limit, listener, is_listed]))
        if reply == b"LOST":
            return None
        now, is_armed, unreadable, *leased = reply
        if unreadable:
            await self._set_aside(unreadable)
        return leased, bool(is_armed), now

    async def claimed(self, found: Sequence[bytes], now: int) -> Claimed:
        """Decode a claim's reply, and fetch the contents that are stored separately."""
        records = [record_of(Kind.JOB, found[at], found[at + 1], with_content=True) for at in range(0, len(found), 2)]
        return Claimed(await self.contents.fill(records), now)

    async def add_plain(self, envelopes: Sequence[Envelope]) -> bool:
        """Add plain jobs. If the script can't add them, or one of them is known, add none and return False."""
        rev = new_rev()
        plain = packed_envelopes(envelopes, rev)
        if plain is None:
            return False
        runs, contents = plain
        return await self._call_growing("add", [rev, list(contents), *runs], contents) is None

    async def _call_growing(self, script: str, arguments: list[Any], contents: dict[bytes, bytes]) -> Any:
        """Run a script that a full server refuses as a whole, with StoreFull. In that case, delete the contents that were sent ahead."""
        try:
            reply = await self._call(script, pack(arguments), ahead=ahead(self.contents.prefix, contents), on_disk=self._on_disk)
        except StoreFull:
            await self.contents.forget(contents)
            raise
        if reply == _MISSING:  # the server evicted some contents
            await self.contents.forget(contents)
        return reply

    async def add(self, jobs: Sequence[Put]) -> list[bool] | str:
        steps = Steps([Step({put.ref: ABSENT}, (put,), totals={(put.header["queue"], "enqueue"): 1}) for put in jobs], new_rev(), INLINE)
        reply = await self._call_growing("grow", [*steps.arguments(), False], steps.contents)
        if reply == _MISSING:
            raise await self._lost()
        return [answer in (b"o", b"r") for answer in reply[0]]

    async def succeed(self, runs: Sequence[Run]) -> Ended:
        answers, released = list[bool | None](), list[bytes]()
        for first in range(0, len(runs), MAX_ENDED):
            ended = await self._succeed(runs[first : first + MAX_ENDED])
            answers += ended.answers
            released += ended.released
        return Ended(answers, released)

    async def _succeed(self, runs: Sequence[Run]) -> Ended:
        possible = [run for run in runs if is_possible(run)]
        if len(possible) < len(runs):
            ended = await self._succeed(possible) if possible else Ended([])
            given = iter(ended.answers)
            return Ended([next(given) if is_possible(run) else False for run in runs], ended.released)
        places, reply = await self._end("succeed", partial(packed_runs, runs))
        answers: list[bool | None] = [None] * len(runs)
        for place, answer in zip(places, reply[0], strict=True):
            answers[place] = _ANSWERS[answer]
        return Ended(answers, reply[1:])

    async def hand_over(self, runs: Sequence[Run], gate_ids: Sequence[bytes]) -> HandedOver:
        possible = [number for number, run in enumerate(runs) if is_possible(run)]
        chosen = [runs[number] for number in possible], [gate_ids[number] for number in possible]
        places, reply = await self._end("hand_over", partial(packed_limited, *chosen))
        ended = [possible[place] for place, answer in zip(places, reply[0], strict=True) if _ANSWERS[answer]]
        return HandedOver(ended, reply[1:])

    async def _end(self, script: str, packed: Callable[[Rev, int], Grouped]) -> tuple[list[int], Any]:
        """Run a script that ends runs. Return the places of the runs among the answers, and the reply."""
        rev = new_rev()
        groups, places, contents = packed(rev, INLINE_RESULT)
        try:
            reply = await self._call(script, pack([rev, list(contents), *groups]), ahead=ahead(self.contents.prefix, contents))
        except StoreFull:
            await self.contents.forget(contents)
            reply = _MISSING
        if reply == _MISSING:  # a full server accepts contents within the call itself
            groups, places, contents = packed(rev, _ANY_SIZE)
            reply = await self._call(script, pack([rev, list(contents), *groups]), ahead=ahead(self.contents.prefix, contents))
        if reply == _MISSING:
            raise await self._lost()
        return places, reply

    async def promote(self, limit: int) -> tuple[int, int | None]:
        moved, next_due = await self._call("promote", pack([new_rev(), max(0, limit)]))
        return moved, None if next_due is None else number_in(next_due)

    async def fade(self, limit: int, max_kept: int, repeat_for: int) -> Faded:
        buried, has_more, left = await self._call("fade", pack([new_rev(), limit, max_kept, repeat_for]))
        return Faded(buried, bool(has_more), {Ref(Kind.JOB, each[1:]): each[:1] == b"t" for each in left})


_ANSWERS: Final = {ord("o"): True, ord("s"): False, ord("t"): None}


def new_rev() -> bytes:
    """Return a new revision, which is random."""
    return os.urandom(8)


def _defines(steps: Sequence[Step]) -> bool:
    return any(put.ref.kind == Kind.SCHEDULE for step in steps for put in step.puts)


# --- queries ---------------------------------------------------------------------------------------------------


def packed_query(query: Query) -> list[Any]:
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
    begin = b"\xff" if None in prefix else position_bytes(MEMBERS[name], prefix) if index.listed else b""  # positions contain no None
    return [name, begin, behind(begin), texts_in(index), index.counted]


async def snapshot_of(query: Query, reply: Sequence[Any], steady: int | None, contents: Contents) -> Snapshot:
    """Decode the answer to a query. Unless it is None, `steady` replaces the server's steady time."""
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
    """Replace the references in all of these records with the contents, which are fetched together."""
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
        if not scan.with_records:
            entries.append(Entry(position, Ref(kind, record_id), None))
        elif at + 1 < len(found) and found[at + 1] is not None:  # otherwise another program has removed the record
            record = record_of(kind, record_id, found[at + 1], with_content=with_content)
            entries.append(Entry(position, record.ref, record))
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
