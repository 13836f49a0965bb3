"""Keys: at most one live job has one, apart from a replacement that waits behind a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import id_text, key_digest
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.conformance.outcomes import REPLACED, WAITING_AGAIN, Outcome, check_outcome
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, handed_back, parked, retried, snoozed, succeeded
from tests.support.world import Job, World, id_of

CLIENTS: Final = 12


def replacement(world: World, **fields: Any) -> Envelope:
    return world.an_envelope(key="k", on_conflict=OnConflict.REPLACE, **fields)


async def stands(world: World, job: Job, **where: object) -> bool:
    """The job has the key: another one is refused with its id."""
    other = world.an_envelope(key="k", **where)
    return await world.enqueue(other) == [Refused(other.id, id_of(job), "key")]


async def test_key_keeps__waiting(world: World) -> None:
    """A waiting holder stands, READY, SCHEDULED or HELD, and nothing is added."""
    for queue, fields in (("a", {}), ("b", {"after": 60.0}), ("c", {"awaits": 1})):
        holder = await world.add(queue=queue, key="k", **fields)
        other = world.an_envelope(queue=queue, key="k")
        assert await world.enqueue(other) == [Refused(other.id, holder.id, "key")]
        assert await world.read(other) is None


async def test_key_keeps__running(world: World) -> None:
    """A running holder stands."""
    lease = await world.running(queue="default", key="k")

    assert await stands(world, lease)


async def test_key_keeps__the_waiting_one_is_named(world: World) -> None:
    """Where one runs and another waits behind it, the waiting one is named: it is what the caller's job would have been."""
    await world.running(queue="default", key="k")
    behind = replacement(world)
    await world.enqueue(behind)

    assert await stands(world, behind)


async def test_key_keeps__one_key_is_not_another(world: World) -> None:
    """The same word is another key in another queue or of another job."""
    await world.add(key="k")

    for fields in ({"key": "other"}, {"key": "k", "queue": "other"}, {"key": "k", "job": "other"}, {}):
        [answer] = await world.enqueue(world.an_envelope(**fields))
        assert isinstance(answer, Added)


async def test_key_keeps__within_a_batch(world: World) -> None:
    """The first of a batch has the key, the second is refused with the first's id."""
    first, second = world.an_envelope(key="k"), world.an_envelope(key="k")

    assert await world.enqueue(first, second) == [Added(first.id), Refused(second.id, first.id, "key")]


async def test_key_keeps__among_follow_ups(world: World) -> None:
    """A follow-up with a key that a live job has is not added, and its settlement takes effect."""
    holder = await world.add(key="k")
    lease = await world.running()
    follow_up = world.an_envelope(key="k")

    assert await world.settle(succeeded(lease, follow_ups=(follow_up,))) == [Settled.OK]
    assert await world.read(follow_up) is None
    assert await world.status(holder) is Status.READY


async def test_key_neighbours(world: World) -> None:
    """A refused item leaves the others of its batch alone, in their order."""
    holder = await world.add(key="k")
    before, refused, after = world.an_envelope(), world.an_envelope(key="k"), world.an_envelope()

    answers = await world.enqueue(before, refused, after)

    assert answers == [Added(before.id), Refused(refused.id, holder.id, "key"), Added(after.id)]
    assert [await world.status(job) for job in (before, after)] == [Status.READY] * 2


# --- key_released ---------------------------------------------------------------------------------------------------


async def _is_free(world: World) -> bool:
    [answer] = await world.enqueue(world.an_envelope(key="k"))
    return isinstance(answer, Added)


@pytest.mark.parametrize("settlement", [succeeded, failed, discarded, cancelled])
async def test_key_released__by_a_verdict(world: World, settlement: SettlementOf) -> None:
    """Every verdict that ends the job frees its key."""
    lease = await world.running(queue="default", key="k")

    await world.settle(settlement(lease))

    assert await _is_free(world)


async def _cancel(world: World, holder: Envelope) -> None:
    await world.cancel(holder)


async def _expire(world: World, holder: Envelope) -> None:
    await world.pass_time(60.0)


async def _purge(world: World, holder: Envelope) -> None:
    from taskflow.broker.admin import View

    await world.broker.admin.purge(View())


@pytest.mark.parametrize("end", [_cancel, _expire, _purge])
async def test_key_released__while_it_waited(world: World, end: Callable[[World, Envelope], Awaitable[None]]) -> None:
    """A job that ends without having run frees its key."""
    await end(world, await world.add(key="k", expires=30.0))

    assert await _is_free(world)


# --- key_survives_retry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settlement", [retried, snoozed, parked])
async def test_key_survives_retry(world: World, settlement: SettlementOf) -> None:
    """A job that waits to come again holds its key, and goes on with it."""
    lease = await world.running(queue="default", key="k")

    await world.settle(settlement(lease, 60.0))

    assert await world.status(lease) is Status.SCHEDULED
    assert await stands(world, lease)


async def test_key_survives_retry__and_a_crash(world: World) -> None:
    """So does a job whose worker was lost, while it runs again too."""
    session = await world.a_session()
    lease = await world.running(session, queue="default", key="k")

    await world.reap(session)
    assert await stands(world, lease)
    assert await world.claim(await world.a_session())
    assert await stands(world, lease)


# --- key_replaces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"after": 60.0}, {"awaits": 1}], ids=["ready", "scheduled", "held"])
async def test_key_replaces(world: World, fields: dict[str, object]) -> None:
    """The waiting holder ends CANCELLED, and names its successor, which has the key from then on."""
    old = await world.add(key="k", **fields)
    new = replacement(world)

    assert await world.enqueue(new) == [Added(new.id, replaced=old.id)]

    record = await world.record(old)
    assert (record.status, record.reason) == (Status.CANCELLED, f"replaced by {id_text(new.id)}")
    assert await world.status(new) is Status.READY
    assert await stands(world, new)


async def test_key_replaces__itself_resent(world: World) -> None:
    """A replacement whose answer was lost, sent again, is refused because of its own id and replaces nothing."""
    await world.add(key="k")
    new = replacement(world)
    await world.enqueue(new)

    assert await world.enqueue(new) == [Refused(new.id, new.id, "id")]
    assert await world.status(new) is Status.READY


async def test_key_replaces__in_a_chain(world: World) -> None:
    """In one batch, each replaces the one before it."""
    chain = [replacement(world) for _ in range(3)]

    answers = await world.enqueue(*chain)

    assert answers == [Added(chain[0].id), Added(chain[1].id, replaced=chain[0].id), Added(chain[2].id, replaced=chain[1].id)]
    assert [await world.status(job) for job in chain] == [Status.CANCELLED, Status.CANCELLED, Status.READY]


# --- key_waits_behind -------------------------------------------------------------------------------------------------


async def _behind(world: World, **fields: object) -> tuple[Lease, Envelope]:
    """A run, and the replacement that waits behind it."""
    lease = await world.running(queue="default", key="k")
    new = replacement(world, **fields)
    assert await world.enqueue(new) == [Added(new.id, replaced=None)]
    return lease, new


async def test_key_replaces__many_clients(world: World) -> None:
    """All of them succeed, and none gives way to the others again and again. Each replaces the job of one other."""
    brokers = [world.broker.sibling() for _ in range(CLIENTS)]

    async def send(broker: Broker) -> list[Added | Refused]:
        return [(await broker.enqueue([replacement(world)]))[0] for _ in range(10)]

    sent = [answer for answers in await asyncio.gather(*map(send, brokers)) for answer in answers]
    assert all(isinstance(answer, Added) for answer in sent)
    assert len({answer.replaced for answer in sent if isinstance(answer, Added)}) == len(sent) == 10 * CLIENTS
    for broker in brokers:
        await broker.close()


async def test_key_waits_behind__held_while_it_runs(world: World) -> None:
    """While the holder runs, its replacement is HELD, says why, and is not claimed; the run goes on."""
    lease, new = await _behind(world)

    record = await world.record(new)
    assert record.status is Status.HELD
    assert record.waiting_for is not None
    assert id_text(lease.envelope.id) in record.waiting_for
    assert record.behind == lease.envelope.id
    assert await world.claim(await world.a_session()) == []
    assert await world.status(lease) is Status.RUNNING


@pytest.mark.parametrize("settlement", [succeeded, failed, discarded, cancelled])
async def test_key_waits_behind__until_it_has_ended(world: World, settlement: SettlementOf) -> None:
    """When the run has ended, its replacement is READY, waits for nothing any more, and is claimed."""
    lease, new = await _behind(world)

    await world.settle(settlement(lease))

    record = await world.record(new)
    assert (record.status, record.waiting_for, record.behind) == (Status.READY, None, None)
    assert [leased.envelope.id for leased in await world.claim(await world.a_session())] == [new.id]


async def test_key_waits_behind__until_its_own_time(world: World) -> None:
    """A replacement with a wait of its own goes on waiting when the run has ended."""
    lease, new = await _behind(world, after=60.0)

    await world.settle(succeeded(lease))

    assert await world.status(new) is Status.SCHEDULED
    await world.pass_time(60.0)
    assert await world.status(new) is Status.READY


@pytest.mark.parametrize("awaits", [0, 1])
async def test_key_waits_behind__whatever_joins_it(world: World, awaits: int) -> None:
    """Not even joiners beyond those that it awaits release it while the holder runs."""
    lease, new = await _behind(world, awaits=awaits)

    for _ in range(awaits + 2):
        await world.cancel(await world.add(joins=(new.id,)))

    assert await world.status(new) is Status.HELD
    await world.settle(succeeded(lease))
    assert await world.status(new) is Status.READY


async def test_key_waits_behind__one_at_most(world: World) -> None:
    """A second replacement takes the place of the first, and waits behind the same run."""
    lease, first = await _behind(world)
    second = replacement(world)

    assert await world.enqueue(second) == [Added(second.id, replaced=first.id)]
    assert [await world.status(job) for job in (lease, first, second)] == [Status.RUNNING, Status.CANCELLED, Status.HELD]
    await world.settle(succeeded(lease))
    assert await world.status(second) is Status.READY


async def test_key_waits_behind__its_worker_lost_for_good(world: World) -> None:
    """When the run ends as poison its replacement is released like after any other end."""
    world = world.under(max_crashes=0)
    session = await world.a_session()
    lease = await world.running(session, queue="default", key="k")
    new = replacement(world)
    await world.enqueue(new)

    await world.reap(session)

    assert [await world.status(job) for job in (lease, new)] == [Status.FAILED, Status.READY]


# --- key_cancelled ----------------------------------------------------------------------------------------------------


CONFLICTS = pytest.mark.parametrize("on_conflict", list(OnConflict))


async def _asked_to_stop(world: World) -> Lease:
    lease = await world.running(queue="default", key="k")
    await world.cancel(lease)
    return lease


@CONFLICTS
async def test_key_cancelled(world: World, on_conflict: OnConflict) -> None:
    """The new job is added while the old one still runs, is HELD and says why, and is not claimed."""
    lease = await _asked_to_stop(world)
    new = world.an_envelope(key="k", on_conflict=on_conflict)

    assert await world.enqueue(new) == [Added(new.id, replaced=None)]

    record = await world.record(new)
    assert (record.status, record.waiting_for) == (Status.HELD, f"job {id_text(lease.envelope.id)}, which runs with its key")
    assert await world.claim(await world.a_session()) == []
    assert await world.status(lease) is Status.RUNNING


@CONFLICTS
@pytest.mark.parametrize("settlement", [succeeded, failed, cancelled, retried, snoozed, parked, handed_back])
async def test_key_cancelled__until_that_run_has_ended(world: World, settlement: SettlementOf, on_conflict: OnConflict) -> None:
    """Whatever the run that was asked to stop comes to, it does not come again, and the new job is READY."""
    lease = await _asked_to_stop(world)
    new = world.an_envelope(key="k", on_conflict=on_conflict)
    await world.enqueue(new)

    await world.settle(settlement(lease))

    assert (await world.record(lease)).status.is_ended
    assert [leased.envelope.id for leased in await world.claim(await world.a_session())] == [new.id]


async def test_key_cancelled__its_worker_is_lost(world: World) -> None:
    """When the worker of the old job is lost, the new job is READY."""
    session = await world.a_session()
    lease = await world.running(session, queue="default", key="k")
    await world.cancel(lease)
    new = await world.add(key="k")

    await world.reap(session)

    assert [await world.status(job) for job in (lease, new)] == [Status.CANCELLED, Status.READY]


async def test_key_cancelled__one_behind_it_at_most(world: World) -> None:
    """The job that waits behind the run has the key: a third one is refused with its id, or replaces it."""
    lease = await _asked_to_stop(world)
    new = await world.add(key="k")

    assert await stands(world, new)
    newest = replacement(world)
    assert await world.enqueue(newest) == [Added(newest.id, replaced=new.id)]
    assert [await world.status(job) for job in (lease, new, newest)] == [Status.RUNNING, Status.CANCELLED, Status.HELD]


async def test_key_cancelled__a_replacement_waited_before(world: World) -> None:
    """A replacement that waited behind the run before it was asked to stop has the key still."""
    lease, waiting = await _behind(world)
    await world.cancel(lease)

    assert await stands(world, waiting)


async def test_key_cancelled__as_a_follow_up(world: World) -> None:
    """A follow-up of another run with that key is added, and waits likewise."""
    lease = await _asked_to_stop(world)
    other = await world.running()
    follow_up = world.an_envelope(key="k")

    await world.settle(succeeded(other, follow_ups=(follow_up,)))

    assert await world.status(follow_up) is Status.HELD
    await world.settle(cancelled(lease))
    assert await world.status(follow_up) is Status.READY


# --- key_gives_way -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", WAITING_AGAIN, ids=str)
async def test_key_gives_way(world: World, outcome: Outcome) -> None:
    """A run that would wait again ends CANCELLED in favour of the replacement behind it, which is READY."""
    await check_outcome(world, outcome, REPLACED)


async def test_key_gives_way__after_a_crash(world: World) -> None:
    """A run whose worker was lost does not come again when a replacement waits behind it."""
    session = await world.a_session()
    lease = await world.running(session, queue="default", key="k")
    new = replacement(world)
    await world.enqueue(new)

    await world.reap(session)

    record = await world.record(lease)
    assert (record.status, record.reason) == (Status.CANCELLED, f"replaced by {id_text(new.id)}")
    assert await world.status(new) is Status.READY


# --- holders ----------------------------------------------------------------------------------------------------------

KEY = key_digest("default", "work", "k")


@pytest.mark.parametrize("fields", [{}, {"after": 60.0}, {"awaits": 1}], ids=["ready", "scheduled", "held"])
async def test_holders_waiting(world: World, fields: dict[str, object]) -> None:
    """A waiting job is found by its key, and no other key finds it."""
    holder = await world.add(key="k", **fields)
    other = await world.add(key="k", queue="other")

    keys = [KEY, bytes(16), key_digest("other", "work", "k"), KEY]

    assert await world.broker.holders(keys) == [holder.id, None, other.id, holder.id]
    assert await world.broker.holders([]) == []


async def test_holders_waiting__behind_a_run(world: World) -> None:
    """The replacement that waits behind a run is found, as by an enqueue; afterwards it is found as it runs."""
    lease = await world.running(queue="default", key="k")
    behind = replacement(world)
    await world.enqueue(behind)
    assert await world.broker.holders([KEY]) == [behind.id]

    await world.settle(succeeded(lease))
    await world.claim(await world.a_session(), ["default"])

    assert await world.broker.holders([KEY]) == [behind.id]


async def test_holders_running(world: World) -> None:
    """A run is found until it has ended, also when it is asked to stop."""
    lease = await world.running(queue="default", key="k")
    assert await world.broker.holders([KEY]) == [lease.envelope.id]

    await world.cancel(lease)

    assert await world.broker.holders([KEY]) == [lease.envelope.id]


async def test_holders_none(world: World) -> None:
    """Nothing is found once the holder has ended, whether it ran or not, or where there never was one."""
    lease = await world.running(queue="default", key="k")
    await world.settle(cancelled(lease))
    assert await world.broker.holders([KEY]) == [None]

    await world.cancel(await world.add(key="waited"))

    assert await world.broker.holders([key_digest("default", "work", key) for key in ("k", "waited", "other")]) == [None] * 3
