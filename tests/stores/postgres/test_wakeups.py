"""Notifications and their cost: notes, nudges, transactions that a read may have missed, and the ends of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import pytest

from taskflow.broker import topics
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.record import Record
from taskflow.model.session import Beat, Session
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.stores.postgres.counts import SESSION, UNTIL_KEPT, Call, OnConnection, Store, counting, rows_of
from tests.stores.postgres.scene import Scene
from tests.support.postgres import PostgresServer
from tests.support.verdicts import succeeded
from tests.support.waiting import until

SOON: Final = 3.0
"""Seconds. A worker polls again after five."""


@asynccontextmanager
async def idle_worker(url: str, *, limit: int = 10) -> AsyncIterator[set[bytes]]:
    """Run a worker that claims all jobs, and waits for a nudge. Yields the ids of its jobs."""
    broker, taken, claims = connect(url), set[bytes](), 0
    session, nudges = await registered(broker, "idle", ttl=3600.0), broker.listen([topics.ANY_QUEUE])
    nudges.nudge()
    with contextlib.suppress(TimeoutError):
        await nudges.wait(0)
    await until(lambda: nudges.is_prompt)

    async def work() -> None:
        nonlocal claims
        for request in itertools.count(1):
            leases = await broker.claim(session.id, request, [], limit)
            claims += 1
            taken.update(lease.envelope.id for lease in leases)
            await broker.settle([succeeded(lease, b"\x01result") for lease in leases])
            if len(leases) < limit:
                await nudges.wait(60.0)

    working = asyncio.create_task(work())
    try:
        await until(lambda: claims)
        yield taken
    finally:
        working.cancel()
        await asyncio.wait([working])
        nudges.close()
        await broker.close()


async def are_taken(taken: set[bytes], *ids: bytes, within: float = 1.0) -> None:
    await until(lambda: taken.issuperset(ids), within)


async def ended(waiter: Broker, job_id: bytes) -> Record:
    with waiter.listen([topics.job(job_id)]) as nudges:
        while True:
            [record] = await waiter.read([job_id])
            if record is not None and record.status.is_ended:
                return record
            await nudges.wait(60.0)


@pytest.mark.parametrize("number", [1, 5])
async def test_a_lone_job_takes_six_calls_however_many_workers_idle(store: Store, broker: Broker, number: int) -> None:
    """Each operation makes one, and there are two notifications. Its result comes with the second one."""
    waiter = broker.sibling()

    async def lone_result() -> None:
        await broker.enqueue([job := an_envelope()])
        await ended(waiter, job.id)

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(number):
            await stack.enter_async_context(idle_worker(store.url))
        await lone_result()  # the waiter listens from now on
        with waiter.listen([topics.job(bytes(16))]) as nudges:
            await until(lambda: nudges.is_prompt)
        await asyncio.sleep(0.3)
        with counting() as asked:
            for _ in range(4):
                await lone_result()
                await asyncio.sleep(0.1)
    for call in ("look_for", "check_marks"):  # if the machine is slow
        del asked[call]
    assert asked.pop("notify") <= 8  # fewer if the machine is slow and a job ends before its waiter is noted
    assert asked == {"add": 4, "load_awaiting": 4, "claim": 4, "succeed": 4}
    await waiter.close()


@pytest.mark.parametrize(("number", "size"), [(10, 10), (1, 4_800), (1, 5_200), (8, 2_000), (250, 10)])
async def test_a_listener_gets_many_ends_in_one_message(store: Store, broker: Broker, number: int, size: int) -> None:
    """This holds however many wait in its process. Each result comes with the message, unless they do not fit: then they are read."""
    jobs = envelopes(number)
    await broker.enqueue(jobs)
    leases = await broker.claim(SESSION, 1, [], number)
    waiter = broker.sibling()
    assert isinstance(waiter, PostgresBroker)
    with waiter.listen([topics.job(bytes(16))]) as nudges:
        await until(lambda: nudges.is_prompt)
        waiting = [asyncio.create_task(ended(waiter, job.id)) for job in jobs]
        await asyncio.sleep(0)
        await until(lambda: not waiter.listener.unnoted([job.id for job in jobs]))
        with counting() as asked:
            await broker.settle([succeeded(lease, n.to_bytes(size, "big")) for n, lease in enumerate(leases)])
            async with asyncio.timeout(SOON):
                records = await asyncio.gather(*waiting)
    assert {record.result for record in records} == {n.to_bytes(size, "big") for n in range(number)}
    assert (asked.pop("load_awaiting", 0) > 0) == (number * size > 5_000 or number == 250)
    assert asked == {"succeed": 1, "notify": 1}
    assert records == await broker.read([job.id for job in jobs])
    await waiter.close()


async def test_jobs_in_too_many_queues_to_name_wake_a_worker(store: Store, broker: Broker) -> None:
    jobs = [an_envelope(queue=f"{number:03}" + "x" * 90) for number in range(100)]
    async with idle_worker(store.url, limit=1_000) as taken:
        await broker.enqueue(jobs)
        await are_taken(taken, *(job.id for job in jobs), within=SOON)


async def test_a_job_that_a_sender_commits_while_a_worker_notes_itself_starts_soon(
    store: Store, broker: Broker, stranger: asyncpg.Connection
) -> None:
    """The sender saw no note, and the worker's claim no job. The sender sends nothing after its commit."""
    envelope = an_envelope()
    await broker.read([])
    await stranger.execute("BEGIN")
    sender = OnConnection.of(stranger)
    await sender.enqueue([envelope])
    assert sender.wakeups == ["0 queue:default"]
    async with idle_worker(store.url) as taken:
        await asyncio.sleep(0.5)
        await stranger.execute("COMMIT")
        await are_taken(taken, envelope.id, within=SOON)


async def test_a_sender_that_sends_for_long_keeps_no_worker_busy(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    await broker.read([])
    await stranger.execute("BEGIN")
    await OnConnection.of(stranger).enqueue([an_envelope()])
    async with idle_worker(store.url):
        with counting() as asked:
            await asyncio.sleep(1.0)
    assert asked["look_for"] <= 6
    await stranger.execute("ROLLBACK")


async def test_a_users_commit_takes_no_lock_of_notifications_unless_a_worker_idles() -> None:
    """Another program holds that lock, in a commit that waits for a standby."""
    settings = {"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    with PostgresServer(fsync=False, settings=settings) as server:
        url = server.url(server.new_database())
        broker = connect(url)
        await broker.register(Session(id=SESSION, name="busy"))
        holder, user = await asyncpg.connect(url), await asyncpg.connect(url)
        await user.execute("CREATE TABLE theirs (n integer)")
        await holder.execute("SET synchronous_commit = on")
        committing = asyncio.create_task(holder.execute("BEGIN; NOTIFY elsewhere; INSERT INTO theirs VALUES (1); COMMIT"))
        await asyncio.sleep(0.3)
        assert not committing.done()
        async with asyncio.timeout(SOON):
            await user.fetchval("SELECT taskflow.enqueue('work')")
        assert not committing.done()
        committing.cancel()
        await asyncio.wait([committing])
        holder.terminate()
        await user.close()
        await broker.close()


@pytest.mark.parametrize("is_analyzed", [False, True], ids=["as it comes", "analyzed"])
async def test_no_call_reads_the_notes_that_a_long_transaction_keeps(
    store: Store, broker: Broker, stranger: asyncpg.Connection, is_analyzed: bool
) -> None:
    """This holds whatever the statistics say, which autovacuum gathers at any moment."""
    await broker.read([])
    await stranger.execute("CREATE TABLE public.theirs (n integer); BEGIN; INSERT INTO public.theirs VALUES (1)")
    store.execute(
        "INSERT INTO taskflow.idle (listener, topic, since) SELECT 'l' || n, 'queue:default', n FROM generate_series(1, 5000) AS n"
    )
    for change in ("UPDATE taskflow.idle SET is_nudged = true", "DELETE FROM taskflow.idle", *["ANALYZE taskflow.idle"][:is_analyzed]):
        store.execute(change)
    store.counted = "^idle"

    calls: Sequence[Call | str] = (
        lambda broker: broker.enqueue([an_envelope()]),
        "SELECT taskflow.notify(NULL, ARRAY['queue:default'], ARRAY[3::bigint], '{}')",
        "SELECT taskflow.nudge_again(taskflow.wall(NULL))",
        "SELECT taskflow.listeners_for('queue:default')",
    )
    for call in calls:
        costs = await store.costs(call, times=UNTIL_KEPT)
        assert max(map(rows_of, costs)) < 50, (call, costs)
        assert all("idle" not in each for each in costs), (call, costs)
    await stranger.execute("ROLLBACK")


async def test_no_call_reads_former_notes_that_a_long_transaction_keeps(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    """The listener was nudged, and has waited again, many times. A call's reads are counted in buffers."""
    await broker.read([])
    await stranger.execute("CREATE TABLE public.theirs (n integer); BEGIN; INSERT INTO public.theirs VALUES (1)")
    store.execute(
        "DO $$ BEGIN FOR i IN 1 .. 2000 LOOP PERFORM taskflow.record_idle('one', ARRAY[i - 1], i, ARRAY['queue:default', 'queue:other']); "
        "PERFORM taskflow.nudge('queue:default', 1) WHERE i < 2000; END LOOP; END $$"
    )
    for call in (
        "SELECT taskflow.has_note('queue:default')",
        "SELECT taskflow.notify(NULL, ARRAY['queue:default'], ARRAY[1::bigint], '{}')",
        "SELECT taskflow.record_waiting(NULL, 'one', ARRAY[2000::bigint], 2001, ARRAY['queue:default', 'queue:other'], '{}', 0)",
    ):
        await store.connection.fetch(call.replace("2001", "2002"))  # its plans are made
        await store.connection.execute("SELECT taskflow.record_idle('one', ARRAY[2000, 2002], 2000, ARRAY['queue:default', 'queue:other'])")
        [(explained,)] = await store.connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {call}")
        assert json.loads(explained)[0]["Plan"]["Shared Hit Blocks"] < 100, call
    assert await store.connection.fetchval("SELECT count(*) FROM taskflow.idle") == 2
    await stranger.execute("ROLLBACK")


RUBBISH: Final = r"""
    INSERT INTO taskflow.idle (listener, note, topic, since, is_nudged)
    SELECT listener, since, topic, since, random() < 0.5
    FROM unnest(ARRAY['"', 'a b', repeat('x', 63), E'\n', 'é']) AS listener,
        unnest(ARRAY['queue:default', 'queues', 'due', 'queue:', E'a\nb', 'session:x']) AS topic,
        unnest(ARRAY[-9223372036854775808, 9223372036854775807, taskflow.wall(NULL)]) AS since
    ON CONFLICT DO NOTHING;
    INSERT INTO taskflow.awaited (id, listener, until_when) VALUES ('', 'a', 0), ('\x00', '"', 9223372036854775807) ON CONFLICT DO NOTHING;
    INSERT INTO taskflow.awaited (id, listener, until_when)
    SELECT id, listener, 0 FROM taskflow.jobs, unnest(ARRAY['"', repeat('x', 63)]) AS listener ON CONFLICT DO NOTHING;
    UPDATE taskflow.sessions SET listener = '"';
"""


async def test_rubbish_in_the_notes_affects_no_listener(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    """Another program has written whatever the columns admit."""
    async with idle_worker(store.url) as taken:
        await broker.enqueue([an_envelope(after=3600.0, queue="other")])
        for _ in range(3):
            await stranger.execute(RUBBISH)
            job = an_envelope()
            await broker.enqueue([job, an_envelope(after=60.0)])
            by_user = await stranger.fetchval("SELECT taskflow.enqueue('work')")
            waiting = asyncio.create_task(ended(broker, job.id))
            for _ in range(100):  # until all listeners that are none have been nudged
                await asyncio.sleep(0.3)
                await broker.beat(Beat(session=SESSION, looks=True))
                await broker.upkeep(100)
                if {job.id, by_user.bytes} <= taken:
                    break
            await asyncio.wait_for(waiting, SOON)
            await stranger.fetch("SELECT taskflow.check_marks(NULL)")
    for listener in ("", "x" * 64):
        with pytest.raises(asyncpg.CheckViolationError):
            await stranger.execute("INSERT INTO taskflow.idle (listener, topic, since) VALUES ($1, 'queues', 0)", listener)


async def test_a_crash_of_the_server_empties_the_notes_and_workers_write_them_again(server: PostgresServer) -> None:
    async with Scene(server) as scene, idle_worker(scene.straight_url) as taken:
        await asyncio.to_thread(server.restart, "immediate")
        sender = connect(scene.straight_url)
        await sender.read([])
        await until(lambda: server.rows("SELECT count(*) FROM taskflow.idle", database=scene.database) == [(1,)], 10)
        job = an_envelope()
        await sender.enqueue([job])
        await are_taken(taken, job.id)
        await sender.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_user_whose_transaction_sees_no_present_notes_tells_all_workers(
    store: Store, broker: Broker, stranger: asyncpg.Connection, level: str
) -> None:
    await broker.read([])
    await stranger.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class")
    async with idle_worker(store.url) as taken:
        job_id = await stranger.fetchval("SELECT taskflow.enqueue('work')")
        await stranger.execute("COMMIT")
        await are_taken(taken, job_id.bytes)
