"""register and claim: which session may lease which job, and what a resent request gets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from taskflow.broker import topics
from taskflow.model.errors import SessionLost
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.support.harnesses import Capability
from tests.support.verdicts import SettlementOf, handed_back, parked, retried, snoozed, succeeded
from tests.support.world import ODD_QUEUES, World, fences_of, ids_of

# --- register ------------------------------------------------------------------------------------------------------


async def test_register_repeat(world: World) -> None:
    """Registering a living session again changes only what is shown: its age is the same, and its leases remain."""
    session = await world.a_session()
    await world.add()
    leases = await world.claim(session)

    before = await world.broker.admin.workers()

    await world.broker.register(session)

    assert await world.broker.admin.workers() == before
    assert before[0].leases == 1

    changed = msgspec.structs.replace(session, trouble="claiming fails: the page is damaged", jobs=("send",), surplus=3)
    await world.broker.register(changed)

    assert await world.broker.admin.workers() == [msgspec.structs.replace(before[0], session=changed)]
    assert await world.settle(succeeded(leases[0])) == [Settled.OK]


async def test_register_dead__as_long_as_calls_are_resent(world: World) -> None:
    """A registration that was long under way does not revive a dead session, with or without leases."""
    session = await world.a_session()
    await world.reap(session)
    await world.pass_time(world.rules.repeat_for - 1.0)

    with pytest.raises(SessionLost):
        await world.broker.register(session)


async def test_register_dead__one_that_was_forgotten_begins_anew(world: World) -> None:
    """The session's first claim is no repeat of the one that it made before."""
    session = await world.a_session()
    assert await world.claim(session) == []
    await world.reap(session)
    await world.pass_time(world.rules.repeat_for + 1.0)
    await world.upkeep()

    await world.broker.register(session)
    await world.add()

    assert len(await world.broker.claim(session.id, 1, [], 10)) == 1


@pytest.mark.parametrize("queues", [["mail"], []])
async def test_claim_fewer(world: World, queues: list[str]) -> None:
    """A session that gets fewer jobs than it has room for need not poll: a job that becomes ready later wakes it."""
    session = await world.a_session()
    topic = topics.queue("mail") if queues else topics.ANY_QUEUE
    with world.broker.listen([topic]) as listener:
        for _ in range(3):
            await world.add(queue="mail")
            assert await listener.wait(world.harness.wakes_within)
            assert len(await world.claim(session, queues, 10)) == 1


async def test_claim_fewer__than_there_are(world: World) -> None:
    """Where one answer does not hold all jobs, the next wait ends at once, until all have been claimed."""
    session = await world.a_session()
    for _ in range(6):
        await world.add(queue="mail", payload=bytes(400_000))
    with world.broker.listen([topics.queue("mail")]) as listener:
        claimed = len(await world.claim(session, ["mail"], 10))
        while claimed < 6:
            assert await listener.wait(world.harness.wakes_within)
            claimed += len(await world.claim(session, ["mail"], 10))


async def test_claim_eligible__not_paused(world: World) -> None:
    """No job of a paused queue is leased, whether the queue is named or not."""
    await world.add(queue="paused")
    other = await world.add(queue="other")
    await world.broker.admin.pause("paused")
    session = await world.a_session()

    assert await world.claim(session, ["paused"]) == []
    assert ids_of(await world.claim(session)) == [other.id]


async def test_claim_eligible__not_expired(world: World) -> None:
    """A job past its expiry is not leased, even before upkeep runs; the jobs behind it are."""
    await world.add(expires=10.0)
    other = await world.add(expires=10.1)
    world.clock.advance(10.0)

    assert ids_of(await world.claim(await world.a_session())) == [other.id]


async def test_claim_queues__in_the_order_given(world: World) -> None:
    """The first queue named is emptied before the next one is read, whatever the priorities, up to the limit over all of them. If no queue
    is named, every queue is served in turn: one that never runs dry does not keep the others waiting."""
    second = [await world.add(queue="b", priority=100) for _ in range(2)]
    first = [await world.add(queue="a") for _ in range(2)]
    for queue in ("c", "d", "c", "d", "c", "d"):
        await world.add(queue=queue)
    session = await world.a_session()

    assert await world.claim(session, ["a", "b"], limit=0) == []
    assert ids_of(await world.claim(session, ["a", "b"], limit=3)) == ids_of([*first, second[0]])
    assert ids_of(await world.claim(session, ["a", "b"], limit=3)) == [second[1].id]
    assert await world.claim(session, ["a", "b"]) == []
    assert sorted([(await world.claim(session, limit=1))[0].envelope.queue for _ in range(4)]) == ["c", "c", "d", "d"]


async def test_claim_queues__by_their_whole_names(world: World) -> None:
    """A claim gets jobs of the queue that it names, whatever characters the other queues' names contain."""
    jobs = {queue: await world.add(queue=queue) for queue in ODD_QUEUES}
    session = await world.a_session()

    claimed = {queue: await world.claim(session, [queue]) for queue in ODD_QUEUES}

    assert {queue: ids_of(leases) for queue, leases in claimed.items()} == {queue: ids_of([job]) for queue, job in jobs.items()}
    assert [lease.envelope.queue for leases in claimed.values() for lease in leases] == list(ODD_QUEUES)


async def test_claim_fence__the_epoch_rises(world: World) -> None:
    """Each lease of a job has an epoch one above the last, however the last one ended."""
    session = await world.a_session()
    lease = await world.running(session)
    assert lease.epoch == 1
    ends: tuple[SettlementOf, ...] = (handed_back, retried, snoozed)
    for number, settlement in enumerate(ends, 2):
        await world.settle(settlement(lease))
        [lease] = await world.claim(session)
        assert lease.epoch == number
    await world.reap(session)
    [lease] = await world.claim(await world.a_session())

    assert lease.epoch == 5
    assert (await world.record(lease)).epoch == 5


async def test_claim_fence__new_after_the_tail_is_lost(world: World) -> None:
    """A store that goes back in time repeats epochs, but never a claim id."""
    session = await world.a_session()
    await world.add()
    snapshot = world.snapshot()
    [before] = await world.claim(session)
    await world.restore(snapshot)
    [after] = await world.claim(session)

    assert before.epoch == after.epoch
    assert before.claim != after.claim


async def test_claim_fence__carries_what_was_before(world: World) -> None:
    """A lease tells its worker how the job's earlier leases ended, and how much time is left, by the store's clock."""
    session = await world.a_session()
    lease = await world.running(session, expires=10.0)
    created_at = world.clock.wall()
    assert (lease.failures, lease.crashes, lease.snoozes, lease.hand_backs, lease.parked_for) == (0, 0, 0, 0, 0.0)
    for settlement in (retried, snoozed, handed_back, parked):
        await world.settle(settlement(lease))
        if settlement is parked:
            world.clock.advance(2.5)
        [lease] = await world.claim(session)

    assert (lease.failures, lease.snoozes, lease.hand_backs, lease.parked_for) == (1, 1, 1, 2.5)
    assert (lease.attempt, lease.created_at, lease.expires_in) == (2, created_at, 7.5)


@pytest.mark.parametrize("fields", [{}, {"expires": 1_000.0}, {"tags": ("t",)}, {"after": 2.0}, {"key": "k"}])
async def test_claim_waited(world: World, fields: dict[str, Any]) -> None:
    """The time starts again when a job that waits again becomes due."""
    session, after = await world.a_session(ttl=1_000.0), fields.get("after", 0.0)
    await world.enqueue(world.an_envelope(**fields))
    await world.pass_time(after + 7.5)
    await world.upkeep()
    [lease] = await world.claim(session)
    assert lease.waited == 7_500_000
    await world.settle(retried(lease, after=3.0))
    await world.pass_time(4.0)
    await world.upkeep()
    [lease] = await world.claim(session)
    assert lease.waited == 1_000_000


async def test_claim_exclusive__while_it_beats(world: World) -> None:
    """A leased job is not leased to another session, nor a second time to its own, however long it runs."""
    session, other = await world.a_session(), await world.a_session(ttl=1_000.0)
    lease = await world.running(session)
    for _ in range(10):
        world.clock.advance(session.ttl * 0.5)
        await world.beat(session, lease)
        await world.upkeep()
        assert await world.claim(other) == []
        assert await world.claim(session) == []

    assert await world.settle(succeeded(lease)) == [Settled.OK]


@pytest.mark.parametrize("restarts", [False, True])
async def test_claim_memory__the_same_again(world: World, restarts: bool) -> None:
    """A request whose answer was lost gets the same leases again, and no job that was added since. The store remembers them, not the
    broker."""
    if restarts:
        world.needs(Capability.RESTART)
    session = await world.a_session()
    for _ in range(3):
        await world.add()
    leases = await world.claim(session, limit=2)
    await world.add(priority=100)
    if restarts:
        await world.restart()

    assert fences_of(await world.claim_again(session, limit=100)) == fences_of(leases)
    assert len(leases) == 2


async def test_claim_memory__less_what_is_no_longer_its_own(world: World) -> None:
    """Leases that were settled or handed back meanwhile are not answered again."""
    session, other = await world.a_session(), await world.a_session()
    for _ in range(4):
        await world.add()
    leases = await world.claim(session)
    await world.settle(succeeded(leases[0]), handed_back(leases[1]))
    await world.claim(other)

    assert fences_of(await world.claim_again(session)) == fences_of(leases[2:])


async def test_claim_old_request(world: World) -> None:
    """A request that arrives late, after the next one was answered, gets nothing and changes nothing."""
    session = await world.a_session()
    for _ in range(2):
        await world.add()
    await world.claim(session, limit=1)
    second = await world.claim(session, limit=1)
    waiting = await world.add()

    assert await world.broker.claim(session.id, 1, (), 10) == []
    assert await world.status(waiting) is Status.READY
    assert await world.settle(succeeded(second[0])) == [Settled.OK]
