"""Compares counts and entries with the records. PostgreSQL maintains the other indexes itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine.examination import EXAMINE_TIMEOUT, WITH_ENTRIES, Entries, compare_entries, finding
from taskflow.broker.engine.records import TABLES, Index, Type
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.sql_files import filled
from taskflow.model.errors import BrokerRefused, BrokerUnavailable

REBUILD_TIMEOUT: Final = 3600.0
"""Seconds that a rebuild may take."""

# A row of `tally` is committed together with the changes that it counts. So one statement, which has one snapshot, sees both or neither.
_MISCOUNTED: Final = """\
SELECT queue, what, coalesce(a.n, 0) - coalesce(c.n, 0) AS n
FROM (SELECT queue, '=' || status AS what, count(*) AS n FROM @.jobs WHERE status < S.BURIED GROUP BY queue, status) AS a
FULL JOIN (SELECT queue, what, n FROM @.counted WHERE what LIKE '=%') AS c USING (queue, what)
WHERE coalesce(a.n, 0) <> coalesce(c.n, 0)"""
_CORRECT_COUNTS: Final = f"""\
INSERT INTO @.totals (queue, what, n) {_MISCOUNTED}
ON CONFLICT (queue, what) DO UPDATE SET n = totals.n + excluded.n RETURNING n"""

# Without a mark, an index is read from its start. Ready jobs are found only by marks.
_RESET_MARKS: Final = (
    "DELETE FROM @.lowered",
    "DELETE FROM @.marks",
    "INSERT INTO @.marks (kind, queue, rank, at, set_at) SELECT DISTINCT 'ready', queue, -priority, 0, 0 FROM @.jobs "
    "WHERE status = S.READY",
)

Ask = Callable[..., Awaitable[list[Any]]]


@asynccontextmanager
async def _transaction(pool: ConnectionPool, schema: str, within: float) -> AsyncGenerator[Ask]:
    """Open a transaction in which other schemas can't replace built-in SQL operators. Yield a function that runs a statement in it."""
    async with pool.transaction(within) as fetch:

        async def ask(statement: str, *arguments: Any) -> list[Any]:
            return await fetch(filled(statement, schema), *arguments)

        await ask("SET LOCAL search_path = pg_catalog, pg_temp")
        yield ask


async def examine(pool: ConnectionPool, schema: str) -> Finding:
    try:
        async with _transaction(pool, schema, EXAMINE_TIMEOUT) as ask:
            corrected = Counter(counts=len(await ask(_MISCOUNTED)))
            for index in WITH_ENTRIES:
                found = await _compare(ask, index)
                corrected[index.name] = len(found.missing) + len(found.wrong)
    except BrokerUnavailable:
        return finding(None)
    except BrokerRefused:
        return Finding("indexes", "note", "not compared with the records: this role may not read the tables")
    return finding(Rebuilt(corrected=+corrected))


async def rebuild(pool: ConnectionPool, schema: str) -> Rebuilt:
    """Correct counts and entries, and reset the low-water marks, in one transaction that locks out all writers."""
    async with _transaction(pool, schema, REBUILD_TIMEOUT) as ask:
        await ask("SET LOCAL lock_timeout = '5s'")
        for table in ("jobs", "schedules", *(index.name for index in WITH_ENTRIES), "marks", "lowered"):
            await ask(f"LOCK TABLE @.{table} IN SHARE ROW EXCLUSIVE MODE")
        corrected, unreadable = Counter(counts=len(await ask(_CORRECT_COUNTS))), 0
        for statement in _RESET_MARKS:
            await ask(statement)
        for index in WITH_ENTRIES:
            found = await _compare(ask, index)
            corrected[index.name], unreadable = len(found.missing) + len(found.wrong), unreadable + found.unreadable
            await _correct(ask, index, found)
        records = sum([(await ask(f"SELECT count(*) FROM @.{table}"))[0][0] for table in TABLES.values()])
    return Rebuilt(corrected=+corrected, records=records, unreadable=unreadable)


async def _compare(ask: Ask, index: Index) -> Entries:
    """Compare the entries of an index with the records, both from one snapshot."""
    rows = await ask(
        f"SELECT id, sent, state, coalesce(values, '{{}}') AS values, r.id IS NOT NULL AS is_stored "
        f"FROM (SELECT id, sent, state FROM @.{TABLES[index.kind]} WHERE {WITH_ENTRIES[index]}) AS r "
        f"FULL JOIN (SELECT id, array_agg(value) AS values FROM @.{index.name} GROUP BY id) AS e USING (id)"
    )
    records = [(row["id"], row["sent"], row["state"]) for row in rows if row["is_stored"]]
    return compare_entries(index.kind, records, {(value, row["id"]) for row in rows for value in row["values"]})


async def _correct(ask: Ask, index: Index, found: Entries) -> None:
    of_type = "text[]" if index.entries is Type.NAME else "bytea[]"
    given = f"unnest($1::{of_type}, $2::bytea[]) AS e (value, id)"
    for text, entries in (
        (f"DELETE FROM @.{index.name} AS x USING {given} WHERE x.value = e.value AND x.id = e.id", found.wrong),
        (f"INSERT INTO @.{index.name} (value, id) SELECT e.value, e.id FROM {given}", found.missing),
    ):
        if entries:
            await ask(text, [value for value, _ in entries], [record_id for _, record_id in entries])
