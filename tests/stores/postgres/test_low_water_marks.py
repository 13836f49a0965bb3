"""A transaction of somebody else's that stays open keeps all that dies meanwhile; what operations read does not grow by it, and nothing
is lost.

See low_water_marks.sql.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import asyncpg
import pytest

from taskflow.broker import topics
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Ref
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.protocol import Added, Broker
from taskflow.broker.url import connect
from taskflow.broker.wakeups import Waiter
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import Status
from taskflow.model.session import Beat
from taskflow.model.verdict import HandedBack, Settled
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.stores.postgres.counts import SESSION, UNTIL_KEPT, Call, OnConnection, Store, rows_of
from tests.support.verdicts import settlement, succeeded

MANY: Final = 10_000
BATCH: Final = 200

BEYOND_THE_MARKS: Final = 0.8
"""Seconds. A mark is half a second back."""


class Work:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.request = 0

    async def claim(self, limit: int = BATCH) -> list[Lease]:
        self.request += 1
        return await self.broker.claim(SESSION, self.request, [], limit)

    async def pass_through(self, jobs: int, *, after: float = 0.0) -> None:
        """Add each job, ready it if it has to wait, claim it and settle it."""
        for _ in range(jobs // BATCH):
            await self.broker.enqueue(envelopes(BATCH, after=after))
            if after:
                await asyncio.sleep(2 * after)
                assert (await self.broker.upkeep(BATCH)).readied == BATCH
            leases = await self.claim()
            assert len(leases) == BATCH
            assert await self.broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * BATCH

    async def found(self, nudges: Waiter) -> list[Lease]:
        """Claim as soon as a job is ready, and return the leases."""
        leases = await self.claim()
        while not leases:
            assert await nudges.wait(5.0)
            leases = await self.claim()
        return leases

    async def go_beyond(self, envelope: Envelope) -> None:
        """Let other jobs of its queue and priority come and go, until the mark has passed the moment of its enqueue."""
        for _ in range(2):
            await asyncio.sleep(BEYOND_THE_MARKS)
            await self.broker.enqueue([an_envelope()])
            [lease] = await self.claim(1)
            assert lease.envelope.id != envelope.id
            await self.broker.settle([succeeded(lease)])


@pytest.fixture
async def work(store: Store) -> AsyncIterator[Work]:
    broker = connect(store.url)
    yield Work(broker)
    await broker.close()


async def test_reads_do_not_grow_with_dead_rows_that_cannot_be_vacuumed(store: Store, work: Work, stranger: asyncpg.Connection) -> None:
    """The rows that each operation of a busy worker reads, from each table and index, once ten thousand jobs have come and gone."""
    await stranger.execute("CREATE TABLE public.theirs (n integer)")
    await stranger.execute("BEGIN; INSERT INTO public.theirs VALUES (1)")
    store.execute(_NOT_AWAITED_ANY_MORE)
    await work.pass_through(MANY // 2)
    await work.pass_through(MANY // 2, after=0.001)
    await work.broker.beat(Beat(session=SESSION, claims=(), seen=work.request))
    await work.broker.upkeep(1_000)
    await asyncio.sleep(BEYOND_THE_MARKS)
    await work.pass_through(BATCH)  # whose claims raise the mark
    await work.broker.beat(Beat(session=SESSION, claims=(), seen=work.request))
    await work.broker.upkeep(1_000)
    [(dead,)] = store.rows("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'jobs'")
    assert dead > MANY  # of two for each, those that the statistics know by now
    store.counted = "."
    await work.broker.enqueue(envelopes(20))
    settlements = [succeeded(lease) for lease in await work.claim()]
    beyond = work.request + 1
    verbs: dict[str, Call] = {
        "settle": lambda broker: broker.settle(settlements),
        "enqueue": lambda broker: broker.enqueue(envelopes(10)),
        "claim of any queue": lambda broker: broker.claim(SESSION, beyond, [], 100),
        "claim of one": lambda broker: broker.claim(SESSION, beyond, ["default"], 100),
        "beat": lambda broker: broker.beat(Beat(session=SESSION, seen=beyond)),
        "beat that looks": lambda broker: broker.beat(Beat(session=SESSION, seen=beyond, looks=True)),
        "upkeep": lambda broker: broker.upkeep(1_000),
        "arming": lambda broker: broker._look([topics.ANY_QUEUE, topics.DUE, topics.queue("default")], []),
    }
    for verb, call in verbs.items():
        costs = await store.costs(call, times=UNTIL_KEPT + 2)
        assert max(map(rows_of, costs)) < 1_000, verb  # a fraction of the many; half a second of jobs may be read again


_NOT_AWAITED_ANY_MORE: Final = f"""
    INSERT INTO taskflow.awaited (id, listener, until_when)
    SELECT decode(md5(n::text), 'hex'), 'listener', 0 FROM generate_series(1, {MANY}) AS n;
    DELETE FROM taskflow.awaited;
"""
"""Each wait for a result leaves a row that nobody may clean away meanwhile."""


async def test_a_commit_that_comes_late_is_found_by_a_check_of_the_marks(work: Work, stranger: asyncpg.Connection) -> None:
    """The marks have passed the job; upkeep reads without them every ten seconds."""
    late = an_envelope()
    await work.pass_through(BATCH)
    await stranger.execute("BEGIN")
    await OnConnection.of(stranger).enqueue([late])
    await work.go_beyond(late)
    await stranger.execute("COMMIT")
    assert await work.claim() == []
    await stranger.execute("UPDATE taskflow.meta SET value = 0 WHERE name = 'check_marks_at'")  # ten seconds are over
    with work.broker.listen([topics.queue("default")]) as nudges:
        await work.broker.upkeep(10)
        assert [lease.envelope.id for lease in await work.found(nudges)] == [late.id]


async def test_jobs_of_a_claim_that_was_rolled_back_are_found_at_once(work: Work, stranger: asyncpg.Connection) -> None:
    """Other claims have taken later jobs meanwhile."""
    held = an_envelope()
    await work.broker.enqueue([held])
    await stranger.execute("BEGIN")
    await OnConnection.of(stranger).claim((await registered(work.broker)).id, 1, [], 1)
    await work.go_beyond(held)
    await stranger.execute("ROLLBACK")
    assert [lease.envelope.id for lease in await work.claim()] == [held.id]


async def test_an_ended_job_that_another_program_had_locked_is_dropped_afterwards(
    store: Store, work: Work, stranger: asyncpg.Connection
) -> None:
    drop = "SELECT moved FROM taskflow.drop_oldest('default', false, 10, 0, 1, (extract(epoch FROM clock_timestamp()) * 1e6)::bigint)"
    await work.broker.enqueue(envelopes(3))
    await work.broker.settle([succeeded(lease, keep_for=100.0) for lease in await work.claim()])
    await asyncio.sleep(BEYOND_THE_MARKS)
    other = await asyncpg.connect(store.url)
    try:
        async with other.transaction():
            await other.execute("SELECT FROM taskflow.jobs ORDER BY ended_at, seq LIMIT 1 FOR UPDATE")
            assert await stranger.fetchval(drop) == 2
        assert await stranger.fetchval(drop) == 1
    finally:
        await other.close()


async def test_a_scheduled_job_of_a_transaction_that_commits_late_is_found(work: Work, stranger: asyncpg.Connection) -> None:
    await stranger.execute("BEGIN")
    job_id = await stranger.fetchval("SELECT taskflow.enqueue('work', after => '100 milliseconds')")
    for _ in range(3):
        await work.pass_through(BATCH, after=0.001)
        await asyncio.sleep(BEYOND_THE_MARKS)
        await work.broker.upkeep(10)
    await stranger.execute("COMMIT")
    await work.broker.upkeep(10)
    assert [lease.envelope.id for lease in await work.claim()] == [job_id.bytes]


@pytest.mark.parametrize("is_turn", [False, True], ids=["a statement", "a turn"])
async def test_a_verb_that_took_long_checks_the_marks_itself(work: Work, stranger: asyncpg.Connection, is_turn: bool) -> None:
    """Its commit takes two seconds; others' jobs come and go meanwhile. A turn is a transaction for contested records: it measures more
    than its statements."""
    await stranger.execute(_SLOW_COMMIT)
    late = an_envelope(job="slow", after=3600.0 if is_turn else 0.0)
    if is_turn:
        await work.broker.enqueue([late])
        assert isinstance(work.broker, PostgresBroker)
        work.broker._contention.note([Ref(Kind.JOB, late.id)])
    with work.broker.listen([topics.queue("default")]) as nudges:
        call: Coroutine[Any, Any, Any] = work.broker.admin.run_now([late.id]) if is_turn else work.broker.enqueue([late])
        calling = asyncio.create_task(call)
        await work.go_beyond(late)
        assert await calling == ([Status.SCHEDULED] if is_turn else [Added(late.id)])
        assert [lease.envelope.id for lease in await work.found(nudges)] == [late.id]


_SLOW_COMMIT: Final = """
    CREATE FUNCTION public.takes_its_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2.5); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON taskflow.jobs DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.job = 'slow' AND NEW.status = 2) EXECUTE FUNCTION public.takes_its_time();
"""


async def test_the_first_jobs_of_a_queue_are_all_found_whoever_commits_first(work: Work, stranger: asyncpg.Connection) -> None:
    """Neither transaction sees that the other has begun the queue."""
    early, late = an_envelope(queue="new"), an_envelope(queue="new")
    await stranger.execute("BEGIN")
    await OnConnection.of(stranger).enqueue([early])
    await work.broker.enqueue([late])
    await stranger.execute("COMMIT")
    assert [lease.envelope.id for lease in await work.claim()] == [early.id, late.id]


LOWER: Final = "SELECT taskflow.lower_mark('ready', 'default', 0, $1, 1000000)"
RAISE: Final = "SELECT taskflow.raise_mark(taskflow.newest_mark('ready', 'default', 0), $1, 0, $2)"
CURRENT: Final = "SELECT (taskflow.newest_mark('ready', 'default', 0)).at"
NEVER: Final = 1 << 50
"""Microseconds until a mark may be raised again."""


@pytest.fixture
async def clients(store: Store, work: Work) -> AsyncIterator[list[asyncpg.Connection]]:
    await work.broker.read([])
    connections = [await asyncpg.connect(store.url) for _ in range(4)]
    await connections[0].execute("INSERT INTO taskflow.marks (kind, queue, at, set_at) VALUES ('ready', 'default', 100, 0)")
    yield connections
    for connection in connections:
        await connection.close()


@pytest.mark.parametrize("ends", list(itertools.permutations(range(3))), ids=str)
async def test_of_marks_that_are_lowered_at_once_the_lowest_counts(clients: list[asyncpg.Connection], ends: tuple[int, ...]) -> None:
    """This holds in every order of their commits, and though a mark is raised between any two, from what is visible then."""
    *lowering, raising = clients
    places, waiting = (50, 30, 70), {50, 30, 70}
    for connection, place in zip(lowering, places, strict=True):
        await connection.execute("BEGIN")
        await connection.fetchval(LOWER, place)
    for number, end in enumerate(ends):
        await raising.fetchval(RAISE, 100 + number, NEVER * (number + 1))
        await lowering[end].execute("COMMIT")
        assert await raising.fetchval(CURRENT) == places[end]  # the others are not committed, or their jobs were taken
        await raising.fetchval(RAISE, min({110} | waiting - set(places)), NEVER * (number + 1) + 1_000_000)


async def test_raising_a_mark_does_not_hide_jobs_that_were_put_back_meanwhile(clients: list[asyncpg.Connection]) -> None:
    """Another transaction has lowered the mark later, and was visible when it was raised."""
    slow, quick, raising, tidying = clients
    await slow.execute("BEGIN")
    await slow.fetchval(LOWER, 50)
    await quick.fetchval(LOWER, 40)
    assert await raising.fetchval(CURRENT) == 40
    await raising.fetchval(RAISE, 90, NEVER)
    assert await raising.fetchval(CURRENT) == 90
    await tidying.fetchval("SELECT taskflow.drop_old_marks(0)")
    await slow.execute("COMMIT")
    await tidying.fetchval("SELECT taskflow.drop_old_marks(0)")
    assert await raising.fetchval(CURRENT) == 50


async def test_a_job_in_the_past_counts_against_marks_that_are_raised_beyond_it(clients: list[asyncpg.Connection]) -> None:
    """It was not before the mark that its own transaction saw."""
    slow, raising, *_ = clients
    await slow.execute("BEGIN")
    await slow.fetchval(LOWER, 150)
    await raising.fetchval(RAISE, 200, NEVER)
    await slow.execute("COMMIT")
    assert await raising.fetchval(CURRENT) == 150


async def test_of_marks_that_are_raised_at_once_the_one_that_saw_most_counts(clients: list[asyncpg.Connection]) -> None:
    """The one that was written last does not count: it may hide jobs that only the other has seen, whose row is gone by now."""
    slow, quick, lowering, tidying = clients
    await slow.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await slow.fetchval(CURRENT)
    await lowering.fetchval(LOWER, 50)
    await quick.execute("UPDATE taskflow.marks SET set_at = -1")  # a moment is over
    await quick.fetchval("SELECT taskflow.raise_mark(m, 50, 0, $1) FROM taskflow.newest_mark('ready', 'default', 0) AS m", NEVER)
    await tidying.fetchval("SELECT taskflow.drop_old_marks(0)")
    assert await tidying.fetchval("SELECT count(*) FROM taskflow.lowered") == 0
    await slow.fetchval(RAISE, 150, 2 * NEVER)
    await slow.execute("COMMIT")
    assert await quick.fetchval(CURRENT) == 50


async def test_marks_that_were_restored_from_a_dump_are_not_trusted(work: Work, stranger: asyncpg.Connection) -> None:
    """Another server numbers its transactions differently. The first check finds the jobs."""
    envelope = an_envelope()
    await work.pass_through(BATCH)
    await stranger.execute("UPDATE taskflow.marks SET upto = '4000000000000', at = at + 3600000000")
    await work.broker.enqueue([envelope])
    await stranger.fetch("SELECT * FROM taskflow.check_marks(NULL)")
    assert [lease.envelope.id for lease in await work.claim()] == [envelope.id]
    assert await stranger.fetchval("SELECT count(*) FROM taskflow.marks WHERE upto = '4000000000000' AND kind = 'ready'") == 0


async def test_a_queue_without_claims_keeps_few_marks(work: Work, stranger: asyncpg.Connection) -> None:
    """A mark that may soon be dropped is renewed once, not by each job, and the check leaves one."""
    await work.broker.enqueue([an_envelope()])
    await stranger.execute("UPDATE taskflow.marks SET set_at = set_at - 11000000")
    for _ in range(20):
        await work.broker.enqueue([an_envelope()])
    number = "SELECT count(*) FROM taskflow.marks WHERE kind = 'ready'"
    assert await stranger.fetchval(number) == 2
    await stranger.fetch("SELECT * FROM taskflow.check_marks(NULL)")
    assert await stranger.fetchval(number) == 1


async def check_marks_after_a_while(stranger: asyncpg.Connection) -> None:
    """Check them as if every mark had been set a quarter of a minute earlier."""
    await stranger.execute("UPDATE taskflow.marks SET set_at = set_at - 15000000")
    await stranger.fetch("SELECT * FROM taskflow.check_marks(NULL)")


async def test_many_queues_with_nothing_in_them_cost_a_claim_nothing(store: Store, work: Work, stranger: asyncpg.Connection) -> None:
    """They cost nothing once they have been empty for a while; a job that is added to one of them is found at once, even where it is before
    others."""
    queues = [f"queue{number}" for number in range(300)]
    await work.broker.enqueue([an_envelope(queue=queue) for queue in queues])
    leases = await work.claim(len(queues))
    await work.broker.settle([succeeded(lease) for lease in leases[1:]])
    for _ in range(2):
        await check_marks_after_a_while(stranger)
    store.counted = "^marks"
    request = work.request + 1
    claim: Call = lambda broker: broker.claim(SESSION, request, [], 100)  # noqa: E731
    arm: Call = lambda broker: broker._look([topics.ANY_QUEUE], [])  # noqa: E731
    await store.costs(claim)  # the first to come by what has been deleted marks it as dead in the index
    costs = [*await store.costs(claim), *await store.costs(arm)]
    assert all(rows < 20 for cost in costs for _, rows in cost.values()), costs

    new = an_envelope(queue="queue7")
    await work.broker.enqueue([new])
    await work.broker.settle([settlement(leases[0], HandedBack())])

    assert {lease.envelope.id for lease in await work.claim()} == {new.id, leases[0].envelope.id}


@pytest.mark.parametrize("looks", [0, 1], ids=["before it is said", "after"])
async def test_a_job_added_while_its_queue_retires_is_found(work: Work, stranger: asyncpg.Connection, store: Store, looks: int) -> None:
    """It is found at once, though those who retire the queue do not see the transaction that adds it."""
    late = an_envelope()
    await work.pass_through(BATCH)
    for look in range(2):
        if look == looks:
            await stranger.execute("BEGIN")
            await OnConnection.of(stranger).enqueue([late])
        await check_marks_after_a_while(store.connection)
        if look == looks:
            await stranger.execute("COMMIT")
    assert [lease.envelope.id for lease in await work.claim()] == [late.id]
