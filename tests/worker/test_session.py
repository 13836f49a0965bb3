"""A worker's session: what happens to runs when it is lost, when the broker is unavailable, and when the worker winds down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from taskflow import Discard, JobContext, JobFailed, JobHandle, Retry, Status, Worker, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.model.ids import parse_id
from taskflow.model.pauses import Pauses
from taskflow.model.record import Record
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import HandedBack, Settled, Settlement, Succeeded
from taskflow.worker.events import BrokerCallFailed, BrokerRecovered, LeaseRevoked, RunEnded, ServiceFailed, SessionEnded, SessionOpened
from tests.support.waiting import until_running
from tests.worker.scene import EventRecorder, FaultyBroker, Run, a_faulty_broker, options, waits


async def test_a_session_that_was_reaped_is_followed_by_another(broker: Broker) -> None:
    """Its run is cancelled and does not count; the job runs again under the new session."""
    heard = EventRecorder()
    handle = await waits.delay()
    async with Worker(options=options(heard)):
        await Run.started.wait()
        [worker] = await broker.admin.workers()
        await broker.beat(Beat(session=worker.session.id, leaving=True))
        Run.started.clear()
        await heard.wait_for(SessionEnded)
        await heard.wait_for(SessionOpened, times=2)
        await Run.started.wait()
        Run.release.set()
        assert await handle.result(10) == "epoch 2"
    verdicts = [type(event.verdict) for event in heard.events if isinstance(event, RunEnded)]
    assert verdicts[0] is HandedBack


async def test_without_a_beat_for_its_ttl_a_worker_takes_itself_for_dead() -> None:
    """It cancels its runs and goes on under a new session when the broker is back."""
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        handle = await waits.delay()
        async with Worker(options=options(heard)):
            await Run.started.wait()
            Run.started.clear()
            broker.away = {"beat"}
            await heard.wait_for(SessionEnded)
            broker.away = set()
            await Run.started.wait()
            Run.release.set()
            assert await handle.result(10) == "epoch 2"


async def test_a_run_that_ended_during_an_outage_is_settled_afterwards() -> None:
    """The verdict outlives the session, and the job does not run again."""
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        handle = await waits.delay()
        async with Worker(options=options(heard)):
            await Run.started.wait()
            broker.away = {"beat", "settle", "claim"}
            Run.release.set()
            await heard.wait_for(RunEnded)
            await heard.wait_for(SessionEnded)
            await heard.wait_for(BrokerCallFailed)
            broker.away = set()
            assert await handle.result(10) == "epoch 1"
            await heard.wait_for(BrokerRecovered)


@pytest.mark.parametrize(("verb", "operation"), [("claim", "claiming"), ("upkeep", "upkeep")])
async def test_calls_that_keep_failing_are_shown_in_the_store(verb: str, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`taskflow doctor` reads it there. A store may answer everything but this call."""
    monkeypatch.setattr("taskflow.worker.maintenance.MAINTENANCE_PAUSES", Pauses(0.001, 0.01))
    async with a_faulty_broker() as broker, asyncio.timeout(20):
        shown: asyncio.Queue[str] = asyncio.Queue()
        register = broker.register

        async def showing(session: Session) -> tuple[str, ...]:
            paused = await register(session)
            shown.put_nowait(session.trouble)
            return paused

        monkeypatch.setattr(broker, "register", showing)
        broker.away = {verb}
        async with Worker(options=options(EventRecorder(), ttl=20.0)):
            assert (await shown.get(), await shown.get()) == ("", f"{operation} fails: it is away, for this test")
            [worker] = await broker.admin.workers()
            assert worker.session.trouble.startswith(operation)
            broker.away = set()
            assert await shown.get() == ""
            assert shown.empty()


async def test_an_answer_that_was_long_under_way_is_given_back_and_not_run() -> None:
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        Run.release.set()
        broker.delay_claims = 0.15
        handle = await waits.delay()
        async with Worker(options=options(heard)):
            async with asyncio.timeout(10):
                while (info := await handle.info()) is None or await epoch_of(broker, handle) < 2:  # noqa: ASYNC110  # no event tells it
                    await asyncio.sleep(0.01)
            assert not Run.started.is_set()
            broker.delay_claims = 0.0
            assert await handle.result(10) is not None
        info = await handle.info()
        assert info is not None
        assert info.failures == 0


async def epoch_of(broker: Broker, handle: Any) -> int:
    [record] = await broker.read([parse_id(handle.id)])
    assert record is not None
    return record.epoch


async def test_after_the_grace_period_runs_are_handed_back(broker: Broker) -> None:
    """No attempt is used up, and the job is ready at once."""
    handle = await waits.delay()
    worker = Worker(options=options(EventRecorder(), grace=0.05))
    async with worker:
        await Run.started.wait()
    assert worker.has_forced
    info = await handle.info()
    assert info is not None
    assert (info.status, info.attempt, info.failures) == (Status.READY, 1, 0)
    assert await broker.admin.workers() == []


async def test_a_dozen_wind_downs_during_one_job_do_not_fail_it() -> None:
    """The job has one attempt, and keeps it: it waits between hand-backs, and succeeds when it may run to its end."""
    broker = MemoryBroker(rules=Rules(hand_back_backoff=(0.0, 0.05)))
    with default_app().using(broker):
        handle = await waits.options(max_attempts=1).delay()
        for _ in range(12):
            Run.started.clear()
            async with Worker(options=options(EventRecorder(), grace=0.0)):
                await Run.started.wait()
        [record] = await broker.read([parse_id(handle.id)])
        assert record is not None
        assert (record.status, record.hand_backs, record.waiting_for) == (
            Status.SCHEDULED,
            12,
            "a back-off: handed back 12 times without an outcome",
        )
        Run.release.set()
        async with Worker(options=options(EventRecorder())):
            assert await handle.result(10) == "epoch 13"


async def test_a_lost_lease_cancels_its_run_only() -> None:
    """Another program ended the job: the worker learns of it with its next beat, and goes on."""
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        handle = await waits.delay()
        async with Worker(options=options(heard)):
            await Run.started.wait()
            claim = await broker.take_back()
            await heard.wait_for(LeaseRevoked)
            Run.release.set()
            assert await handle.result(10) == "epoch 2"
            assert claim.request == 1


async def test_a_verdict_that_cannot_be_written_fails_its_own_job_alone(broker: Broker) -> None:
    """Its neighbours in the batch are settled, and the session lives on."""

    class Picky(MemoryBroker):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
            if any(isinstance(settlement.verdict, Succeeded) and b"bad" in settlement.verdict.result for settlement in settlements):
                raise OverflowError("too large for a column")
            return await super().settle(settlements)

    @job(name="tests.life.echo")
    async def echo(word: str) -> str:
        return word

    heard = EventRecorder()
    with default_app().using(Picky()):
        handles = [await echo.delay(word) for word in ("good", "bad", "better")]
        async with Worker(options=options(heard)) as worker:
            assert await handles[0].result(10) == "good"
            assert await handles[2].result(10) == "better"
            with pytest.raises(JobFailed, match="Succeeded cannot be written: OverflowError: too large"):
                await handles[1].result(10)
    assert (worker.tally.runs, worker.tally.ended, worker.tally.failed) == (3, 3, 1)
    assert not any(isinstance(event, SessionEnded) for event in heard.events)


class Hard(BaseException):
    """An error that no part of the worker expects."""


async def test_a_settler_that_fails_starts_again_with_its_verdicts() -> None:
    """The session lives on, and the job does not run again."""

    class Broken(FaultyBroker):
        is_broken = True

        async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
            if self.is_broken:
                raise Hard("as no broker does")
            return await super().settle(settlements)

    broker, heard = Broken(), EventRecorder()
    with default_app().using(broker):
        handle = await waits.delay()
        Run.release.set()
        async with Worker(options=options(heard)):
            await heard.wait_for(ServiceFailed)
            broker.is_broken = False
            assert await handle.result(10) == "epoch 1"
    assert {str(event.error) for event in heard.events if isinstance(event, ServiceFailed)} == {"as no broker does"}
    assert not any(isinstance(event, SessionEnded) for event in heard.events)


async def test_a_worker_in_a_cancelled_scope_still_winds_down(broker: Broker) -> None:
    """anyio cancels every await again: stopping half-way would leave a session that beats for ever."""
    handle = await waits.delay()
    with anyio.move_on_after(0.2):
        async with Worker(options=options(EventRecorder(), grace=0.1)):
            await anyio.sleep_forever()
    assert await handle.status() is Status.READY
    assert await broker.admin.workers() == []


class Undone(Exception):
    """The error that a job raises when it is asked to stop."""


@job(name="tests.life.polite_thread", max_attempts=1)
def polite_thread(ctx: JobContext, what: str) -> str:
    if ctx.cancelled.wait(30):
        if what == "raise":
            raise Undone("what was done is undone")
        if what == "retry":
            raise Retry
        if what == "discard":
            raise Discard("no use")
    return what


@job(name="tests.life.translates", max_attempts=1)
async def translates(what: str) -> None:
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError as error:
        raise Undone("the connection was cut") from error


@pytest.mark.parametrize("kind", [polite_thread, translates])
async def test_an_error_that_winding_down_brings_about_costs_no_attempt(broker: Broker, kind: Any) -> None:
    """A plain function raises when it is asked to stop, or an async one turns its cancellation into another error."""
    record = await wound_down(broker, await kind.delay("raise"))
    assert (record.status, record.failures, record.hand_backs) == (Status.READY, 0, 1)


async def wound_down(broker: Broker, handle: JobHandle[Any]) -> Record:
    """Return the record of a job that was running when its worker's grace period ended."""
    async with Worker(options=options(EventRecorder(), grace=0.05, stop_timeout=10.0, ttl=20.0)):
        await until_running(handle)
    [record] = await broker.read([parse_id(handle.id)])
    assert record is not None
    return record
