"""A call does not cost more if more records wait: it uses an index, even with a plan that was made when the tables were empty.

Two witnesses: the server's plans, those of statements within functions too, where it has the module auto_explain; and its
counts of the rows that were really read.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from taskflow import Status
from taskflow.broker import topics
from taskflow.broker.console import View
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import ABSENT, Addition, Apply, Put, Query, Ref, Scan, Step
from taskflow.broker.postgres.queries import HOT_SCANS, hot_name
from taskflow.broker.postgres.tables import TABLES
from taskflow.broker.url import connect
from taskflow.model.audit import Act
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.schedule import Amendment, Definition, Firing
from taskflow.model.session import Beat, Report, Session
from taskflow.model.verdict import Progress, Settled
from tests.stores.postgres.counts import SESSION, UNTIL_KEPT, Call, Clock, OnConnection, Store, a_store, new_id, rows_of
from tests.stores.postgres.plans import (
    CALLS,
    FEW,
    LIMIT,
    Read,
    any_kind,
    assert_a_beat_is_cheap,
    assert_cheap,
    can_explain,
    empty_tables,
    explaining,
    fill_tables,
)
from tests.support.binaries import ServerBinary
from tests.support.postgres import shared_postgres, the_newest_postgres_binary, the_postgres_binary
from tests.support.verdicts import cancelled, failed, retried, snoozed, succeeded

VERSIONS: Final = list(dict.fromkeys((the_postgres_binary(), the_newest_postgres_binary())))
"""Each has a planner of its own, and keeps other plans."""


@pytest.fixture(params=VERSIONS, ids=lambda found: found.name)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    found: ServerBinary = request.param
    async with a_store(shared_postgres(None if found == the_postgres_binary() else found.path)) as store:
        yield store


both_ways = pytest.mark.parametrize("is_filled_first", [True, False], ids=["planned when full", "planned when empty"])

# --- every function --------------------------------------------------------------------------------------------------


def an_envelope(**more: object) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01", **more})  # type: ignore[arg-type]


class Everything:
    """Calls all that a worker, a sender and an operator call, on one connection."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.clock = Clock()
        self.broker = OnConnection.of(connection, self.clock)
        self.session = Session(id=new_id(), name="worker", ttl=3600.0)
        self.requests = 0

    async def claim(self, limit: int, *queues: str) -> list[Lease]:
        self.requests += 1
        self.clock.ahead += 1.0
        return list(await self.broker.claim(self.session.id, self.requests, queues, limit))

    async def run(self) -> None:
        for part in (self.work, self.keys_and_joins, self.sessions, self.schedules, self.operate, self.wake, self.upkeep):
            await part()

    async def work(self) -> None:
        broker, jobs = self.broker, [an_envelope(priority=n % 3, queue=f"q{n % 2}") for n in range(20)]
        await broker.register(self.session)
        for _ in range(2):
            await broker.enqueue(jobs)
        await broker.enqueue([an_envelope(after=0.1, expires=1.0, tags=("mine",)) for _ in range(4)])
        await broker.enqueue([an_envelope(after=60.0)])
        leases = [*await self.claim(4), *await self.claim(4, "q0"), *await self.claim(4, "q0", "q1")]
        assert len(leases) == 12
        claims = tuple(lease.claim for lease in leases)
        reports = (Report(leases[0].claim, 1.0, Progress(0.5, "half")),)
        await broker.beat(Beat(session=self.session.id, claims=claims[1:], seen=self.requests, reports=reports, looks=True))
        await broker.cancel([leases[11].envelope.id])
        for settlement in (
            [succeeded(lease, keep_for=0.0) for lease in leases[:4]],
            [failed(leases[4]), retried(leases[5])],
            [snoozed(leases[6])],
        ):
            assert await broker.settle(settlement) == [Settled.OK] * len(settlement)
        await broker.settle([succeeded(leases[7], follow_ups=(an_envelope(),), progress=Progress(1.0, "done")), cancelled(leases[11])])
        assert all(await broker.read([lease.envelope.id for lease in leases[4:]]))

    async def keys_and_joins(self) -> None:
        broker, key = self.broker, os.urandom(16)
        held = an_envelope(awaits=2, queue="joined")
        ref, mark = Ref(Kind.JOB, held.id), Ref(Kind.MARK, b"mine")
        await broker.enqueue([held, *[an_envelope(joins=(held.id,), queue="joins") for _ in range(2)]])
        await broker.store.apply(Apply([Step({mark: ABSENT}, (Put(mark, {}),), adds=(Addition(ref, "awaits", 0, 5),))]))
        await broker.settle([succeeded(lease) for lease in await self.claim(2, "joins")])
        await broker.enqueue([an_envelope(key=key, queue="keyed")])
        [lease] = await self.claim(1, "keyed")
        await broker.enqueue([an_envelope(key=key, queue="keyed", on_conflict=OnConflict.REPLACE)])
        await broker.enqueue([an_envelope(key=key, queue="keyed", on_conflict=OnConflict.REPLACE, tags=("mine",))])
        assert await broker.holders([key]) != [None]
        await broker.settle([succeeded(lease, key=key)])
        await broker.enqueue([an_envelope(key=os.urandom(16)) for _ in range(3)])

    async def sessions(self) -> None:
        leaving, dying = Session(id=new_id(), name="leaving"), Session(id=new_id(), name="dying")
        for number, session in enumerate((leaving, dying)):
            await self.broker.register(session)
            await self.broker.enqueue([an_envelope(queue="dying")])
            assert await self.broker.claim(session.id, 1, ["dying"], 1)
            await self.broker.beat(Beat.of_death(session.id, "exit code 1") if number else Beat(session=session.id, leaving=True))

    async def schedules(self) -> None:
        broker = self.broker
        await broker.define([Definition("put", bytes(16), b"body")])
        await broker.define([Definition("declared", bytes(16), b"body")], self.session.id, 1.0)
        self.clock.ahead += 1.0
        for offer in (await broker.upkeep(LIMIT)).offers:
            at = offer.now + 60_000_000
            await broker.fire([Firing(name=offer.name, digest=offer.digest, expected=None, next_at=at, look_at=at, envelope=an_envelope())])
        assert len(await broker.console.schedules(["put", "declared"])) == 2
        assert await broker.console.amend_schedule("put", Amendment.REMOVE)

    async def operate(self) -> None:
        console = self.broker.console
        await console.pause("paused")
        await console.queues()
        await console.metrics()
        await console.workers()
        for status in Status:
            for queue in (None, "q0"):
                page = await console.page(View(statuses=(status,), queue=queue), limit=1)
                await console.page(View(statuses=(status,), queue=queue), limit=1, cursor=page.cursor)
        await console.page(View(tag="mine"), limit=10)
        [group] = await console.failure_groups(queue="q0", job="work")
        ids = await console.failed_ids(group.fingerprint)
        await console.retry(ids)
        await console.drop(ids)
        await console.purge(View(statuses=(Status.READY,), queue="q1"), limit=3)
        await console.resume("paused")
        await console.record_act(Act(id=new_id(), by="me", verb="purge"))
        await console.acts(limit=5)

    async def wake(self) -> None:
        broker, job = self.broker, an_envelope()
        await broker.enqueue([job, an_envelope(queue="q0")])
        all_topics = [topics.ANY_QUEUE, topics.DUE, topics.queue("q0"), topics.session(self.session.id)]
        for listener in ("me", "other"):
            await broker._note_waiting(listener, [], 1, all_topics, [job.id])
        await broker._look(all_topics, [job.id])
        await broker.store.load_awaiting([job.id], [job.id], "me", 1_000_000)
        await broker.store.claim(self.session.id, 1_000_000, ["q0"], 1, ("me", [1], 2, [topics.queue("q0")]))
        self.requests = 1_000_000
        await broker.cancel([job.id])
        await broker._notify({topics.queue("q0"): 1, topics.DUE: 1, topics.session(self.session.id): 1, "*": 1}, [job.id])
        await broker.call("listeners_for", topics.queue("q0"))
        await broker.call("forget_listener", "me")

    async def upkeep(self) -> None:
        broker = self.broker
        for _ in range(3):
            self.clock.ahead += 2.0
            await broker.upkeep(100, ends=True)
        await broker.store.fade(LIMIT, 0, 0)
        await broker.store.query(Query(tuple(Ref(kind, b"unknown") for kind in TABLES)))
        for name, prefix, backwards, with_records in HOT_SCANS:
            await broker.store.query(
                Query(scans=(Scan(name, LIMIT, (self.session.id,)[:prefix], backwards=backwards, with_records=with_records),))
            )
        await broker.call("locked", [new_id()], [new_id()], '{"sessions": [{"id": "00"}]}')
        await broker.call("check_marks", self.clock.wall())


FUNCTIONS: Final = {
    *(
        "add",
        "claim",
        "succeed",
        "promote",
        "fade",
        "apply",
        "look",
        "scan",
        "locked",
        "load_awaiting",
        "load_totals",
        "note_waiting",
        "look_for",
    ),
    *(
        "notify",
        "nudge",
        "tell_ended",
        "listeners_for",
        "forget_listener",
        "has_note",
        "has_ready",
        "first_ready",
        "ready_marks",
    ),
    *(
        "pick_from_one",
        "pick_from_queues",
        "next_queue",
        "raise_ready_mark",
        "newest_mark",
        "lower_mark",
        "may_check_marks",
    ),
    *("drop_oldest", "drop_faded", "sum_counts", "nudge_again", "replace_entries", "note_idle", "check_marks", "drop_old_marks"),
    *("groups_status", "groups_ready", "groups_scheduled", "groups_leases", "groups_causes"),
    *(f"load_{table}" for table in TABLES.values() if table != "keys"),
    *map(hot_name, HOT_SCANS),
}
"""All that read tables, but those of users' transactions."""


def is_free(read: Read) -> bool:
    """Whether a plan may read all of a table or an index, because it says how many there are of each, tidies up, or tells everybody."""
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
async def test_every_function_reads_by_index(store: Store, planned: str) -> None:
    """The plans are kept, and some are made at the worst moment: the server knows that the tables are empty, and then they are filled."""
    connection = store.connection
    if not await can_explain(connection):
        pytest.skip("this server has no auto_explain")
    await connection.execute("SET track_functions = 'all'")
    if planned != "when empty":
        await fill_tables(connection)
    if planned == "when emptied":
        await empty_tables(connection)
    if planned == "when analyzed":
        await connection.execute("ANALYZE")
    if planned in ("when empty", "when emptied"):
        await everything_is_called(connection)
        await fill_tables(connection)

    reads = await everything_is_called(connection)

    worst = dict[tuple[str, str], Read]()
    for read in sorted(reads, key=lambda each: each.rows):
        if not is_cheap(read):
            worst[read.function, read.text] = read
    assert not worst, "\n".join(map(str, worst.values()))


def is_cheap(read: Read) -> bool:
    return is_free(read) or (read.by is not None and read.is_bounded and read.rows <= FEW)


async def everything_is_called(connection: asyncpg.Connection) -> list[Read]:
    """Call everything, and roll it back. Return what was read."""
    transaction = connection.transaction()
    await transaction.start()
    with explaining(connection) as reads:
        await Everything(connection).run()
    called = await connection.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'taskflow'::regnamespace AND pg_stat_get_xact_function_calls(oid) > 0"
    )
    assert sorted(FUNCTIONS - {name for (name,) in called}) == []
    await transaction.rollback()
    return reads


# --- rows that were really read -----------------------------------------------------------------------------------------


@any_kind
@both_ways
async def test_a_claim_goes_by_jobs_ready_and_upkeep_by_jobs_due(store: Store, after: float, is_filled_first: bool) -> None:
    """Claims of any queue and of one; upkeep with nothing to do, however much is waiting, and with much that has fallen due."""
    if is_filled_first:
        await store.fill(20_000, after=after)
    costs = [await store.costs(call, times=UNTIL_KEPT) for call in CALLS]
    if not is_filled_first:
        await store.fill(20_000, after=after)
        costs = [await store.costs(call) for call in CALLS]
    of_any_queue, of_one_queue, idle_upkeep, upkeep = costs
    assert_cheap([*of_any_queue, *of_one_queue], "jobs_ready", is_there=after == 0)
    assert_cheap([*idle_upkeep, *upkeep], "jobs_due")
    await assert_a_beat_is_cheap(store)


@both_ways
async def test_failed_jobs_are_counted_by_their_own_index(store: Store, is_filled_first: bool) -> None:
    """However many others there are, they are not read."""

    async def count(broker: OnConnection) -> None:
        await broker.console.failure_groups()

    if not is_filled_first:
        await store.costs(count, times=UNTIL_KEPT)
    await store.fill(20_000)
    assert_cheap(await store.costs(count), "jobs_causes", is_there=False)


def page_of(view: View, limit: int, cursor: str | None = None) -> Call:
    return lambda broker: broker.console.page(view, cursor=cursor, limit=limit)


@pytest.mark.parametrize("statuses", [(), (Status.READY,), (Status.CANCELLED,)], ids=["any", "ready", "cancelled"])
async def test_a_page_of_a_tag_reads_its_own_jobs(store: Store, statuses: tuple[Status, ...]) -> None:
    """100 among 20,000 others, or the first 100 of 2,000 that have the tag."""
    await store.fill(20_000)
    broker = connect(store.url)
    for tag, number in (("few", 100), ("many", 1_000), ("many", 1_000)):
        ids = [new_id() for _ in range(number)]
        await broker.enqueue([an_envelope(id=job_id, tags=(tag,)) for job_id in ids])
        await broker.cancel(ids[::2])
    await broker.close()
    store.counted = "^(jobs|tags)"
    for tag in ("few", "many", "unknown"):
        [cost] = await store.costs(page_of(View(statuses=statuses, tag=tag), 100))
        assert cost.keys() <= {"jobs_pkey", "tags_pkey"}
        assert rows_of(cost) <= 1_200, cost  # it reads 200 at a time, until 100 have the status


INDEX_OF: Final = {
    Status.HELD: "jobs_held",
    Status.SCHEDULED: "jobs_scheduled",
    Status.READY: "jobs_ready",
    Status.RUNNING: "jobs_leases",
}


@pytest.mark.parametrize("is_analyzed", [False, True], ids=["as it comes", "analyzed"])
async def test_a_page_of_a_status_reads_its_own_jobs_by_their_index(store: Store, is_analyzed: bool) -> None:
    """The first page and a later one, of a queue and of all: each reads no more than it lists, and some rows ahead."""
    await store.fill(20_000)
    broker = connect(store.url)
    for request, settlement in enumerate((succeeded, failed, cancelled, None), 1):
        leases = await broker.claim(SESSION, request, [], 500)
        if settlement is not None:
            await broker.settle([settlement(lease) for lease in leases])
    await broker.enqueue([an_envelope(after=60.0) for _ in range(500)])
    await broker.enqueue([an_envelope(awaits=1) for _ in range(500)])
    if is_analyzed:
        await store.connection.execute("ANALYZE")
    for status in Status:
        for queue in (None, "default"):
            view = View(statuses=(status,), queue=queue)
            for cursor in (None, (await broker.console.page(view, limit=250)).cursor):
                [cost] = await store.costs(page_of(view, 10, cursor))
                index = "jobs_due" if status is Status.SCHEDULED and queue is None else INDEX_OF.get(status, "jobs_ended")
                assert {index} <= cost.keys() <= {index, "jobs_pkey"}, (status, cost)
                assert rows_of(cost) <= 100, (status, cost)
    await broker.close()


@any_kind
async def test_no_verb_reads_20_000_jobs(store: Store, after: float) -> None:
    """On a connection that has done each of them for an empty table, and goes on."""
    for _ in range(UNTIL_KEPT):
        await store.costs(everything)
    await store.fill(20_000, after=after)
    [cost] = await store.costs(everything)
    assert "jobs" not in cost, cost
    assert rows_of(cost) < 8_000, cost


async def everything(broker: OnConnection) -> None:
    await Everything(broker.connection).run()
