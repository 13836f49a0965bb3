"""Flows in trouble: several retries in one call, jobs that are dropped before others end, bodies that cannot be read."""

from __future__ import annotations

import asyncio
from collections import Counter

from taskflow.broker.admin import Redone, View
from taskflow.broker.protocol import PURGED_TTL
from taskflow.model.flow import FailureNote, read_note
from taskflow.model.record import Status
from tests.support.flows import sent
from tests.support.verdicts import failed, succeeded
from tests.support.world import Job, World, id_of, ids_of

HELD, SCHEDULED, READY, SUCCEEDED, FAILED, CANCELLED = (
    *(Status.HELD, Status.SCHEDULED, Status.READY),
    *(Status.SUCCEEDED, Status.FAILED, Status.CANCELLED),
)


async def _results(world: World, job: Job) -> dict[int, bytes | FailureNote]:
    return {number: read_note(note) for number, note in (await world.broker.notes(id_of(job))).notes}


async def _statuses(world: World, *jobs: Job) -> list[Status | None]:
    return [None if record is None else record.status for record in await world.broker.read(ids_of(jobs))]


async def test_flow_redo__of_a_member_and_its_join_in_one_call(world: World) -> None:
    """The join waits for the member, and gets its result in place of the failure."""
    flow = await sent(world, members=2, collects=True)
    assert flow.join is not None
    session = await world.a_session()
    first, second = await world.claim(session, ["0"])
    await world.settle(failed(first), succeeded(second))
    await world.settle(*map(failed, await world.claim(session, ["join"])))
    assert await world.broker.admin.retry([id_of(first), flow.join.id]) == [Redone.OK] * 2

    record = await world.record(flow.join)
    assert (record.status, record.awaits) == (HELD, 1)
    [first] = await world.claim(session)
    await world.settle(succeeded(first, b"\x01again"))
    assert await world.status(flow.join) is READY
    assert (await _results(world, flow.join))[0] == b"\x01again"


async def test_flow_redo__of_many_branches(world: World) -> None:
    """There are more branches than one portion of the work covers. Each is restored, and nothing else."""
    flow = await sent(world, members=600, length=2, collects=True)
    session = await world.a_session()
    while leases := await world.claim(session, ["0"]):
        await world.settle(*map(failed, leases))
    await world.broker.admin.retry(ids_of(flow.firsts[:-1]))

    statuses = await _statuses(world, *(branch[1] for branch in flow.branches))
    assert (Counter(statuses[:-1]), statuses[-1]) == ({HELD: 599}, CANCELLED)  # pytest takes minutes to compare long lists


async def test_flow_redo__of_many_failures_of_one_scope(world: World) -> None:
    """Of many jobs that fail at once, one cancels the waiting jobs. The failed ones are retried in two calls."""
    flow = await sent(world, members=700)
    assert flow.join is not None
    leases = await world.claim(await world.a_session(), ["0"], 40)
    await world.settle(*map(failed, leases))
    for portion in (leases[:15], leases[15:]):
        await world.broker.admin.retry(ids_of(portion))

    statuses = await _statuses(world, *flow.envelopes)
    assert (Counter(statuses[:-1]), statuses[-1]) == ({READY: 700}, HELD)


async def test_flow_redo__without_a_job_that_was_dropped(world: World) -> None:
    """No job waits for ever for one that failed and was dropped. A job that succeeded and was dropped does not matter."""
    flow = await sent(world, members=4)
    assert flow.join is not None
    first, second, third = await world.claim(await world.a_session(), ["0"], 3)
    await world.settle(succeeded(third, keep_for=0.0))
    await world.settle(failed(first), failed(second))
    await world.upkeep()
    await world.broker.admin.drop([id_of(third)])
    await world.broker.admin.retry([id_of(first), id_of(second)])
    assert await world.status(flow.join) is HELD
    [first, second] = await world.claim(await world.a_session(), ["0"], 2)
    await world.settle(failed(first), failed(second))
    await world.broker.admin.drop([id_of(second)])
    assert await world.broker.admin.retry([id_of(first)]) == [Redone.CANCELLED_AGAIN]

    record = await world.record(flow.join)
    assert record.status is CANCELLED
    assert record.reason is not None
    assert "dropped" in record.reason


async def test_flow_redo__of_a_job_whose_failed_one_was_dropped(world: World) -> None:
    """The retried job is not HELD for ever."""
    flow = await sent(world, members=2)
    assert flow.join is not None
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    await world.settle(failed(lease))
    await world.broker.admin.drop([id_of(lease)])
    assert await world.broker.admin.retry([flow.join.id, flow.firsts[1].id]) == [Redone.CANCELLED_AGAIN] * 2

    assert await _statuses(world, *flow.envelopes) == [None, CANCELLED, CANCELLED]


async def test_flow_redo__of_two_failures_by_two_clients(world: World) -> None:
    """Whichever client restores first takes nothing from what the other one restores."""
    for _ in range(4):
        flow, session = await sent(world, members=60), await world.a_session()
        assert flow.join is not None
        first, second = await world.claim(session, ["0"], 2)
        await world.settle(failed(first), failed(second))
        other = world.broker.sibling()
        await asyncio.gather(world.broker.admin.retry([id_of(first)]), other.admin.retry([id_of(second)]))
        if CANCELLED in await _statuses(world, *flow.envelopes):  # one client restored before the other's retry
            await world.broker.admin.retry([id_of(first), id_of(second)])
        if other is not world.broker:
            await other.close()
        while leases := await world.claim(session):
            await world.settle(*map(succeeded, leases))
        assert await world.status(flow.join) is SUCCEEDED


async def test_admin_purge__of_a_flow(world: World) -> None:
    """All of its jobs that match are purged, also those that the purge of the first ones cancelled. The flow's other jobs are not kept for
    retries."""
    flow, other = await sent(world, members=600, length=2), await sent(world)
    waiting = (HELD, SCHEDULED, READY)
    purged = sum([await world.broker.admin.purge(View(queue=queue, statuses=waiting), limit=500) for queue in ("0", "1") for _ in range(4)])
    assert flow.join is not None
    assert purged == 602 + 600
    assert [record.id for record in await world.broker.admin.flow(flow.id)] == [flow.join.id]
    assert await _statuses(world, *other.firsts) == [None, None]
    assert await world.status(flow.join) is CANCELLED
    await world.pass_time(PURGED_TTL + 1.0)
    assert await world.status(flow.join) is None


async def test_flow_redo__keeps_their_times(world: World) -> None:
    """A job that was to start later still does."""
    flow = await sent(world, members=2, after=60.0)
    await world.cancel(flow.firsts[0])
    assert await world.status(flow.firsts[1]) is CANCELLED
    await world.broker.admin.retry([flow.firsts[0].id])

    assert await _statuses(world, *flow.firsts) == [READY, SCHEDULED]
    await world.pass_time(60.0)
    assert await world.status(flow.firsts[1]) is READY


async def test_flow_fells__keeps_a_cancelled_job_as_long_as_a_failed_one(world: World) -> None:
    """The cancelled job's retry restores the jobs that its end cancelled. A cancelled flow is dropped as soon as other cancelled jobs."""
    flow, other = await sent(world), await sent(world)
    await world.cancel(flow.firsts[0])
    await world.broker.admin.cancel_flow(other.id)
    await world.pass_time(world.rules.keep_failed - 1.0)

    assert await _statuses(world, *flow.envelopes) == [CANCELLED] * 3
    assert await _statuses(world, *other.envelopes) == [None] * 3


async def test_flow_result__gone_with_a_join_that_was_dropped_before(world: World) -> None:
    """A member that ends after the join was dropped leaves nothing behind."""
    flow = await sent(world, members=2)
    assert flow.join is not None
    [first] = await world.claim(await world.a_session(), ["0"], 1)
    await world.cancel(flow.firsts[1])
    await world.broker.admin.drop([flow.join.id])
    await world.settle(succeeded(first))
    await world.upkeep()

    assert await world.status(flow.join) is None
    assert await _results(world, flow.join) == {}


async def test_upkeep_bounded__for_flows(world: World) -> None:
    """A call cancels no more jobs of a flow than its limit."""
    flow = await sent(world, members=2_300)
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    await world.settle(failed(lease))
    before = (await _statuses(world, *flow.envelopes)).count(CANCELLED)
    upkept = await world.upkeep(7)

    assert upkept.next_in == 0.0
    assert 0 < (await _statuses(world, *flow.envelopes)).count(CANCELLED) - before <= 7
