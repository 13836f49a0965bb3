"""settle: how a run ends, and whose report of it counts."""

from __future__ import annotations

import msgspec
import pytest

from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.record import Status
from taskflow.model.session import Report
from taskflow.model.verdict import Progress, RunEnding, RunError, Settled, Settlement
from tests.conformance.outcomes import ENDING, MARKED, OUTCOMES, PLAIN, Outcome, check_outcome
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, handed_back, parked, retried, snoozed, succeeded
from tests.support.world import World, ids_of

OK, STALE = Settled.OK, Settled.STALE
ALL = (succeeded, failed, discarded, cancelled, retried, snoozed, parked, handed_back)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
async def test_settle_outcomes(world: World, outcome: Outcome) -> None:
    """The record after a verdict is the one of the table, field by field."""
    await check_outcome(world, outcome, PLAIN)


@pytest.mark.parametrize("outcome", ENDING, ids=str)
async def test_settle_outcomes__asked_to_stop(world: World, outcome: Outcome) -> None:
    """A verdict that ends the job counts though its cancellation was requested, because the run reached it all the same."""
    await check_outcome(world, outcome, MARKED)


async def test_settle_history(world: World) -> None:
    """Each failed run leaves its error, oldest first, with its times, its worker, its attempt and how it ended; a snooze leaves nothing."""
    session, other = await world.a_session("host:1"), await world.a_session("h\u00f6st:2")
    lease = await world.running(session)
    first = RunError("a.B", "one", "trace", attempt=1, ending=RunEnding.TIMED_OUT)
    second = RunError("c.D", "two \ud800 ünï", "", attempt=2)
    await world.settle(retried(lease, error=first, ran_for=2.5))
    first_at = world.clock.wall()
    [lease] = await world.claim(session)
    await world.settle(snoozed(lease, ran_for=1.0))
    world.clock.advance(1.0)
    [lease] = await world.claim(other)
    await world.settle(failed(lease, error=second))
    second_at = world.clock.wall()

    record = await world.record(lease)
    assert record.errors == (first.of_run("host:1", first_at - 2_500_000, first_at), second.of_run("h\u00f6st:2", second_at, second_at))
    assert record.failures == 2


@pytest.mark.parametrize("reports", [True, False], ids=["reported", "not reported"])
async def test_settle_history__crash(world: World, reports: bool) -> None:
    """A crash has the worker and the start that the session reported, or else the time of the claim."""
    session = await world.a_session("host:1")
    lease = await world.running(session)
    started = world.clock.wall()
    if reports:
        world.clock.advance(2.0)
        started = world.clock.wall() - 500_000
        await world.beat(session, lease, reports=[Report(lease.claim, 0.5)])

    await world.reap(session)

    [error] = (await world.record(lease)).errors
    assert (error.ending, error.worker, error.started_at, error.at) == (RunEnding.CRASHED, "host:1", started, world.clock.wall())


async def test_settle_outcomes__a_long_history_begins_anew(world: World) -> None:
    """Errors are kept up to a bound; beyond it the newest is kept."""
    session = await world.a_session()
    lease = await world.running(session)
    for number in range(6):
        await world.settle(retried(lease, error=RunError("a.B", str(number), "x" * 16_000)))
        [lease] = await world.claim(session)

    errors = (await world.record(lease)).errors
    assert 0 < len(errors) < 6
    assert errors[-1].message == "5"
    assert (await world.record(lease)).failures == 6


@pytest.mark.parametrize("settlement", ALL)
async def test_settle_progress(world: World, settlement: SettlementOf) -> None:
    """A run's last report is in its job's record, even if no beat has carried it."""
    session = await world.a_session()
    lease = await world.running(session)
    await world.beat(session, lease, reports=[Report(lease.claim, 0.0, Progress(0.5, "half way"))])
    last = Progress(1.0, "done \ud800 \u00e9\x00")

    assert await world.settle(msgspec.structs.replace(settlement(lease), progress=last)) == [OK]

    assert (await world.record(lease)).progress == last


async def test_settle_progress__beside_plain_successes(world: World) -> None:
    """In a batch, each settlement's progress belongs to its own job. One without progress keeps what a beat has reported."""
    session = await world.a_session()
    leases = [await world.running(session) for _ in range(4)]
    await world.beat(session, *leases, reports=[Report(leases[0].claim, 0.0, Progress(0.5))])
    settlements = [succeeded(lease) for lease in leases]
    for number in (1, 3):
        settlements[number] = msgspec.structs.replace(settlements[number], progress=Progress(number / 4))

    assert await world.settle(*settlements) == [OK] * 4

    assert [(await world.record(lease)).progress for lease in leases] == [Progress(0.5), Progress(0.25), None, Progress(0.75)]


async def _changes_nothing(world: World, settlement: Settlement) -> None:
    """The answer is STALE, and the job is unchanged; another clause covers its follow-ups."""
    before = await world.read(settlement.id)
    assert await world.settle(settlement) == [STALE]
    assert await world.read(settlement.id) == before


@pytest.mark.parametrize("settlement", ALL)
async def test_settle_stale__after_the_lease_was_lost(world: World, settlement: SettlementOf) -> None:
    """A worker that lost its lease cannot end or change the job while it waits, nor under its successor, nor after that has ended."""
    slow = await world.a_session("slow")
    old = await world.running(slow)
    await world.reap(slow)
    await _changes_nothing(world, settlement(old))
    [new] = await world.claim(await world.a_session("quick"))
    await _changes_nothing(world, settlement(old))

    assert await world.settle(succeeded(new)) == [OK]
    await _changes_nothing(world, settlement(old))


async def test_settle_stale__another_fence(world: World) -> None:
    """The claim id with another epoch is not the fence, nor is the epoch with another claim id. No settlement reaches a job that waits."""
    lease, waiting = await world.running(), await world.add()
    session, request, number = lease.claim
    other = await world.a_session()
    for epoch in (0, lease.epoch + 1):
        await _changes_nothing(world, succeeded(msgspec.structs.replace(lease, epoch=epoch)))
    for claim in (ClaimId(other.id, request, number), ClaimId(session, request + 1, number), ClaimId(session, request, number + 1)):
        await _changes_nothing(world, succeeded(msgspec.structs.replace(lease, claim=claim)))
    await _changes_nothing(world, Settlement(id=waiting.id, epoch=0, claim=ClaimId(session, 0, 0), verdict=succeeded(lease).verdict))


async def test_settle_stale__after_the_tail_was_lost(world: World) -> None:
    """An epoch that the store repeats, because it lost its latest changes, is no fence by itself."""
    slow, quick = await world.a_session("slow"), await world.a_session("quick")
    await world.add()
    snapshot = world.snapshot()
    [old] = await world.claim(slow)
    await world.restore(snapshot)
    [new] = await world.claim(quick)
    assert old.epoch == new.epoch

    await _changes_nothing(world, succeeded(old))
    assert await world.settle(succeeded(new)) == [OK]


async def _is_repeatable(world: World, settlement: Settlement) -> None:
    before = await world.read(settlement.id)
    assert await world.settle(settlement) == [OK]
    assert await world.read(settlement.id) == before


@pytest.mark.parametrize("settlement", ALL)
async def test_settle_repeat(world: World, settlement: SettlementOf) -> None:
    """A settlement whose answer was lost, sent again later, is OK and counts once."""
    lease = await world.running()
    assert await world.settle(settlement(lease)) == [OK]
    world.clock.advance(5.0)

    await _is_repeatable(world, settlement(lease))
    await _is_repeatable(world, settlement(lease))


@pytest.mark.parametrize("is_lost", [False, True])
async def test_settle_repeat__while_it_runs_again(world: World, is_lost: bool) -> None:
    """The repeat of a retry does not touch the next run, whichever worker has it. It remains known even if a later run had no outcome."""
    session, other = await world.a_session(), await world.a_session()
    first = await world.running(session)
    await world.settle(retried(first))
    [second] = await world.claim(other)
    if is_lost:
        await world.reap(other)

    await _is_repeatable(world, retried(first))
    assert await world.settle(succeeded(second)) == [STALE if is_lost else OK]


async def test_settle_repeat__only_the_last_one(world: World) -> None:
    """A settlement that took effect before the last one is stale: no worker resends it for that long."""
    session = await world.a_session()
    first = await world.running(session)
    await world.settle(retried(first))
    [second] = await world.claim(session)
    await world.settle(retried(second))

    assert await world.settle(retried(first), retried(second)) == [STALE, OK]
    assert (await world.record(second)).failures == 2


async def test_settle_repeat__of_a_dropped_job(world: World) -> None:
    """A job that is no longer kept still knows what ended it, as long as a client may resend."""
    lease = await world.running()
    await world.settle(succeeded(lease, keep_for=0.0))
    await world.pass_time(world.rules.repeat_for - 1.0)

    assert await world.settle(succeeded(lease)) == [OK]


async def test_settle_batch(world: World) -> None:
    """Each item is judged by itself, and answered in its place."""
    session = await world.a_session()
    leases = [await world.running(session) for _ in range(4)]
    unknown = msgspec.structs.replace(succeeded(leases[0]), id=world.an_id())

    answers = await world.settle(succeeded(leases[0]), unknown, retried(leases[1], 5.0), failed(leases[2]), unknown, cancelled(leases[3]))

    assert answers == [OK, STALE, OK, OK, STALE, OK]
    statuses = [await world.status(lease) for lease in leases]
    assert statuses == [Status.SUCCEEDED, Status.SCHEDULED, Status.FAILED, Status.CANCELLED]


@pytest.mark.parametrize("settlement", ALL)
async def test_settle_follow_ups(world: World, settlement: SettlementOf) -> None:
    """Follow-ups come with any verdict, in order, and wait like independent jobs."""
    lease = await world.running()
    chain = (world.an_envelope(queue="next"), world.an_envelope(queue="next", after=60.0), world.an_envelope(queue="next"))

    assert await world.settle(settlement(lease, follow_ups=chain)) == [OK]

    assert [await world.status(job) for job in chain] == [Status.READY, Status.SCHEDULED, Status.READY]
    assert ids_of(await world.claim(await world.a_session(), ["next"])) == [chain[0].id, chain[2].id]


async def test_settle_follow_ups__once(world: World) -> None:
    """A repeat adds none again, and none that it did not bring the first time. A zombie's follow-ups are not sent: its successor sends its
    own."""
    lease, lost = await world.running(), await world.a_session()
    zombie = await world.running(lost)
    first, second, third = [world.an_envelope() for _ in range(3)]
    await world.settle(succeeded(lease, follow_ups=(first,)))
    await world.settle(succeeded(lease, follow_ups=(first, second)))
    await world.reap(lost)
    await world.settle(succeeded(zombie, follow_ups=(third,)))

    assert await world.broker.read(ids_of([second, third])) == [None, None]
    assert ids_of(await world.claim(await world.a_session(), ["default"])) == [first.id]


@pytest.mark.parametrize("is_running", [False, True])
async def test_settle_follow_ups__key_taken(world: World, is_running: bool) -> None:
    """A live job with the follow-up's key takes its place; the settlement and the other follow-ups take effect."""
    lease = await world.running()
    holder = await world.running(key="k") if is_running else await world.add(key="k")
    refused = world.an_envelope(key="k", queue=(await world.record(holder)).queue)
    refused = msgspec.structs.replace(refused, key=holder.envelope.key if isinstance(holder, Lease) else holder.key)
    other = world.an_envelope(queue="next")

    assert await world.settle(succeeded(lease, follow_ups=(refused, other))) == [OK]

    assert await world.read(refused) is None
    assert await world.status(other) is Status.READY
    assert await world.status(lease) is Status.SUCCEEDED
