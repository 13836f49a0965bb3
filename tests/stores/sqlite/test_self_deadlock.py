"""Verbs that wait for a transaction of their own process."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.queued_verb import Durability
from taskflow.broker.sqlite.self_deadlock import HELD_FOR, SelfDeadlockDetector
from taskflow.model.errors import BrokerRefused, BrokerUnavailable
from taskflow.model.session import Beat
from taskflow.model.verdict import Settled
from tests.stores.sqlite.support import (
    Open,
    a_session,
    an_envelope,
    another_that_holds,
    connected,
    locked,
    registered,
    run_script,
    succeeded,
)

pytestmark = pytest.mark.slow

AT_ONCE = HELD_FOR + 2.0
"""Seconds, on a busy machine too. A call that waits for the lock takes five."""


async def test_sending_inside_it_is_refused_at_once(broker: SqliteBroker, path: Path) -> None:
    """The message names the cures. The transaction goes on, and after it the same job is sent."""
    await broker.enqueue([an_envelope()])
    job = an_envelope()
    with locked(path) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER)")
        began = time.monotonic()
        with pytest.raises(
            BrokerRefused, match=rf"transaction of this process, process {os.getpid()},.+connection=.+commit before"
        ) as refused:
            await broker.enqueue([job])
        assert HELD_FOR <= time.monotonic() - began < AT_ONCE
        assert str(path) in str(refused.value)
        connection.execute("INSERT INTO orders VALUES (1)")
        connection.execute("COMMIT")
        assert connection.execute("SELECT number FROM orders").fetchall() == [(1,)]
    assert await broker.read([job.id]) == [None]
    assert await broker.enqueue([job])


def test_delay_fails_as_soon(path: Path) -> None:
    """It is not repeated for as long as a call may take."""
    said = run_script(
        """
        import sqlite3, sys, time
        import taskflow
        from taskflow.broker.sqlite import SqliteBroker

        taskflow.configure(broker=f"sqlite:///{sys.argv[1]}?shared=1")

        @taskflow.job
        def charge(order: int) -> None: ...

        charge.delay_sync(0)
        with sqlite3.connect(sys.argv[1]) as connection:
            connection.execute("CREATE TABLE orders (number INTEGER)")
            connection.execute("INSERT INTO orders VALUES (1)")
            began = time.monotonic()
            try:
                charge.delay_sync(1)
            except taskflow.BrokerRefused as error:
                print(error)
            print(time.monotonic() - began)
        """,
        path,
    ).splitlines()
    assert "connection=" in said[0]
    assert float(said[1]) < AT_ONCE + 0.5


@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_the_tables_cannot_be_created_inside_it(open_broker: Open, path: Path, journal: str) -> None:
    """The program's file is there, and its first job is sent in its transaction, on the connection or not. It may try again after it."""
    broker = open_broker(shared=True)
    with connected(path) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("CREATE TABLE orders (number INTEGER)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO orders VALUES (1)")
        for verb in (broker.transactional, lambda: broker.enqueue([an_envelope()])):
            began = time.monotonic()
            with pytest.raises(BrokerRefused, match=r"has no tables for jobs yet.+taskflow migrate"):
                await verb()
            assert time.monotonic() - began < AT_ONCE
        connection.execute("COMMIT")
        assert connection.execute("SELECT number FROM orders").fetchall() == [(1,)]
    await broker.transactional()


async def test_the_tables_are_created_after_a_short_one(open_broker: Open, path: Path) -> None:
    with connected(path, check_same_thread=False) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER)")
        connection.execute("BEGIN IMMEDIATE")
        threading.Timer(HELD_FOR * 0.6, _roll_back, [connection]).start()
        await open_broker(shared=True).transactional()


async def test_a_short_one_is_waited_for(broker: SqliteBroker, path: Path) -> None:
    """Of another thread, or task."""
    await broker.enqueue([an_envelope()])
    for _ in range(3):
        with locked(path) as connection:
            threading.Timer(HELD_FOR * 0.6, lambda connection=connection: connection.execute("ROLLBACK")).start()
            assert await broker.enqueue([an_envelope()])


async def test_many_short_ones_are_not_taken_for_a_long_one(broker: SqliteBroker, path: Path) -> None:
    """Although the lock is never free when someone looks. Each commit shows that its transaction did not wait for a verb."""
    await broker.enqueue([an_envelope()])
    with connected(path) as reading, connected(path) as writing:
        detector = SelfDeadlockDetector(broker._store, reading)
        writing.execute("CREATE TABLE orders (number INTEGER)")

        def look_during_a_transaction(seconds: float) -> bool:
            writing.execute("BEGIN IMMEDIATE")
            writing.execute("INSERT INTO orders VALUES (1)")
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                detector.look()
                time.sleep(0.01)
            was_suspected = detector.is_suspected
            writing.execute("COMMIT")
            return was_suspected

        assert [look_during_a_transaction(HELD_FOR * 0.4) for _ in range(8)] == [False] * 8
        assert look_during_a_transaction(HELD_FOR * 1.2)


async def test_a_long_one_of_another_process_is_waited_for(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    with another_that_holds(path) as other:
        sending = asyncio.create_task(broker.enqueue([an_envelope()]))
        await asyncio.sleep(3 * HELD_FOR)
        assert not sending.done()
        other.kill()
        assert await sending


async def test_a_long_one_of_another_broker_is_waited_for(open_broker: Open) -> None:
    """A slow disk, for example. A broker never waits for a verb while it has the lock."""
    broker, other = open_broker(), open_broker()
    await broker.enqueue([an_envelope()])
    await other.enqueue([an_envelope()])
    slow = asyncio.create_task(other.call(Durability.FULL, lambda _: time.sleep(3 * HELD_FOR)))
    await asyncio.sleep(0.05)
    assert await broker.enqueue([an_envelope()])
    await asyncio.wait_for(slow, 1)


async def test_all_other_verbs_wait_for_it(broker: SqliteBroker, path: Path) -> None:
    """And a job that is sent meanwhile is refused at once all the same."""
    session = await registered(broker)
    await broker.enqueue([an_envelope(), an_envelope()])
    [lease] = await broker.claim(session.id, 1, ["default"], 1)
    with locked(path) as connection:
        beat = asyncio.create_task(broker.beat(Beat(session=session.id, claims=(lease.claim,), seen=1)))
        settling = asyncio.create_task(broker.settle([succeeded(lease)]))
        claiming = asyncio.create_task(broker.claim(session.id, 2, ["default"], 1))
        await asyncio.sleep(0.3)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(BrokerRefused):
                await broker.enqueue([an_envelope()])
            assert HELD_FOR <= time.monotonic() - began < AT_ONCE
        assert not any(task.done() for task in (beat, settling, claiming))
        connection.execute("COMMIT")
        assert await settling == [Settled.OK]
        assert len(await claiming) == 1
        await beat


async def test_other_verbs_wait_no_longer_than_ever(open_broker: Open, path: Path) -> None:
    """Each for as long as a call may wait, whichever it shares a group with."""
    broker = open_broker(timeout=1.2)
    session = await registered(broker)
    with locked(path):
        began, waits = time.monotonic(), list[float]()

        async def wait(pause: float) -> None:
            await asyncio.sleep(pause)
            with pytest.raises(BrokerUnavailable, match="which is this process"):
                await broker.beat(Beat(session=session.id))
            waits.append(time.monotonic() - began - pause)

        await asyncio.gather(*map(wait, (0.0, 0.4, 0.8)))
        assert all(1.1 < waited < 1.8 for waited in waits), waits
    await broker.beat(Beat(session=session.id))


async def test_closing_waits_for_the_verbs_that_wait(open_broker: Open, path: Path) -> None:
    broker = open_broker(timeout=1.0)
    session = await registered(broker)
    with locked(path):
        beat = asyncio.create_task(broker.beat(Beat(session=session.id)))
        await asyncio.sleep(0.7)
        await broker.close()
        with pytest.raises(BrokerUnavailable):
            await beat


async def test_one_that_is_longer_than_the_ttl_costs_no_lease(open_broker: Open, path: Path) -> None:
    """It holds up every heartbeat, so it counts as an outage of the store, even if upkeep is first to get the lock afterwards."""
    broker, other = open_broker(), open_broker()
    sessions = [a_session(ttl=0.6), a_session(ttl=0.6)]
    leases = []
    for session in sessions:
        await broker.register(session)
        await broker.enqueue([an_envelope()])
        leases += await broker.claim(session.id, 1, ["default"], 1)
    await other.upkeep(100)
    with locked(path) as connection:
        beats = [
            asyncio.create_task(broker.beat(Beat(session=session.id, claims=(lease.claim,), seen=1)))
            for session, lease in zip(sessions, leases, strict=True)
        ]
        await asyncio.sleep(1.5)
        upkeep = asyncio.create_task(other.upkeep(100))
        await asyncio.sleep(0.05)
        connection.execute("COMMIT")
        assert (await upkeep).released == 0
        assert [(await beat).lost for beat in beats] == [(), ()]
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK, Settled.OK]


async def test_where_the_kernel_does_not_tell_it_is_waited_for(
    open_broker: Open, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskflow.broker.sqlite.lock_owner._LOCKS", tmp_path / "no such file")
    broker = open_broker(timeout=1.0)
    await broker.enqueue([an_envelope()])
    with locked(path), pytest.raises(BrokerUnavailable, match="is locked by another process"):
        await broker.enqueue([an_envelope()])


async def test_a_rollback_ends_it_too(broker: SqliteBroker, path: Path) -> None:
    """A later one is not taken for the same."""
    await broker.enqueue([an_envelope()])
    with connected(path, check_same_thread=False) as connection:
        for _ in range(4):
            connection.execute("BEGIN IMMEDIATE")
            threading.Timer(HELD_FOR * 0.6, _roll_back, [connection]).start()
            assert await broker.enqueue([an_envelope()])


def _roll_back(connection: sqlite3.Connection) -> None:
    connection.execute("ROLLBACK")
