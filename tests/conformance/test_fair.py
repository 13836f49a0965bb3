"""Turns: the jobs of a queue's tenants run in turn."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from taskflow.broker.engine.seam import Operation, Query, Scan, Snapshot
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.limits import Gate, gate_id
from taskflow.model.record import Status
from tests.support.verdicts import handed_back, retried, succeeded
from tests.support.world import World

MANY = 300


def of_tenant(world: World, tenant: str, number: int, **fields: Any) -> list[Envelope]:
    return [world.an_envelope(fair=tenant.encode(), payload=tenant.encode(), **fields) for _ in range(number)]


async def add(world: World, tenant: str, number: int, **fields: Any) -> list[Envelope]:
    jobs = of_tenant(world, tenant, number, **fields)
    await world.enqueue(*jobs)
    return jobs


async def order(world: World, limit: int = 10_000) -> str:
    """Return the tenants of the next jobs that a session leases, in their order."""
    return "".join(map(tenant_of, await world.claim(await world.a_session(ttl=1_000_000.0), limit=limit)))


def tenant_of(lease: Lease) -> str:
    return lease.envelope.payload.decode()


async def test_fair_turns(world: World) -> None:
    """A tenant with few jobs beside one with many has one run in each round."""
    await add(world, "a", MANY)
    assert await order(world, 20) == "a" * 20
    await add(world, "b", 10)
    assert await order(world, 21) == "ab" * 10 + "a"


async def test_fair_turns__three(world: World) -> None:
    """Neither the order in which tenants arrive matters, nor whether their jobs come one by one."""
    for job in itertools.chain(of_tenant(world, "a", 8), of_tenant(world, "b", 2), of_tenant(world, "c", 8), of_tenant(world, "b", 2)):
        await world.enqueue(job)
    found = await order(world)
    assert [sorted(found[at : at + 3]) for at in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert found[12:].count("a") == found[12:].count("c") == 4


async def test_fair_turns__in_one_batch(world: World) -> None:
    """The jobs of one call take turns too, and each tenant's jobs run in the order in which they were sent."""
    jobs = [*of_tenant(world, "a", 3), *of_tenant(world, "b", 3)]
    await world.enqueue(*jobs)
    leases = await world.claim(await world.a_session())
    assert "".join(map(tenant_of, leases)) == "ababab"
    assert [lease.envelope.id for lease in leases[::2]] == [job.id for job in jobs[:3]]


async def test_fair_turns__many_senders(world: World) -> None:
    """Senders that send at the same time share a tenant's place."""
    brokers = [world.broker.sibling() for _ in range(4)]
    batches = [[of_tenant(world, tenant, 10) for tenant in ("a", "b", "a")] for _ in brokers]
    await asyncio.gather(*(broker.enqueue(jobs) for broker, each in zip(brokers, batches, strict=True) for jobs in each))
    found = await order(world)
    assert found.count("a") == 80
    assert abs(found[:80].count("a") - 40) <= 2
    for broker in brokers:
        await broker.close()


async def test_fair_turns__priority(world: World) -> None:
    """Priority comes first, and each priority has its own turns. So has each queue."""
    await add(world, "a", 5)
    await add(world, "a", 5, queue="other")
    await add(world, "b", 2, priority=1)
    await add(world, "a", 2, priority=1)
    await add(world, "b", 2)
    leases = await world.claim(await world.a_session(), ["default"])
    assert "".join(map(tenant_of, leases)) == "baba" + "ababaaa"


async def test_fair_turns__beside_others(world: World) -> None:
    """Jobs without a tenant are ordered by their time."""
    plain = await world.add()
    await add(world, "a", 3)
    world.clock.advance(1.0)
    later = await world.add()
    leases = await world.claim(await world.a_session())
    assert [lease.envelope.id for lease in (leases[0], leases[-1])] == [plain.id, later.id]
    await add(world, "a", 2)
    assert await order(world) == "aa"


async def test_fair_turns__when_it_is_due(world: World) -> None:
    """A job that was sent for later, or that awaits another, gets its place when it becomes READY."""
    held = await add(world, "c", 1, awaits=1)
    member = await world.running(joins=(held[0].id,))
    await add(world, "b", 3, after=60.0)
    await add(world, "a", 10)
    assert await order(world, 2) == "aa"
    await world.settle(succeeded(member))
    await world.pass_time(60.0)
    found = await order(world)
    assert (found[:3].count("c"), found[:7].count("b")) == (1, 3)


async def test_fair_turns__at_a_gate(world: World) -> None:
    """Jobs that wait at a gate that tenants share pass it in turn."""
    limits = (Gate(gate_id("limit", ""), "limit", "", 1),)
    await add(world, "a", 20, limits=limits)
    await add(world, "b", 3, limits=limits)
    session, found = await world.a_session(), ""
    for _ in range(8):
        [lease] = await world.claim(session)
        found += tenant_of(lease)
        await world.settle(succeeded(lease, limits=limits))
    assert found[:7].count("b") == 3


async def test_fair_turns__debounced(world: World) -> None:
    """A call that replaces the arguments of a waiting job replaces its tenant too."""
    await add(world, "a", 1, key="k", after=60.0)
    await world.enqueue(*of_tenant(world, "b", 1, key="k", after=1.0, on_conflict=OnConflict.DEBOUNCE))
    await add(world, "a", 3)
    await world.pass_time(1.0)
    assert await order(world) in ("abaa", "baaa")


async def test_fair_comes_back(world: World) -> None:
    """A job that is handed back is first again, and a tenant that arrives meanwhile is not placed before those that waited."""
    await add(world, "a", 40)
    session = await world.a_session()
    [first, *others] = await world.claim(session, limit=20)
    await world.settle(*(succeeded(lease) for lease in others))
    await world.settle(handed_back(first, counts=False))
    await add(world, "b", 20)
    leases = await world.claim(session)
    assert leases[0].envelope.id == first.envelope.id
    assert "".join(map(tenant_of, leases))[1:11].count("b") == 5


async def test_fair_comes_back__retried(world: World) -> None:
    """A job's next run counts as one more of its tenant."""
    await add(world, "a", 4)
    [lease] = await world.claim(await world.a_session(), limit=1)
    await world.settle(retried(lease, 0.0))
    await add(world, "b", 2)
    leases = await world.claim(await world.a_session())
    assert leases[-1].envelope.id == lease.envelope.id
    assert "".join(map(tenant_of, leases))[:4].count("b") == 2


async def test_fair_comes_back__after_a_crash(world: World) -> None:
    """A job whose worker was lost runs again."""
    [job] = await add(world, "a", 1)
    session = await world.a_session()
    await world.claim(session)
    await world.reap(session)
    assert await world.status(job) is Status.READY
    assert await order(world) == "a"


async def test_fair_times(world: World) -> None:
    """A job that arrives late in a long line has not waited since the line's beginning."""
    jobs = await add(world, "a", 5)
    await order(world, 1)
    await world.pass_time(100.0)
    [late] = await add(world, "b", 1)
    assert ((await world.record(late)).due_at - (await world.record(jobs[1])).due_at).total_seconds() == 100.0
    [queue] = [queue for queue in await world.broker.admin.queues() if queue.name == "default"]
    assert queue.oldest_ready_for == 100.0
    waited = {tenant_of(lease): lease.waited for lease in await world.claim(await world.a_session())}
    assert waited == {"a": 100_000_000, "b": 0}


async def test_fair_times__long_line(world: World) -> None:
    """The age of the oldest job does not grow while a line never ends."""
    await add(world, "a", 3)
    session = await world.a_session(ttl=1_000_000.0)
    for _ in range(5):
        world.clock.advance(10.0)
        await add(world, "a", 1)
        await world.settle(*map(succeeded, await world.claim(session, limit=1)))
    await world.add()
    [queue] = [queue for queue in await world.broker.admin.queues() if queue.name == "default"]
    assert queue.oldest_ready_for == 20.0


async def test_fair_times__again(world: World) -> None:
    """A resent claim gets the same answer."""
    await add(world, "a", 1)
    world.clock.advance(7.0)
    session = await world.a_session()
    [lease] = await world.claim(session)
    [again] = await world.claim_again(session)
    assert lease.waited == again.waited == 7_000_000
    record = await world.record(lease)
    assert record.due_at == record.created_at


async def test_fair_forgets(world: World) -> None:
    """Tenants whose jobs have left their lines are forgotten, and those whose jobs are READY are not."""
    await add(world, "a", 3)
    await add(world, "b", 3)
    await add(world, "c", 3, queue="other")
    session = await world.a_session(ttl=1_000_000.0)
    await world.claim(session, ["other"])
    await world.claim(session, ["default"], limit=4)
    await add(world, "b", 3)
    for _ in range(3):
        await world.pass_time(61.0)
        await world.upkeep()
    assert await kept(world) == 2
    await add(world, "a", 3)
    assert sorted((await order(world))[:2]) == ["a", "b"]
    await world.pass_time(61.0)
    assert await kept(world) == 0


async def kept(world: World) -> int:
    def scan() -> Operation[int]:
        seen: Snapshot = yield Query(scans=(Scan("turns", 100),))
        return len(seen.scans[0])

    engine: Any = world.broker
    found: int = await engine.run(scan())
    return found
