"""One thread, one connection, and as few commits as the moment allows."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from taskflow.broker.protocol import Added
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.clock import Seams, start_thread
from taskflow.model.errors import BrokerUnavailable, SessionLost
from taskflow.model.schedule import Definition, Firing
from taskflow.model.verdict import Settled, Settlement, Verdict
from tests.stores.sqlite.support import Open, an_envelope, connected, envelopes, locked, registered, run_script, succeeded


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that brokers make from now on."""
    statements = list[str]()

    class Notifier(sqlite3.Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.set_trace_callback(statements.append)

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        return Notifier(*args, **options)

    monkeypatch.setattr(sqlite3, "connect", connect)
    return statements


async def test_what_gathers_shares_a_commit(broker: SqliteBroker, said: list[str]) -> None:
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


async def test_settling_and_enqueuing_are_flushed_and_claiming_is_not(broker: SqliteBroker, said: list[str]) -> None:
    session = await registered(broker)
    assert await broker.enqueue([an_envelope()])
    [lease] = await broker.claim(session.id, 1, [], 10)
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]

    settings = [statement for statement in said if "synchronous" in statement]
    assert settings == ["PRAGMA synchronous=1", "PRAGMA synchronous=2", "PRAGMA synchronous=1", "PRAGMA synchronous=2"]


async def test_a_schedule_and_its_job_are_flushed_and_an_offer_is_not(broker: SqliteBroker, said: list[str]) -> None:
    await broker.define([Definition("nightly", bytes(16), b"")])
    [offer] = (await broker.upkeep(100)).offers
    firing = Firing(name="nightly", digest=bytes(16), expected=None, next_at=offer.now, look_at=offer.now, envelope=an_envelope())
    assert isinstance((await broker.fire([firing]))[0], Added)
    await broker.fire([structs.replace(firing, expected=offer.now, envelope=None)])

    settings = [statement for statement in said if "synchronous" in statement]
    assert settings == ["PRAGMA synchronous=2", "PRAGMA synchronous=1", "PRAGMA synchronous=2", "PRAGMA synchronous=1"]


async def test_a_refused_verb_leaves_its_neighbours_alone(broker: SqliteBroker) -> None:
    jobs = envelopes(20)
    outcomes = await asyncio.gather(
        *(broker.enqueue([job]) for job in jobs[:10]),
        *(broker.claim(bytes(16), 1, [], 10) for _ in range(10)),
        *(broker.enqueue([job]) for job in jobs[10:]),
        return_exceptions=True,
    )

    assert sum(isinstance(outcome, SessionLost) for outcome in outcomes) == 10
    assert all(await broker.read([job.id for job in jobs]))


async def test_a_broken_verb_undoes_itself_and_nothing_else(broker: SqliteBroker) -> None:
    """Half of its batch had been written when it broke."""

    class Unheard(Verdict, frozen=True):
        pass

    session = await registered(broker)
    first, second, jobs = an_envelope(), an_envelope(), envelopes(10)
    await broker.enqueue([first, second])
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
    metrics = await broker.console.metrics()
    assert metrics.totals["default"] == {"enqueue": 12, "claim": 2, "succeed": 2}


def test_one_broker_for_several_loops_and_threads(path: Path) -> None:
    """Eight threads at once, each with loops of its own, one after the other."""
    broker = SqliteBroker(path)
    failed = list[BaseException]()

    def work() -> None:
        try:
            for _ in range(3):
                asyncio.run(add_ten())
        except BaseException as error:
            failed.append(error)

    async def add_ten() -> None:
        for _ in range(10):
            await broker.enqueue([an_envelope()])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def finish() -> int:
        [queue] = await broker.console.queues()
        await broker.close()
        return sum(queue.counts.values())

    assert failed == []
    assert asyncio.run(finish()) == 240


def test_a_loop_that_is_gone_stops_nobody(path: Path) -> None:
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


def test_what_was_accepted_is_done_at_the_interpreters_end(path: Path) -> None:
    """The thread is a daemon; the end waits for what it has taken on."""
    script = """
        import asyncio, sys
        from taskflow.broker.sqlite import SqliteBroker
        from taskflow.model.envelope import Envelope
        from taskflow.model.ids import IdFactory

        broker, an_id = SqliteBroker(sys.argv[1]), IdFactory()

        async def main():
            for _ in range(50):
                jobs = [Envelope(id=an_id(), job="work", payload=bytes(1_000)) for _ in range(100)]
                asyncio.get_running_loop().create_task(broker.enqueue(jobs))
            await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()
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


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("taskflow-sqlite") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
