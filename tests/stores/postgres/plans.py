"""The plans of the store's functions, as the server's module auto_explain reports them, and a store with many records of every kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import asyncpg
import pytest

from taskflow.model.session import Beat
from tests.stores.postgres.counts import SESSION, UNTIL_KEPT, Call, Clock, Cost, OnConnection, Store

FEW: Final = 1_200
"""Rows that a plan may read: upkeep forgets up to 1,000 ids at a time."""
SOME: Final = 200
MANY: Final = 3_000
"""How many records `fill_tables` makes of each kind, and of jobs in each status."""

_MODULE: Final = """
    LOAD 'auto_explain';
    SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; SET auto_explain.log_analyze = on;
    SET auto_explain.log_timing = off; SET auto_explain.log_verbose = on; SET auto_explain.log_format = json; SET client_min_messages = log;
"""


class Read(NamedTuple):
    """How a plan reads a table."""

    function: str
    table: str
    by: str | None
    rows: int
    is_bounded: bool
    """Whether it looks something up, or stops after a number of rows."""
    text: str

    def __str__(self) -> str:
        return f"{self.function} reads {self.rows} rows of {self.table} by {self.by}: {' '.join(self.text.split())}"


async def can_explain(connection: asyncpg.Connection) -> bool:
    """Load the module, and return True if the server has it."""
    try:
        await connection.execute(_MODULE)
    except asyncpg.UndefinedFileError:
        return False
    return True


@contextmanager
def explaining(connection: asyncpg.Connection) -> Iterator[list[Read]]:
    """Give afterwards what the plans of all statements inside have read, those in functions too. See `can_explain`."""
    messages, found = list[Any](), list[Read]()

    def take(_: object, message: Any) -> None:
        messages.append(message)

    connection.add_log_listener(take)
    yield found
    connection.remove_log_listener(take)
    for message in messages:
        _, is_plan, plan = message.message.partition("  plan:\n")
        if is_plan:
            root = json.loads(plan)
            function = re.search(r"function (?:taskflow|\"taskflow\")\.(\w+)", message.context or "")
            found.extend(_reads(root["Plan"], function[1] if function else "", root["Query Text"], is_limited=False))


def _reads(node: dict[str, Any], function: str, text: str, *, is_limited: bool) -> Iterator[Read]:
    is_limited = node["Node Type"] == "Limit" or (is_limited and node["Node Type"] not in ("Sort", "Aggregate", "Hash", "ModifyTable"))
    if node["Node Type"].endswith("Scan") and node.get("Schema") == "taskflow" and "Relation Name" in node:
        rows = sum(node.get(part, 0) for part in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"))
        is_bounded = is_limited or not node.keys().isdisjoint(("Index Cond", "TID Cond", "Recheck Cond"))
        index = "ctid" if "TID Cond" in node else node["Plans"][0].get("Index Name") if "Recheck Cond" in node else node.get("Index Name")
        yield Read(function, node["Relation Name"], index, round(rows * node["Actual Loops"]), is_bounded, text)
    for child in node.get("Plans", ()):
        is_apart = child.get("Parent Relationship") in ("InitPlan", "SubPlan")
        yield from _reads(child, function, text, is_limited=is_limited and not is_apart)


async def fill_tables(connection: asyncpg.Connection) -> None:
    """Make many records that are nobody's business: in other queues, of other sessions, or due in a hundred years."""
    await connection.execute(_FILL)


async def empty_tables(connection: asyncpg.Connection) -> None:
    """Delete what `fill_tables` has made. The server then knows that the tables are empty, and large."""
    for table in _FILLED:
        await connection.execute(f"DELETE FROM taskflow.{table} WHERE NOT {'name = $$worker$$' if table == 'sessions' else 'false'}")
        await connection.execute(f"ANALYZE taskflow.{table}")


_FILLED: Final = (
    "jobs",
    "keys",
    "tags",
    "sessions",
    "schedules",
    "declared",
    "queues",
    "ends",
    "actions",
    "facts",
    "idle",
    "awaited",
    "requests",
    "marks",
    "lowered",
    "totals",
)

_ALL: Final = f"FROM generate_series(1, {MANY}) AS n"
_SOME: Final = f"FROM generate_series(1, {SOME}) AS n"
_ID: Final = "substr(sha256(int8send(n * 8 + {})), 1, 16)"
_OWN: Final = _ID.format(0)

_FILL: Final = f"""
    INSERT INTO taskflow.jobs (id, rev, status, flags, priority, queue, job, created_at, due_at, expires_at, awaits, epoch, session, claim,
        claimed_at, claimed_steady, ended_at, fade_at, cause)
    SELECT {_ID.format("s")}, n, s, CASE s WHEN 3 THEN 16 ELSE 0 END, 0, 'other' || n % 3, 'work', 0,
        CASE WHEN s = 1 THEN later ELSE 0 END + n, CASE WHEN s < 3 THEN later END, CASE s WHEN 0 THEN 1 ELSE 0 END, 0,
        CASE s WHEN 3 THEN {_OWN} END, CASE s WHEN 3 THEN substr({_OWN}, 1, 12) END,
        CASE s WHEN 3 THEN 0 END, CASE s WHEN 3 THEN 0 END, CASE WHEN s > 3 THEN n END, CASE WHEN s > 3 THEN later END,
        CASE s WHEN 5 THEN int8send(n) END
    FROM generate_series(1, {MANY}) AS n, generate_series(0, 7) AS s, (SELECT 4000000000000000 AS later) AS t;
    INSERT INTO taskflow.keys (id, rev) SELECT {_OWN}, n {_ALL};
    INSERT INTO taskflow.tags (value, id) SELECT 'other', {_ID.format(2)} {_ALL};
    INSERT INTO taskflow.sessions (id, rev, name, ttl, beat_at, lapses_at, is_released, wants_ends, state)
    SELECT {_OWN}, n, 'other', ttl, beat_at, beat_at + 3000000000000000, 0, 0, state
    {_SOME}, taskflow.sessions WHERE name = 'worker';
    INSERT INTO taskflow.schedules (id, rev, offer_at, is_paused) SELECT {_OWN}, n, 3000000000000000 + n, 0 {_ALL};
    INSERT INTO taskflow.declared (value, id) SELECT {_ID.format(1)}, {_OWN} {_ALL};
    INSERT INTO taskflow.queues (id, rev, is_paused) SELECT convert_to('paused' || n, 'UTF8'), n, 1 {_SOME};
    INSERT INTO taskflow.ends (id, rev) SELECT {_OWN}, n {_SOME};
    INSERT INTO taskflow.actions (id, rev, created_at) SELECT {_OWN}, n, 0 {_SOME};
    INSERT INTO taskflow.facts (id, rev) SELECT {_OWN}, n {_ALL};
    INSERT INTO taskflow.idle (listener, topic, since) SELECT 'other' || n, 'queue:other', taskflow.wall(NULL) {_ALL};
    INSERT INTO taskflow.awaited (id, listener, until_when) SELECT {_OWN}, 'other', 3000000000000000 {_ALL};
    INSERT INTO taskflow.requests (session, request) SELECT {_OWN}, 1 {_ALL};
    INSERT INTO taskflow.marks (kind, queue, at, set_at) SELECT 'kept', 'other' || n, 0, 0 {_ALL};
    INSERT INTO taskflow.marks (kind, queue, at, set_at) SELECT 'ready', 'other' || n, 0, 0 FROM generate_series(0, 2) AS n;
    INSERT INTO taskflow.lowered (kind, queue, rank, xid, at) SELECT 'kept', 'other' || n, 0, '3', 0 {_ALL};
    INSERT INTO taskflow.totals (queue, what, n) SELECT 'other' || n % 3, '=' || n / 3, {MANY} FROM generate_series(0, 20) AS n;
"""

# --- what calls cost, whether or not the server can explain ----------------------------------------------------------

LIMIT: Final = 10

CALLS: Final[Sequence[Call]] = (
    lambda broker: broker.claim(SESSION, 1, [], LIMIT),
    lambda broker: broker.claim(SESSION, 1, ["default"], LIMIT),
    lambda broker: broker.upkeep(LIMIT),
    lambda broker: OnConnection.of(broker.connection, Clock(86_400.0)).upkeep(LIMIT),
)


async def assert_a_beat_is_cheap(store: Store) -> None:
    """However many jobs there are, it reads none but the session's own."""
    for cost in await store.costs(lambda broker: broker.beat(Beat(session=SESSION, seen=1)), times=UNTIL_KEPT):
        assert "jobs" not in cost
        assert all(rows <= 20 * LIMIT for _, rows in cost.values()), cost  # claims that were rolled back have left dead leases


def assert_cheap(costs: list[Cost], index: str, *, is_there: bool = True) -> None:
    """By that index each time, if there is something to be found by it, never by the table from end to end, and of few rows."""
    for cost in costs:
        assert index in cost or not is_there, costs
        assert "jobs" not in cost, costs
        assert all(rows <= 4 * LIMIT for _, rows in cost.values()), cost


any_kind = pytest.mark.parametrize("after", [0.0, 3600.0], ids=["ready", "scheduled"])
