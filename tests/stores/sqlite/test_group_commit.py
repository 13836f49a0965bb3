"""One thread, one connection, and as few commits as possible; also after a fork."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from taskflow.broker.protocol import Added
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.transactions import Durability
from taskflow.model.clock import Seams, start_thread
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.schedule import Definition, Firing
from taskflow.model.verdict import Settled, Settlement, Verdict
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.stores.sqlite.support import Open, connected, locked, run_script
from tests.support.listing import listed
from tests.support.verdicts import succeeded


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("taskflow-sqlite") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)


async def test_operations_that_arrive_together_share_a_commit(broker: SqliteBroker, said: list[str]) -> None:
    await broker.enqueue([an_envelope()])
    said.clear()
    answers = await asyncio.gather(*(broker.enqueue([an_envelope()]) for _ in range(200)))
    assert all(isinstance(answer, Added) for [answer] in answers)
    assert said.count("COMMIT") < 20


async def test_reading_takes_no_write_lock(broker: SqliteBroker, path: Path) -> None:
    job = an_envelope()
    await broker.enqueue([job])
    with locked(path):
        [record] = await broker.read([job.id])
    assert record is not None


NOT_FLUSHED, FLUSHED = "PRAGMA synchronous=1", "PRAGMA synchronous=2"


async def test_settling_and_enqueuing_are_flushed_and_claiming_is_not(broker: SqliteBroker, said: list[str]) -> None:
    """Nor is a schedule's offer; its definition and its job are."""
    session = await registered(broker)
    assert await broker.enqueue([an_envelope()])
    [lease] = await broker.claim(session.id, 1, [], 10)
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    assert [each for each in said if "synchronous" in each] == [NOT_FLUSHED, FLUSHED, NOT_FLUSHED, FLUSHED]
    said.clear()
    await broker.define([Definition("nightly", bytes(16), b"")])
    [offer] = (await broker.upkeep(100)).offers
    firing = Firing(name="nightly", digest=bytes(16), expected=None, next_at=offer.now, offer_at=offer.now, envelopes=(an_envelope(),))
    assert isinstance((await broker.fire([firing]))[0], Added)
    await broker.fire([structs.replace(firing, expected=offer.now, envelopes=())])
    assert [each for each in said if "synchronous" in each] == [NOT_FLUSHED, FLUSHED, NOT_FLUSHED]


async def test_a_broken_verb_undoes_itself_and_nothing_else(broker: SqliteBroker) -> None:
    """Half of its batch had been written when it failed."""

    class Unheard(Verdict, frozen=True):
        pass

    session, jobs = await registered(broker), envelopes(10)
    await broker.enqueue(envelopes(2))
    leases = await broker.claim(session.id, 1, [], 2)
    broken = Settlement(id=leases[1].envelope.id, epoch=1, claim=leases[1].claim, verdict=Unheard(), follow_ups=(an_envelope(),))

    outcomes = await asyncio.gather(
        *(broker.enqueue([job]) for job in jobs[:5]),
        broker.settle([succeeded(leases[0]), broken]),
        *(broker.enqueue([job]) for job in jobs[5:]),
        return_exceptions=True,
    )

    assert isinstance(outcomes[5], TypeError)
    assert all(await broker.read([job.id for job in jobs]))
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK, Settled.OK]
    metrics = await broker.admin.metrics()
    assert metrics.totals["default"] == {"enqueue": 12, "claim": 2, "succeed": 2}


def test_a_loop_that_is_gone_stops_no_other_call(path: Path) -> None:
    """Its answer cannot be delivered; the next one can."""
    broker = SqliteBroker(path)

    async def leave_behind() -> None:
        with locked(path):
            task = asyncio.create_task(broker.enqueue([an_envelope()]))
            await asyncio.sleep(0)
            task.cancel()

    async def finish() -> None:
        assert await broker.enqueue([an_envelope()])
        await broker.close()

    asyncio.run(broker.enqueue([an_envelope()]))
    asyncio.run(leave_behind())
    asyncio.run(finish())


async def test_closing_does_not_hang_while_calls_wait(open_broker: Open, path: Path) -> None:
    broker = open_broker(timeout=0.5)
    await broker.enqueue([an_envelope()])
    with locked(path):
        pending = [asyncio.create_task(broker.enqueue([an_envelope()])) for _ in range(10)]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await broker.close()
        outcomes = await asyncio.gather(*pending, return_exceptions=True)
    assert time.monotonic() - began < 2
    assert all(isinstance(outcome, BrokerUnavailable) for outcome in outcomes)


def test_accepted_operations_are_done_when_python_exits(path: Path) -> None:
    """The thread is a daemon; the exit waits for its accepted calls."""
    script = """
        async def main():
            tasks = [asyncio.create_task(broker.enqueue(envelopes(100, payload=bytes(1_000)))) for _ in range(50)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()

        asyncio.run(main())
    """
    run_script(script, path)
    with connected(path) as reader:
        assert reader.execute("SELECT count(*) FROM taskflow_jobs").fetchall() == [(5_000,)]


async def test_a_forgotten_broker_ends_its_thread(path: Path) -> None:
    threads = list[threading.Thread]()

    def start(target: Any, name: str) -> threading.Thread:
        threads.append(start_thread(target, name))
        return threads[-1]

    broker: SqliteBroker | None = SqliteBroker(path, seams=Seams(start_thread=start))
    assert threads == []
    assert broker is not None
    await broker.enqueue([an_envelope()])
    [thread] = threads
    assert thread.daemon

    broker = None
    thread.join(timeout=5)
    assert not thread.is_alive()


async def test_a_read_of_the_admin_interface_does_not_hold_up_the_writer(broker: SqliteBroker) -> None:
    """Jobs are added and read while a page is being read; the page shows the file as it was at its beginning."""
    await broker.enqueue(envelopes(1))
    is_reading, may_end = threading.Event(), threading.Event()

    def read_slowly(store: SqliteStore) -> list[int]:
        [(before,)] = store.connection.execute("SELECT count(*) FROM taskflow_jobs")
        is_reading.set()
        may_end.wait(30)
        [(after,)] = store.connection.execute("SELECT count(*) FROM taskflow_jobs")
        return [before, after]

    slow = asyncio.create_task(broker._running().admin.call(Durability.READ, read_slowly))
    await asyncio.to_thread(is_reading.wait, 30)
    new = envelopes(2)
    await asyncio.wait_for(broker.enqueue(new), 10)
    assert None not in await asyncio.wait_for(broker.read([job.id for job in new]), 10)
    may_end.set()
    assert await slow == [1, 1]
    assert len(await listed(broker.admin)) == 3


def test_parent_and_child_can_use_the_same_broker(path: Path) -> None:
    """The fork is between two calls: the child starts afresh, including its listening, and leaves its parent's files alone."""
    script = """
        def add(number, queue):
            return asyncio.run(broker.enqueue(envelopes(number, queue=queue)))

        async def hear(queue):
            with broker.listen([f"queue:{queue}"]) as waiter:
                await broker.enqueue([an_envelope(queue=queue)])
                return await waiter.wait(5)

        add(10, "before")
        asyncio.run(broker.admin.queues())  # over a connection of its own
        asyncio.run(hear("before"))
        children = []
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                add(10, "child")
                heard = asyncio.run(hear("child")) and len(asyncio.run(broker.admin.queues())) > 1
                if number:  # the first one does not even close it
                    asyncio.run(broker.close())
                os._exit(0 if heard else 1) if number == 2 else sys.exit(0 if heard else 1)
            children.append(pid)
            add(10, "parent")
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        add(10, "parent")
        print({queue.name: sum(queue.counts.values()) for queue in asyncio.run(broker.admin.queues())})
        asyncio.run(broker.close())
    """
    assert run_script(script, path).splitlines() == ["[0, 0, 0]", "{'before': 11, 'child': 33, 'parent': 40}"]


def test_a_process_that_is_forked_during_a_transaction_can_use_the_file(path: Path) -> None:
    """SQLite's table of a process's locks is copied with the process."""
    script = """
        from taskflow.broker.sqlite.store import SqliteStore

        parent, inside, flush = os.getpid(), threading.Event(), SqliteStore.flush

        def flush_late(store):
            if os.getpid() == parent:
                inside.set()
                time.sleep(0.3)
            return flush(store)

        def add():
            return asyncio.run(broker.enqueue([an_envelope()]))

        add()
        SqliteStore.flush = flush_late
        sender = threading.Thread(target=add)
        sender.start()
        inside.wait()
        if (pid := os.fork()) == 0:
            add()
            os._exit(0)
        sender.join()
        add()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sum(asyncio.run(broker.admin.queues())[0].counts.values()))
        asyncio.run(broker.close())
    """
    assert run_script(script, path) == "0 4\n"
