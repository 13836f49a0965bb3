"""The contract's clauses about all operations: loops, threads, siblings, closing."""

from __future__ import annotations

import asyncio
import threading

import pytest

from taskflow.broker.protocol import Added
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerError
from taskflow.model.record import Status
from tests.support.harnesses import Capability, StoreHarness
from tests.support.verdicts import succeeded
from tests.support.world import World, ids_of


@pytest.mark.parametrize("is_used", [False, True])
async def test_closing_twice_is_harmless(world: World, is_used: bool) -> None:
    """This also holds for a broker that was never used."""
    if is_used:
        await world.add()
    await world.broker.close()
    await world.broker.close()


async def test_a_closed_broker_says_so(world: World) -> None:
    """A closed broker refuses with one of taskflow's errors, and does not hang."""
    world.needs(Capability.RESTART)
    await world.add()
    await world.broker.close()

    with pytest.raises(BrokerError):
        await world.add()


async def test_a_sibling_outlives_the_broker_and_sees_the_same(world: World) -> None:
    """A sibling is another broker of the same store, closed separately."""
    world.needs(Capability.RESTART)
    sibling = world.broker.sibling()
    envelope = await world.add()
    await world.broker.close()

    [record] = await sibling.read([envelope.id])
    await sibling.close()

    assert record is not None
    assert record.status is Status.READY


async def test_a_restart_loses_nothing(world: World) -> None:
    """What was answered is there after the broker was closed and opened again: jobs, leases, sessions, pauses, totals."""
    world.needs(Capability.RESTART)
    session = await world.a_session("host:1", queues=("a",), concurrency=3)
    lease = await world.running(session)
    waiting, scheduled = await world.add(key="k", headers={"a": "b"}), await world.add(after=60.0)
    await world.broker.admin.pause("b")
    ids = ids_of([lease, waiting, scheduled])
    admin = world.broker.admin
    before = (await world.broker.read(ids), await admin.workers(), await admin.queues(), await admin.metrics())

    await world.restart()

    admin = world.broker.admin
    assert (await world.broker.read(ids), await admin.workers(), await admin.queues(), await admin.metrics()) == before
    assert [str(settled) for settled in await world.settle(succeeded(lease))] == ["Settled.OK"]


def test_any_running_loop_of_the_process(any_harness: type[StoreHarness]) -> None:
    """A broker serves one loop after another, and eight of them at once, each in its own thread."""

    world = World(any_harness)
    asyncio.run(world.add())
    envelopes = [[world.an_envelope() for _ in range(20)] for _ in range(8)]
    answers = list[object]()

    def send(batch: list[Envelope]) -> None:
        async def all_of_them() -> None:
            for envelope in batch:
                answers.extend(await world.enqueue(envelope))

        asyncio.run(all_of_them())

    threads = [threading.Thread(target=send, args=(batch,)) for batch in envelopes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    async def rest() -> int:
        leases = await world.claim(await world.a_session())
        await world.close()
        return len(leases)

    assert len(answers) == 160
    assert all(isinstance(answer, Added) for answer in answers)
    assert asyncio.run(rest()) == 161
