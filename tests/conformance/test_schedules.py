"""Schedules: which definition is in force, who is offered it, and that each instant is fired once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Literal

import msgspec
import pytest

from taskflow.broker import topics
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import instant_of
from taskflow.model.envelope import OnConflict
from taskflow.model.errors import StoreFull
from taskflow.model.record import Status
from taskflow.model.schedule import MAX_OFFERS, OFFER_TTL, Amendment, Definition, Firing, Offer, ScheduleRecord
from taskflow.model.session import Session
from tests.support.flows import a_flow
from tests.support.verdicts import SettlementOf, failed, succeeded
from tests.support.world import World, id_of

LONG = 1_000_000.0
SECOND = 1_000_000


def a_definition(name: str = "nightly", version: int = 1, size: int = 10) -> Definition:
    return Definition(name, bytes([version]) * 16, bytes([version]) * size)


async def offers(world: World) -> list[Offer]:
    """Return all offers that are due now."""
    found = list[Offer]()
    while more := (await world.upkeep()).offers:
        found += more
    return sorted(found, key=lambda offer: offer.name)


async def offered(world: World, name: str = "nightly") -> Offer:
    [offer] = [offer for offer in await offers(world) if offer.name == name]
    return offer


def a_firing(offer: Offer, next_in: float | None, **fields: Any) -> Firing:
    next_at = None if next_in is None else offer.now + round(next_in * SECOND)
    return msgspec.structs.replace(
        Firing(name=offer.name, digest=offer.digest, expected=offer.next_at, next_at=next_at, offer_at=next_at), **fields
    )


async def fire(world: World, *firings: Firing) -> list[Added | Refused | None]:
    return await world.broker.fire(firings)


async def a_schedule(world: World, next_in: float = 10.0, session: Session | None = None, **fields: int | str) -> Definition:
    """Store a schedule whose next instant is known."""
    definition = a_definition(**fields)  # type: ignore[arg-type]
    await declare(world, session, definition, age=1.0)
    await fire(world, a_firing(await offered(world, definition.name), next_in))
    return definition


async def declare(world: World, session: Session | None, *definitions: Definition, age: float = 0.0) -> list[bool]:
    return await world.broker.define(definitions, None if session is None else session.id, age)


async def due(world: World) -> Offer:
    """Return the offer of a schedule that is due now."""
    await a_schedule(world)
    world.clock.advance(10.0)
    return await offered(world)


async def fill(world: World) -> None:
    """Add jobs until the store accepts no more."""
    with contextlib.suppress(StoreFull):
        while True:
            await world.add(payload=bytes(world.harness.much))


async def record(world: World, name: str = "nightly") -> ScheduleRecord:
    [found] = await world.broker.admin.schedules([name])
    return found


async def test_schedule_put_repeat(world: World) -> None:
    """A schedule that is stored again unchanged keeps its next instant, and is not offered before it."""
    definition = await a_schedule(world)
    before = await record(world)

    assert await declare(world, None, definition) == [True]

    assert await offers(world) == []
    assert await record(world) == before


@pytest.mark.parametrize("size", [10, 20_000])
async def test_schedule_changed(world: World, size: int) -> None:
    """A changed schedule is offered at once, so that its next instant is computed again."""
    await a_schedule(world)

    assert await declare(world, None, a_definition(version=2, size=size)) == [True]

    offer = await offered(world)
    assert Definition(offer.name, offer.digest, offer.body) == a_definition(version=2, size=size)
    assert offer.next_at is None


async def test_schedule_changed__says_since_when(world: World) -> None:
    """An instant between the change and the offer is not lost: the next instant is computed from the change on. This also holds if a caller
    dies with the offer or passes it on, or if the schedule is changed again before that."""
    created_at = world.clock.wall()
    await declare(world, None, a_definition())
    world.clock.advance(5.0)
    offer = await offered(world)
    assert (offer.next_at, offer.since, offer.now) == (None, created_at, created_at + 5 * SECOND)
    world.clock.advance(OFFER_TTL)
    assert (await offered(world)).since == created_at
    await declare(world, None, a_definition(version=2))
    offer = await offered(world)
    assert (offer.since, offer.next_at) == (created_at, None)
    await fire(world, a_firing(offer, None, offer_at=offer.now + SECOND))  # the offer is passed on
    world.clock.advance(OFFER_TTL)
    assert (await offered(world)).since == created_at


async def test_schedule_changed__says_since_when_after_a_resume(world: World) -> None:
    """Instants during the pause are left out, and later ones are not lost."""
    await declare(world, None, a_definition())
    await world.broker.admin.amend_schedule("nightly", Amendment.PAUSE)
    await world.pass_time(100.0)
    resumed_at = world.clock.wall()
    await world.broker.admin.amend_schedule("nightly", Amendment.RESUME)

    for _ in range(2):
        assert (await offered(world)).since == resumed_at
        world.clock.advance(OFFER_TTL)


async def test_schedule_changed__while_it_is_due(world: World) -> None:
    """An instant that has passed is still fired, by the new definition."""
    expected = (await due(world)).next_at

    await declare(world, None, a_definition(version=2))

    world.clock.advance(OFFER_TTL)
    offer = await offered(world)
    assert (offer.digest, offer.next_at) == (a_definition(version=2).digest, expected)


async def test_schedule_taken(world: World) -> None:
    """Neither kind of schedule replaces one of the other kind with the same name."""
    session = await world.a_session(ttl=LONG)
    await a_schedule(world, name="put")
    await a_schedule(world, name="declared", session=session)

    assert await declare(world, None, a_definition("declared", 2), a_definition("other")) == [False, True]
    assert await declare(world, session, a_definition("put", 2), a_definition("third")) == [False, True]

    assert (await record(world, "put")).digest == (await record(world, "declared")).digest == a_definition().digest
    assert {offer.name for offer in await offers(world)} == {"other", "third"}


@pytest.mark.parametrize("first", ["old", "young"])
async def test_schedule_declared(world: World, first: str) -> None:
    """The definition of the youngest session is in force, whichever was stored last."""
    young, old = await world.a_session("young", ttl=LONG), await world.a_session("old", ttl=LONG)
    if first == "old":
        await declare(world, old, a_definition(version=1), age=60.0)
    await declare(world, young, a_definition(version=2), age=5.0)
    if first == "young":
        await declare(world, old, a_definition(version=1), age=60.0)

    found = await record(world)

    assert (found.digest, found.declarers, found.is_declared) == (a_definition(version=2).digest, ("young", "old"), True)


async def test_schedule_declared__sleeps(world: World) -> None:
    """Without a living session that declares it, it is not offered, and keeps its next instant. It is offered as soon as a session declares
    it again. One that no session has declared for long is dropped."""
    world = world.under(keep_asleep=1_000.0)
    session = await world.a_session()
    definition = await a_schedule(world, 100.0, session)
    next_at = (await record(world)).next_at
    await world.reap(session)
    await world.pass_time(200.0)
    found = await record(world)
    assert (await offers(world), found.next_at, found.declarers) == ([], next_at, ())
    assert found.asleep_since is not None

    session = await world.a_session("new")
    await declare(world, session, definition)
    offer = await offered(world)
    assert offer.next_at is not None
    assert instant_of(offer.next_at) == next_at
    assert (await record(world)).asleep_since is None

    await world.reap(session)
    await world.pass_time(900.0)
    assert await world.broker.admin.schedules() != []
    await world.pass_time(101.0)
    assert await world.broker.admin.schedules() == []


@pytest.mark.parametrize("death", ["leaves", "lapses", "dies", "leaves the same"])
async def test_schedule_handover(world: World, death: str) -> None:
    """After the youngest session has ended, the older one's definition is in force again, and is offered unless it is the same."""
    old, young = await world.a_session("old", ttl=LONG), await world.a_session("young")
    is_same = death == "leaves the same"
    await a_schedule(world, next_in=LONG, session=old, version=1)
    await declare(world, young, a_definition(version=1 if is_same else 2))
    if not is_same:
        await fire(world, a_firing(await offered(world), 10_000.0))

    if death == "dies":
        await world.die(young)
    elif death == "lapses":
        await world.lapse(young, beside=[old])
    else:
        await world.beat(young, leaving=True)

    expected = [] if is_same else [(a_definition(version=1).digest, None)]
    assert [(offer.digest, offer.next_at) for offer in await offers(world)] == expected
    assert (await record(world)).declarers == ("old",)


async def test_schedule_due(world: World) -> None:
    """An instant before all others wakes listeners: a worker that sleeps until a later one would miss it. An idle worker begins the job at
    once."""
    await declare(world, None, a_definition())
    offer = await offered(world)
    with world.broker.listen([topics.DUE]) as due, world.broker.listen([topics.queue("reports")]) as ready:
        await fire(world, a_firing(offer, 0.5, envelopes=(world.an_envelope(queue="reports"),)))
        assert await due.wait(world.harness.wakes_within)
        assert await ready.wait(world.harness.wakes_within)


async def test_schedule_offer(world: World) -> None:
    """A due schedule is offered with its definition and its instant, not a microsecond before, to one caller only."""
    await a_schedule(world, 10.0)
    next_at = (await record(world)).next_at

    assert (await world.pass_time(9.999_999)).offers == ()
    [offer] = (await world.pass_time(0.000_001)).offers

    assert next_at is not None
    assert offer.next_at is not None
    assert (Definition(offer.name, offer.digest, offer.body), instant_of(offer.next_at)) == (a_definition(), next_at)
    assert (await world.upkeep()).offers == ()


async def test_schedule_offer__again(world: World) -> None:
    """If a caller dies with the offer, the next offer comes a second later."""
    offer = await due(world)

    assert (await world.pass_time(OFFER_TTL - 0.001)).offers == ()
    [again] = (await world.pass_time(0.001)).offers

    assert msgspec.structs.replace(again, now=offer.now, since=offer.since) == offer


async def test_schedule_offer__says_when_to_come_again(world: World) -> None:
    """Upkeep's caller, and a session that asks for work, learn the time of the next offer."""
    session = await world.a_session(ttl=LONG)
    await a_schedule(world, 0.25)

    assert 0.0 < (await world.upkeep()).next_in <= 0.25
    assert 0.0 < (await world.work_hint(session)).due_in <= 0.25


async def test_schedule_offer__many(world: World) -> None:
    """One call offers at most its limit, and says that more are left."""
    await declare(world, None, *(a_definition(f"s{number}") for number in range(MAX_OFFERS)))
    await declare(world, None, *(a_definition(f"t{number}") for number in range(MAX_OFFERS)))

    first = await world.upkeep()
    second = await world.upkeep()

    assert (len(first.offers), first.next_in) == (MAX_OFFERS, 0.0)
    assert len({offer.name for offer in first.offers + second.offers}) == 2 * MAX_OFFERS


async def test_schedule_paused(world: World) -> None:
    """It is not offered, and a caller that was offered it before cannot fire it. Instants during the pause are not made up for."""
    offer = await due(world)
    await world.broker.admin.amend_schedule("nightly", Amendment.PAUSE)
    world.clock.advance(OFFER_TTL)
    assert await offers(world) == []
    assert await fire(world, a_firing(offer, 10.0, envelopes=(world.an_envelope(),))) == [None]
    assert (await record(world)).is_paused

    await world.pass_time(100.0)
    await world.broker.admin.amend_schedule("nightly", Amendment.RESUME)
    assert (await offered(world)).next_at is None
    assert not (await record(world)).is_paused


async def test_schedule_paused__stays_so_when_it_is_defined(world: World) -> None:
    """A deploy does not resume it."""
    session = await world.a_session(ttl=LONG)
    await a_schedule(world, session=session)
    await world.broker.admin.amend_schedule("nightly", Amendment.PAUSE)

    await declare(world, session, a_definition(version=2))

    assert await offers(world) == []
    assert (await record(world)).is_paused


async def test_schedule_fires(world: World) -> None:
    """The job is there, and the schedule has moved on."""
    offer = await due(world)
    envelope = world.an_envelope(queue="reports", headers={"tf-schedule": "nightly"})

    assert await fire(world, a_firing(offer, 60.0, envelopes=(envelope,), missed=2)) == [Added(envelope.id)]

    job = await world.record(envelope)
    assert (job.status, job.queue, job.headers) == (Status.READY, "reports", envelope.headers)
    found = await record(world)
    assert found.next_at == instant_of(offer.now + 60 * SECOND)
    assert (found.last_at, found.fired_at) == (instant_of(offer.next_at or 0), instant_of(offer.now))
    assert (found.last_id, found.fired, found.skipped, found.missed) == (envelope.id, 1, 0, 2)
    assert await offers(world) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"after": 30.0},
        {"expires": 60.0, "priority": 7, "key": "k"},
        {"timeout": 5.0, "keep_result": 9.0},
        {"tags": ("a", "b"), "max_attempts": 2},
    ],
)
async def test_schedule_fires__every_kind_of_envelope(world: World, fields: dict[str, Any]) -> None:
    """A firing's envelope is like any other."""
    offer = await due(world)
    envelope, twin = world.an_envelope(**fields), world.an_envelope(**fields | {"key": None})

    assert await fire(world, a_firing(offer, 60.0, envelopes=(envelope,))) == [Added(envelope.id)]
    await world.enqueue(twin)

    one, other = await world.record(envelope), await world.record(twin)
    assert one == msgspec.structs.replace(other, id=one.id, payload=one.payload)
    assert world.harness.tagged() == {(tag, each.id) for each in (one, other) for tag in fields.get("tags", ())}


async def test_schedule_fires__several_instants(world: World) -> None:
    """The firings of one call follow each other."""
    offer = await due(world)
    envelopes = [world.an_envelope() for _ in range(3)]
    instants = [offer.next_at, offer.now + SECOND, offer.now + 2 * SECOND, offer.now + 3 * SECOND]
    firings = [
        a_firing(offer, None, expected=expected, next_at=following, offer_at=following, envelopes=(envelope,))
        for envelope, expected, following in zip(envelopes, instants, instants[1:], strict=False)
    ]

    assert await fire(world, *firings) == [Added(envelope.id) for envelope in envelopes]

    assert (await record(world)).next_at == instant_of(offer.now + 3 * SECOND)


async def test_schedule_fires__for_the_last_time(world: World) -> None:
    """A schedule without a next instant remains, and is not offered again."""
    await fire(world, a_firing(await due(world), None, envelopes=(world.an_envelope(),)))

    await world.pass_time(LONG)

    assert await offers(world) == []
    assert (await record(world)).next_at is None


async def test_schedule_cas(world: World) -> None:
    """Of two callers that fire the same instant, one succeeds. A schedule that was removed meanwhile remains removed. Its neighbours are
    fired."""
    offer = await due(world)
    first, second = world.an_envelope(), world.an_envelope()
    gone = msgspec.structs.replace(offer, name="gone")
    assert await fire(world, a_firing(gone, 60.0), a_firing(offer, 60.0, envelopes=(first,))) == [None, Added(first.id)]
    assert await fire(world, a_firing(offer, 60.0, envelopes=(second,))) == [None]
    assert await world.read(second) is None
    assert (await record(world)).fired == 1


async def test_schedule_cas__of_another_definition(world: World) -> None:
    """What was offered before a deploy is not fired after it."""
    offer, envelope = await due(world), world.an_envelope()
    await declare(world, None, a_definition(version=2))
    assert await fire(world, a_firing(offer, 60.0, envelopes=(envelope,))) == [None]
    assert await world.read(envelope) is None


@pytest.mark.parametrize(("because", "skipped"), [("key", 1), ("id", 0)])
async def test_schedule_advances(world: World, because: Literal["key", "id"], skipped: int) -> None:
    """A run that overlaps the next instant keeps its key, and the schedule goes on. An instant whose job is there already, as after a loss
    of the latest changes, is not counted again."""
    holder = await world.add(key="overlap")
    offer = await due(world)
    envelope = holder if because == "id" else world.an_envelope(key="overlap")

    assert await fire(world, a_firing(offer, 60.0, envelopes=(envelope,))) == [Refused(envelope.id, holder.id, because)]

    found = await record(world)
    assert (found.next_at, found.fired, found.skipped) == (instant_of(offer.now + 60 * SECOND), 0, skipped)


async def test_key_replaces__when_a_schedule_fires(world: World) -> None:
    """With REPLACE, the new job replaces the waiting one."""
    holder = await world.add(key="overlap")
    envelope = world.an_envelope(key="overlap", on_conflict=OnConflict.REPLACE)

    assert await fire(world, a_firing(await due(world), 60.0, envelopes=(envelope,))) == [Added(envelope.id, replaced=holder.id)]


async def test_schedule_fires__a_flow(world: World) -> None:
    """All jobs of the flow are there, and the schedule knows the last one. A firing that is sent again adds none of them."""
    offer, flow = await due(world), a_flow(world, members=3)
    firing = a_firing(offer, 60.0, envelopes=tuple(flow.envelopes))
    last = flow.envelopes[-1].id

    assert await fire(world, firing) == [Added(last)]
    assert await fire(world, firing) == [None]

    assert [job.status for job in await world.broker.admin.flow(flow.id)] == [Status.READY] * 3 + [Status.HELD]
    found = await record(world)
    assert (found.last_id, found.fired, found.next_at) == (last, 1, instant_of(offer.now + 60 * SECOND))


async def test_schedule_fires__a_flow_of_which_a_job_is_known(world: World) -> None:
    """The rest of a flow would never end, or run twice."""
    offer, flow = await due(world), a_flow(world)
    await world.enqueue(flow.firsts[1])
    last = flow.envelopes[-1].id

    assert await fire(world, a_firing(offer, 60.0, envelopes=tuple(flow.envelopes))) == [Refused(last, last, "id")]

    assert [job.id for job in await world.broker.admin.flow(flow.id)] == [flow.firsts[1].id]
    found = await record(world)
    assert (found.fired, found.skipped, found.next_at) == (0, 0, instant_of(offer.now + 60 * SECOND))


async def test_schedule_fires__a_flow_once_among_racing_workers(world: World) -> None:
    """One of several workers that fire the same instant adds the flow. The others add none of its jobs."""
    offer, flow = await due(world), a_flow(world, members=20)
    firing = a_firing(offer, 60.0, envelopes=tuple(flow.envelopes))
    other = world.broker.sibling()
    answers = await asyncio.gather(*(broker.fire([firing]) for broker in (world.broker, other) * 3))
    if other is not world.broker:
        await other.close()

    assert sorted(map(str, answers)) == sorted(map(str, [[Added(flow.envelopes[-1].id)], *[[None]] * 5]))
    assert len(await world.broker.admin.flow(flow.id)) == 21


@pytest.mark.parametrize("end", [succeeded, failed])
async def test_schedule_alone(world: World, end: SettlementOf) -> None:
    """A flow runs while any of its jobs has not ended: a failure cancels the last job, while others still run."""
    offer, first = await due(world), a_flow(world, joins=False)
    await fire(world, a_firing(offer, 10.0, envelopes=tuple(first.envelopes)))
    one, other = await world.claim(await world.a_session(), limit=2)
    await world.settle(end(one))
    world.clock.advance(10.0)
    offer, second = await offered(world), a_flow(world)

    firing = a_firing(offer, 10.0, envelopes=tuple(second.envelopes), is_alone=True)
    assert await fire(world, firing) == [Refused(second.envelopes[-1].id, id_of(other), "key")]

    assert await world.broker.admin.flow(second.id) == []
    found = await record(world)
    assert (found.fired, found.skipped, found.last_id) == (1, 1, first.envelopes[-1].id)
    await world.settle(end(other))
    world.clock.advance(10.0)
    firing = a_firing(await offered(world), 10.0, envelopes=tuple(second.envelopes), is_alone=True)
    assert await fire(world, firing) == [Added(second.envelopes[-1].id)]


async def test_schedule_alone__within_one_call(world: World) -> None:
    """Of several instants that fire together, the first one adds its flow."""
    offer, flows = await due(world), [a_flow(world) for _ in range(3)]
    expected, firings = offer.next_at, list[Firing]()
    for number, flow in enumerate(flows, 1):
        at = (offer.next_at or 0) + number
        firings.append(a_firing(offer, None, expected=expected, next_at=at, offer_at=at, envelopes=tuple(flow.envelopes), is_alone=True))
        expected = at

    added, *refused = await fire(world, *firings)

    last = flows[0].envelopes[-1].id
    assert added == Added(last)
    assert refused == [Refused(flow.envelopes[-1].id, last, "key") for flow in flows[1:]]
    assert [len(await world.broker.admin.flow(flow.id)) for flow in flows] == [3, 0, 0]


async def test_schedule_extra(world: World) -> None:
    """A trigger adds a flow beside the schedule's instants. The next instant takes it into account."""
    await a_schedule(world)
    await world.broker.admin.amend_schedule("nightly", Amendment.PAUSE)
    before, flow, envelope = await record(world), a_flow(world), world.an_envelope()
    extra = Firing(name="nightly", digest=b"", expected=None, next_at=None, offer_at=None, is_extra=True, is_alone=True)
    flows = [msgspec.structs.replace(extra, envelopes=tuple(each.envelopes)) for each in (flow, a_flow(world))]

    assert await fire(world, msgspec.structs.replace(extra, envelopes=(envelope,))) == [Added(envelope.id)]
    assert await fire(world, flows[0]) == [Added(flow.envelopes[-1].id)]
    [refused] = await fire(world, flows[1])
    assert await fire(world, msgspec.structs.replace(flows[0], name="unknown")) == [None]

    assert isinstance(refused, Refused)
    assert (refused.existing, refused.because) == (flow.firsts[0].id, "key")
    assert await record(world) == before


async def test_schedule_full(world: World) -> None:
    """A firing that the store has no room for is made up for later."""
    other = world.limited(8)
    offer = await due(other)
    await fill(other)

    with pytest.raises(StoreFull):
        await fire(other, a_firing(offer, 60.0, envelopes=(other.an_envelope(payload=bytes(10 * other.harness.much)),)))

    assert (await record(other)).next_at == instant_of(offer.next_at or 0)


# --- the admin interface ---------------------------------------------------------------------------------------------------------------


async def test_admin_schedules(world: World) -> None:
    """The list has all schedules by name, or those requested."""
    await declare(world, None, a_definition("b", 2), a_definition("a", 1, 20_000), a_definition("ä ☃", 3))

    found = await world.broker.admin.schedules()

    assert [record.name for record in found] == ["a", "b", "ä ☃"]
    assert [Definition(record.name, record.digest, record.body) for record in found][:1] == [a_definition("a", 1, 20_000)]
    assert found[1] == ScheduleRecord(
        **a_definition("b", 2)._asdict(),
        is_declared=False,
        is_paused=False,
        next_at=None,
        last_at=None,
        fired_at=None,
        last_id=None,
        fired=0,
        skipped=0,
        missed=0,
        declarers=(),
        asleep_since=None,
    )
    assert await world.broker.admin.schedules(["ä ☃", "none"]) == [found[2]]
    assert await world.broker.admin.schedules([]) == []


async def test_admin_amend_schedule(world: World) -> None:
    """A schedule is removed, and leaves nothing behind; every action on an unknown one is refused. An action that changes nothing is no
    mistake."""
    await fire(world, a_firing(await due(world), 60.0, envelopes=(world.an_envelope(),)))
    for amendment in (Amendment.RESUME, Amendment.PAUSE, Amendment.PAUSE):
        assert await world.broker.admin.amend_schedule("nightly", amendment)
    assert await world.broker.admin.amend_schedule("nightly", Amendment.REMOVE)
    assert await world.broker.admin.schedules() == []
    assert (await world.pass_time(100.0)).offers == ()
    for amendment in Amendment:
        assert not await world.broker.admin.amend_schedule("nightly", amendment)

    await declare(world, None, a_definition())
    found = await record(world)
    assert (found.next_at, found.last_at, found.last_id, found.fired) == (None, None, None, 0)
    assert (await offered(world)).next_at is None


async def test_admin_amend_schedule__of_a_declared_one(world: World) -> None:
    """It can be removed once no session declares it."""
    session = await world.a_session(ttl=LONG)
    await a_schedule(world, session=session)
    assert not await world.broker.admin.amend_schedule("nightly", Amendment.REMOVE)
    assert await world.broker.admin.schedules() != []
    await world.beat(session, leaving=True)
    assert await world.broker.admin.amend_schedule("nightly", Amendment.REMOVE)
    assert await world.broker.admin.schedules() == []
