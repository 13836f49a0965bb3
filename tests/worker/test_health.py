"""What a worker's health checks depend on: real answers of the broker, not the worker's own opinion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from taskflow import Worker
from taskflow.model.session import Beat
from taskflow.worker import fetcher, health, heartbeat
from taskflow.worker.events import SessionOpened
from taskflow.worker.health import HealthCheck
from tests.worker.scene import EventRecorder, FaultyBroker, Run, a_faulty_broker, options, waits

ANSWER_TIMEOUT = 0.5


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ANSWER_TIMEOUT", ANSWER_TIMEOUT)
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", ANSWER_TIMEOUT / 5)
    monkeypatch.setattr(fetcher, "MAX_IDLE_INTERVAL", ANSWER_TIMEOUT / 5)
    monkeypatch.setattr(heartbeat, "BEATS_PER_TTL", 200)
    monkeypatch.setattr(heartbeat, "IDLE_BEATS_PER_TTL", 200)


@pytest.fixture
async def broker() -> AsyncIterator[FaultyBroker]:
    async with a_faulty_broker() as opened:
        yield opened


async def until(found: Callable[[], HealthCheck], *, is_well: bool) -> HealthCheck:
    async with asyncio.timeout(30):
        while (finding := found()).is_well is not is_well:  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0.02)
    return finding


async def test_a_worker_is_ready_when_beats_and_claims_are_answered_and_not_before(broker: FaultyBroker) -> None:
    worker = Worker(options=options(EventRecorder(), ttl=20.0))
    assert (worker.health.live().is_well, worker.health.ready().is_well) == (True, False)
    broker.away = {"claim"}
    async with worker:
        await asyncio.sleep(2 * ANSWER_TIMEOUT)
        assert "a claim yet" in worker.health.ready().why
        broker.away = set()
        ready = await until(worker.health.ready, is_well=True)
        assert ready.facts["running"] == 0
    assert (worker.health.live().is_well, worker.health.ready()) == (True, HealthCheck(False, "the worker has ended"))


@pytest.mark.parametrize(("verb", "named"), [("claim", "a claim"), ("beat", "a heartbeat")])
async def test_a_verb_that_the_broker_does_not_answer_ends_readiness_and_not_life(broker: FaultyBroker, verb: str, named: str) -> None:
    """Restarting the process would not bring the broker back."""
    async with Worker(options=options(EventRecorder(), ttl=4.0)) as worker:
        await until(worker.health.ready, is_well=True)
        broker.away = {verb}
        unready = await until(worker.health.ready, is_well=False)
        assert f"has not answered {named} for" in unready.why
        assert worker.health.live().is_well
        broker.away = set()
        await until(worker.health.ready, is_well=True)


async def test_a_heartbeat_without_work_counts_as_an_answer_too(broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle worker need not claim then."""
    monkeypatch.setattr(fetcher, "MAX_IDLE_INTERVAL", 3600.0)
    async with Worker(options=options(EventRecorder(), ttl=4.0)) as worker:
        await until(worker.health.ready, is_well=True)
        await asyncio.sleep(ANSWER_TIMEOUT)
        broker.away = {"claim"}
        await asyncio.sleep(2 * ANSWER_TIMEOUT)
        assert worker.health.ready().is_well


async def test_verdicts_that_cannot_be_sent_end_readiness(broker: FaultyBroker) -> None:
    async with Worker(options=options(EventRecorder(), ttl=20.0, concurrency=1)) as worker:
        await until(worker.health.ready, is_well=True)
        broker.away = {"settle"}
        handle = await waits.delay()
        Run.release.set()
        unready = await until(worker.health.ready, is_well=False)
        assert "a settlement for" in unready.why
        broker.away = set()
        await handle.result(30)
        await until(worker.health.ready, is_well=True)


async def test_between_two_sessions_a_worker_lives_and_is_not_ready(broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = EventRecorder()
    async with Worker(options=options(heard, ttl=20.0)) as worker:
        await until(worker.health.ready, is_well=True)
        [record] = await broker.admin.workers()
        broker.away = {"claim"}
        await broker.beat(Beat(session=record.session.id, leaving=True))
        await until(worker.health.ready, is_well=False)
        assert worker.health.live().is_well
        broker.away = set()
        await heard.wait_for(SessionOpened, times=2)
        await until(worker.health.ready, is_well=True)


async def test_a_worker_that_winds_down_lives_and_is_not_ready(broker: FaultyBroker) -> None:
    worker = Worker(options=options(EventRecorder(), ttl=20.0))
    async with worker:
        await waits.delay()
        await Run.started.wait()
        await until(worker.health.ready, is_well=True)
        ending = asyncio.create_task(_see_end(worker))
    assert await ending == (True, "the worker is winding down and claims no more jobs")


async def _see_end(worker: Worker) -> tuple[bool, str]:
    finding = await until(worker.health.ready, is_well=False)
    is_alive = worker.health.live().is_well
    Run.release.set()
    return is_alive, finding.why
