"""A worker's events about runs that do not end, about runs that do not count, and about what it could not do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import pytest

from taskflow import JobFailed, Status, Worker, enqueue, job
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.ids import id_text, parse_id
from taskflow.model.session import Beat
from taskflow.model.verdict import HandedBack, Parked, Settled, Settlement, Succeeded
from taskflow.worker import runs as runs_module
from taskflow.worker.events import BrokerCallFailed, HandedBackOften, LeaveFailed, RunEnded, StillRunning, VerdictIgnored, VerdictsLost
from taskflow.worker.executor import Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.log import PARK_INTERVAL, log_event
from taskflow.worker.options import WorkerOptions
from tests.support.records import set_hand_backs
from tests.worker.scene import EventRecorder, FaultyBroker, Run, a_faulty_broker, options, waits


@job(name="tests.life.deaf_thread", timeout=0.05, max_attempts=1)
def deaf_thread() -> None:
    Run.release_thread.wait(20)


async def test_a_thread_that_runs_past_its_timeout_is_reported_while_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    """The log names it once its time to stop is over, and then ever more rarely."""
    heard = EventRecorder()
    async with a_faulty_broker():
        handle = await deaf_thread.delay()
        async with Worker(options=options(heard, stop_timeout=0.1)):
            await heard.wait_for(StillRunning, times=2)
            Run.release_thread.set()
            with pytest.raises(JobFailed, match="longer than its timeout"):
                await handle.result(10)
    first, second = [event for event in heard.events if isinstance(event, StillRunning)]
    assert (first.lease.envelope.job, first.why) == ("tests.life.deaf_thread", "timed out")
    assert second.asked_for >= 1.0
    with caplog.at_level(logging.WARNING, "taskflow.worker"):
        log_event(StillRunning(first.lease, 5.2, first.why))
    assert f"tests.life.deaf_thread {handle.id}" in caplog.text
    assert "was asked to stop 5 s ago (timed out) and still runs" in caplog.text


async def test_a_thread_that_runs_on_keeps_its_slot() -> None:
    """Another job that started beside it would exceed the worker's concurrency."""
    async with a_faulty_broker():
        heard = EventRecorder()
        deaf_one = await deaf_thread.delay()
        async with Worker(options=options(heard, concurrency=1, stop_timeout=0.05)):
            await heard.wait_for(StillRunning)
            next_one = await waits.delay()
            await heard.wait_for(StillRunning, times=2)
            assert (await deaf_one.status(), await next_one.status()) == (Status.RUNNING, Status.READY)
            Run.release_thread.set()
            Run.release.set()
            assert await next_one.result(10) == "epoch 1"


async def test_a_verdict_that_the_store_ignores_is_logged_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    """After a worker was stopped for longer than its ttl, its run ends, but its job has long belonged to another worker."""

    class Slow(FaultyBroker):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
            if not Run.started.is_set():
                return await super().settle(settlements)
            Run.started.clear()
            [worker] = await self.admin.workers()
            await self.beat(Beat(session=worker.session.id, leaving=True))  # as if its session had been reaped
            return await super().settle(settlements)

    heard, broker = EventRecorder(), Slow()
    Run.release.set()
    with default_app().using(broker), caplog.at_level(logging.INFO, "taskflow.worker"):
        handle = await waits.delay()
        worker = Worker(options=WorkerOptions(subscribers=(heard, log_event), ttl=20.0))
        async with worker:
            await heard.wait_for(VerdictIgnored)
            assert (worker.tally.runs, worker.tally.ended, worker.tally.failed) == (1, 0, 0)
    [refused] = [event for event in heard.events if isinstance(event, VerdictIgnored)]
    assert isinstance(refused.verdict, Succeeded)
    [warning] = [record for record in caplog.records if "that was ignored" in record.getMessage()]
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().startswith(f"tests.life.waits {handle.id} ")


async def test_a_run_that_is_cancelled_before_its_first_step_is_given_back(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """This can happen where runs begin as plain tasks: no one else would ever settle the job."""
    monkeypatch.setattr(runs_module, "started", lambda loop, run: loop.create_task(run))

    @job(name="tests.life.cancels_what_begins")
    async def cancels_what_begins() -> None:
        for task in asyncio.all_tasks():
            if "Runs._run" in repr(task) and task is not asyncio.current_task():
                task.cancel()

    first, second = await enqueue([cancels_what_begins.bind(), waits.bind()])
    Run.release.set()
    async with Worker(options=options(EventRecorder())):
        await first.result(10)
        assert await second.result(10) == "epoch 2"


async def test_a_leave_that_the_broker_did_not_hear_is_not_said_to_be_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        with caplog.at_level(logging.WARNING, "taskflow.worker"):
            async with Worker(options=WorkerOptions(subscribers=(heard, log_event), ttl=60.0, stop_timeout=0.2)):
                broker.away = {"beat"}
    assert [type(event) for event in heard.events if isinstance(event, BrokerCallFailed | LeaveFailed)][-1] is LeaveFailed
    assert "could not notify the broker that it is stopping; its remaining jobs run again after 60 s" in caplog.text
    assert "leave did not reach" not in caplog.text


async def test_verdicts_that_could_not_be_sent_by_the_end_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log explains why a job that it calls a success runs once more."""
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        handle = await waits.delay()
        with caplog.at_level(logging.WARNING, "taskflow.worker"):
            async with Worker(options=WorkerOptions(subscribers=(heard, log_event), ttl=60.0, stop_timeout=0.2)):
                await Run.started.wait()
                broker.away = {"settle"}
                Run.release.set()
                await heard.wait_for(RunEnded)
        [lost] = [event for event in heard.events if isinstance(event, VerdictsLost)]
        assert [lease.envelope.id for lease in lost.leases] == [parse_id(handle.id)]
    assert "could not be settled (the broker did not answer before the worker ended): it will most likely run again" in caplog.text


async def test_a_job_that_was_handed_back_ten_times_is_reported_when_it_is_claimed(caplog: pytest.LogCaptureFixture) -> None:
    """The log warns once for the claim, with the advice; a job with fewer hand-backs is not mentioned."""
    caplog.set_level(logging.WARNING, logger="taskflow.worker")
    heard = EventRecorder()
    async with a_faulty_broker() as broker:
        handles = [await waits.delay() for _ in range(2)]
        for handle, hand_backs in zip(handles, (10, 9), strict=True):
            set_hand_backs(broker, parse_id(handle.id), hand_backs)
        Run.release.set()
        async with Worker(options=options(heard)):
            await heard.wait_for(RunEnded, times=2)
    [event] = [event for event in heard.events if isinstance(event, HandedBackOften)]
    assert id_text(event.lease.envelope.id) == handles[0].id
    log_event(event)
    [line] = caplog.messages
    assert "was handed back 10 times without an outcome" in line
    assert "--grace" in line


class _FailingHandler(logging.Handler):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def handle(self, record: logging.LogRecord) -> bool:
        raise self.error("the application's own handler")


@job(name="tests.run_events.quick", max_attempts=1)
async def quick(n: int) -> int:
    return n


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_a_log_handler_that_raises_costs_no_verdict(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line of the log fails, including the one that reports it, which is then on stderr."""
    monkeypatch.setattr(logging.getLogger("taskflow"), "handlers", [_FailingHandler(error)])
    caplog.set_level(logging.INFO, logger="taskflow.worker")
    async with a_faulty_broker():
        handles = [await quick.delay(n) for n in range(3)]
        async with asyncio.timeout(10), Worker(options=WorkerOptions(subscribers=(_log_runs,))):
            assert [await handle.result(5) for handle in handles] == [0, 1, 2]
    if error is RuntimeError:
        assert "the application's own handler" in capsys.readouterr().err


def _log_runs(event: Event) -> None:
    if isinstance(event, RunEnded):
        log_event(event)


# --- parked jobs -----------------------------------------------------------------------------------------------------------


def test_parked_jobs_of_one_name_have_one_line_an_interval(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO, "taskflow.worker")

    def park(name: str) -> None:
        lease = Lease(envelope=Envelope(id=bytes(16), job=name, payload=b""), epoch=1, claim=ClaimId(bytes(16), 1, 0), created_at=0)
        log_event(RunEnded(lease, Parked(f"a worker that knows the job {name!r}", 5.0), 0.001))

    for _ in range(1_000):
        park("app.parked_a")
        park("app.parked_b")
    assert [line.partition(" ")[0] for line in caplog.messages] == ["app.parked_a", "app.parked_b"]
    assert "parked for 5.0 s: it waits for a worker that knows the job 'app.parked_a'" in caplog.messages[0]
    now += PARK_INTERVAL
    park("app.parked_a")
    assert len(caplog.messages) == 3


began = list[int]()


@job(name="tests.life.notes_begin")
async def notes_begin(number: int) -> None:
    began.append(number)


@pytest.mark.parametrize("late_by", [0.1, -60.0], ids=["expired", "in time"])
async def test_a_job_that_expires_after_its_claim_does_not_begin(late_by: float) -> None:
    """It was in the reserve, or suspects were on trial. Handed back without a count, it is cancelled by the store."""
    began.clear()
    call = notes_begin.bind(1)
    lease = Lease(envelope=call.envelope, epoch=1, claim=ClaimId(b"", 1, 1), created_at=0, expires_in=30.0)
    executor = Executor(default_app(), middleware=(), threads=None, seams=Seams())
    holding = HeldLease(lease, time.monotonic(), begins_by=time.monotonic() - late_by)
    settlement = await executor.run(holding)
    assert (settlement.verdict == HandedBack(counts=False), began) == ((True, []) if late_by > 0 else (False, [1]))
