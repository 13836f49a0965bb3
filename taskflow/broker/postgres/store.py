"""The store of records in PostgreSQL. It knows none of the rules for jobs: see `taskflow/broker/engine/seam.py`."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from functools import cache, partial
from typing import Any, Final, NamedTuple, Protocol

from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import TABLES, Kind, Position
from taskflow.broker.engine.seam import (
    KEEP,
    Add,
    Answer,
    Applied,
    Apply,
    Claimed,
    Effect,
    Ended,
    Entry,
    Faded,
    Full,
    Group,
    HandedOver,
    Locked,
    Put,
    Query,
    Record,
    Ref,
    Run,
    Scan,
    Snapshot,
    Stale,
    Step,
    dispatch,
    refuse_repeated,
)
from taskflow.broker.postgres.changes import Changes, collapsed, trimmed
from taskflow.broker.postgres.errors import NoRoom, was_held_up
from taskflow.broker.postgres.queries import HOT_SCANS, ScanShape, hot_name, scan_sql
from taskflow.broker.postgres.rows import AT, Row, add_to_group, claim_of, leased_record, position_of, record_of
from taskflow.broker.postgres.sql_files import filled
from taskflow.broker.postgres.tables import BY_INDEX
from taskflow.model import wording
from taskflow.model.errors import BrokerError, StoreFull
from taskflow.model.ids import ID_BYTES

_CLOCK: Final = -1
_TOTALS: Final = -2
_GROUPS: Final = 1_000
"""The numbers of result parts that aren't records, and the number of the first group: see queries.py."""

_KINDS: Final = {table: kind for kind, table in TABLES.items()}

FENCE_BYTES: Final = 37
"""The length of `jobs.settled`: see succeed() in hot.sql."""


class Fetch(Protocol):
    def __call__(self, statement: str, *arguments: Any) -> Awaitable[list[Row]]: ...


class Hooks(NamedTuple):
    """The functions with which the store notifies its broker of changes.

    `readied`       the wake-ups of an operation, and the seconds that it took
    `ended`         the jobs that ended, and whether a caller awaits one of them
    `woken`         the topics to announce
    `checks_marks`  requests a check of the low-water marks
    """

    readied: Callable[[str, float], None]
    ended: Callable[[Set[bytes], bool], None]
    woken: Callable[[Set[str]], None]
    checks_marks: Callable[[], None]


class PostgresStore:
    """Runs the store's methods as calls of a schema's SQL functions."""

    def __init__(
        self,
        fetch: Fetch,
        schema: str,
        wall: Callable[[], int | None],
        steady: Callable[[], int | None],
        capacity: int | None,
        hooks: Hooks,
    ) -> None:
        self._fetch, self._schema, self._wall, self._steady, self._capacity, self._hooks = fetch, schema, wall, steady, capacity, hooks

    def within(self, fetch: Fetch, notices: list[Callable[[], None]]) -> PostgresStore:
        """Return this store in a transaction, whose statements `fetch` runs. Notifications aren't sent, but added to `notices` as calls."""
        hooks = Hooks(*[partial(_note, notices, hook) for hook in self._hooks])
        return PostgresStore(fetch, self._schema, self._wall, self._steady, self._capacity, hooks)

    async def lock(self, refs: Sequence[Ref]) -> None:
        """Lock jobs, keys, gates and turns until the transaction ends."""
        kinds = ((Kind.JOB,), (Kind.KEY, Kind.GATE, Kind.TURN))
        await self._call("lock_records", *[[ref.id for ref in refs if ref.kind in each] for each in kinds])

    async def perform(self, effect: Effect) -> Any:
        """Perform a store call that an operation yielded, and return the answer. Raises StoreFull if it adds jobs and the disk is full."""
        try:
            return await dispatch(self, effect)
        except NoRoom as error:
            if isinstance(effect, Add) or (isinstance(effect, Apply) and effect.grows):
                raise StoreFull(str(error)) from error
            raise

    async def _call(self, function: str, *arguments: Any) -> list[Row]:
        places = ", ".join([f"${number}" for number in range(1, len(arguments) + 1)])
        return await self._fetch(f'SELECT * FROM "{self._schema}".{function}({places})', *arguments)

    async def _call_one(self, function: str, *arguments: Any) -> Row:
        """Call a function that returns one row, pass on its wake-ups to the broker, and return the row."""
        began_at = time.monotonic()
        [row] = await self._call(function, *arguments)
        if wakeups := row.get("wakeups"):
            self._hooks.readied(wakeups, time.monotonic() - began_at)
        return row

    # --- reading ---------------------------------------------------------------------------------------------

    async def query(self, query: Query) -> Snapshot:
        """Read everything in one statement, and so from one snapshot."""
        jobs = [ref.id for ref in query.refs if ref.kind == Kind.JOB]
        keys = [ref.id for ref in query.refs if ref.kind == Kind.KEY]
        has_moves = query.scans[: len(MOVE_SCANS)] == MOVE_SCANS
        calls = ["look($1, $2, $3, $4, $5)"]
        arguments: list[Any] = [self._wall(), jobs, keys, query.with_content, has_moves]
        for kind in {ref.kind for ref in query.refs if ref.kind not in (Kind.JOB, Kind.KEY)}:
            calls.append(f"load_{TABLES[kind]}(${len(arguments) + 1}, ${len(arguments) + 2})")
            arguments += [[ref.id for ref in query.refs if ref.kind == kind], query.with_content]
        of_gates = {number: scan for number, scan in enumerate(query.scans, 1) if _is_of_gate(scan)}
        if of_gates:
            calls.append(f"scan_gates(${len(arguments) + 1}, ${len(arguments) + 2}, $4, ${len(arguments) + 3})")
            arguments += [list(of_gates), [scan.limit for scan in of_gates.values()], [scan.prefix[0] for scan in of_gates.values()]]
        for number, scan in enumerate(query.scans, 1):
            if number not in of_gates and not (has_moves and number <= len(MOVE_SCANS)):
                calls.append(_scan_call(scan, number, query.with_content, arguments, self._schema))
        for number, (name, _) in enumerate(query.groups):
            arguments.append(_GROUPS + number)
            calls.append(f"groups_{name}(${len(arguments)})")
        if query.with_totals:
            calls.append("load_totals()")
        statement = " UNION ALL ".join([f'SELECT * FROM "{self._schema}".{call}' for call in calls])
        return self._snapshot(query, await self._fetch(statement, *arguments))

    def _snapshot(self, query: Query, rows: Sequence[Row]) -> Snapshot:
        records: dict[Ref, Record | None] = dict.fromkeys(query.refs)
        scans = tuple([list[Entry]() for _ in query.scans])
        groups = tuple([dict[Position, Group]() for _ in query.groups])
        totals: dict[tuple[str, str], int] = {}
        now = 0
        for row in rows:
            part = row[0]
            if part == 0:
                record = record_of(row)
                records[record.ref] = record
            elif part == _CLOCK:
                now = row[AT["created_at"]]
            elif part == _TOTALS:
                totals[row[AT["queue"]], row[AT["job"]]] = row[3]
            elif part >= _GROUPS:
                add_to_group(groups[part - _GROUPS], BY_INDEX[query.groups[part - _GROUPS][0]], row)
            else:
                scan = query.scans[part - 1]
                record = record_of(row)
                scans[part - 1].append(
                    Entry(position_of(BY_INDEX[scan.of], record, row), record.ref, record if scan.with_records else None)
                )
        steady = self._steady()
        sorted_groups = tuple(
            [
                [found[at] for at in sorted(found) if at[: len(prefix)] == prefix]
                for found, (_, prefix) in zip(groups, query.groups, strict=True)
            ]
        )
        return Snapshot(now, now if steady is None else steady, b"", records, scans, sorted_groups, totals)

    async def load_awaiting(
        self, ids: Sequence[bytes], awaited: Sequence[bytes], listener: str, awaited_for: int
    ) -> tuple[dict[bytes, Record], int]:
        """Read the jobs `ids` with their content, and note that `listener` awaits the ends of `awaited` for the next `awaited_for` µs.
        Return the records by id, and the store's time."""
        rows = await self._call("load_awaiting", self._wall(), list(ids), list(awaited), listener, awaited_for)
        return {row[2]: record_of(row) for row in rows if row[0] == 0}, next(row[AT["created_at"]] for row in rows if row[0] == _CLOCK)

    # --- steps -----------------------------------------------------------------------------------------------

    async def apply(self, apply: Apply) -> tuple[list[Answer], Snapshot | None]:
        refuse_repeated(apply.steps)
        answers: dict[int, Answer] = {}
        try:
            await self._apply(apply, answers)
        except BrokerError as error:
            if not was_held_up(error):
                raise
            answers = await self._locked(apply.steps)
            await self._apply(apply, answers)  # other clients' calls are short, so they no longer hold a lock
        return [answers[number] for number in range(len(apply.steps))], None if apply.then is None else await self.query(apply.then)

    async def _apply(self, apply: Apply, answers: dict[int, Answer]) -> None:
        """Apply the steps that have no answer yet, and give each an answer."""
        numbers = [number for number in range(len(apply.steps)) if number not in answers]
        if not numbers:
            return
        changes = Changes([(number, apply.steps[number]) for number in numbers])
        capacity = self._capacity if apply.grows else None
        row = await self._call_one("apply", *changes.arguments(), capacity, new_rev(), self._wall())
        for number in row["stale"] or ():
            answers[number] = Stale()
        for number in row["past"] or ():
            answers[number] = Full(tuple([each.ref for each in apply.steps[number].adds if each.most is not None]))
        for number in row["unplaced"] or ():
            answers.setdefault(number, Full(says=wording.STORE_FULL % capacity))
        woken, ended = set[str](), set[bytes]()
        for number in numbers:
            if number not in answers:
                step = apply.steps[number]
                answers[number] = Applied()
                woken.update(step.wakes)
                ended.update(changes.ended.get(number, ()))
        if woken:
            self._hooks.woken(woken)
        if ended:
            self._hooks.ended(ended, row["are_awaited"])

    async def _locked(self, steps: Sequence[Step]) -> dict[int, Answer]:
        """Return an answer for each step that names a record locked by another transaction."""
        refs = {ref for step in steps for ref in (*step.expect, *(each.ref for each in step.adds))}
        ids = {kind: [ref.id for ref in refs if ref.kind == kind] for kind in TABLES}
        others = {
            TABLES[kind]: [{"id": each.hex()} for each in ids[kind]] for kind in TABLES if kind not in (Kind.JOB, Kind.KEY) and ids[kind]
        }
        rows = await self._call("locked", ids[Kind.JOB], ids[Kind.KEY], json.dumps(others))
        held = {Ref(_KINDS[row["of_table"]], row["id"]) for row in rows}
        found = {}
        for number, step in enumerate(steps):
            if named := tuple([ref for ref in (*step.expect, *(each.ref for each in step.adds)) if ref in held]):
                found[number] = Locked(named)
        return dict(found)

    # --- hot operations -------------------------------------------------------------------------------------------

    async def claim(
        self, session: bytes, request: int, queues: Sequence[str], limit: int, noting: tuple[str | None, list[int], int, list[str]]
    ) -> tuple[Claimed, list[str]]:
        """Lease jobs. Return them, and the topics to announce or `UNNOTED`: see claim.sql. `noting` describes the note of the listener.
        Raises SessionLost if there is no such living session."""
        rows = await self._call("claim", self._wall(), self._steady(), session, request, list(queues), limit, new_rev(), *noting)
        news = list[str]()
        while rows and rows[-1]["id"] is None:
            news.append(rows.pop()["damage"])
        records = [leased_record(row, session) for row in rows]
        records.sort(key=claim_of)
        return Claimed(records, rows[0]["now_at"] if rows else 0), news

    async def add(self, jobs: Sequence[Put]) -> list[bool] | str:
        if not jobs:
            return []
        headers = [put.header for put in jobs]
        row = await self._call_one(
            "add",
            [put.ref.id for put in jobs],
            collapsed([header.get("flags", 0) for header in headers]),
            collapsed([header.get("priority", 0) for header in headers]),
            collapsed([header["queue"] for header in headers]),
            collapsed([header["job"] for header in headers]),
            trimmed([header.get("expires_at") for header in headers]),
            trimmed([None if put.sent is KEEP else put.sent for put in jobs]),
            [None if put.content is KEEP else put.content for put in jobs],
            self._capacity,
            new_rev(),
            self._wall(),
        )
        if row["is_full"]:
            return wording.STORE_FULL % self._capacity
        are_new = [True] * len(jobs)
        for number in row["known"] or ():
            are_new[number - 1] = False
        return are_new

    async def succeed(self, runs: Sequence[Run]) -> Ended:
        row = await self._end(
            "succeed",
            runs,
            trimmed([run.key for run in runs]),
            trimmed([run.awaited_by for run in runs]),
            trimmed([run.note or None for run in runs]),
        )
        if row is None:
            return Ended([None] * len(runs))
        answers: list[bool | None] = [True] * len(runs) if row["answers"] is None else list(row["answers"])
        self._hooks.ended({run.id for run, is_ended in zip(runs, answers, strict=True) if is_ended}, row["are_awaited"])
        return Ended(answers, row["released"] or [])

    async def hand_over(self, runs: Sequence[Run], gate_ids: Sequence[bytes]) -> HandedOver:
        order = sorted(range(len(runs)), key=lambda number: runs[number].id)  # in which all functions lock jobs
        row = await self._end("hand_over", [runs[number] for number in order], [gate_ids[number] for number in order])
        if row is None:
            return HandedOver([], [])
        ended = order if row["ended"] is None else [order[place] for place in row["ended"]]
        self._hooks.ended({runs[number].id for number in ended}, row["are_awaited"])
        return HandedOver(ended, row["opened"])

    async def _end(self, function: str, runs: Sequence[Run], *more: Any) -> Row | None:
        """Call a function that ends runs, and return its row. Return None if other transactions hold its records for too long, or if the
        length of a fence is impossible: the SQL functions split ids and fences by length. The engine then decides about the runs."""
        ids = b"".join([run.id for run in runs])
        fences = b"".join([run.epoch.to_bytes(8, "big") + run.session + run.claim + b"\0" for run in runs])
        if len(ids) != len(runs) * ID_BYTES or len(fences) != len(runs) * FENCE_BYTES:
            return None
        times = [run.ran_for for run in runs], collapsed([run.keep_for for run in runs]), collapsed([run.result for run in runs])
        try:
            return await self._call_one(function, ids, fences, *times, *more, new_rev(), self._wall())
        except BrokerError as error:
            if was_held_up(error):
                return None
            raise

    async def promote(self, limit: int) -> tuple[int, int | None]:
        row = await self._call_one("promote", max(0, limit), new_rev(), self._wall())
        if row["checks_marks"]:
            self._hooks.checks_marks()
        return row["moved"], row["next_due"]

    async def fade(self, limit: int, max_kept: int, repeat_for: int) -> Faded:
        row = await self._call_one("fade", limit, max_kept, repeat_for, new_rev(), self._wall())
        left = {Ref(Kind.JOB, job_id): is_over for job_id, is_over in zip(row["left_ids"], row["left_over_cap"], strict=True)}
        return Faded(row["buried"], row["has_more"], left)


def _note(notices: list[Callable[[], None]], hook: Callable[..., None], *arguments: Any) -> None:
    notices.append(partial(hook, *arguments))


def new_rev() -> int:
    """Return a new revision, which is random, in the form that PostgreSQL stores."""
    return int.from_bytes(os.urandom(8), "big", signed=True)


# --- scans --------------------------------------------------------------------------------------------------------

_HOT: Final = frozenset(HOT_SCANS)


def _is_of_gate(scan: Scan) -> bool:
    """Return True if `scan_gates` can do this scan."""
    return len(scan.prefix) == 1 and scan == Scan("gated", scan.limit, scan.prefix)


def _scan_call(scan: Scan, number: int, with_content: bool, arguments: list[Any], schema: str) -> str:
    """Return the call for a scan, and add its values to `arguments`."""
    after, until = scan.after or (), scan.until or ()
    shape = ScanShape(scan.of, len(scan.prefix), scan.backwards, scan.with_records)
    if shape in _HOT and not after and not until:
        given: list[Any] = [number, scan.limit, with_content, *scan.prefix]
        places = ", ".join([f"${len(arguments) + place}" for place in range(1, len(given) + 1)])
        arguments += given
        return f"{hot_name(shape)}({places})"
    texts = [str(number), str(scan.limit), str(with_content).lower(), *map(_literal, (*scan.prefix, *after, *until))]
    is_within = all(end[: len(scan.prefix)] == scan.prefix for end in (after, until) if end)
    arguments.append(_VALUE.sub(lambda found: texts[int(found[1])], _scan_text(shape, schema, len(after), len(until), is_within)))
    return f"scan(${len(arguments)})"


_VALUE: Final = re.compile(r"%([0-9]+)%")


@cache
def _scan_text(shape: ScanShape, schema: str, after: int, until: int, is_within: bool) -> str:
    """Return the SQL of a scan, with numbered placeholders for its values."""
    values = [f"%{number}%" for number in range(3, 3 + shape.prefix + after + until)]
    return filled(scan_sql(shape, values, "%1%", "%0%::smallint", "%2%", (after, until), is_within=is_within), schema)


def _literal(value: Any) -> str:
    """Return a value in SQL. Text is written in hexadecimal, so that nothing in it can end the literal."""
    if isinstance(value, int):
        return f"({int(value)})::bigint"
    if isinstance(value, bytes):
        return f"decode('{value.hex()}', 'hex')"
    return f"convert_from(decode('{value.encode().hex()}', 'hex'), 'UTF8')"
