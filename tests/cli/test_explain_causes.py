"""`taskflow explain` names the cause first: planted causes. That each broker gives the same facts is proven by conformance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from taskflow.cli.explain import Reason, facts_of, reasons
from taskflow.model.clock import instant_of
from taskflow.model.envelope import OnConflict
from taskflow.model.ids import id_text
from taskflow.model.schedule import SCHEDULE
from taskflow.model.session import Report
from tests.support.harnesses import MemoryHarness
from tests.support.verdicts import cancelled, discarded, failed, handed_back, parked, retried, snoozed
from tests.support.world import Job, World

Plant = Callable[[World], Awaitable[Job]]

_CAUSES: dict[str, tuple[Plant, str, str]] = {}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World(MemoryHarness) as opened:
        yield opened


def cause(text: str, cure: str = "") -> Callable[[Plant], Plant]:
    """Declare a cause: the function plants it, and the first reason has this text and this cure."""

    def declare(plant: Plant) -> Plant:
        _CAUSES[plant.__name__] = plant, text, cure
        return plant

    return declare


@cause("queue default is paused", "taskflow resume default")
async def paused(world: World) -> Job:
    await world.a_session()
    await world.broker.admin.pause("default")
    return await world.add()


@cause("no worker is running", "taskflow worker MODULE")
async def no_worker(world: World) -> Job:
    return await world.add()


@cause("worker elsewhere does not take queue default", "--queues default")
async def no_worker_of_the_queue(world: World) -> Job:
    await world.a_session("elsewhere", queues=("mail",))
    return await world.add()


@cause("none of the 2 workers knows work", "start one with its module")
async def no_worker_that_knows_it(world: World) -> Job:
    await world.a_session("one", jobs=("other",))
    await world.a_session("two", jobs=("another",), queues=("default",))
    return await world.add()


@cause("the only slot of worker busy is busy", "more workers")
async def busy_workers(world: World) -> Job:
    session = await world.a_session("busy", concurrency=1, jobs=("work",))
    await world.running(session)
    return await world.add()


@cause("it has been ready for 5s, behind 31 others in queue default; none was claimed just now", "wait")
async def behind_others(world: World) -> Job:
    await world.a_session(concurrency=10)
    await world.enqueue(*(world.an_envelope() for _ in range(31)))
    job = await world.add()
    world.clock.advance(5.0)
    return job


@cause("it waits for a worker that knows it", "deploy the code that sent it")
async def parked_job(world: World) -> Job:
    lease = await world.running()
    await world.settle(parked(lease, 60.0))
    return lease


@cause("attempt 1 of 10 failed: builtins.ValueError: no such user; the next one starts in 1m", "retry is automatic")
async def waiting_for_a_retry(world: World) -> Job:
    lease = await world.running()
    await world.settle(retried(lease, 60.0))
    return lease


@cause("it has snoozed once; it is ready again in 1m")
async def snoozing(world: World) -> Job:
    lease = await world.running()
    await world.settle(snoozed(lease, 60.0))
    return lease


@cause("it was sent for later; it is ready in 1m")
async def planned(world: World) -> Job:
    return await world.add(after=60.0)


@cause("schedule nightly has added it for later; it is ready in 1m")
async def added_by_a_schedule(world: World) -> Job:
    return await world.add(after=60.0, headers={SCHEDULE: "nightly"})


@cause("which runs with its key", "let that job end")
async def behind_the_holder_of_its_key(world: World) -> Job:
    await world.running(key="k", queue="default")
    return await world.add(key="k", on_conflict=OnConflict.REPLACE)


@cause("it waits for other jobs to end")
async def held_by_a_join(world: World) -> Job:
    return await world.add(awaits=2)


@cause("handed back 10 times without an outcome; it is ready again in 5s", "why its workers stop")
async def handed_back_often(world: World) -> Job:
    session = await world.a_session()
    lease = await world.running(session, queue="default")
    for _ in range(9):
        await world.settle(handed_back(lease))
        [lease] = await world.claim(session)
    await world.settle(handed_back(lease))
    return lease


@cause("it was asked to stop, and has not stopped yet", "ctx.cancelled")
async def asked_to_stop(world: World) -> Job:
    lease = await world.running()
    await world.cancel(lease)
    return lease


@cause("its worker stopped has sent no heartbeat for 15s", "another worker takes the job; none is running: start one")
async def on_a_silent_worker(world: World) -> Job:
    lease = await world.running(await world.a_session("stopped"))
    world.clock.advance(15.0)
    return lease


@cause("no heartbeat for 25s from worker stopped, which could run it", "start another one")
async def only_silent_workers(world: World) -> Job:
    session = await world.a_session("stopped", concurrency=1)
    await world.running(session)
    world.clock.advance(25.0)
    return await world.add()


@cause("it is due, but no worker is running", "start one")
async def due_without_a_worker(world: World) -> Job:
    await world.a_session("stopped")
    job = await world.add(after=10.0)
    world.clock.advance(25.0)
    return job


@cause("it has been running on worker for 3s, attempt 1 of 10")
async def running(world: World) -> Job:
    session = await world.a_session()
    lease = await world.running(session)
    await world.beat(session, lease, reports=[Report(lease.claim, 1.0)])
    world.clock.advance(2.0)
    return lease


@cause("worker worker took it 3s ago, and has not reported its start yet")
async def not_begun(world: World) -> Job:
    lease = await world.running()
    world.clock.advance(3.0)
    return lease


@cause("its last attempt, 1 of 1, failed: builtins.ValueError: no such user", "taskflow retry")
async def out_of_attempts(world: World) -> Job:
    lease = await world.running(max_attempts=1)
    await world.settle(failed(lease))
    return lease


@cause("builtins.ValueError: no such user; this error is not retried", "taskflow retry")
async def an_error_that_is_not_retried(world: World) -> Job:
    lease = await world.running()
    await world.settle(failed(lease))
    return lease


@cause("it was discarded: not wanted", "taskflow retry")
async def thrown_away(world: World) -> Job:
    lease = await world.running()
    await world.settle(discarded(lease))
    return lease


@cause("its worker was lost 4 times in a row", "find out what kills its workers")
async def poisonous(world: World) -> Job:
    job = await world.add()
    for _ in range(4):
        session = await world.a_session()
        await world.claim(session, limit=1)
        await world.die(session)
        await world.pass_time(400.0)
    return job


@cause("it expired: no worker had started it in time", "start more workers")
async def expired(world: World) -> Job:
    job = await world.add(expires=10.0)
    await world.pass_time(11.0)
    return job


@cause("it expired before a worker had started it; queue default is paused", "`taskflow resume default` ends the pause; then")
async def expired_in_a_pause(world: World) -> Job:
    job = await world.add(expires=10.0)
    await world.broker.admin.pause("default")
    await world.pass_time(11.0)
    return job


@cause("it was replaced by ", "look at that job")
async def replaced(world: World) -> Job:
    job = await world.add(key="k")
    await world.add(key="k", on_conflict=OnConflict.REPLACE)
    return job


@cause("it was cancelled: asked to", "runs it all the same")
async def cancelled_by_itself(world: World) -> Job:
    lease = await world.running()
    await world.settle(cancelled(lease))
    return lease


@pytest.mark.parametrize("name", _CAUSES)
async def test_the_cause_is_named_first_with_its_cure(world: World, name: str) -> None:
    plant, text, cure = _CAUSES[name]
    job = await plant(world)
    record = await world.record(job)

    first, *_ = reasons(record, await facts_of(world.broker.admin, record, instant_of(world.clock.wall())))

    assert text in first.text
    assert cure in first.cure.replace(id_text(record.id), "ID")
    assert (first.cure == "") == (cure == "") or name in ("held_by_a_join",)


async def test_further_reasons_follow(world: World) -> None:
    """What would hold the job up next is told, too."""
    await world.broker.admin.pause("default")
    record = await world.record(await world.add())
    told = reasons(record, await facts_of(world.broker.admin, record, instant_of(world.clock.wall())))
    assert [reason.text for reason in told] == ["queue default is paused", "no worker is running"]
    assert all(isinstance(reason, Reason) and reason.cure for reason in told)
