"""Postgres with a million rows, and beside a transaction that stays open for a minute."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.stores.postgres.conftest import scene, store  # noqa: F401 - fixtures
from tests.stores.postgres.counts import UNTIL_KEPT, Store
from tests.stores.postgres.plans import CALLS, any_kind, assert_a_beat_is_cheap, assert_cheap
from tests.stores.postgres.scene import Scene, send

MANY = 1_000_000


@any_kind
@pytest.mark.parametrize("is_filled_first", [True, False], ids=["planned when full", "planned when empty"])
async def test_a_claim_and_upkeep_read_few_of_a_million_jobs(store: Store, after: float, is_filled_first: bool) -> None:  # noqa: F811
    """As tests/stores/postgres/test_plans.py has it for fewer."""
    if is_filled_first:
        await store.fill(MANY, after=after)
    costs = [await store.costs(call, times=UNTIL_KEPT) for call in CALLS]
    if not is_filled_first:
        await store.fill(MANY, after=after)
        costs = [await store.costs(call) for call in CALLS]
    of_any_queue, of_one_queue, idle_upkeep, upkeep = costs
    assert_cheap([*of_any_queue, *of_one_queue], "jobs_ready", is_there=after == 0)
    assert_cheap([*idle_upkeep, *upkeep], "jobs_due")
    await assert_a_beat_is_cheap(store)


async def test_a_job_of_a_transaction_that_stays_open_for_a_minute(scene: Scene) -> None:  # noqa: F811
    """Others of its queue come and go all the time; it starts as soon as its transaction commits."""
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
