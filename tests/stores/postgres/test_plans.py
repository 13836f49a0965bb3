"""A call does not cost more if more records wait: it uses an index, even with a plan that was made when the tables were empty.

Two witnesses: the server's plans, those of statements within functions too, where it has the module auto_explain; and its
counts of the rows that were really read.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from taskflow.broker import topics
from taskflow.broker.engine.records import TABLES
from taskflow.broker.postgres.queries import HOT_SCANS, ScanShape, hot_name, scan_sql
from taskflow.broker.postgres.sql_files import filled
from taskflow.model.session import Beat
from tests.stores.postgres.counts import SESSION, UNTIL_KEPT, Call, Clock, OnConnection, Store, a_store, rows_of
from tests.stores.postgres.plans import FEW, FILL, Everything, Read, can_explain, empty_tables, explaining
from tests.support.binaries import ServerBinary
from tests.support.postgres import shared_postgres, the_newest_postgres_binary, the_postgres_binary

VERSIONS: Final = list(dict.fromkeys((the_postgres_binary(), the_newest_postgres_binary())))
"""Each has its own planner, and keeps other plans."""


@pytest.fixture(params=VERSIONS, ids=lambda found: found.name)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    found: ServerBinary = request.param
    async with a_store(shared_postgres(None if found == the_postgres_binary() else found.path)) as store:
        yield store


_NAMES: Final = """
    add claim succeed hand_over promote fade apply look scan locked load_awaiting load_totals record_waiting look_for notify nudge
    tell_ended
    listeners_for forget_listener has_note has_ready first_ready ready_marks pick_from_one pick_from_queues next_queue
    raise_ready_mark newest_mark lower_mark may_check_marks drop_oldest drop_faded sum_counts nudge_again replace_entries
    record_idle check_marks drop_old_marks groups_status groups_ready groups_scheduled groups_holding groups_leases
    groups_causes
"""

FUNCTIONS: Final = {
    *re.findall(r"\w+", _NAMES),
    *(f"load_{table}" for table in TABLES.values() if table != "keys"),
    *map(hot_name, HOT_SCANS),
    "scan_gates",
}
"""All functions that read tables, except those of users' transactions."""


def is_free(read: Read) -> bool:
    """Return True if a plan may read a whole table or index: it counts its contents, tidies up, or notifies all."""
    if read.function == "drop_old_marks":
        return read.table in ("marks", "lowered", "requests", "sessions", "awaited", "idle")
    if read.function == "look_for" and read.rows <= 1:  # it asks whether there is anything
        return True
    return "pg_notify(listener, '*')" in read.text or (read.function, read.by or read.table) in {
        *((function, table) for function in ("groups_status", "load_totals", "room") for table in ("tally", "totals", "totals_pkey")),
        ("groups_status", "jobs"),  # never, unless another program has made the counts wrong
        ("fade", "totals_pkey"),
        ("groups_leases", "jobs_leases"),
        ("groups_causes", "jobs_causes"),
        ("groups_causes", "jobs_ended"),
    }


@pytest.mark.parametrize("planned", ["when full", "when analyzed", "when empty", "when emptied"])
@pytest.mark.sampled(3)
async def test_every_function_reads_by_index(store: Store, planned: str) -> None:
    """The plans are kept, and some are made at the worst moment: the server knows that the tables are empty, and then they are filled."""
    connection = store.connection
    if not await can_explain(connection):
        pytest.skip("this server has no auto_explain")
    await connection.execute("SET track_functions = 'all'")
    if planned != "when empty":
        await connection.execute(FILL)
    if planned == "when emptied":
        await empty_tables(connection)
    if planned == "when analyzed":
        await connection.execute("ANALYZE")
    if planned in ("when empty", "when emptied"):
        await everything_is_called(connection)
        await connection.execute(FILL)

    reads = await everything_is_called(connection)

    worst = dict[tuple[str, str], Read]()
    for read in sorted(reads, key=lambda each: each.rows):
        if not is_cheap(read):
            worst[read.function, read.text] = read
    assert not worst, "\n".join(map(str, worst.values()))


def is_cheap(read: Read) -> bool:
    return is_free(read) or (read.by is not None and read.is_bounded and read.rows <= FEW)


async def everything_is_called(connection: asyncpg.Connection) -> list[Read]:
    """Make all calls, and roll them back. Return what was read."""
    transaction = connection.transaction()
    await transaction.start()
    with explaining(connection) as reads:
        clock = Clock()
        broker = OnConnection.of(connection, clock)
        await Everything(broker, clock).run()
        await broker.call("listeners_for", topics.queue("q0"))
    called = await connection.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'taskflow'::regnamespace AND pg_stat_get_xact_function_calls(oid) > 0"
    )
    assert sorted(FUNCTIONS - {name for (name,) in called}) == []
    await transaction.rollback()
    return reads


async def test_a_page_of_a_queue_with_few_jobs_reads_no_other_queue(store: Store) -> None:
    """An index scan that goes on behind the queue returns no row, so that only the count of its buffers shows it."""
    await store.connection.execute(f"{FILL}; SET enable_bitmapscan = off")  # many jobs make the planner leave it
    scan = scan_sql(ScanShape("ended", prefix=2, backwards=True), ["4", "'zebras'"], "50", "0::smallint", "false")
    [(explained,)] = await store.connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {filled(scan, 'taskflow')}")
    assert json.loads(explained)[0]["Plan"]["Shared Hit Blocks"] < 10


CALLS: Final[tuple[Call, ...]] = (
    lambda broker: broker.claim(SESSION, 1, [], 10),
    lambda broker: broker.claim(SESSION, 1, ["default"], 10),
    lambda broker: broker.beat(Beat(session=SESSION, seen=1)),
    lambda broker: broker.upkeep(10),
    lambda broker: OnConnection.of(broker.connection, Clock(86_400.0)).upkeep(10),
)


@pytest.mark.parametrize("is_filled_first", [True, False], ids=["planned when full", "planned when empty"])
@pytest.mark.sampled(2)
async def test_few_rows_are_really_read(store: Store, is_filled_first: bool) -> None:
    """tests/long does the same with a million jobs that are ready or scheduled."""
    if is_filled_first:
        await store.connection.execute(FILL)
    costs = [cost for call in CALLS for cost in await store.costs(call, times=UNTIL_KEPT)]
    if not is_filled_first:
        await store.connection.execute(FILL)
        costs = [cost for call in CALLS for cost in await store.costs(call)]
    for cost in costs:
        assert "jobs" not in cost, cost
        assert rows_of(cost) < 200, cost
