"""Flows: results that are passed to the jobs that await them, failures that cancel what has not begun, and retries that restore it."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from taskflow.broker.admin import Redone, View
from taskflow.broker.protocol import Refused
from taskflow.model.envelope import Lease
from taskflow.model.flow import FailureNote, Member, Tie, read_note
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.support.flows import Flow, a_flow, sent
from tests.support.verdicts import AN_ERROR, SettlementOf, cancelled, discarded, failed, retried, succeeded
from tests.support.world import Job, World, id_of, ids_of

HELD, READY, RUNNING, SUCCEEDED, FAILED, CANCELLED = (
    *(Status.HELD, Status.READY, Status.RUNNING),
    *(Status.SUCCEEDED, Status.FAILED, Status.CANCELLED),
)


async def _claimed(world: World, flow: Flow, queue: str = "0") -> dict[bytes, Lease]:
    """Return the leases of the jobs in a queue, by their ids."""
    return {id_of(lease): lease for lease in await world.claim(await world.a_session(), [queue])}


async def _results(world: World, job: Job) -> dict[int, bytes | FailureNote]:
    found, first = dict[int, bytes | FailureNote](), 0
    while True:
        page = await world.broker.notes(id_of(job), first)
        found |= {number: read_note(note) for number, note in page.notes}
        if page.next is None:
            return found
        assert page.next > first
        first = page.next


async def _statuses(world: World, *jobs: Job) -> list[Status | None]:
    return [None if record is None else record.status for record in await world.broker.read(ids_of(jobs))]


async def test_flow_whole(world: World) -> None:
    """The rest of a flow would never end, or run twice."""
    flow = a_flow(world)
    known = flow.firsts[1]
    await world.enqueue(known)
    assert await world.broker.enqueue(flow.envelopes) == [Refused(each.id, each.id, "id") for each in flow.envelopes]
    assert [job.id for job in await world.broker.admin.flow(flow.id)] == [known.id]


# --- success --------------------------------------------------------------------------------------------------


async def test_flow_released__by_the_last_success(world: World) -> None:
    """A join starts when all members have succeeded, and not before. It shows how many it awaits."""
    flow = await sent(world, members=3)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    for awaits, lease in zip((3, 2, 1), leases.values(), strict=True):
        record = await world.record(flow.join)
        assert (record.status, record.awaits) == (HELD, awaits)
        await world.settle(succeeded(lease))

    assert (await world.record(flow.join)).awaits == 0
    assert list(await _claimed(world, flow, "join")) == [flow.join.id]


async def test_flow_released__along_a_chain(world: World) -> None:
    """Each link starts after the one before it."""
    flow = await sent(world, members=1, length=3)
    for queue, job in zip(("0", "1", "2", "join"), flow.envelopes, strict=True):
        [lease] = (await _claimed(world, flow, queue)).values()
        assert lease.envelope.id == job.id
        await world.settle(succeeded(lease))

    assert await _statuses(world, *flow.envelopes) == [SUCCEEDED] * 4


async def test_flow_released__in_one_batch(world: World) -> None:
    """Members that end in one call count one by one, also if the join has its own wait."""
    flow = await sent(world, members=5, after=60.0)
    assert flow.join is not None
    await world.pass_time(60.0)
    await world.settle(*(succeeded(lease) for lease in (await _claimed(world, flow)).values()))
    assert await world.status(flow.join) is READY


@pytest.mark.parametrize("settlement", [retried, failed, cancelled, discarded])
async def test_flow_released__by_no_other_end(world: World, settlement: SettlementOf) -> None:
    """A member that fails, is cancelled, or is to run again does not count."""
    flow = await sent(world, members=2)
    assert flow.join is not None
    first, second = (await _claimed(world, flow)).values()
    await world.settle(settlement(first), succeeded(second))
    assert await world.status(flow.join) in (HELD, CANCELLED)


async def test_flow_result__in_the_order_of_inputs(world: World) -> None:
    """The join gets the results by their numbers, in whatever order the members end."""
    flow = await sent(world, members=3)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    for number in (2, 0, 1):
        await world.settle(succeeded(leases[flow.firsts[number].id], b"\x01%d" % number))

    assert await _results(world, flow.join) == {0: b"\x010", 1: b"\x011", 2: b"\x012"}


async def test_flow_result__though_it_is_not_kept(world: World) -> None:
    """A member whose own result is dropped at once has passed it on."""
    flow = await sent(world, members=2)
    assert flow.join is not None
    for lease in (await _claimed(world, flow)).values():
        await world.settle(succeeded(lease, b"\x01x", keep_for=0.0))
    await world.pass_time(1_000.0)

    assert await _statuses(world, *flow.firsts) == [None, None]
    assert await _results(world, flow.join) == {0: b"\x01x", 1: b"\x01x"}


async def test_flow_result__large_ones_in_pages(world: World) -> None:
    """Results of any size come back as they were, a few at a time."""
    flow = await sent(world, members=5)
    assert flow.join is not None
    results = [b"\x01" + bytes([number]) * size for number, size in enumerate((3_000_000, 10, 2_000_000, 1_500, 3_000_000))]
    leases = await _claimed(world, flow)
    for member, result in zip(flow.firsts, results, strict=True):
        await world.settle(succeeded(leases[member.id], result))

    first = await world.broker.notes(flow.join.id)
    assert sum(len(note) for _, note in first.notes) < 4.5 * 1024 * 1024
    assert await _results(world, flow.join) == dict(enumerate(results))


@pytest.mark.parametrize("members", [2, 40])
async def test_flow_result__gone_after_the_join(world: World, members: int) -> None:
    """The results are dropped when the join has succeeded, by upkeep if they are many."""
    flow = await sent(world, members=members)
    assert flow.join is not None
    await world.settle(*(succeeded(lease) for lease in (await _claimed(world, flow)).values()))
    [lease] = (await _claimed(world, flow, "join")).values()
    assert len(await _results(world, flow.join)) == members
    await world.settle(retried(lease))
    assert len(await _results(world, flow.join)) == members
    [lease] = (await _claimed(world, flow, "join")).values()
    await world.settle(succeeded(lease))
    await world.upkeep()

    assert await _results(world, flow.join) == {}


@pytest.mark.parametrize("members", [2, 40])
@pytest.mark.parametrize("end", ["kept no longer", "dropped"])
async def test_flow_result__gone_with_a_join_that_failed(world: World, members: int, end: str) -> None:
    """The results are kept as long as the join can be retried."""
    flow = await sent(world, members=members)
    assert flow.join is not None
    await world.settle(*(succeeded(lease) for lease in (await _claimed(world, flow)).values()))
    [lease] = (await _claimed(world, flow, "join")).values()
    await world.settle(failed(lease))
    assert len(await _results(world, flow.join)) == members
    if end == "dropped":
        await world.broker.admin.drop([flow.join.id])
    else:
        await world.pass_time(world.rules.keep_failed + 1.0)
    await world.upkeep()

    assert await world.status(flow.join) is None
    assert await _results(world, flow.join) == {}


async def test_flow_result__only_to_those_that_take_it(world: World) -> None:
    """A tie (a job's link to one that awaits it) without a number passes no result on, but counts."""
    flow_id, held = world.an_id(), world.an_envelope(awaits=1, member=Member(world.an_id(), 1, 0, 1))
    await world.enqueue(held)
    lease = await world.running(member=Member(flow_id, 0, 0, 1), joins=(held.id,), ties=(Tie(),))
    await world.settle(succeeded(lease))

    assert await world.status(held) is READY
    assert await _results(world, held) == {}


# --- failure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settlement", [failed, discarded, cancelled])
async def test_flow_fells__what_has_not_begun(world: World, settlement: SettlementOf) -> None:
    """The first failure cancels waiting members and all that follows them. A running member goes on, and its success still counts."""
    flow = await sent(world, members=3, length=2)
    assert flow.join is not None
    session = await world.a_session()
    first, second = await world.claim(session, ["0"], 2)
    await world.settle(settlement(first))

    others = [job for job in flow.envelopes if job.id not in ids_of([first, second])]
    for job in others:
        record = await world.record(job)
        assert (record.status, record.cancelled_by) == (CANCELLED, first.envelope.id)
        assert record.reason is not None
    assert await world.status(second) is RUNNING
    await world.settle(succeeded(second))
    assert await world.status(second) is SUCCEEDED


@pytest.mark.parametrize("end", ["cancelled", "expired", "purged", "poison"])
async def test_flow_fells__without_a_verdict(world: World, end: str) -> None:
    """A member that was cancelled, has expired, was purged or is poison has failed too."""
    world = world.under(max_crashes=0)
    flow = await sent(world, members=2, expires=100.0) if end == "expired" else await sent(world, members=2)
    assert flow.join is not None
    if end == "poison":
        session = await world.a_session()
        await world.claim(session, ["0"], 1)
        await world.die(session)
    elif end == "cancelled":
        await world.cancel(flow.firsts[0])
    elif end == "expired":
        await world.pass_time(100.0)
    else:
        await world.broker.admin.purge(View(queue="0"), limit=1)
    await world.upkeep()

    assert await world.status(flow.join) is CANCELLED


async def test_flow_fells__keeps_them_as_long_as_the_failure(world: World) -> None:
    """Cancelled jobs are kept with the failure, so a retry can restore them for as long as the failed job can be retried."""
    flow = await sent(world, members=2)
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    await world.settle(failed(lease))
    await world.pass_time(world.rules.keep_failed - 1.0)
    assert await _statuses(world, *flow.envelopes) == [FAILED, CANCELLED, CANCELLED]


async def test_flow_fells__many(world: World) -> None:
    """Upkeep cancels what one call does not reach."""
    flow = await sent(world, members=2_600)
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    await world.settle(failed(lease))
    while not (await world.upkeep()).next_in:
        pass
    statuses = await _statuses(world, *flow.envelopes)
    assert statuses.count(CANCELLED) == 2_600


async def test_flow_fells__a_waiting_retry(world: World) -> None:
    """A sibling that waits for its next attempt is cancelled. One whose run comes back later may run again."""
    flow = await sent(world, members=3)
    leases = list((await _claimed(world, flow)).values())
    await world.settle(retried(leases[0], after=60.0))
    await world.settle(failed(leases[1]))
    await world.settle(retried(leases[2], after=60.0))
    assert await _statuses(world, *leases) == [CANCELLED, FAILED, Status.SCHEDULED]


# --- collected failures -----------------------------------------------------------------------------------------


async def test_flow_collects__failures_in_place_of_results(world: World) -> None:
    """The join runs when all members have ended, and gets the result or failure of each."""
    flow = await sent(world, members=4, collects=True)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    zero, one, two, three = (leases[member.id] for member in flow.firsts)
    await world.settle(failed(zero), succeeded(one, b"\x01r"))
    await world.settle(discarded(two, "not wanted"))
    assert await world.status(flow.join) is HELD
    await world.settle(cancelled(three, "asked to"))

    assert await world.status(flow.join) is READY
    assert await _results(world, flow.join) == {
        0: FailureNote(AN_ERROR.type, AN_ERROR.message, flow.firsts[0].id),
        1: b"\x01r",
        2: FailureNote("taskflow.Discard", "not wanted", flow.firsts[2].id),
        3: FailureNote("", "asked to", flow.firsts[3].id),
    }


async def test_flow_collects__branch_by_branch(world: World) -> None:
    """A failure cancels the rest of its branch, which passes the failure on. Other branches go on."""
    flow = await sent(world, members=2, length=3, collects=True)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    await world.settle(failed(leases[flow.firsts[0].id]))
    assert await _statuses(world, *flow.branches[0]) == [FAILED, CANCELLED, CANCELLED]
    assert await _statuses(world, *flow.branches[1]) == [RUNNING, HELD, HELD]
    assert await _results(world, flow.join) == {0: FailureNote(AN_ERROR.type, AN_ERROR.message, flow.firsts[0].id)}
    await world.settle(succeeded(leases[flow.firsts[1].id]))
    for queue in ("1", "2"):
        [lease] = (await _claimed(world, flow, queue)).values()
        await world.settle(succeeded(lease))
    assert await world.status(flow.join) is READY


async def test_flow_collects__not_when_the_whole_flow_falls(world: World) -> None:
    """If the join is cancelled too, no branch releases it."""
    flow = a_flow(world, members=2, collects=True)
    assert flow.join is not None
    head = world.an_envelope(queue="head", member=Member(flow.id, 3, 0, 3))
    await world.enqueue(*flow.envelopes, head)
    await world.cancel(head)

    assert await _statuses(world, *flow.envelopes) == [CANCELLED] * 3
    assert await _results(world, flow.join) == {}


async def _fail_all(world: World, flow: Flow) -> None:
    await world.settle(*map(failed, (await _claimed(world, flow)).values()))


# --- retries -----------------------------------------------------------------------------------------------------


async def _redo(world: World, *jobs: Job) -> None:
    assert await world.broker.admin.retry(ids_of(jobs)) == [Redone.OK] * len(jobs)


async def _run_all(world: World, flow: Flow, result: bytes = b"\x01again") -> None:
    """Let every waiting job succeed."""
    session = await world.a_session()
    while leases := await world.claim(session):
        await world.settle(*(succeeded(lease, result) for lease in leases))


async def test_flow_redo__restores_what_the_failure_has_cancelled(world: World) -> None:
    """Results that the join has already are kept."""
    flow = await sent(world, members=3, length=2)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    zero, one, two = (leases[member.id] for member in flow.firsts)
    await world.settle(succeeded(two))
    [lease] = (await _claimed(world, flow, "1")).values()
    await world.settle(succeeded(lease, b"\x01first"))
    await world.settle(failed(zero))
    await world.settle(succeeded(one))
    assert (await _statuses(world, *flow.envelopes)).count(CANCELLED) == 3
    await _redo(world, zero)
    assert await _statuses(world, *flow.branches[0]) == [READY, HELD]
    assert await _statuses(world, *flow.branches[1]) == [SUCCEEDED, READY]
    assert (await world.record(flow.join)).awaits == 2
    await _run_all(world, flow)

    assert await world.status(flow.join) is SUCCEEDED


async def test_flow_redo__of_a_join_alone(world: World) -> None:
    """The join does not wait for a member that has failed: the answer says so. The retry of the member restores it."""
    flow = await sent(world, members=2)
    assert flow.join is not None
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    await world.settle(failed(lease))
    assert await world.broker.admin.retry([flow.join.id]) == [Redone.CANCELLED_AGAIN]
    record = await world.record(flow.join)
    assert (record.status, record.cancelled_by) == (CANCELLED, lease.envelope.id)
    await _redo(world, lease)
    await _run_all(world, flow)

    assert await world.status(flow.join) is SUCCEEDED


async def test_flow_redo__of_a_join_that_failed(world: World) -> None:
    """The join still has its results, and runs at once."""
    flow = await sent(world, members=2)
    assert flow.join is not None
    await world.settle(*(succeeded(lease, b"\x01r") for lease in (await _claimed(world, flow)).values()))
    [lease] = (await _claimed(world, flow, "join")).values()
    await world.settle(failed(lease))
    await _redo(world, flow.join)

    assert await world.status(flow.join) is READY
    assert await _results(world, flow.join) == {0: b"\x01r", 1: b"\x01r"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_flow_redo__while_another_failure_stands(world: World, order: tuple[int, int]) -> None:
    """No job waits for one that failed and was not retried. Once both are retried, the flow goes on."""
    flow = await sent(world, members=4)
    assert flow.join is not None
    leases = await world.claim(await world.a_session(), ["0"], 2)
    await world.settle(failed(leases[0]))
    await world.settle(failed(leases[1]))
    assert await world.broker.admin.retry([id_of(leases[order[0]])]) == [Redone.CANCELLED_AGAIN]
    assert await world.status(flow.join) is CANCELLED
    await _redo(world, leases[order[1]])
    assert (await world.record(flow.join)).awaits == 4
    await _run_all(world, flow)

    assert await world.status(flow.join) is SUCCEEDED


async def test_flow_redo__of_all_failures_at_once(world: World) -> None:
    """An operator retries a whole flow this way."""
    flow = await sent(world, members=4)
    assert flow.join is not None
    leases = await world.claim(await world.a_session(), ["0"], 2)
    await world.settle(*map(failed, leases))
    await _redo(world, *leases)
    await _run_all(world, flow)

    assert await world.status(flow.join) is SUCCEEDED


async def test_flow_redo__fails_again(world: World) -> None:
    """The second failure cancels the same jobs as the first, and a second retry restores them."""
    flow = await sent(world, members=3)
    assert flow.join is not None
    session = await world.a_session()
    [lease] = await world.claim(session, ["0"], 1)
    await world.settle(failed(lease))
    for _ in range(2):
        await _redo(world, lease)
        leases = {id_of(each): each for each in await world.claim(session, ["0"])}
        await world.settle(failed(leases.pop(id_of(lease))))
        await world.settle(*map(succeeded, leases.values()))
        assert await world.status(flow.join) is CANCELLED
    await _redo(world, lease)
    await _run_all(world, flow)

    assert await world.status(flow.join) is SUCCEEDED


async def test_flow_redo__gives_a_collected_failure_back(world: World) -> None:
    """If the join has not begun, it waits for the member again, and gets its result in place of the failure."""
    flow = await sent(world, members=2, length=2, collects=True)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    await world.settle(failed(leases[flow.firsts[0].id]))
    assert (await world.record(flow.join)).awaits == 1
    await _redo(world, flow.firsts[0])
    assert (await world.record(flow.join)).awaits == 2
    assert await _results(world, flow.join) == {}
    await world.settle(succeeded(leases[flow.firsts[1].id]))
    session = await world.a_session()
    while leased := await world.claim(session, ["0", "1"]):
        await world.settle(*(succeeded(lease, b"\x01again") for lease in leased))

    assert await world.status(flow.join) is READY
    assert await _results(world, flow.join) == {0: b"\x01again", 1: b"\x01again"}


async def test_flow_redo__not_what_has_begun(world: World) -> None:
    """A join that runs with a failure keeps it, and gets nothing more from the member, however the member ends."""
    flow = await sent(world, members=2, collects=True)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    zero, one = (leases[member.id] for member in flow.firsts)
    await world.settle(failed(zero), succeeded(one, b"\x01r"))
    [join] = (await _claimed(world, flow, "join")).values()
    before = await _results(world, flow.join)
    for settlement in (failed, succeeded):
        await _redo(world, zero)
        [zero] = (await _claimed(world, flow)).values()
        await world.settle(settlement(zero))
        assert await _results(world, flow.join) == before
    await world.settle(succeeded(join))
    late = await sent(world, collects=True)
    assert late.join is not None
    await _fail_all(world, late)
    [join] = (await _claimed(world, late, "join")).values()
    await _redo(world, late.firsts[0])
    await world.settle(succeeded(join))
    await world.settle(*map(succeeded, (await _claimed(world, late)).values()))

    assert await _statuses(world, flow.join, late.join) == [SUCCEEDED, SUCCEEDED]
    assert [await _results(world, flow.join), await _results(world, late.join)] == [{}, {}]


# --- the whole flow -----------------------------------------------------------------------------------------------


async def test_flow_cancel__stops_all(world: World) -> None:
    """Waiting jobs are cancelled, running ones are asked to stop, ended ones are unchanged. Nothing starts afterwards."""
    flow = await sent(world, members=4, length=2)
    session = await world.a_session()
    first, second, third = await world.claim(session, ["0"], 3)
    await world.settle(succeeded(first))
    assert await world.broker.admin.cancel_flow(flow.id) == 8

    assert await world.status(first) is SUCCEEDED
    assert (await world.beat(session, second, third)).stopping == (second.claim, third.claim)
    await world.settle(succeeded(second), retried(third))
    assert await _statuses(world, second, third) == [SUCCEEDED, CANCELLED]
    await world.pass_time(60.0)
    assert await world.claim(await world.a_session()) == []
    assert await _statuses(world, *flow.envelopes[1:2], flow.envelopes[-1]) == [CANCELLED, CANCELLED]


async def test_flow_cancel__collects_nothing(world: World) -> None:
    """The members of a flow that was cancelled do not start the join that collects failures."""
    flow = await sent(world, members=2, collects=True)
    assert flow.join is not None
    leases = await _claimed(world, flow)
    await world.broker.admin.cancel_flow(flow.id)
    await world.settle(*map(cancelled, leases.values()))
    await world.upkeep()

    assert await world.status(flow.join) is CANCELLED


async def test_flow_redo__of_a_part_of_a_cancelled_flow(world: World) -> None:
    """A job that awaits others of a cancelled flow does not wait for ever. One that awaits none runs. All of them together go on."""
    flow = await sent(world, members=3, length=2)
    assert flow.join is not None
    await world.broker.admin.cancel_flow(flow.id)
    first, second = flow.branches[0]
    assert await world.broker.admin.retry([second.id, flow.join.id]) == [Redone.CANCELLED_AGAIN] * 2
    record = await world.record(second)
    assert record.reason is not None
    assert "retry the whole flow" in record.reason
    await _redo(world, first)
    await _run_all(world, flow)
    await _redo(world, *flow.envelopes[1:])
    await _run_all(world, flow)

    assert await world.status(flow.join) is SUCCEEDED


async def test_flow_cancel__unknown(world: World) -> None:
    """An unknown flow has no jobs."""
    other = await sent(world)
    assert await world.broker.admin.cancel_flow(world.an_id()) == 0
    assert await _statuses(world, *other.envelopes) == [READY, READY, HELD]


async def test_admin_flows(world: World) -> None:
    """The newest flows come first, whatever their size. Each is represented by its last job."""
    assert await world.broker.admin.flows() == []
    await world.add()
    sizes = (3, 1, 9, 2, 4)
    flows = sorted([await sent(world, members=size) for size in sizes], key=lambda flow: flow.id, reverse=True)
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    await world.settle(failed(lease))

    with patch("taskflow.broker.engine.admin.FLOW_ENTRIES", 4):
        found = await world.broker.admin.flows()
    assert ids_of([record.id for record in found]) == ids_of([flow.envelopes[-1] for flow in flows])
    assert sorted(record.status for record in found) == [CANCELLED, *[HELD] * 4]
    assert await world.broker.admin.flows(2) == found[:2]


async def test_admin_flow__lists_it(world: World) -> None:
    """A flow's jobs are listed in the order of their numbers, whatever their status, with their ties, page by page."""
    flow, other = await sent(world, members=3), await sent(world)
    assert flow.join is not None
    [lease] = await world.claim(await world.a_session(), ["0"], 1)
    await world.settle(failed(lease))
    found = await world.broker.admin.flow(flow.id)

    assert ids_of([record.id for record in found]) == ids_of(flow.envelopes)
    assert [record.status for record in found] == [FAILED, CANCELLED, CANCELLED, CANCELLED]
    assert [record.cancelled_by for record in found] == [None, *[lease.envelope.id] * 3]
    assert [record.joins for record in found] == [(flow.join.id,)] * 3 + [()]
    assert [record.member for record in found] == [job.member for job in flow.envelopes]
    assert await world.broker.admin.flow(flow.id, first=1, limit=2) == found[1:3]
    assert len(await world.broker.admin.flow(other.id)) == 3
    await world.pass_time(world.rules.keep_failed + 1.0)
    assert await world.broker.admin.flow(flow.id) == []


# --- at once, and after mishaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("collects", [False, True])
async def test_flow_released__by_members_that_end_at_once(world: World, collects: bool) -> None:
    """Several clients send many settlements at a time: each member counts once, and the join has all results."""
    flow, others = await sent(world, members=120, collects=collects), [world.broker.sibling() for _ in range(3)]
    assert flow.join is not None
    leases = await _claimed(world, flow)
    settlements = [failed(lease) if collects and n % 7 == 0 else succeeded(lease, b"\x01r") for n, lease in enumerate(leases.values())]
    brokers = [world.broker, *others]
    calls = [brokers[at % 4].settle(settlements[at : at + 5]) for at in range(0, 120, 5)]
    assert all(settled is Settled.OK for answers in await asyncio.gather(*calls) for settled in answers)
    await world.upkeep()
    for broker in others:
        await broker.close()

    assert list(await _claimed(world, flow, "join")) == [flow.join.id]
    assert len(await _results(world, flow.join)) == 120


async def test_flow_cancel__beside_the_last_member(world: World) -> None:
    """Whichever comes first: once the flow is cancelled, its join does not start, or is asked to stop."""
    for _ in range(8):
        flow, session = await sent(world, members=2), await world.a_session()
        assert flow.join is not None
        first, last = await world.claim(session, ["0"])
        await world.settle(succeeded(first))
        await asyncio.gather(world.settle(succeeded(last)), world.broker.admin.cancel_flow(flow.id))
        await world.upkeep()
        assert await world.claim(session) == []
        assert await world.status(flow.join) is CANCELLED


async def test_flow_redo__beside_the_fall(world: World) -> None:
    """A retry while the failure still cancels others leaves no job that waits for ever."""
    for _ in range(4):
        flow, session = await sent(world, members=40), await world.a_session()
        assert flow.join is not None
        [lease] = await world.claim(session, ["0"], 1)
        settling = asyncio.create_task(world.broker.settle([failed(lease)]))
        other = world.broker.sibling()
        while (await other.admin.retry([lease.envelope.id])) != [Redone.OK]:  # noqa: ASYNC110  # no event tells that it has failed
            await asyncio.sleep(0)
        await settling
        await world.upkeep()
        await _run_all(world, flow)
        if other is not world.broker:
            await other.close()
        assert await world.status(flow.join) is SUCCEEDED


async def test_flow_result__after_the_store_has_lost_its_latest_changes(world: World) -> None:
    """What the store still knows of a flow is consistent, so that the rest runs again and the join gets all results."""
    flow = await sent(world, members=4)
    assert flow.join is not None
    session = await world.a_session()
    leases = await world.claim(session, ["0"])
    await world.settle(*(succeeded(lease, b"\x01r") for lease in leases[:2]))
    saved = world.snapshot()
    await world.settle(*(succeeded(lease, b"\x01r") for lease in leases[2:]))
    [join] = (await _claimed(world, flow, "join")).values()
    await world.settle(succeeded(join))
    await world.restore(saved)
    assert (await world.record(flow.join)).awaits == 2
    await world.settle(*(succeeded(lease, b"\x01r") for lease in leases))

    assert await _results(world, flow.join) == dict.fromkeys(range(4), b"\x01r")
    await _run_all(world, flow)
    assert await world.status(flow.join) is SUCCEEDED
