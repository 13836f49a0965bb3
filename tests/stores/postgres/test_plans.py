"""What a statement costs does not grow with what waits: it is found by an index, also by a plan that was made when the table was empty.

Counted by the server, in the transaction of the statement: scans of the table from end to end, scans of each index, and the rows that
these have given. So it holds for the plans that were really used, those within functions too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Final

import pytest

from taskflow import Status
from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.session import Beat
from taskflow.model.verdict import Settled
from tests.stores.postgres.counts import SESSION, Store, a_store, new_id
from tests.stores.postgres.plans import CALLS, LIMIT, UNTIL_KEPT, any_kind, assert_a_beat_is_cheap, assert_cheap
from tests.stores.scene import until
from tests.support.postgres import shared_postgres, the_newest_postgres_binary, the_postgres_binary
from tests.support.servers import Found
from tests.support.verdicts import failed, retried, succeeded

VERSIONS: Final = list(dict.fromkeys((the_postgres_binary(), the_newest_postgres_binary())))
"""Each has a planner of its own, and keeps other plans."""


@pytest.fixture(params=VERSIONS, ids=lambda found: found.name)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    found: Found = request.param
    async with a_store(shared_postgres(None if found == the_postgres_binary() else found.path)) as store:
        yield store


both_ways = pytest.mark.parametrize("is_filled_first", [True, False], ids=["planned when full", "planned when empty"])
any_number = pytest.mark.parametrize("rows", [0, 1_000, 100_000])


async def test_who_looks_for_jobs_by_a_filter_asks_no_function_about_each(store: Store) -> None:
    """Which made a look at a million jobs take longer than a statement may."""
    await store.fill(1_000, after=0.0)
    calls = "SELECT coalesce(sum(pg_stat_get_xact_function_calls(oid)), 0)::bigint FROM pg_proc WHERE proname = 'matches'"
    browse = "SELECT count(*) FROM taskflow.browse(NULL, 'default', 'work', '{2}', NULL, false, NULL, 5000)"

    counted = await store.in_one_transaction("SET LOCAL track_functions = 'all'", browse, calls)

    assert counted[1:] == [1_000, 0]


@any_number
@any_kind
@both_ways
async def test_a_claim_goes_by_jobs_ready_and_upkeep_by_jobs_due(store: Store, rows: int, after: float, is_filled_first: bool) -> None:
    """Claims of any queue and of one; upkeep with nothing to do, however much is waiting, and with much that has fallen due."""
    if is_filled_first:
        await store.fill(rows, after=after)
    costs = [await store.costs(*arguments, times=UNTIL_KEPT) for arguments in CALLS]
    if not is_filled_first:
        await store.fill(rows, after=after)
        costs = [await store.costs(*arguments) for arguments in CALLS]
    of_any_queue, of_one_queue, idle_upkeep, upkeep = costs
    assert_cheap([*of_any_queue, *of_one_queue], "jobs_ready", is_there=rows > 0 and after == 0)
    assert_cheap([*idle_upkeep, *upkeep], "jobs_due")
    await assert_a_beat_is_cheap(store)


@any_kind
async def test_no_verb_reads_100_000_jobs(store: Store, after: float, capsys: pytest.CaptureFixture[str]) -> None:
    """On connections that have done each of them for an empty table, and go on."""
    broker = connect(store.url)
    for request in range(1, UNTIL_KEPT + 2):
        await every_verb(broker, request)
    await store.fill(100_000, after=after)
    await every_verb(broker, UNTIL_KEPT + 2)
    await broker.close()
    await until(lambda: not store.others(), 5)  # the server has counted what a connection did once it has ended
    by_scan, by_index = store.rows_read()
    with capsys.disabled():
        print(f"\n{by_scan} rows of jobs read by scans of the table, {by_index} by indexes")
    assert by_scan < 5_000
    assert by_index < 5_000


async def every_verb(broker: Broker, request: int) -> None:
    envelopes = [Envelope(id=new_id(), job="work", payload=b"\x01payload", priority=1) for _ in range(8)]
    await broker.enqueue(envelopes)
    await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01", key=os.urandom(16), after=60.0) for _ in range(2)])
    leases = await broker.claim(SESSION, request, [], 7)
    assert len(leases) == 7
    await broker.beat(Beat(session=SESSION, claims=tuple(lease.claim for lease in leases), seen=request))
    assert await broker.settle([succeeded(lease) for lease in leases[:3]]) == [Settled.OK] * 3
    assert await broker.settle([succeeded(leases[3]), retried(leases[4]), failed(leases[5])]) == [Settled.OK] * 3
    assert await broker.cancel([envelopes[7].id, leases[6].envelope.id]) == [Status.READY, Status.RUNNING]
    await broker.read([envelope.id for envelope in envelopes])
    await broker.upkeep(LIMIT)
    with broker.listen([topics.ANY_QUEUE, topics.DUE, topics.job(envelopes[0].id)]) as nudges:
        await nudges.wait(0.01)
