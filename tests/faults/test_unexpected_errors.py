"""A broker raises an unexpected error, by a bug or for one odd row: the session, and with it every neighbour's lease, lives on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskflow import JobContext, Worker, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.envelope import Lease
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer
from taskflow.model.verdict import Progress, Settled, Settlement
from taskflow.worker.events import BrokerCallFailed, ReportDropped, ServiceFailed, SessionEnded, SessionOpened
from tests.support.harnesses import BROKERS, StoreHarness
from tests.worker.scene import EventRecorder, FaultyBroker, Run, a_faulty_broker, options, waits


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def any_broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """Each kind of store in turn, in real time, with ghosts that are given back after a moment."""
    harness: StoreHarness = request.param(Seams(), Rules(ghost_after=0.3))
    broker = harness.open()
    with default_app().using(broker):
        yield broker
    await broker.close()
    harness.remove()


def fails(broker: Broker, monkeypatch: pytest.MonkeyPatch, verb: str, error: Exception, *, after: bool, times: int) -> None:
    """Let the operation raise `error` the first `times` times: before it has reached the store, or after."""
    sound: Callable[..., Any] = getattr(broker, verb)
    left = iter(range(times))

    async def failing(*args: Any) -> Any:
        if after:
            answer = await sound(*args)
            if answer and next(left, None) is not None:
                raise error
            return answer
        if next(left, None) is not None:
            raise error
        return await sound(*args)

    monkeypatch.setattr(broker, verb, failing)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("verb", ["claim", "upkeep"])
async def test_an_unexpected_error_of_an_operation_costs_no_lease(
    any_broker: Broker, monkeypatch: pytest.MonkeyPatch, verb: str, after: bool
) -> None:
    """The neighbour that runs meanwhile ends normally; the operation succeeds in the end, and nothing is counted."""
    heard = EventRecorder()
    neighbour = await waits.delay()
    async with Worker(options=options(heard, ttl=4.0)):
        await Run.started.wait()
        fails(any_broker, monkeypatch, verb, ValueError("one odd row"), after=after, times=2)
        other = await quick.delay()
        assert await other.result(30) >= 1
        Run.release.set()
        assert await neighbour.result(10) == "epoch 1"
        info = await other.info()
    assert info is not None
    assert (info.failures, info.status) == (0, "succeeded")
    assert not any(isinstance(event, SessionEnded) for event in heard.events)


@job(name="tests.unexpected.quick", max_attempts=1)
async def quick(ctx: JobContext) -> int:
    return ctx.epoch


async def test_a_claim_that_keeps_failing_is_reported_and_backs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        fails(broker, monkeypatch, "claim", ValueError("one odd row"), after=False, times=1_000_000)
        async with Worker(options=options(heard, ttl=20.0)):
            await heard.wait_for(ServiceFailed, times=4)
    failed = [event for event in heard.events if isinstance(event, ServiceFailed)]
    assert {(event.service, str(event.error)) for event in failed} == {("Fetcher.run", "one odd row")}
    assert all(event.pause >= 0.5 * 0.1 * 2**times for times, event in enumerate(failed))
    assert sum(isinstance(event, SessionOpened) for event in heard.events) == 1


class OddBeats(FaultyBroker):
    """A broker whose `beat` raises an unexpected error."""

    def sibling(self) -> MemoryBroker:
        store, beats = self._store, iter(range(6))

        class Keepers(MemoryBroker):
            async def beat(self, beat: Beat) -> BeatAnswer:
                if next(beats, None) is not None:
                    raise ValueError("one odd answer")
                return await super().beat(beat)

        return Keepers(store=store)


async def test_a_heartbeat_is_sent_again_after_an_unexpected_error() -> None:
    heard = EventRecorder()
    with default_app().using(OddBeats()):
        handle = await waits.delay()
        async with Worker(options=options(heard, ttl=4.0)):
            await heard.wait_for(BrokerCallFailed, times=2)
            Run.release.set()
            assert await handle.result(10) == "epoch 1"
    assert {event.why for event in heard.events if isinstance(event, BrokerCallFailed)} == {"ValueError: one odd answer"}
    assert not any(isinstance(event, SessionEnded) for event in heard.events)


@job(name="tests.unexpected.odd_progress", max_attempts=1)
async def odd_progress(ctx: JobContext, note: str) -> int:
    assert ctx._run is not None
    ctx._run.report(Progress(0.5, Path("x") if note == "path" else note))  # type: ignore[arg-type]
    Run.started.set()
    await Run.release.wait()
    return ctx.epoch


async def test_a_report_that_cannot_be_written_is_dropped_and_its_neighbours_are_written(any_broker: Broker) -> None:
    heard = EventRecorder()
    odd = [await odd_progress.delay("path"), await odd_progress.delay("path")]
    sound = [await odd_progress.delay("text") for _ in range(5)]
    async with Worker(options=options(heard, ttl=2.0)):
        await Run.started.wait()
        if not isinstance(any_broker, MemoryBroker):  # memory writes nothing
            await heard.wait_for(ReportDropped, times=2)
        async with asyncio.timeout(10):
            for handle in sound:
                while (info := await handle.info()) is None or info.progress is None:  # noqa: ASYNC110  # no event tells it
                    await asyncio.sleep(0.02)
        Run.release.set()
        assert [await handle.result(10) for handle in (*odd, *sound)] == [1] * 7
    dropped = [event.lease.envelope.id for event in heard.events if isinstance(event, ReportDropped)]
    assert len(dropped) == len(set(dropped)), "each is dropped once"
    assert not any(isinstance(event, SessionEnded) for event in heard.events)


class Unwritable(MemoryBroker):
    """One job's verdict cannot be written, whatever it is."""

    job_id = b""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        if any(settlement.id == self.job_id for settlement in settlements):
            raise ValueError("one odd row")
        return await super().settle(settlements)

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        leases = await super().claim(session, request, queues, limit)
        self.job_id = self.job_id or next((lease.envelope.id for lease in leases), b"")
        return leases


async def test_a_verdict_that_can_never_be_written_holds_up_no_other() -> None:
    heard = EventRecorder()
    with default_app().using(Unwritable()):
        await quick.delay()
        async with Worker(options=options(heard, ttl=60.0)):
            await heard.wait_for(BrokerCallFailed)
            async with asyncio.timeout(2.0):
                for _ in range(20):
                    assert await (await quick.delay()).result(10) == 1
    assert not any(isinstance(event, SessionEnded) for event in heard.events)
