"""Limits: how many jobs may be READY or RUNNING at once, and which one is next. The record of one limit is its gate."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from taskflow.broker.admin import LimitedJob, View
from taskflow.broker.engine import decisions, gates, limits
from taskflow.broker.engine.draft import Draft, decide
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Operation, Query, Ref
from taskflow.broker.protocol import Added, Broker
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import id_text
from taskflow.model.limits import RATE, Gate, gate_id
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.verdict import HandedBack, Settled, Settlement, Snoozed
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, handed_back, retried, settlement, snoozed, succeeded
from tests.support.world import Job, World

CLIENTS = 12


def gate(most: int = 1, limit: str = "limit", key: str = "") -> Gate:
    return Gate(gate_id(limit, key), limit, key, most)


async def limited(world: World, most: int = 1, limit: str = "limit", **fields: Any) -> Envelope:
    return await world.add(limits=(gate(most, limit),), **fields)


async def statuses(world: World, *jobs: Job) -> list[Status | None]:
    return [await world.status(job) for job in jobs]


async def test_gate_takes(world: World) -> None:
    """As many jobs as the limit allows are READY. The next ones are SCHEDULED, show what they wait for, and are not leased."""
    jobs = [await limited(world, 2) for _ in range(4)]
    assert await statuses(world, *jobs) == [Status.READY, Status.READY, Status.SCHEDULED, Status.SCHEDULED]
    assert (await world.record(jobs[2])).waiting_for == "limit limit"
    session = await world.a_session()
    assert len(await world.claim(session)) == 2
    await world.upkeep()
    assert not await world.claim(session)


async def test_gate_takes__in_one_batch(world: World) -> None:
    """The jobs of one call count too, in their order, and beside jobs without limits."""
    first, free, second = world.an_envelope(limits=(gate(),)), world.an_envelope(), world.an_envelope(limits=(gate(),))
    assert await world.enqueue(first, free, second) == [Added(first.id), Added(free.id), Added(second.id)]
    assert await statuses(world, first, free, second) == [Status.READY, Status.READY, Status.SCHEDULED]


async def test_gate_takes__each_key_apart(world: World) -> None:
    """Another key, or another limit, has another gate."""
    jobs = [await world.add(limits=(each,)) for each in (gate(key="a"), gate(key="b"), gate(limit="other", key="a"))]
    assert await statuses(world, *jobs) == [Status.READY] * 3


async def test_gate_takes__when_it_is_due(world: World) -> None:
    """A job that is sent for later gets no slot until it is due, and waits then if there is none."""
    later = await limited(world, after=60.0)
    now = await limited(world)
    assert (await world.record(later)).waiting_for is None
    await world.pass_time(60.0)
    assert await statuses(world, now, later) == [Status.READY, Status.SCHEDULED]
    assert (await world.record(later)).waiting_for == "limit limit"


async def test_gate_takes__when_it_is_released(world: World) -> None:
    """A job that awaits others gets no slot until it is released."""
    held = await limited(world, awaits=1)
    now = await limited(world)
    member = await world.running(joins=(held.id,))
    await world.settle(succeeded(member))
    assert await statuses(world, now, held) == [Status.READY, Status.SCHEDULED]
    await world.settle(ended(await run_of(world, now)))
    assert await world.status(held) is Status.READY


async def run_of(world: World, job: Envelope) -> Lease:
    [lease] = [lease for lease in await world.claim(await world.a_session(), [job.queue]) if lease.envelope.id == job.id]
    return lease


def ended(lease: Lease) -> Settlement:
    """Return the success of a run as its worker reports it: with its lease's limits."""
    return succeeded(lease, limits=lease.envelope.limits)


@pytest.mark.parametrize("verdict", [succeeded, failed, discarded, cancelled, retried, snoozed])
async def test_gate_passes_on(world: World, verdict: SettlementOf) -> None:
    """The end of a run passes its slot to the first job that waits, in the same step."""
    lease = await run_of(world, await limited(world))
    first, second = await limited(world), await limited(world)
    await world.settle(verdict(lease, 60.0) if verdict in (retried, snoozed) else verdict(lease))
    assert await statuses(world, first, second) == [Status.READY, Status.SCHEDULED]
    assert (await world.record(first)).waiting_for is None


async def test_gate_passes_on__with_a_lease_that_names_its_gates(world: World) -> None:
    """A settlement may name the gates of its lease, which are those that the job was sent with."""
    lease = await run_of(world, await limited(world))
    waiting = await limited(world)
    assert lease.envelope.limits == (gate(),)
    await world.settle(ended(lease))
    assert await world.status(waiting) is Status.READY


async def test_gate_passes_on__to_the_first(world: World) -> None:
    """Jobs are served as in a queue: by priority, due time and arrival, whatever their queues."""
    running = await run_of(world, await limited(world, queue="other"))
    late, urgent, later = await limited(world), await limited(world, priority=5, queue="third"), await limited(world)
    for job, after in ((urgent, (late, later)), (late, (later,)), (later, ())):
        await world.settle(ended(running))
        assert await world.status(job) is Status.READY
        assert await statuses(world, *after) == [Status.SCHEDULED] * len(after)
        running = await run_of(world, job)


async def test_gate_passes_on__many_at_once(world: World) -> None:
    """Several runs that end in one call pass on as many slots; slots that no job waits for become free."""
    session = await world.a_session()
    jobs = [await limited(world, 3) for _ in range(5)]
    leases = await world.claim(session)
    await world.settle(*(ended(lease) for lease in leases))
    assert await statuses(world, *jobs[3:]) == [Status.READY] * 2
    assert await statuses(world, *[await limited(world, 3) for _ in range(2)]) == [Status.READY, Status.SCHEDULED]


async def test_gate_passes_on__once(world: World) -> None:
    """A settlement that is sent again gives no second slot back."""
    lease = await run_of(world, await limited(world))
    first, second = await limited(world), await limited(world)
    for _ in range(2):
        await world.settle(ended(lease))
    assert await statuses(world, first, second) == [Status.READY, Status.SCHEDULED]


async def test_gate_passes_on__without_anybody_waiting(world: World) -> None:
    """A slot that no job waits for can be used again."""
    for _ in range(3):
        await world.settle(ended(await run_of(world, await limited(world))))
    assert await world.status(await limited(world)) is Status.READY


async def test_gate_passes_on__not_for_a_former_run(world: World) -> None:
    """The late report of a run that is over neither ends the job nor gives its slot back."""
    job = await limited(world)
    lost = await run_of(world, job)
    waiting = await limited(world)
    await world.settle(handed_back(lost, counts=False))
    lease = await run_of(world, job)
    await world.settle(ended(lost))
    assert await statuses(world, job, waiting) == [Status.RUNNING, Status.SCHEDULED]
    assert await world.settle(ended(lease)) == [Settled.OK]
    assert await statuses(world, job, waiting) == [Status.SUCCEEDED, Status.READY]


@pytest.mark.parametrize("end", ["cancelled", "expired", "purged", "replaced"])
async def test_gate_passes_on__of_a_ready_job(world: World, end: str) -> None:
    """A READY job that ends without a run passes its slot on too."""
    ready = await limited(world, key="k", expires=30.0, tags=("t",))
    waiting = await limited(world)
    if end == "cancelled":
        await world.cancel(ready)
    elif end == "expired":
        await world.pass_time(31.0)
    elif end == "purged":
        await world.broker.admin.purge(View(tag="t"))
    else:
        await world.add(key="k", on_conflict=OnConflict.REPLACE)
    assert await world.status(waiting) is Status.READY


async def test_gate_passes_on__after_a_crash(world: World) -> None:
    """A job whose worker was lost keeps its slot while it is READY, and gives it back while it has to wait."""
    job = await limited(world)
    waiting = await limited(world)
    for _ in range(2):
        session = await world.a_session()
        [lease] = await world.claim(session)
        assert lease.envelope.id == job.id
        assert await statuses(world, waiting) == [Status.SCHEDULED]
        await world.reap(session)
    assert await statuses(world, job, waiting) == [Status.SCHEDULED, Status.READY]


async def test_gate_passes_on__not_for_a_hand_back(world: World) -> None:
    """A job that returns to its old place at once keeps its slot."""
    job = await limited(world)
    waiting = await limited(world)
    await world.settle(handed_back(await run_of(world, job), counts=False))
    assert await statuses(world, job, waiting) == [Status.READY, Status.SCHEDULED]


@pytest.mark.parametrize("end", ["cancelled", "expired", "purged", "replaced"])
async def test_gate_forgets(world: World, end: str) -> None:
    """A job that ends while it waits at a gate is passed over."""
    lease = await run_of(world, await limited(world, queue="other"))
    first = await limited(world, key="k", expires=30.0)
    second = await limited(world, priority=-1)
    if end == "cancelled":
        await world.cancel(first)
    elif end == "expired":
        await world.pass_time(31.0)
    elif end == "purged":
        await world.broker.admin.purge(View(queue="default", statuses=(Status.SCHEDULED,)), limit=1)
    else:
        await world.add(key="k", on_conflict=OnConflict.REPLACE)
    await world.settle(ended(lease))
    assert await world.status(second) is Status.READY


async def test_gate_forgets__the_last(world: World) -> None:
    """If no job waits any more, the slot is free."""
    lease = await run_of(world, await limited(world))
    await world.cancel(await limited(world))
    await world.settle(ended(lease))
    assert await statuses(world, await limited(world), await limited(world)) == [Status.READY, Status.SCHEDULED]


async def test_gate_all_or_none(world: World) -> None:
    """A job with several gates gets a slot of each, or none: it waits at the one that is full, and no slot is idle meanwhile."""
    one, other = gate(limit="one"), gate(limit="other")
    holder = await run_of(world, await world.add(limits=(other,), queue="holder"))
    both = await world.add(limits=(one, other))
    assert (await world.record(both)).waiting_for == "limit other"
    passing = await world.add(limits=(one,))
    assert await world.status(passing) is Status.READY
    await world.settle(ended(holder))
    assert (await world.record(both)).waiting_for == "limit one"
    await world.settle(ended(await run_of(world, passing)))
    assert await world.status(both) is Status.READY
    assert await statuses(world, await world.add(limits=(one,)), await world.add(limits=(other,))) == [Status.SCHEDULED] * 2


async def test_gate_all_or_none__passed_over(world: World) -> None:
    """If the first job that waits finds another one of its gates full, the next one gets the slot."""
    one, other = gate(limit="one"), gate(limit="other")
    await world.add(limits=(other,), queue="holder")
    lease = await run_of(world, await world.add(limits=(one,)))
    blocked, passing = await world.add(limits=(one, other)), await world.add(limits=(one,))
    await world.settle(ended(lease))
    assert await statuses(world, blocked, passing) == [Status.SCHEDULED, Status.READY]
    assert (await world.record(blocked)).waiting_for == "limit other"


async def test_gate_all_or_none__opposed(world: World) -> None:
    """Jobs that name the same gates in opposite order do not block each other for ever."""
    one, other = gate(limit="one"), gate(limit="other")
    jobs = [await world.add(limits=order) for order in ((one, other), (other, one)) * 10]
    for _ in jobs:
        [lease] = await world.claim(await world.a_session())
        await world.settle(ended(lease))
    assert await statuses(world, *jobs) == [Status.SUCCEEDED] * len(jobs)


CUSTOMERS = 60


async def test_gate_all_or_none__each_another(world: World) -> None:
    """However many other gates the waiting jobs have, one call passes all slots on."""
    shared = gate(CUSTOMERS, "shared")
    for _ in range(CUSTOMERS):
        await world.add(limits=(shared,))
    leases = await world.claim(await world.a_session())
    waiting = [await world.add(limits=(shared, gate(limit="customer", key=str(number)))) for number in range(CUSTOMERS)]
    await world.settle(*(ended(lease) for lease in leases))
    assert await statuses(world, *waiting) == [Status.READY] * CUSTOMERS


async def test_gate_all_or_none__many_passed_over(world: World) -> None:
    """However many waiting jobs find another gate full, the first one that can pass gets the slot."""
    shared, customers = gate(limit="shared"), [gate(limit="customer", key=str(number)) for number in range(CUSTOMERS)]
    await world.enqueue(*(world.an_envelope(limits=(each,)) for each in customers))
    lease = await run_of(world, await world.add(limits=(shared,), queue="other"))
    await world.enqueue(*(world.an_envelope(limits=(shared, each)) for each in customers))
    passing = await world.add(limits=(shared,))
    await world.settle(ended(lease))
    assert await world.status(passing) is Status.READY


async def test_gate_number(world: World) -> None:
    """The last sender's number is in force. If it is higher, waiting jobs pass; if it is lower, the surplus jobs finish first."""
    jobs = [await limited(world) for _ in range(4)]
    more = await limited(world, 3)
    assert await statuses(world, *jobs, more) == [Status.READY, Status.READY, Status.SCHEDULED, Status.SCHEDULED, Status.READY]
    fewer = await limited(world, 2)
    leases = await world.claim(await world.a_session())
    await world.settle(ended(leases[0]))
    assert await statuses(world, jobs[2], jobs[3], fewer) == [Status.SCHEDULED] * 3
    await world.settle(ended(leases[1]))
    assert await statuses(world, jobs[2], jobs[3], fewer) == [Status.READY, Status.SCHEDULED, Status.SCHEDULED]


async def test_gate_number__set_lower(world: World) -> None:
    """If an operator sets a lower number, READY jobs above it wait, the youngest first. Jobs that run keep their slots."""
    running = await run_of(world, await limited(world, 4))
    jobs = list[Envelope]()
    for number in range(3):
        await world.pass_time(1.0)
        jobs.append(await limited(world, 4, queue=f"queue{number % 2}"))
    other = await limited(world, limit="other")
    await world.broker.admin.set_limit(gate(2), is_set=True)
    assert await statuses(world, running, *jobs, other) == [Status.RUNNING, Status.READY, Status.SCHEDULED, Status.SCHEDULED, Status.READY]
    await world.broker.admin.set_limit(gate(0), is_set=True)
    assert await statuses(world, *jobs) == [Status.SCHEDULED] * 3
    await world.settle(ended(running))
    assert await statuses(world, *jobs) == [Status.SCHEDULED] * 3
    await world.broker.admin.set_limit(gate(2), is_set=True)
    assert await statuses(world, *jobs) == [Status.READY, Status.READY, Status.SCHEDULED]


async def test_gate_acts(world: World) -> None:
    """`run_now` skips a due time, but no gate. A job that an operator retries passes its gates again."""
    holder = await limited(world)
    at_gate, later = await limited(world), await limited(world, after=60.0)
    await world.broker.admin.run_now([at_gate.id, later.id])
    assert await statuses(world, at_gate, later) == [Status.SCHEDULED] * 2
    assert (await world.record(later)).waiting_for == "limit limit"
    await world.settle(failed(await run_of(world, holder)))
    await world.broker.admin.retry([holder.id])
    assert await statuses(world, at_gate, later, holder) == [Status.READY, Status.SCHEDULED, Status.SCHEDULED]
    await world.cancel(later)
    await world.broker.admin.retry([later.id])
    assert (await world.record(later)).waiting_for == "limit limit"


async def test_gate_acts__rate(world: World) -> None:
    """`run_now` leaves a job that waits for a rate its place, and doesn't use up another one."""
    jobs = [await world.add(limits=(rate(6),)) for _ in range(3)]
    assert await world.broker.admin.run_now([jobs[1].id]) == [Status.SCHEDULED]
    assert await due_in(world, *jobs, await world.add(limits=(rate(6),))) == [0.0, 10.0, 20.0, 30.0]


async def test_gate_acts__listed(world: World) -> None:
    """Jobs that wait at a gate are listed as SCHEDULED, among the others by their due times."""
    await limited(world)
    jobs = [await limited(world, queue="other"), await limited(world), await world.add(after=60.0), await limited(world, after=120.0)]
    page = await world.broker.admin.page(View(statuses=(Status.SCHEDULED,)))
    assert [record.id for record in page.records] == [job.id for job in jobs]


async def test_gate_never_over(world: World) -> None:
    """Many clients send and settle jobs of two gates at once. No more of them are READY or RUNNING than the limits allow, and all end."""
    brokers = [world.broker.sibling() for _ in range(CLIENTS)]
    gates = [gate(2, key="a"), gate(1, key="b")]
    sent = [[world.an_envelope(limits=(gates[(number + place) % 2],)) for place in range(8)] for number in range(CLIENTS)]

    async def send(broker: Broker, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            await broker.enqueue([envelope])

    session, done = await world.a_session(), 0
    sending = asyncio.gather(*map(send, brokers, sent))
    while done < CLIENTS * 8:
        leases = await world.claim(session)
        for each in gates:
            assert sum(lease.envelope.limits == (each,) for lease in leases) <= each.most
        await asyncio.gather(*(broker.settle([ended(lease)]) for broker, lease in zip(brokers, leases, strict=False)))
        done += len(leases)
        await asyncio.sleep(0)
    await sending
    assert [await world.status(await world.add(limits=(each,))) for each in gates] == [Status.READY] * 2
    for broker in brokers:
        await broker.close()


# --- rates --------------------------------------------------------------------------------------------------------


def rate(most: int, per: float = 60.0, burst: int = 1, limit: str = "limit") -> Gate:
    return Gate(gate_id(limit, "", kind=RATE), limit, "", most, int(per * 1_000_000), burst)


async def due_in(world: World, *jobs: Job) -> list[float]:
    now = (await world.record(await world.add())).created_at
    return [round(((await world.record(job)).due_at - now).total_seconds(), 3) for job in jobs]


async def test_gate_rate(world: World) -> None:
    """As many of the first jobs are READY as the burst allows. The others become due one after another, and are READY then."""
    jobs = [await world.add(limits=(rate(6, burst=2),)) for _ in range(5)]
    assert await statuses(world, *jobs) == [Status.READY] * 2 + [Status.SCHEDULED] * 3
    assert await due_in(world, *jobs) == [0.0, 0.0, 10.0, 20.0, 30.0]
    assert (await world.record(jobs[2])).waiting_for == "limit limit"
    await world.pass_time(10.0)
    assert await statuses(world, *jobs) == [Status.READY] * 3 + [Status.SCHEDULED] * 2
    assert (await world.record(jobs[2])).waiting_for is None


async def test_gate_rate__idle(world: World) -> None:
    """An idle rate saves up no more than its burst."""
    await world.add(limits=(rate(6, burst=2),))
    await world.pass_time(3_600.0)
    assert await due_in(world, *[await world.add(limits=(rate(6, burst=2),)) for _ in range(3)]) == [0.0, 0.0, 10.0]


async def test_gate_rate__late(world: World) -> None:
    """Jobs that are overdue by more than a second when upkeep finds them pay again: they do not become READY together."""
    jobs = [await world.add(limits=(rate(6),)) for _ in range(4)]
    await world.pass_time(600.0)
    assert await statuses(world, *jobs) == [Status.READY] * 2 + [Status.SCHEDULED] * 2
    assert await due_in(world, *jobs[2:]) == [10.0, 20.0]


async def test_gate_rate__taken_late(world: World) -> None:
    """A READY job pays again too if its worker finds that it waited too long: it is handed back with its gates."""
    jobs = [await world.add(limits=(rate(6, burst=2),)) for _ in range(2)]
    world.clock.advance(12.0)
    leases = await world.claim(await world.a_session())
    assert [lease.waited for lease in leases] == [12_000_000] * 2
    await world.settle(*(settlement(lease, HandedBack(counts=False, limits=())) for lease in leases))
    assert await statuses(world, *jobs) == [Status.READY, Status.SCHEDULED]
    record = await world.record(jobs[0])
    assert (record.attempt, record.hand_backs) == (1, 0)


async def test_gate_rate__retried(world: World) -> None:
    """Another run pays again, even one that follows at once."""
    lease = await run_of(world, await world.add(limits=(rate(6),)))
    await world.settle(retried(lease, 0.0))
    assert await due_in(world, lease) == [10.0]


async def test_gate_rate__closed(world: World) -> None:
    """A run can close its rates: no job passes them until then, and the run uses no attempt."""
    lease = await run_of(world, await world.add(limits=(rate(6),)))
    waiting = await world.add(limits=(rate(6),))
    await world.settle(settlement(lease, Snoozed(60.0, closes=True), limits=lease.envelope.limits))
    assert await due_in(world, await world.add(limits=(rate(6),))) == [60.0]
    await world.pass_time(10.0)
    assert await statuses(world, waiting, lease) == [Status.SCHEDULED] * 2
    assert await due_in(world, waiting, lease) == [60.0, 50.0]
    assert (await world.record(lease)).attempt == 1


async def test_gate_rate__closed_while_jobs_are_ready(world: World) -> None:
    """READY jobs that have passed a rate pass it again when a run closes it. Those of other rates don't."""
    lease = await run_of(world, await world.add(limits=(rate(6, burst=3),)))
    ready = [await world.add(limits=(rate(6, burst=3),), queue=queue) for queue in ("a", "b")]
    other = await world.add(limits=(rate(6, limit="other"),))
    assert await statuses(world, *ready, other) == [Status.READY] * 3
    await world.settle(settlement(lease, Snoozed(60.0, closes=True), limits=lease.envelope.limits))
    assert await statuses(world, *ready, other) == [Status.SCHEDULED, Status.SCHEDULED, Status.READY]
    assert await due_in(world, *ready) == [60.0, 60.0]


async def test_gate_rate__and_slots(world: World) -> None:
    """A job with both holds no slot while it waits for its time, and does not pay while it waits for a slot."""
    limits = (gate(1, "slots"), rate(6))
    first, second = await world.add(limits=limits), await world.add(limits=limits)
    assert (await world.record(second)).waiting_for == "limit slots"
    other = await world.add(limits=(rate(6),))
    assert await due_in(world, other) == [10.0]
    await world.settle(ended(await run_of(world, first)))
    assert await due_in(world, second) == [20.0]
    assert await world.status(await world.add(limits=(gate(1, "slots"),))) is Status.READY


async def test_gate_rate__debounced(world: World) -> None:
    """A call that moves a due time forfeits what was paid for the former one: the jobs do not start together."""
    for after in (0.0, 600.0):
        for key in "abcd":
            await world.enqueue(world.an_envelope(limits=(rate(6),), key=key, after=after, on_conflict=OnConflict.DEBOUNCE))
    await world.pass_time(600.0)
    assert len(await world.claim(await world.a_session())) == 2  # the first job was READY before


async def test_gate_rate__far(world: World) -> None:
    """No number of jobs leads to a time that a store can't hold."""
    century = rate(1, 100 * 365 * 86_400.0)
    jobs = [world.an_envelope(limits=(century,)) for _ in range(3_000)]
    await world.enqueue(*jobs)
    assert (await world.record(jobs[-1])).due_at.year == 9999


async def test_gate_rate__changed(world: World) -> None:
    """The period and the burst that the last sender declares are in force, even if its job is not due."""
    await world.add(limits=(rate(6),))
    await world.add(limits=(rate(6, 30.0, 2),), after=60.0)
    [found] = await world.broker.admin.limits()
    assert (found.n, found.per, found.burst) == (6, 30.0, 2)


async def test_gate_rate__forgotten(world: World) -> None:
    """A rate that holds up no job leaves nothing in the store."""
    await world.add(limits=(rate(6),))
    await world.pass_time(3_600.0)
    await world.upkeep()
    await world.add(limits=(rate(6),))


async def test_gate_late(world: World) -> None:
    """A job whose sender did not know its limits passes them when its worker hands it back with them."""
    jobs = [await world.add() for _ in range(3)]
    leases = await world.claim(await world.a_session())
    await world.settle(*(settlement(lease, HandedBack(counts=False, limits=(gate(),))) for lease in leases))
    assert await statuses(world, *jobs) == [Status.READY, Status.SCHEDULED, Status.SCHEDULED]
    lease = await run_of(world, jobs[0])
    assert lease.envelope.limits == (gate(),)
    await world.settle(ended(lease))
    assert await statuses(world, *jobs[1:]) == [Status.READY, Status.SCHEDULED]


async def test_gate_late__more(world: World) -> None:
    """A limit that was declared later is added to the job's limits. Meanwhile other jobs get its slot."""
    lease = await run_of(world, await world.add(limits=(gate(),), queue="other"))
    waiting = await world.add(limits=(gate(),))
    await world.settle(settlement(lease, HandedBack(counts=False, limits=(gate(), gate(limit="more")))))
    assert await statuses(world, lease, waiting) == [Status.SCHEDULED, Status.READY]
    await world.settle(ended(await run_of(world, waiting)))
    assert (await run_of(world, lease.envelope)).envelope.limits == (gate(), gate(limit="more"))


async def test_gate_late__cancelled(world: World) -> None:
    """A job that was asked to stop does not wait again."""
    lease = await run_of(world, await world.add())
    await world.cancel(lease)
    await world.settle(settlement(lease, HandedBack(counts=False, limits=(gate(),))))
    assert await world.status(lease) is Status.CANCELLED


# --- paused queues ------------------------------------------------------------------------------------------------


async def test_gate_paused(world: World) -> None:
    """READY jobs of a paused queue give their slots back, so that other queues go on. They wait for the resume, and then at their gates."""
    paused, other = await limited(world, queue="paused"), await limited(world, queue="other")
    await world.broker.admin.pause("paused")
    assert await statuses(world, paused, other) == [Status.SCHEDULED, Status.READY]
    assert (await world.record(paused)).waiting_for == "queue paused, which is paused"
    await world.broker.admin.resume("paused")
    assert (await world.record(paused)).waiting_for == "limit limit"
    await world.settle(ended(await run_of(world, other)))
    assert await world.status(paused) is Status.READY


async def test_gate_paused__new_jobs(world: World) -> None:
    """Jobs that arrive during the pause wait too, and so do those that come back from a run."""
    lease = await run_of(world, await limited(world, queue="paused"))
    await world.broker.admin.pause("paused")
    new, other = await limited(world, queue="paused"), await limited(world, queue="other")
    assert (await world.record(new)).waiting_for == "queue paused, which is paused"
    await world.settle(handed_back(lease, counts=False))
    await world.upkeep()
    assert await statuses(world, lease, new, other) == [Status.SCHEDULED, Status.SCHEDULED, Status.READY]
    await world.broker.admin.resume("paused")
    await world.settle(ended(await run_of(world, other)))
    assert await statuses(world, lease, new) == [Status.READY, Status.SCHEDULED]


async def test_gate_paused__passed_over(world: World) -> None:
    """A job of a paused queue that waits at a gate is passed over when its turn comes."""
    lease = await run_of(world, await limited(world, queue="other"))
    paused, next_one = await limited(world, queue="paused"), await limited(world, queue="other")
    await world.broker.admin.pause("paused")
    await world.settle(ended(lease))
    assert await statuses(world, paused, next_one) == [Status.SCHEDULED, Status.READY]


async def test_gate_paused__many(world: World) -> None:
    """All of them give their slots back, even if they are paused and resumed again."""
    jobs = [world.an_envelope(limits=(gate(500),)) for _ in range(300)]
    await world.enqueue(*jobs)
    for _ in range(2):
        await world.broker.admin.pause("default")
        assert {await world.status(job) for job in jobs[::50]} == {Status.SCHEDULED}
        await world.broker.admin.resume("default")
        await world.upkeep()
        assert {await world.status(job) for job in jobs[::50]} == {Status.READY}
    assert len(await world.claim(await world.a_session())) == 300


# --- numbers that an operator sets --------------------------------------------------------------------------------


async def test_gate_taken_back(world: World) -> None:
    """A queue without a worker does not keep the slots that another queue waits for."""
    first, second = [await limited(world, queue="unserved") for _ in range(2)]
    served = await limited(world)
    await world.pass_time(4.9)
    assert await statuses(world, first, second, served) == [Status.READY, Status.SCHEDULED, Status.SCHEDULED]
    await world.pass_time(0.2)
    assert await statuses(world, first, second, served) == [Status.SCHEDULED, Status.SCHEDULED, Status.READY]
    await world.settle(ended(await run_of(world, served)))
    assert await statuses(world, first, second) == [Status.SCHEDULED, Status.READY]
    await world.settle(ended(await run_of(world, second)))
    assert await world.status(first) is Status.READY


async def test_gate_taken_back__after_its_wait(world: World) -> None:
    """The time counts from when a job became READY."""
    before = await run_of(world, await limited(world))
    unserved = await limited(world, queue="unserved")
    await world.pass_time(60.0)
    await world.settle(ended(before))
    served = await limited(world)
    await world.pass_time(4.9)
    assert await statuses(world, unserved, served) == [Status.READY, Status.SCHEDULED]
    await world.pass_time(0.2)
    assert await statuses(world, unserved, served) == [Status.SCHEDULED, Status.READY]


async def test_gate_taken_back__of_one_queue(world: World) -> None:
    """Jobs of one queue keep their order. What runs, or what nobody waits for, keeps its slots."""
    first, second = [await limited(world) for _ in range(2)]
    alone = await limited(world, limit="other")
    running = await limited(world, limit="third", queue="third")
    await run_of(world, running)
    waiting = await limited(world, limit="third", queue="fourth")
    await world.pass_time(6.0)
    jobs = (first, second, alone, running, waiting)
    assert await statuses(world, *jobs) == [Status.READY, Status.SCHEDULED, Status.READY, Status.RUNNING, Status.SCHEDULED]


async def test_gate_taken_back__in_time(world: World) -> None:
    """Heartbeats of idle workers tell when it is due, if any job waits."""
    session = await world.a_session(ttl=1_000_000.0)
    await limited(world, queue="unserved")
    world.clock.advance(1.0)
    assert (await world.work_hint(session)).due_in > 5.0
    await limited(world)
    assert (await world.work_hint(session)).due_in == 4.0


async def test_gate_taken_back__many(world: World) -> None:
    """Slots of many jobs are taken back, and as many get them."""
    unserved = [await limited(world, 5, queue="unserved") for _ in range(7)]
    served = [await limited(world, 5) for _ in range(4)]
    await world.pass_time(5.1)
    await world.upkeep()
    assert Counter(await statuses(world, *unserved)) == {Status.READY: 1, Status.SCHEDULED: 6}
    assert await statuses(world, *served) == [Status.READY] * 4


async def test_gate_taken_back__behind_many(world: World) -> None:
    """The first of the last waiting jobs gets the slot if more jobs of the same queue come before it than a decision reads."""
    first, *_ = [await limited(world, queue="unserved") for _ in range(6)]
    served = [await limited(world) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "MAX_TRIED", 3)
        await world.pass_time(5.1)
    assert await statuses(world, first, *served) == [Status.SCHEDULED, Status.READY, Status.SCHEDULED]


async def test_admin_limits(world: World) -> None:
    """Limits that hold up jobs are listed: how many jobs hold slots and wait, and when a rate opens. Idle ones are not kept."""
    assert await world.broker.admin.limits() == []
    for _ in range(3):
        await limited(world)
    await world.add(limits=(gate(5, "other", "k"), rate(6, limit="rated")))
    await world.broker.admin.pause("elsewhere")
    first, other, rated = await world.broker.admin.limits()
    assert (first.limit, first.key, first.n, first.running, first.waiting, first.per) == ("limit", "", 1, 1, 2, None)
    assert (other.limit, other.key, other.running, other.waiting, other.is_set) == ("other", "k", 1, 0, False)
    assert (rated.limit, rated.n, rated.per, rated.burst, rated.opens_in) == ("rated", 6, 60.0, 1, 10.0)
    assert await world.broker.admin.limits("other") == [other]


async def test_admin_limits__many(world: World) -> None:
    """A limit that is named is found, however many others there are. Without a name, some are left out."""
    await world.broker.enqueue([world.an_envelope(limits=(gate(1, "many", f"{number}"),)) for number in range(20)])
    names = [f"named {number}" for number in range(4)]
    for name in names:
        await limited(world, limit=name)
    await world.broker.admin.set_limit(gate(5, "none taken"), is_set=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "PORTION", 3)
        patch.setattr(limits, "MAX_LISTED", 7)
        found = {name: await world.broker.admin.limits(name) for name in (*names, "none taken")}
        assert {name: [each.limit for each in infos] for name, infos in found.items()} == {name: [name] for name in found}
        assert len(await world.broker.admin.limits("many")) == len(await world.broker.admin.limits()) == 7
    assert len(await world.broker.admin.limits()) == 25


async def test_admin_limits__jobs(world: World) -> None:
    """At most ten jobs that hold slots, those that run first, and at most ten that pass next. A job has its own limits alone."""
    both = (gate(12), gate(30, "other", "k"))
    jobs = [await world.add(queue=f"q{number % 2}", limits=both) for number in range(24)]
    await world.add(limits=(gate(1, "elsewhere"), rate(6, limit="rated")))
    [lease] = await world.claim(await world.a_session(), ["q1"], 1)
    for found in (await world.broker.admin.limits("limit"), (await world.broker.admin.limits(job=jobs[-1].id))[:1]):
        assert (found[0].running, found[0].n, found[0].waiting) == (12, 12, 12)
        running, *ready = found[0].holders
        assert running == LimitedJob(id=id_text(lease.envelope.id), job=jobs[1].job, queue="q1", is_running=True)
        assert {each.is_running for each in ready} == {False}
        assert {each.id for each in ready} < {id_text(job.id) for job in jobs[:12]}
        assert len(ready) == 9
        assert [each.id for each in found[0].next] == [id_text(job.id) for job in jobs[12:22]]
    first, other = await world.broker.admin.limits(job=jobs[0].id)
    assert ((first.limit, other.limit, other.key), other.running, len(other.holders), other.next) == (("limit", "other", "k"), 12, 10, ())
    assert await world.broker.admin.limits(job=bytes(16)) == []
    assert [each.holders for each in await world.broker.admin.limits("rated")] == [()]


async def test_admin_set_limit(world: World) -> None:
    """The operator's number overrides what senders declare, and lets waiting jobs pass. Later the declared number counts again."""
    jobs = [await limited(world) for _ in range(4)]
    await world.broker.admin.set_limit(gate(3), is_set=True)
    assert await statuses(world, *jobs) == [Status.READY] * 3 + [Status.SCHEDULED]
    await limited(world)
    [found] = await world.broker.admin.limits()
    assert (found.n, found.is_set) == (3, True)
    await world.broker.admin.set_limit(gate(1), is_set=False)
    assert await statuses(world, *jobs) == [Status.READY] + [Status.SCHEDULED] * 3
    await limited(world, 2)
    [found] = await world.broker.admin.limits()
    assert (found.n, found.is_set, found.running) == (2, False, 2)


async def test_admin_set_limit__kept(world: World) -> None:
    """The number is kept while no job has the limit, also for a rate. 0 lets no job pass."""
    await world.broker.admin.set_limit(gate(0), is_set=True)
    await world.broker.admin.set_limit(rate(60), is_set=True)
    await world.add(limits=(rate(6),))
    await world.pass_time(3_600.0)
    assert await world.status(await limited(world)) is Status.SCHEDULED
    assert await due_in(world, *[await world.add(limits=(rate(6),)) for _ in range(2)]) == [0.0, 1.0]


async def test_admin_set_limit__no_more(world: World) -> None:
    """If the operator's number is removed, the declared one lets waiting jobs pass, without another call."""
    await world.broker.admin.set_limit(gate(0), is_set=True)
    job = await limited(world)
    await world.broker.admin.set_limit(gate(1), is_set=False)
    assert await world.status(job) is Status.READY


@pytest.mark.parametrize("is_set", [True, False])
async def test_admin_set_limit__opens_a_rate(world: World, is_set: bool) -> None:
    """A rate that was closed for too long opens. Jobs that wait for it keep their order, and come at the new pace."""
    lease = await run_of(world, await world.add(limits=(rate(6),)))
    waiting = [await world.add(limits=(rate(6),)) for _ in range(3)]
    other = await world.add(limits=(rate(6, limit="other"),), after=30.0)
    await world.settle(settlement(lease, Snoozed(3_600.0, closes=True)))
    await world.pass_time(30.0)
    assert await due_in(world, *waiting) == [3_570.0, 3_580.0, 3_590.0]
    await world.broker.admin.set_limit(rate(12), is_set=is_set)
    assert await due_in(world, *waiting) == [5.0, 10.0, 15.0]
    [found] = await world.broker.admin.limits("limit")
    assert (found.n, found.is_set, found.closed_for) == (12, is_set, 0.0)
    assert await world.status(other) is Status.READY
    await world.pass_time(5.0)
    assert await statuses(world, *waiting) == [Status.READY, Status.SCHEDULED, Status.SCHEDULED]


async def test_admin_set_limit__keeps_a_rate(world: World) -> None:
    """Jobs that have just started count, so that no more start than the rate allows."""
    jobs = [await world.add(limits=(rate(6, burst=2),)) for _ in range(5)]
    await world.broker.admin.set_limit(rate(6, burst=2), is_set=True)
    assert await due_in(world, *jobs[2:]) == [10.0, 20.0, 30.0]


async def test_admin_rebuild__slots(world: World) -> None:
    """Slots that no job holds, because another program removed the jobs, are freed."""
    job = await limited(world)
    waiting, other = await limited(world), await limited(world, limit="other")
    await world.broker.admin.set_limit(gate(1), is_set=True)
    engine: Any = world.broker
    assert "limits" not in await _problems(world)
    await engine.run(lose(job.id, world.rules))
    assert await world.status(waiting) is Status.SCHEDULED
    assert "limits" in await _problems(world)
    rebuilt = await world.broker.admin.rebuild()
    assert rebuilt.corrected.get("slots of limits") == 1
    assert await statuses(world, waiting, other) == [Status.READY] * 2
    assert "limits" not in await _problems(world)


async def _problems(world: World) -> list[str]:
    return [found.topic for found in await world.broker.admin.examine() if found.level == "problem"]


def lose(job_id: bytes, rules: Rules) -> Operation[None]:
    """Drop a record as another program may."""

    def one(draft: Draft, ref: Ref) -> None:
        draft.drop(ref) if draft.job(ref.id) else None

    yield from decide([Ref(Kind.JOB, job_id)], one, rules, Query((Ref(Kind.JOB, job_id),)))


async def test_gate_never_over__whatever_happens(world: World) -> None:
    """After each of many random calls, a gate counts as many slots as jobs hold, and no job waits where there is room."""
    verdicts: list[SettlementOf] = [succeeded, failed, retried, handed_back]
    chance, sessions = random.Random(7), [await world.a_session(ttl=1_000_000.0) for _ in range(2)]
    gates = [gate(2, "a"), gate(1, "b")]
    leases, sent = list[Lease](), list[Envelope]()
    for _ in range(120):
        match chance.randrange(7):
            case 0 | 1 | 2:
                limits = tuple(chance.sample(gates, chance.randint(1, 2)))
                sent.append(await world.add(limits=limits, after=chance.choice([0.0, 0.0, 5.0]), priority=chance.randrange(3)))
            case 3:
                leases += await world.claim(chance.choice(sessions), limit=1)
            case 4 if leases:
                lease = leases.pop(chance.randrange(len(leases)))
                await world.settle(chance.choice(verdicts)(lease, limits=lease.envelope.limits))
            case 5 if sent:
                await world.cancel(chance.choice(sent))
            case _:
                await world.pass_time(2.0)
        listed = {record.limit: record for record in await world.broker.admin.limits()}
        for each in gates:
            found, of_gate = listed.get(each.limit), await statuses(world, *[job for job in sent if each in job.limits])
            holders = of_gate.count(Status.READY) + of_gate.count(Status.RUNNING)
            assert holders == (0 if found is None else found.running) <= each.most
            assert found is None or found.running == found.n or not found.waiting
