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
from taskflow.model.session import Beat, BeatAnswer
from taskflow.model.verdict import Settled, Settlement
from taskflow.worker.options import WorkerOptions

JOBS = 1_000
BATCH = 100


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


async def test_round_trips_are_shared_by_batches() -> None:
    """A thousand jobs, a hundred at a time: claims and settlements go by the batch, beats and upkeep by the clock."""
    broker = CountingBroker()
    with default_app().using(broker):
        await enqueue(noop.bind() for _ in range(JOBS))
        async with Worker(options=WorkerOptions(concurrency=BATCH, subscribers=())) as worker:
            await worker.drained()
    assert worker.tally.runs == JOBS
    assert broker.calls["enqueue"] == 1
    assert broker.calls["claim"] <= 1.5 * JOBS / BATCH + 2
    assert broker.calls["settle"] <= 1.5 * JOBS / BATCH
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


async def test_sqlite_works_by_the_transaction(statements: Statements, url: str) -> None:
    """A thousand jobs, a hundred at a time: a transaction a batch, and no more than a few statements a job."""
    await noop.delay()  # opens the file
    statements.take()
    await enqueue(noop.bind() for _ in range(JOBS))
    sent = statements.take()
    assert sent["BEGIN"] <= 2
    assert sent["INSERT"] <= JOBS + 10
    assert sum(sent.values()) <= 1.5 * JOBS
    async with Worker(options=WorkerOptions(concurrency=BATCH, subscribers=())) as worker:
        await worker.drained()
    worked = statements.take()
    batches = JOBS / BATCH
    assert worked["BEGIN"] <= 4 * batches + 40
    assert worked["UPDATE"] <= 2.2 * JOBS + 100
    assert sum(worked.values()) <= 4.5 * JOBS + 500


async def test_an_idle_worker_writes_nothing_but_beats_and_upkeep(statements: Statements, url: str) -> None:
    """It claims when it is nudged, not by the clock."""
    async with Worker(options=WorkerOptions(subscribers=())):
        await (await noop.delay()).result(10)
    # One job: registration, a claim or three, a settlement, a first beat and a last, an upkeep or two.
    assert statements.take()["BEGIN"] <= 16
