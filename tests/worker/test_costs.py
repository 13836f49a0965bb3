"""What a job costs, in counts: a slower path fails here on any machine."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from taskflow import Worker, enqueue, job
from taskflow.app.app import default_app
from taskflow.app.job import Declared
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.url import connect
from taskflow.model.clock import Seams
from taskflow.model.rules import Rules
from taskflow.worker import runs
from taskflow.worker.options import WorkerOptions
from tests.support.harnesses import RedisHarness
from tests.support.servers import RedisServer
from tests.worker.scene import count_calls

BATCHES = (1, 10, 100)


def jobs_for(batch: int) -> int:
    """Return enough jobs to make a worker's fixed costs negligible."""
    return max(200, 5 * batch)


async def work(batch: int) -> None:
    """Run all queued jobs, this many at a time."""
    async with Worker(options=WorkerOptions(concurrency=batch, subscribers=())) as worker:
        await worker.drained()
    assert worker.tally.runs >= jobs_for(batch)


@job(name="tests.costs.noop")
async def noop() -> None:
    return None


@pytest.mark.parametrize("batch", BATCHES)
async def test_round_trips_are_shared_by_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims and settlements are counted by the batch, beats and upkeep by the clock. A slow machine does other things in between."""
    monkeypatch.setattr(runs, "PORTION", 60.0)
    broker, batches = MemoryBroker(), jobs_for(batch) / batch
    calls = count_calls(broker, "enqueue", "claim", "settle", "beat", "upkeep")
    with default_app().using(broker):
        await enqueue(noop.bind() for _ in range(jobs_for(batch)))
        await work(batch)
    assert calls["enqueue"] == 1
    assert calls["claim"] <= 1.5 * batches + 2
    assert calls["settle"] <= 1.5 * batches
    assert calls["beat"] <= 4
    assert calls["upkeep"] <= 4


class Statements:
    """The statements on a file's connections, by their first word."""

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
    """A claim takes one transaction and a handful of statements, and so does a settlement, however many jobs they contain."""
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
    """The commands that the server got, including those from scripts, by name."""

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
    harness = RedisHarness(Seams(), Rules())
    counted, broker = Commands(harness.server), harness.open()
    with default_app().using(broker):
        yield counted
    await broker.close()
    counted.close()
    harness.remove()


@pytest.mark.parametrize("batch", BATCHES)
async def test_redis_works_by_the_batch(commands: Commands, batch: int) -> None:
    """A claim takes one script and a settlement another, each with a bounded number of commands, however many jobs they contain."""
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
    """Return the number of script calls. Each is a round trip."""
    return commands["evalsha"] + commands["eval"]


async def test_an_idle_worker_writes_nothing_but_beats_and_upkeep(statements: Statements, url: str) -> None:
    """It claims when it is nudged, not by the clock."""
    async with Worker(options=WorkerOptions(subscribers=())):
        await (await noop.delay()).result(10)
    # One job: registration, a claim or three, a settlement, a first beat and a last, an upkeep or two. A transaction that begins while
    # another connection writes is begun again, and counts once.
    assert statements.take()["COMMIT"] <= 16


# --- what a worker does by the job, whatever the broker ----------------------------------------------------

MORE: Final = 2_000
"""The number of jobs by which the counts of two workers differ, so that a worker's fixed costs are not counted."""


@job(name="tests.costs.timed", timeout=60)
async def timed() -> None:
    return None


@job(name="tests.costs.pauses")
async def pauses() -> None:
    await asyncio.sleep(0)


@job(name="tests.costs.plain")
def plain() -> None:
    return None


class Calls:
    """Counts calls of Python functions in the loop's thread, while it is the profiler."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.number += event == "call"


async def calls_of(kind: Declared[..., Any], jobs: int) -> int:
    calls, broker = Calls(), MemoryBroker()
    with default_app().using(broker):
        await enqueue(kind.bind() for _ in range(jobs))
        async with Worker(options=WorkerOptions()) as worker:
            before = sys.getprofile()
            sys.setprofile(calls)
            try:
                while worker.tally.ended < jobs:  # noqa: ASYNC110  # no event tells it
                    await asyncio.sleep(0.02)  # rarely: its calls are counted too, and a busy machine takes longer
            finally:
                sys.setprofile(before)
    return calls.number


@pytest.mark.parametrize(("kind", "eager", "plain_tasks"), [(noop, 60, 86), (timed, 70, 90), (pauses, 90, 104), (plain, 105, 105)])
async def test_a_job_takes_few_calls_of_python(
    kind: Declared[..., Any], eager: int, plain_tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls are counted from its claim to its end, including the memory broker's. Runs begin as eager tasks where Python has them."""
    monkeypatch.setattr(runs, "PORTION", 60.0)  # a slow machine runs fewer jobs in 2 ms, and then claims and settles more often
    most, counted = eager if sys.version_info >= (3, 12) else plain_tasks, list[float]()
    while len(counted) < 3 and min(counted, default=most + 1) > most:  # delayed threads wake the loop more often
        few, many = await calls_of(kind, 1_000), await calls_of(kind, 1_000 + MORE)
        counted.append((many - few) / MORE)
    assert min(counted) <= most


class Semaphore:
    """Counts how often a loop was asked to call something, at once or later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.asked: Counter[str] = Counter()
        for name in ("call_soon", "call_at"):
            monkeypatch.setattr(loop, name, partial(self._count, name, getattr(loop, name)))

    def _count(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked[name] += 1
        return call(*args, **kwargs)


@pytest.mark.parametrize("kind", [noop, timed])
async def test_a_run_that_does_not_wait_has_no_timer_and_no_turn_of_the_loop(
    kind: Declared[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with default_app().using(MemoryBroker()):
        await enqueue(kind.bind() for _ in range(MORE))
        async with Worker(options=WorkerOptions(subscribers=())) as worker:
            turns = Semaphore(monkeypatch)
            while worker.tally.ended < MORE:  # noqa: ASYNC110  # no event tells it
                await asyncio.sleep(0.001)
            monkeypatch.undo()
    assert turns.asked["call_at"] <= MORE / 20
    if sys.version_info >= (3, 12):
        assert turns.asked["call_soon"] <= MORE / 10
