"""Telemetry that is not configured costs nothing; and how little a killed worker loses."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

import pytest
from prometheus_client import CollectorRegistry

from taskflow import JobContext, RunNext, Verdict, Worker, configure, enqueue
from taskflow.app.app import default_app
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Ref
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.url import connect
from taskflow.model.clock import Seams
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.ids import parse_id
from taskflow.telemetry import History, OpenTelemetry, Prometheus, Telemetry
from taskflow.worker.executor import Executor
from taskflow.worker.lease_table import HeldLease
from tests.cli.processes import LEDGER, Shell, until
from tests.telemetry.jobs import add

MEASURED = """
from taskflow import configure, job
from taskflow.telemetry import History
from taskflow.worker import measuring

measuring.RECORD_INTERVAL = 0.2
configure(telemetry=[History()])

@job(name="note")
async def note(number: int) -> None:
    write(str(number))
"""

PLAIN = """
import atexit, sys
from taskflow import job

@job(name="note")
async def note(number: int) -> None: ...

HEAVY = ("taskflow.telemetry", "taskflow.worker.measuring", "prometheus_client", "opentelemetry", "sentry_sdk")
atexit.register(lambda: print("loaded", *sorted(name for name in sys.modules if name.startswith(HEAVY)), "."))
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as opened:
        yield opened


def test_without_telemetry_neither_a_worker_nor_a_sender_imports_any(shell: Shell) -> None:
    shell.write("tasks.py", PLAIN)
    assert "loaded .\n" in shell.run("-c", "import tasks; tasks.note.delay_sync(1)")
    said = shell.run("-m", "taskflow", "worker", "tasks", "--drain", "--health-port", "0")
    assert "1 job ended" in said
    assert "loaded .\n" in said


@pytest.mark.parametrize(("telemetry", "hooks"), [([], 0), ([OpenTelemetry()], 0), ([History()], 1)], ids=["none", "traces", "history"])
async def test_a_settlement_calls_only_what_counts(
    memory_broker: MemoryBroker, telemetry: list[OpenTelemetry | History], hooks: int
) -> None:
    configure(telemetry=telemetry)
    async with Worker() as worker:
        await add.delay(1, 2)
        await worker.drained()
        session = worker._sessions.current
        assert session is not None
        assert len(session.settler._hooks) == hooks
        assert (session.heartbeat.measures is not None) == bool(hooks)


class Calls:
    """Counts calls of Python functions in this thread while it is entered."""

    number = 0

    def __enter__(self) -> None:
        self._before = sys.getprofile()
        sys.setprofile(self._count)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._before)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        self.number += event == "call"


async def test_many_calls_sent_at_once_cost_few_calls_more_with_traces(memory_broker: MemoryBroker) -> None:
    """The headers are created once for all of them."""

    async def calls_of(jobs: int) -> int:
        calls, given = Calls(), [add.bind(1, 2) for _ in range(jobs)]
        with calls:
            await enqueue(given)
        return calls.number

    few, many = await calls_of(100), await calls_of(900)
    configure(telemetry=[OpenTelemetry()])
    assert (await calls_of(900) - await calls_of(100)) - (many - few) <= 10 * 800


async def test_a_run_within_telemetry_costs_few_calls_more(memory_broker: MemoryBroker) -> None:
    class Passes(Telemetry):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            return await call_next(context)

    async def calls_of(*telemetry: Telemetry) -> int:
        calls, executor = Calls(), Executor(default_app(), telemetry, threads=None, seams=Seams())
        lease = Lease(envelope=add.bind(1, 2).envelope, epoch=1, claim=ClaimId(bytes(16), 0, 0), created_at=0)
        with calls:
            for _ in range(100):
                await executor.run(HeldLease(lease))
        return calls.number

    await calls_of()  # imports what it needs
    without = await calls_of()
    assert await calls_of(Passes()) - without <= 10 * 100


def recorded(url: str) -> int:
    """Return how many runs the history has."""

    async def read() -> int:
        broker = connect(url)
        try:
            now = datetime.now(UTC)
            found = await broker.admin.history(now - timedelta(minutes=10), now + timedelta(minutes=10))
            return sum(measure.number for record in found for measure in record.measures.values())
        finally:
            await broker.close()

    return asyncio.run(read())


def test_a_killed_worker_loses_only_what_it_counted_since_its_last_record(shell: Shell) -> None:
    url = f"sqlite:///{shell.folder}/queue.db"
    shell.write("tasks.py", LEDGER + MEASURED)
    worker = shell.worker("--ttl", "2")

    def send(first: int, last: int) -> None:
        shell.send(*(f"note.bind({number})" for number in range(first, last)))

    send(0, 20)
    until(lambda: recorded(url) == 20, worker)
    send(20, 40)
    until(lambda: recorded(url) == 40, worker)  # it records again and again
    send(40, 50)
    until(lambda: len(shell.ledger()) == 50, worker)
    worker.signal(signal.SIGKILL)
    worker.end()
    assert 40 <= recorded(url) <= 50

    before = recorded(url)
    send(50, 60)
    shell.run("-m", "taskflow", "worker", "tasks", "--drain")
    assert recorded(url) >= before + 10  # the next worker records as before


@pytest.mark.parametrize("telemetry", [[], [History(), Prometheus(CollectorRegistry())]], ids=["none", "counting"])
async def test_a_job_has_the_bytes_of_its_call_and_no_more(memory_broker: MemoryBroker, telemetry: list[Telemetry]) -> None:
    """Only traces travel with jobs. Counts of runs are kept separately."""
    configure(telemetry=telemetry)
    handle = await add.delay(1, 2)
    job = memory_broker._store._records[Ref(Kind.JOB, parse_id(handle.id))]
    sent = (job.sent, job.state, job.content)
    assert sent == (None, None, add.bind(1, 2).envelope.payload)
    async with Worker() as worker:
        await worker.drained()
    assert (job.sent, job.state, job.content) == (None, None, add.codec.encode_result(3))
