"""What a job costs, in counts: a slower path fails here on any machine."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskflow import Worker, enqueue, job
from taskflow.app.current import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Added, Refused, Upkept
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.rules import Rules
from taskflow.model.seams import Seams
from taskflow.model.session import Beat, BeatAnswer
from taskflow.model.verdict import Settled, Settlement
from taskflow.worker.options import WorkerOptions
from tests.support.homes import RedisHome
from tests.support.servers import RedisServer

BATCHES = (1, 10, 100)


def jobs_for(batch: int) -> int:
    """Enough that what a worker costs by itself is little beside them."""
    return max(200, 5 * batch)


async def work(batch: int) -> None:
    """All that is queued, so many jobs at a time."""
    async with Worker(options=WorkerOptions(concurrency=batch, subscribers=())) as worker:
        await worker.drained()
    assert worker.tally.runs >= jobs_for(batch)


@job(name="tests.costs.noop")
async def noop() -> None:
    return None


class CountingBroker(MemoryBroker):
    """Counts the calls of each verb: with any other broker each would be a round trip."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        self.calls["enqueue"] += 1
        return await super().enqueue(envelopes)

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        self.calls["claim"] += 1
        return await super().claim(session, request, queues, limit)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self.calls["settle"] += 1
        return await super().settle(settlements)

    async def beat(self, beat: Beat) -> BeatAnswer:
        self.calls["beat"] += 1
        return await super().beat(beat)

    async def upkeep(self, limit: int) -> Upkept:
        self.calls["upkeep"] += 1
        return await super().upkeep(limit)


@pytest.mark.parametrize("batch", BATCHES)
async def test_round_trips_are_shared_by_batches(batch: int) -> None:
    """Claims and settlements go by the batch, beats and upkeep by the clock."""
    broker, batches = CountingBroker(), jobs_for(batch) / batch
    with default_app().using(broker):
        await enqueue(noop.bind() for _ in range(jobs_for(batch)))
        await work(batch)
    assert broker.calls["enqueue"] == 1
    assert broker.calls["claim"] <= 1.5 * batches + 2
    assert broker.calls["settle"] <= 1.5 * batches
    assert broker.calls["beat"] <= 4
    assert broker.calls["upkeep"] <= 4


class Statements:
    """What the connections of a file are told, by the first word."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()

    def __call__(self, statement: str) -> None:
        self.words[statement.lstrip().partition(" ")[0].upper()] += 1

    def take(self) -> Counter[str]:
        taken, self.words = self.words, Counter()
        return taken


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    counted = Statements()
    original: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect_and_trace(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = original(*args, **kwargs)
        connection.set_trace_callback(counted)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_and_trace)
    return counted


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    broker = connect(f"sqlite:///{tmp_path / 'queue.db'}")
    with default_app().using(broker):
        yield "sqlite"
    await broker.close()


@pytest.mark.parametrize("batch", BATCHES)
async def test_sqlite_works_by_the_batch(statements: Statements, url: str, batch: int) -> None:
    """A transaction and a handful of statements for a claim, as many for a settlement, however many jobs are in them."""
    await noop.delay()  # opens the file
    statements.take()
    await enqueue(noop.bind() for _ in range(jobs_for(batch)))
    sent = statements.take()
    assert sent["COMMIT"] <= 2
    assert sum(sent.values()) <= 30
    await work(batch)
    worked, batches = statements.take(), jobs_for(batch) / batch
    assert worked["COMMIT"] <= 3 * batches + 40
    assert sum(worked.values()) <= 25 * batches + 300


class Commands:
    """What the server was told, and what it told itself in scripts, by the command."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()

    def take(self) -> Counter[str]:
        stats = self._client.info("commandstats")
        self._client.config_resetstat()
        return Counter({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})

    def close(self) -> None:
        self._client.close()


@pytest.fixture
async def commands() -> AsyncIterator[Commands]:
    home = RedisHome(Seams(), Rules())
    counted, broker = Commands(home.server), home.open()
    with default_app().using(broker):
        yield counted
    await broker.close()
    counted.close()
    home.remove()


@pytest.mark.parametrize("batch", BATCHES)
async def test_redis_works_by_the_batch(commands: Commands, batch: int) -> None:
    """A script for a claim and one for a settlement, and in each of them a bounded number of commands, however many jobs are in it."""
    await noop.delay()  # connects
    commands.take()
    await enqueue(noop.bind() for _ in range(jobs_for(batch)))
    sent = commands.take()
    assert scripts(sent) <= 2
    assert sum(sent.values()) <= 30
    await work(batch)
    worked, batches = commands.take(), jobs_for(batch) / batch
    assert scripts(worked) <= 3 * batches + 50
    assert sum(worked.values()) <= 50 * batches + 500


def scripts(commands: Counter[str]) -> int:
    """Each is a round trip."""
    return commands["evalsha"] + commands["eval"]


async def test_an_idle_worker_writes_nothing_but_beats_and_upkeep(statements: Statements, url: str) -> None:
    """It claims when it is nudged, not by the clock."""
    async with Worker(options=WorkerOptions(subscribers=())):
        await (await noop.delay()).result(10)
    # One job: registration, a claim or three, a settlement, a first beat and a last, an upkeep or two. What is begun while another
    # connection writes is begun again, and counts once.
    assert statements.take()["COMMIT"] <= 16
