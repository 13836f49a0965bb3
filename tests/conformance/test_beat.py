"""beat: a session's sign of life, and what the session learns in return."""

from __future__ import annotations

from datetime import timedelta

import pytest

from taskflow.model.clock import instant_of
from taskflow.model.envelope import ClaimId
from taskflow.model.record import Record, Status
from taskflow.model.session import Beat, BeatAnswer, Report
from taskflow.model.verdict import Progress, Settled
from tests.support.verdicts import handed_back, succeeded
from tests.support.world import World, ids_of

NOTHING = BeatAnswer()


async def test_beat_extends(world: World) -> None:
    """A session that beats within its ttl is not reaped, however long that goes on. It does not extend another session of the same name."""
    session = await world.a_session("host:1")
    lease = await world.running(session)
    for _ in range(5):
        world.clock.advance(session.ttl)
        assert await world.beat(session, lease) == NOTHING
        assert (await world.upkeep()).reaped == 0
    other = await world.a_session("host:1")
    await world.lapse(other, beside=[session])

    assert (await world.upkeep()).reaped == 1
    assert await world.settle(succeeded(lease)) == [Settled.OK]


async def test_beat_late(world: World) -> None:
    """A session past its ttl that has not been reaped yet lives on, with all its leases, for a whole ttl."""
    session = await world.a_session()
    lease = await world.running(session)
    await world.lapse(session)

    assert await world.beat(session, lease) == NOTHING
    assert (await world.upkeep()).reaped == 0
    world.clock.advance(session.ttl * 0.9)
    assert (await world.upkeep()).reaped == 0
    assert await world.settle(succeeded(lease)) == [Settled.OK]


async def test_beat_lost(world: World) -> None:
    """Each claim that is no longer the session's is named, and no other: settled, handed back, never its own, or never given."""
    session, other = await world.a_session(), await world.a_session()
    held, ended, back = [await world.running(session) for _ in range(3)]
    foreign = await world.running(other)
    await world.settle(succeeded(ended), handed_back(back))
    invented = ClaimId(session.id, 7, 0)

    answer = await world.broker.beat(Beat(session=session.id, claims=(ended.claim, held.claim, back.claim, foreign.claim, invented)))

    assert answer == BeatAnswer(lost=(ended.claim, back.claim, foreign.claim, invented))


async def test_beat_lost__after_the_tail_was_lost(world: World) -> None:
    """The old claim of a job is named too if the job waits again because the store lost its latest changes."""
    session = await world.a_session()
    await world.add()
    snapshot = world.snapshot()
    [old] = await world.claim(session)
    await world.restore(snapshot)

    assert await world.beat(session, old) == BeatAnswer(lost=(old.claim,))


async def test_beat_stopping(world: World) -> None:
    """A run that was asked to stop is named at every beat until it ends, also in a beat that asks for work; others are not."""
    session = await world.a_session()
    asked, other = await world.running(session), await world.running(session)
    await world.cancel(asked)

    for looks in (False, False, True):
        beat = Beat(session=session.id, claims=(other.claim, asked.claim), seen=world.last_request(session), looks=looks)
        assert (await world.broker.beat(beat)).stopping == (asked.claim,)
    await world.settle(succeeded(asked))
    assert await world.beat(session, other, asked) == BeatAnswer(lost=(asked.claim,))


async def test_beat_ghosts(world: World) -> None:
    """A lease that its session does not know returns to its old place, and costs the job nothing. The steady clock decides its age."""
    session = await world.a_session()
    first, held = await world.running(session, queue="default"), await world.running(session, queue="default")
    due_at = (await world.record(first)).due_at
    world.clock.advance(world.rules.ghost_after + 0.001)
    second = await world.add()
    world.clock.skew(-86_400.0)

    assert await world.beat(session, held) == BeatAnswer(ghosts=1)

    record = await world.record(first)
    assert (record.status, record.due_at) == (Status.READY, due_at)
    assert (record.failures, record.crashes, record.snoozes, record.hand_backs, record.errors) == (0, 0, 0, 0, ())
    assert ids_of(await world.claim(session)) == ids_of([first, second])
    assert await world.settle(succeeded(held)) == [Settled.OK]


@pytest.mark.parametrize("is_seen", [True, False])
async def test_beat_young(world: World, is_seen: bool) -> None:
    """A lease whose answer may still be under way is left alone. So is one, however old, if the beat was sent before its answer came."""
    session = await world.a_session()
    await world.claim(session)
    lease = await world.running(session)
    world.clock.advance(world.rules.ghost_after + (-0.001 if is_seen else 1.0))
    assert await world.beat(session, seen=2 if is_seen else 1) == NOTHING
    assert await world.settle(succeeded(lease)) == [Settled.OK]


async def test_beat_reports(world: World) -> None:
    """A run's start and progress are in its record, by the store's clock. A report without progress keeps the last progress."""
    session = await world.a_session("host:1")
    lease, other = await world.running(session), await world.running(session)
    assert (await world.record(lease)).started_at is None
    world.clock.advance(3.0)
    await world.beat(session, lease, other, reports=[Report(lease.claim, 2.5, Progress(0.25, "a quarter"))])

    record = await world.record(lease)
    assert record.started_at == instant_of(world.clock.wall()) - timedelta(seconds=2.5)
    assert (record.progress, record.worker) == (Progress(0.25, "a quarter"), "host:1")
    other_record = await world.record(other)
    assert (other_record.started_at, other_record.progress) == (None, None)
    for progress, expected in ((None, Progress(0.25, "a quarter")), (Progress(0.0, "again"), Progress(0.0, "again"))):
        await world.beat(session, lease, reports=[Report(lease.claim, 1.0, progress)])
        assert (await world.record(lease)).progress == expected


async def test_beat_reports__only_of_its_own(world: World) -> None:
    """A report on a lease that is no longer the session's is ignored."""
    session = await world.a_session()
    old = await world.running(session)
    await world.settle(handed_back(old))
    [new] = await world.claim(session)
    before = await world.record(new)

    await world.beat(session, new, reports=[Report(old.claim, 5.0, Progress(1.0))])

    assert await world.record(new) == before


async def test_beat_looks__nothing(world: World) -> None:
    """Where there is nothing to do the session learns so; it need not check again until it would lapse itself."""
    session = await world.a_session()

    work_hint = await world.work_hint(session)
    assert not work_hint.is_ready
    assert work_hint.due_in == pytest.approx(session.ttl, abs=0.001)


async def test_beat_looks__ready(world: World) -> None:
    """The answer reports work as long as there is something to claim, in whatever queue, and not after."""
    session = await world.a_session()
    await world.add(queue="some")
    await world.add(queue="other", priority=-3)
    for queue in ("some", "other"):
        assert (await world.work_hint(session)).is_ready
        await world.claim(session, [queue])

    assert not (await world.work_hint(session)).is_ready


@pytest.mark.parametrize("how", ["handed_back", "due", "resumed"])
async def test_beat_looks__ready_again(world: World, how: str) -> None:
    """A job that is READY again is reported, whatever made it so. A paused one isn't."""
    session = await world.a_session()
    match how:
        case "handed_back":
            await world.settle(handed_back(await world.running(session)))
        case "due":
            await world.add(after=5.0)
            await world.pass_time(5.0)
        case _:
            await world.add(queue="halted")
            await world.broker.admin.pause("halted")
            assert not (await world.work_hint(session)).is_ready
            await world.broker.admin.resume("halted")

    assert (await world.work_hint(session)).is_ready


@pytest.mark.parametrize("fields", [{"after": 5.0}, {"expires": 5.0}])
async def test_beat_looks__due(world: World, fields: dict[str, float]) -> None:
    """The time of what is planned, and of what may expire, is reported for as long as upkeep has not run."""
    session = await world.a_session()
    await world.add(**fields)
    world.clock.advance(3.0)

    assert (await world.work_hint(session)).due_in == pytest.approx(2.0, abs=0.001)

    world.clock.advance(3.0)
    assert (await world.work_hint(session)).due_in == 0.0


async def test_beat_looks__lapses(world: World) -> None:
    """Another session lapses before this one, so its time is reported."""
    session, other = await world.a_session(), await world.a_session(ttl=5.0)
    await world.running(other)
    assert (await world.work_hint(session)).due_in == pytest.approx(5.0, abs=0.001)

    await world.lapse(other, beside=[session])
    assert (await world.work_hint(session)).due_in == 0.0


async def test_beat_leaving(world: World) -> None:
    """A session that leaves is dead, and its leases are handed back, whether the beat names them or not."""
    session = await world.a_session()
    leases = [await world.running(session) for _ in range(3)]
    await world.settle(succeeded(leases[0]))

    await world.beat(session, leases[1], leaving=True)

    assert [await world.status(lease) for lease in leases] == [Status.SUCCEEDED, Status.READY, Status.READY]
    assert [(await world.record(lease)).crashes for lease in leases[1:]] == [0, 0]
    assert await world.broker.admin.workers() == []


def causes(record: Record) -> list[str]:
    return [error.message for error in record.errors]


async def test_beat_died(world: World) -> None:
    """Each lease of the dead session is a crash with that cause, and others can claim its job. Living sessions keep theirs."""
    session, other = await world.a_session("host:1"), await world.a_session("host:2")
    leases = [await world.running(session, queue="default") for _ in range(2)]
    kept = await world.running(other)

    assert await world.die(session, "signal SIGSEGV") == NOTHING

    for lease in leases:
        record = await world.record(lease)
        assert (record.status, record.crashes, record.hand_backs) == (Status.READY, 1, 0)
        [error] = record.errors
        assert (error.type, error.at) == ("taskflow.WorkerLost", world.clock.wall())
        assert error.message == "worker host:1 was lost while it had this job (crash 1): signal SIGSEGV"
    assert [record.session for record in await world.broker.admin.workers()] == [other]
    assert ids_of(await world.claim(other)) == ids_of(leases)
    assert await world.settle(succeeded(kept)) == [Settled.OK]


async def test_beat_died__in_an_outage(world: World) -> None:
    """When the store comes back after an outage, a session that is known to be dead has crashed, though all others still count as alive."""
    session, other = await world.a_session(), await world.a_session()
    lease, kept = await world.running(session), await world.running(other)
    world.clock.advance(session.ttl * 2)
    assert await world.beat(other, kept) == NOTHING

    await world.die(session)

    record = await world.record(lease)
    assert (record.status, record.crashes, record.hand_backs) == (Status.READY, 1, 0)
    assert await world.beat(other, kept) == NOTHING


@pytest.mark.parametrize("cause", ["Absturz für «nichts» \N{SKULL}", "a lone \udcff", "a\0b", "it's 100%s \\ %d", "x" * 200])
async def test_beat_died__in_any_words(world: World, cause: str) -> None:
    """The cause is kept as it was reported."""
    world = world.under(max_crashes=0)
    session = await world.a_session()
    lease = await world.running(session)

    await world.die(session, cause)

    record = await world.record(lease)
    [message] = causes(record)
    assert message.endswith(f": {cause}")
    assert record.reason is not None
    assert record.reason.endswith(f": {cause}")
