"""listen: nudges for waiting clients and workers. Nudges are hints: the tests claim that they arrive, never that no others do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import pytest

from taskflow.broker import topics
from taskflow.broker.admin import View
from tests.support.verdicts import SettlementOf, cancelled, failed, handed_back, retried, snoozed, succeeded
from tests.support.world import World


async def nudges(world: World, topic: str | Sequence[str], deed: Awaitable[object]) -> bool:
    """Whether the deed wakes a listener."""
    with world.broker.listen([topic] if isinstance(topic, str) else topic) as listener:
        await deed
        return await listener.wait(world.harness.wakes_within)


@pytest.mark.parametrize("topic", [topics.queue("mail"), topics.ANY_QUEUE])
async def test_listen_ready__when_it_is_added(world: World, topic: str) -> None:
    """A new READY job nudges the listeners to its queue, and those that listen to every queue."""
    assert await nudges(world, topic, world.add(queue="mail"))


@pytest.mark.parametrize("is_run_now", [False, True])
async def test_listen_ready__when_it_is_due(world: World, is_run_now: bool) -> None:
    """A job that upkeep or an operator makes READY nudges listeners."""
    job = await world.add(queue="mail", after=10.0)

    assert await nudges(world, topics.queue("mail"), world.broker.admin.run_now([job.id]) if is_run_now else world.pass_time(10.0))


@pytest.mark.parametrize("settlement", [retried, snoozed, handed_back])
async def test_listen_ready__when_it_comes_again(world: World, settlement: SettlementOf) -> None:
    """A job that is READY again after a run nudges listeners: another worker may have a slot."""
    lease = await world.running(queue="mail")

    assert await nudges(world, topics.queue("mail"), world.settle(settlement(lease)))


async def test_listen_ready__when_it_is_released(world: World) -> None:
    """A held job that is released, and a follow-up, nudge listeners with the settlement that causes them."""
    held = await world.add(queue="joined", awaits=1)
    lease = await world.running(joins=(held.id,))

    follow_up = world.an_envelope(queue="next")
    with world.broker.listen([topics.queue("joined")]) as joined, world.broker.listen([topics.queue("next")]) as following:
        await world.settle(succeeded(lease, follow_ups=(follow_up,)))
        assert await joined.wait(world.harness.wakes_within)
        assert await following.wait(world.harness.wakes_within)


async def test_listen_session(world: World) -> None:
    """A worker is woken when one of its runs is asked to stop, and need not wait for its next beat."""
    session = await world.a_session()
    lease = await world.running(session)

    assert await nudges(world, topics.session(session.id), world.cancel(lease))


@pytest.mark.parametrize("settlement", [succeeded, failed, cancelled])
async def test_listen_ended__by_a_verdict(world: World, settlement: SettlementOf) -> None:
    """A client that waits for a result is woken when the job ends."""
    lease = await world.running()

    assert await nudges(world, topics.job(lease.envelope.id), world.settle(settlement(lease)))


async def test_listen_ended__without_having_run(world: World) -> None:
    """It is also woken when the job is cancelled, expires or is purged."""
    first, second, third = await world.add(), await world.add(expires=5.0), await world.add(queue="purged")

    assert await nudges(world, topics.job(first.id), world.cancel(first))
    assert await nudges(world, topics.job(second.id), world.pass_time(5.0))
    assert await nudges(world, topics.job(third.id), world.broker.admin.purge(View(queue="purged")))


async def test_listen_due__when_it_is_added(world: World) -> None:
    """A worker that waits for the next due time is woken when a new one may be earlier."""
    assert await nudges(world, topics.DUE, world.add(after=10.0))


async def test_listen_sticky(world: World) -> None:
    """A client that reads, then waits, misses nothing: a nudge that arrived in between ends the next wait. A nudge ends a wait under way,
    and a wait that was cancelled leaves the next nudge to the next wait."""
    with world.broker.listen([topics.queue("mail")]) as listener:
        for _ in range(2):
            await world.add(queue="mail")
            assert await listener.wait(world.harness.wakes_within)
        for is_cancelled in (False, True):
            waiting = asyncio.create_task(listener.wait(world.harness.wakes_within))
            await asyncio.sleep(0)
            if is_cancelled:
                waiting.cancel()
                await asyncio.wait([waiting])
            await world.add(queue="mail")
            assert await (listener.wait(world.harness.wakes_within) if is_cancelled else waiting)


async def test_listen_lasts(world: World) -> None:
    """Nudges still arrive after a job has cancelled every task of the loop, even for the second time."""
    sibling, session, before = world.broker.sibling(), await world.a_session(), asyncio.all_tasks()
    with world.broker.listen([topics.queue("mail")]) as listener:
        for _ in range(2):
            await world.add(queue="mail")
            assert await listener.wait(world.harness.wakes_within)
            for task in asyncio.all_tasks() - before:
                task.cancel()
            await sibling.enqueue([world.an_envelope(queue="mail")])
            assert await listener.wait(world.harness.wakes_within)
            await world.claim(session)  # a waiter that reads while jobs are ready is nudged again and again
            while await listener.wait(0.02):  # after a gap, all waiters are woken
                pass
    await sibling.close()
