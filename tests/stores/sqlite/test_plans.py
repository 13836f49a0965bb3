"""How SQLite finds rows: queries that must not take longer in a larger store."""

from __future__ import annotations

import sqlite3

from taskflow.broker.sqlite.queries import _first_of_groups
from taskflow.broker.sqlite.tables import BY_INDEX
from tests.support.harnesses import SqliteHarness
from tests.support.world import World


async def test_the_oldest_ready_job_of_each_queue_is_found_without_reading_the_others() -> None:
    """A comparison of row values, (queue, priority) > (?, ?), reads all rows of the queue."""
    async with World(SqliteHarness) as world:
        await world.add()
        assert isinstance(world.harness, SqliteHarness)
        statement = _first_of_groups(BY_INDEX["ready"]).replace('"~', '"taskflow_')
        with sqlite3.connect(world.harness.path) as connection:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
        connection.close()
    searches = [step.rpartition(" (")[2] for step in plan if step.startswith("SEARCH r ")]
    assert searches == ["queue=? AND falling_priority>?)", "queue>?)"]
