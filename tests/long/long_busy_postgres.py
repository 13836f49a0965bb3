"""Postgres with a million rows, and beside a transaction that stays open for a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import asyncpg
import pytest

from taskflow.broker.url import connect
from taskflow.model.session import Beat
from tests.stores.jobs import an_envelope
from tests.stores.postgres.conftest import scene, store  # noqa: F401 - fixtures
from tests.stores.postgres.counts import SESSION, UNTIL_KEPT, Call, Clock, Cost, OnConnection, Store
from tests.stores.postgres.scene import Scene, send

MANY = 1_000_000

_FILL: Final = """
    INSERT INTO taskflow.jobs (id, rev, status, flags, priority, queue, job, created_at, due_at, awaits, epoch, sent, content)
    SELECT decode(md5(n::text), 'hex'), n, status, flags, priority, queue, job, 0, due_at + n, 0, 0, sent, content
    FROM generate_series(2, $2::integer) AS n, (SELECT * FROM taskflow.jobs WHERE id = $1) AS like_it
"""
"""More like the one that the broker has added."""

LIMIT: Final = 10

CALLS: Final[Sequence[Call]] = (
    lambda broker: broker.claim(SESSION, 1, [], LIMIT),
    lambda broker: broker.claim(SESSION, 1, ["default"], LIMIT),
    lambda broker: broker.upkeep(LIMIT),
    lambda broker: OnConnection.of(broker.connection, Clock(86_400.0)).upkeep(LIMIT),
)


async def fill(url: str, after: float) -> None:
    envelope = an_envelope(after=after)
    broker = connect(url)
    await broker.enqueue([envelope])
    await broker.close()
    other = await asyncpg.connect(url)
    await other.execute(_FILL, envelope.id, MANY)
    await other.execute(
        "INSERT INTO taskflow.tally (queue, after, n) SELECT queue, status, $2 FROM taskflow.jobs WHERE id = $1", envelope.id, MANY - 1
    )
    await other.close()


def assert_cheap(costs: list[Cost], index: str, *, is_there: bool = True) -> None:
    """Assert that each call uses that index, if it has an entry for it, reads few rows, and never the whole table."""
    for cost in costs:
        assert index in cost or not is_there, costs
        assert "jobs" not in cost, costs
        assert all(rows <= 4 * LIMIT for _, rows in cost.values()), cost


@pytest.mark.parametrize("after", [0.0, 3600.0], ids=["ready", "scheduled"])
@pytest.mark.parametrize("is_filled_first", [True, False], ids=["planned when full", "planned when empty"])
async def test_a_claim_and_upkeep_read_few_of_a_million_jobs(store: Store, after: float, is_filled_first: bool) -> None:  # noqa: F811
    """The server counts the rows. tests/stores/postgres/test_plans.py has the plans."""
    if is_filled_first:
        await fill(store.url, after)
    costs = [await store.costs(call, times=UNTIL_KEPT) for call in CALLS]
    if not is_filled_first:
        await fill(store.url, after)
        costs = [await store.costs(call) for call in CALLS]
    of_any_queue, of_one_queue, idle_upkeep, upkeep = costs
    assert_cheap([*of_any_queue, *of_one_queue], "jobs_ready", is_there=after == 0)
    assert_cheap([*idle_upkeep, *upkeep], "jobs_due")
    for cost in await store.costs(lambda broker: broker.beat(Beat(session=SESSION, seen=1)), times=UNTIL_KEPT):
        assert "jobs" not in cost
        assert all(rows <= 20 * LIMIT for _, rows in cost.values()), cost  # claims that were rolled back have left dead leases


async def test_a_job_of_a_transaction_that_stays_open_for_a_minute(scene: Scene) -> None:  # noqa: F811
    """Other jobs of its queue come and go all the time; it starts as soon as its transaction commits."""
    sql = await asyncpg.connect(scene.straight_url)
    async with scene.worker():
        await scene.seconds_to_start(0)
        await sql.execute("BEGIN")
        await send(sql, number=-1)
        for number in range(1, 600):
            await scene.send([number])
            await asyncio.sleep(0.1)
        await scene.until_done()
        await sql.execute("COMMIT")
        await scene.until_ran([-1], within=5.0)
    await sql.close()
    assert scene.runs[-1] == 1
