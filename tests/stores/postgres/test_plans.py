"""A statement does not cost more if more jobs wait: it uses an index, even with a plan that was made when the table was empty.

Counted by the server, in the transaction of the statement: scans of the table from end to end, scans of each index, and the rows that
these have given. So it holds for the plans that were really used, those within functions too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Final

import pytest

from taskflow import Status
from taskflow.broker import paging, topics
from taskflow.broker.console import View
from taskflow.broker.postgres.console import _parts
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.record import CODES
from taskflow.model.session import Beat
from taskflow.model.verdict import Settled
from tests.stores.postgres.counts import SESSION, Store, a_store, new_id
from tests.stores.postgres.plans import CALLS, LIMIT, UNTIL_KEPT, any_kind, assert_a_beat_is_cheap, assert_cheap
from tests.support.binaries import ServerBinary
from tests.support.postgres import shared_postgres, the_newest_postgres_binary, the_postgres_binary
from tests.support.verdicts import cancelled, failed, retried, succeeded
from tests.support.waiting import until

VERSIONS: Final = list(dict.fromkeys((the_postgres_binary(), the_newest_postgres_binary())))
"""Each has a planner of its own, and keeps other plans."""


@pytest.fixture(params=VERSIONS, ids=lambda found: found.name)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    found: ServerBinary = request.param
    async with a_store(shared_postgres(None if found == the_postgres_binary() else found.path)) as store:
        yield store


both_ways = pytest.mark.parametrize("is_filled_first", [True, False], ids=["planned when full", "planned when empty"])
any_number = pytest.mark.parametrize("rows", [0, 1_000, 100_000])


@both_ways
async def test_failed_jobs_are_counted_by_their_own_index(store: Store, is_filled_first: bool) -> None:
    """However many others there are, they are not read."""
    counted = ("SELECT count(*) FROM taskflow.failure_parts(NULL, NULL, 100)",)
    if not is_filled_first:
        await store.costs(*counted, times=UNTIL_KEPT)
    await store.fill(100_000, after=0.0)
    assert_cheap(await store.costs(*counted), "jobs_causes", is_there=False)


@both_ways
async def test_a_page_of_a_tag_reads_its_own_jobs(store: Store, is_filled_first: bool) -> None:
    """100 among 100,000 others, or the first 100 of 5,000 that have the tag."""
    broker = connect(store.url)
    page = "SELECT count(*) FROM taskflow.page(NULL, NULL, NULL, '{2}', NULL, false, NULL, $1, NULL, NULL, NULL, 100, 2000)"
    store.counted = "^(jobs|tags)"
    if not is_filled_first:
        await store.costs(page, "few", times=UNTIL_KEPT)
    await store.fill(100_000, after=0.0)
    for tags, number in ((("few",), 100), (("many",), 5_000)):
        for first in range(0, number, 1_000):
            some = range(first, min(number, first + 1_000))
            await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01", tags=tags) for _ in some])
    for tag in ("few", "many", "unknown"):
        [cost] = await store.costs(page, tag)
        assert sum(rows for _, rows in cost.values()) <= 2 * 100 + 5, cost
    await broker.close()


@pytest.mark.parametrize("status", [Status.READY, Status.CANCELLED])
async def test_a_page_of_a_tag_and_a_status_looks_each_job_up_by_its_id(store: Store, status: Status) -> None:
    """Also if there are no statistics yet, and an index of that status seems to be small."""
    broker = connect(store.url)
    ids = [new_id() for _ in range(1_000)]
    await broker.enqueue([Envelope(id=job_id, job="work", payload=b"\x01", tags=("many",)) for job_id in ids])
    await broker.cancel(ids[::2])
    store.counted = "^(jobs|tags)"
    page = "SELECT count(*) FROM taskflow.page(NULL, NULL, NULL, $2, NULL, false, NULL, $1, NULL, NULL, NULL, 100, 2000)"
    [cost] = await store.costs(page, "many", [CODES[status]])
    assert cost.keys() == {"jobs_by_id", "tags_pkey"}
    await broker.close()


PAGE: Final = "SELECT count(*) FROM taskflow.page(NULL, $1, NULL, '{%d}', NULL, false, %d, NULL, $2, $3, $4, 10, 2000)"
INDEX_OF: Final = {
    Status.HELD: "jobs_held",
    Status.SCHEDULED: "jobs_due",
    Status.READY: "jobs_ready",
    Status.RUNNING: "jobs_leased",
    Status.SUCCEEDED: "jobs_succeeded",
    Status.FAILED: "jobs_failed",
    Status.CANCELLED: "jobs_cancelled",
}


@both_ways
async def test_a_page_of_a_status_reads_its_own_jobs_by_their_index(store: Store, is_filled_first: bool) -> None:
    """The first page and a later one, of a queue and of all: each reads no more than it lists."""
    broker = connect(store.url)
    if not is_filled_first:
        for status in Status:
            await store.costs(PAGE % (CODES[status], CODES[status]), None, None, None, None, times=UNTIL_KEPT)
    await store.fill(20_000, after=0.0)
    for request, settlement in enumerate((succeeded, failed, cancelled, None), 1):
        leases = await broker.claim(SESSION, request, [], 500)
        if settlement is not None:
            await broker.settle([settlement(lease) for lease in leases])
    await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"", after=60.0) for _ in range(500)])
    await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"", awaits=1) for _ in range(500)])
    for status in Status:
        page = PAGE % (CODES[status], CODES[status])
        cursor = (await broker.console.page(View(statuses=(status,)), limit=250)).cursor
        assert cursor is not None
        _, _, position = paging._decoded(cursor, [status], paging.POSITION_TYPES)
        for queue in (None, "default"):
            for parts in ((None, None, None), _parts(position or ())):
                [cost] = await store.costs(page, queue, *parts)
                of_jobs = {name: rows for name, (_, rows) in cost.items() if name.startswith("jobs")}
                assert of_jobs.keys() == {INDEX_OF[status]}, (status, cost)
                assert sum(of_jobs.values()) <= 60, (status, cost)  # a cursor reads ahead by some rows
    await broker.close()


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
