"""Keys: at most one live job has a key, apart from a replacement that waits behind a run."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from taskflow.broker.admin import View
from taskflow.broker.engine.broker import EngineBroker
from taskflow.broker.engine.seam import Operation, Query, Scan, Snapshot
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import id_text, key_digest
from taskflow.model.limits import Gate, gate_id
from taskflow.model.record import Status
from tests.conformance.outcomes import REPLACED, WAITING_AGAIN, Outcome, check_outcome
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, handed_back, parked, retried, snoozed, succeeded
from tests.support.world import Job, World, id_of

CLIENTS: Final = 12


def replacement(world: World, **fields: Any) -> Envelope:
    return world.an_envelope(key="k", on_conflict=OnConflict.REPLACE, **fields)


async def stands(world: World, job: Job, **where: object) -> bool:
    """Whether the job has the key: another job is refused with its id."""
    other = world.an_envelope(key="k", **where)
    return await world.enqueue(other) == [Refused(other.id, id_of(job), "key")]


@pytest.mark.parametrize("fields", [{}, {"after": 60.0}, {"awaits": 1}], ids=["ready", "scheduled", "held"])
async def test_key_keeps(world: World, fields: dict[str, object]) -> None:
    """A waiting holder keeps the key, and nothing is added."""
    holder, other = await world.add(key="k", **fields), world.an_envelope(key="k")
    assert await world.enqueue(other) == [Refused(other.id, holder.id, "key")]
    assert await world.read(other) is None


async def test_key_keeps__running(world: World) -> None:
    """A running holder keeps the key. A job that waits behind it is named instead: the caller's job would have taken its place."""
    lease = await world.running(queue="default", key="k")
    assert await stands(world, lease)
    behind = replacement(world)
    await world.enqueue(behind)
    assert await stands(world, behind)


async def test_key_keeps__one_key_is_not_another(world: World) -> None:
    """The same word is another key in another queue or for another job."""
    await world.add(key="k")

    for fields in ({"key": "other"}, {"key": "k", "queue": "other"}, {"key": "k", "job": "other"}, {}):
        [answer] = await world.enqueue(world.an_envelope(**fields))
        assert isinstance(answer, Added)


async def test_key_keeps__within_a_batch(world: World) -> None:
    """The first of a batch has the key, and the second is refused with the first's id."""
    first, second = world.an_envelope(key="k"), world.an_envelope(key="k")

    assert await world.enqueue(first, second) == [Added(first.id), Refused(second.id, first.id, "key")]


async def test_key_neighbours(world: World) -> None:
    """A refused item leaves the others of its batch alone, in their order."""
    holder = await world.add(key="k")
    before, refused, after = world.an_envelope(), world.an_envelope(key="k"), world.an_envelope()

    answers = await world.enqueue(before, refused, after)

    assert answers == [Added(before.id), Refused(refused.id, holder.id, "key"), Added(after.id)]
    assert [await world.status(job) for job in (before, after)] == [Status.READY] * 2


async def _is_free(world: World) -> bool:
    [answer] = await world.enqueue(world.an_envelope(key="k"))
    return isinstance(answer, Added)


@pytest.mark.parametrize("settlement", [succeeded, failed, discarded, cancelled])
async def test_key_released__by_a_verdict(world: World, settlement: SettlementOf) -> None:
    """Every verdict that ends the job frees its key."""
    await world.settle(settlement(await world.running(queue="default", key="k")))
    assert await _is_free(world)


@pytest.mark.parametrize("end", ["cancelled", "expired", "purged"])
async def test_key_released__while_it_waited(world: World, end: str) -> None:
    """A job that ends without having run frees its key."""
    holder = await world.add(key="k", expires=30.0)
    if end == "cancelled":
        await world.cancel(holder)
    elif end == "expired":
        await world.pass_time(60.0)
    else:
        await world.broker.admin.purge(View())
    assert await _is_free(world)


@pytest.mark.parametrize("settlement", [retried, snoozed, parked, None])
async def test_key_survives_retry(world: World, settlement: SettlementOf | None) -> None:
    """A job that waits for another run, or whose worker was lost, keeps its key, and runs again with it."""
    session = await world.a_session()
    lease = await world.running(session, queue="default", key="k")
    if settlement is None:
        await world.reap(session)
    else:
        await world.settle(settlement(lease, 60.0))
        assert await world.status(lease) is Status.SCHEDULED
    assert await stands(world, lease)
    await world.pass_time(60.0)
    assert await world.claim(await world.a_session())
    assert await stands(world, lease)


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
    """A replacement that is sent again because its answer was lost is refused because of its own id, and replaces nothing."""
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


async def _behind(world: World, **fields: object) -> tuple[Lease, Envelope]:
    """Return a run, and the replacement that waits behind it."""
    lease = await world.running(queue="default", key="k")
    new = replacement(world, **fields)
    assert await world.enqueue(new) == [Added(new.id, replaced=None)]
    return lease, new


async def test_key_replaces__many_clients(world: World) -> None:
    """All of them succeed, and none gives way to the others again and again. Each replaces one other client's job."""
    brokers = [world.broker.sibling() for _ in range(CLIENTS)]

    async def send(broker: Broker) -> list[Added | Refused]:
        return [(await broker.enqueue([replacement(world)]))[0] for _ in range(10)]

    sent = [answer for answers in await asyncio.gather(*map(send, brokers)) for answer in answers]
    assert all(isinstance(answer, Added) for answer in sent)
    assert len({answer.replaced for answer in sent if isinstance(answer, Added)}) == len(sent) == 10 * CLIENTS
    for broker in brokers:
        await broker.close()


async def test_key_waits_behind__held_while_it_runs(world: World) -> None:
    """While the holder runs, its replacement is HELD, shows why, and is not claimed; the run goes on."""
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
    """When the run has ended, its replacement is READY, waits for nothing else, and is claimed."""
    lease, new = await _behind(world)

    await world.settle(settlement(lease))

    record = await world.record(new)
    assert (record.status, record.waiting_for, record.behind) == (Status.READY, None, None)
    assert [leased.envelope.id for leased in await world.claim(await world.a_session())] == [new.id]


@pytest.mark.parametrize("awaits", [0, 1])
async def test_key_waits_behind__whatever_joins_it(world: World, awaits: int) -> None:
    """Not even more joiners than it awaits release it while the holder runs."""
    lease, new = await _behind(world, awaits=awaits)

    for _ in range(awaits + 2):
        await world.cancel(await world.add(joins=(new.id,)))

    assert await world.status(new) is Status.HELD
    await world.settle(succeeded(lease))
    assert await world.status(new) is Status.READY


CONFLICTS = pytest.mark.parametrize("on_conflict", list(OnConflict))


async def _asked_to_stop(world: World) -> Lease:
    lease = await world.running(queue="default", key="k")
    await world.cancel(lease)
    return lease


@CONFLICTS
async def test_key_cancelled(world: World, on_conflict: OnConflict) -> None:
    """The new job is added while the old one still runs, is HELD and shows why, and is not claimed."""
    lease = await _asked_to_stop(world)
    new = world.an_envelope(key="k", on_conflict=on_conflict)

    assert await world.enqueue(new) == [Added(new.id, replaced=None)]

    record = await world.record(new)
    assert (record.status, record.waiting_for) == (Status.HELD, f"job {id_text(lease.envelope.id)}, which is running with the same key")
    assert await world.claim(await world.a_session()) == []
    assert await world.status(lease) is Status.RUNNING


@CONFLICTS
@pytest.mark.parametrize("settlement", [succeeded, failed, cancelled, retried, snoozed, parked, handed_back])
async def test_key_cancelled__until_that_run_has_ended(world: World, settlement: SettlementOf, on_conflict: OnConflict) -> None:
    """However the run that was asked to stop ends, it does not run again, and the new job is READY."""
    lease = await _asked_to_stop(world)
    new = world.an_envelope(key="k", on_conflict=on_conflict)
    await world.enqueue(new)

    await world.settle(settlement(lease))

    assert (await world.record(lease)).status.is_ended
    assert [leased.envelope.id for leased in await world.claim(await world.a_session())] == [new.id]


async def test_key_cancelled__one_behind_it_at_most(world: World) -> None:
    """The job that waits behind the run has the key: a third one is refused with its id, or replaces it."""
    lease = await _asked_to_stop(world)
    new = await world.add(key="k")

    assert await stands(world, new)
    newest = replacement(world)
    assert await world.enqueue(newest) == [Added(newest.id, replaced=new.id)]
    assert [await world.status(job) for job in (lease, new, newest)] == [Status.RUNNING, Status.CANCELLED, Status.HELD]


@pytest.mark.parametrize("outcome", WAITING_AGAIN, ids=str)
async def test_key_gives_way(world: World, outcome: Outcome) -> None:
    """A run that would wait again ends CANCELLED in favour of the replacement behind it, which is READY."""
    await check_outcome(world, outcome, REPLACED)


@pytest.mark.parametrize("way", ["gives way", "is poison", "was asked to stop"])
async def test_key_gives_way__after_a_crash(world: World, way: str) -> None:
    """A job whose worker was lost does not run again if a replacement waits behind it. The replacement is READY."""
    world = world.under(max_crashes=0 if way == "is poison" else 3)
    session = await world.a_session()
    lease = await world.running(session, queue="default", key="k")
    if way == "was asked to stop":
        await world.cancel(lease)
    new = replacement(world)
    await world.enqueue(new)

    await world.reap(session)

    reasons = {"gives way": f"replaced by {id_text(new.id)}", "was asked to stop": "cancelled"}
    record = await world.record(lease)
    assert record.status is (Status.FAILED if way == "is poison" else Status.CANCELLED)
    assert record.reason == reasons.get(way, record.reason)
    assert await world.status(new) is Status.READY


# --- holders ----------------------------------------------------------------------------------------------------------

KEY = key_digest("default", "work", "k")


@pytest.mark.parametrize("fields", [{}, {"after": 60.0}, {"awaits": 1}], ids=["ready", "scheduled", "held"])
async def test_holders_waiting(world: World, fields: dict[str, object]) -> None:
    """A waiting job is found by its key, and by no other key. An ended job with the key is not."""
    await world.cancel(await world.add(key="k"))
    holder = await world.add(key="k", **fields)
    other = await world.add(key="k", queue="other")

    keys = [KEY, bytes(16), key_digest("other", "work", "k"), KEY]

    assert await world.broker.holders(keys) == [holder.id, None, other.id, holder.id]
    assert await world.broker.holders([]) == []


async def test_holders_waiting__behind_a_run(world: World) -> None:
    """The replacement that waits behind a run is found, as by an enqueue."""
    await world.running(queue="default", key="k")
    behind = replacement(world)
    await world.enqueue(behind)
    assert await world.broker.holders([KEY]) == [behind.id]


async def test_holders_running(world: World) -> None:
    """A run is found until it has ended, also when it is asked to stop."""
    lease = await world.running(queue="default", key="k")
    assert await world.broker.holders([KEY]) == [lease.envelope.id]
    await world.cancel(lease)
    assert await world.broker.holders([KEY]) == [lease.envelope.id]


async def test_holders_none(world: World) -> None:
    """Nothing is found once the holder has ended, whether it ran or not, or where there never was one."""
    await world.settle(cancelled(await world.running(queue="default", key="k")))
    await world.cancel(await world.add(key="waited"))
    assert await world.broker.holders([key_digest("default", "work", key) for key in ("k", "waited", "other")]) == [None] * 3


# --- throttle ---------------------------------------------------------------------------------------------------------


def throttled(world: World, seconds: float = 60.0, **fields: Any) -> Envelope:
    return world.an_envelope(key="k", throttle=seconds, **fields)


def _fading() -> Operation[int]:
    seen: Snapshot = yield Query(scans=(Scan("fading", 10),))
    return len(seen.scans[0])


async def _remembered(world: World) -> int:
    """Return how many calls the store remembers."""
    return await world.broker.run(_fading()) if isinstance(world.broker, EngineBroker) else 0


async def _first(world: World, **fields: Any) -> Envelope:
    first = throttled(world, queue="default", **fields)
    assert await world.enqueue(first) == [Added(first.id)]
    return first


@pytest.mark.parametrize("end", ["waits", "runs", "succeeds", "fails", "cancelled", "purged", "forgotten"])
async def test_throttle_first(world: World, end: str) -> None:
    """The first job answers the calls of its window, however it has ended, and no later call."""
    first = await _first(world, keep_result=0.0)
    if end in ("runs", "succeeds", "fails", "forgotten"):
        [lease] = await world.claim(await world.a_session())
        if end != "runs":
            await world.settle(failed(lease) if end == "fails" else succeeded(lease))
    if end == "cancelled":
        await world.cancel(first)
    if end in ("purged", "fails"):
        await world.broker.admin.purge(View())
    await world.pass_time(59.0 if end != "forgotten" else 1.0)

    second = throttled(world)
    assert await world.enqueue(second) == [Refused(second.id, first.id, "key")]
    assert await world.read(second) is None

    await world.pass_time(60.0)
    third = throttled(world)
    [answer] = await world.enqueue(third)
    assert answer == (Refused(third.id, first.id, "key") if end in ("waits", "runs") else Added(third.id))


async def test_throttle_first__longer_than_ids_are_known(world: World) -> None:
    """An hour later, when all else of the job has been forgotten, it still answers the calls of its window."""
    first = await _first(world, seconds=7_200.0, keep_result=0.0)
    [lease] = await world.claim(await world.a_session())
    await world.settle(succeeded(lease))
    await world.pass_time(3_600.0)

    second = throttled(world, 7_200.0)
    assert await world.enqueue(second) == [Refused(second.id, first.id, "key")]


async def test_throttle_first__of_one_batch_and_sent_again(world: World) -> None:
    """The first of a batch is added. Sent again, it is known by its id, and begins no other window."""
    first, second = throttled(world), throttled(world)
    assert await world.enqueue(first, second) == [Added(first.id), Refused(second.id, first.id, "key")]
    await world.pass_time(50.0)
    assert await world.enqueue(first) == [Refused(first.id, first.id, "id")]
    await world.cancel(first)
    await world.pass_time(11.0)
    [answer] = await world.enqueue(third := throttled(world))
    assert answer == Added(third.id)


async def test_throttle_first__leaves_other_calls_alone(world: World) -> None:
    """Neither another key nor a call without `throttle` waits for the end of the window."""
    first = await _first(world)
    await world.cancel(first)
    for other in (world.an_envelope(key="other", throttle=60.0), world.an_envelope(key="k")):
        assert await world.enqueue(other) == [Added(other.id)]


async def test_throttle_first__many_clients(world: World) -> None:
    """If many clients send at once, one job is added, and all others get its id."""
    brokers = [world.broker.sibling() for _ in range(CLIENTS)]
    envelopes = [throttled(world) for _ in brokers]

    answers = await asyncio.gather(*(broker.enqueue([envelope]) for broker, envelope in zip(brokers, envelopes, strict=True)))

    [first] = [answer.id for [answer] in answers if isinstance(answer, Added)]
    assert [answer.existing for [answer] in answers if isinstance(answer, Refused)] == [first] * (CLIENTS - 1)
    for broker in brokers:
        await broker.close()


async def test_throttle_first__leaves_nothing_behind(world: World) -> None:
    """What remembers a window is dropped after it."""
    await world.cancel(await _first(world))
    await world.pass_time(3_600.0)
    assert await _remembered(world) == 0


# --- debounce ---------------------------------------------------------------------------------------------------------


def debounced(world: World, after: float = 5.0, **fields: Any) -> Envelope:
    return world.an_envelope(key="k", on_conflict=OnConflict.DEBOUNCE, after=after, **fields)


async def _payloads(world: World) -> dict[bytes, bytes]:
    leases = await world.claim(await world.a_session())
    return {lease.envelope.id: lease.envelope.payload for lease in leases}


async def test_debounce_last(world: World) -> None:
    """One job runs, once no call has arrived for `after` seconds, with the arguments and options of the last call."""
    first = debounced(world, payload=b"\x01first", tags=("a",))
    assert await world.enqueue(first) == [Added(first.id)]
    for number in range(5):
        await world.pass_time(3.0)
        assert await world.claim(await world.a_session()) == []
        call = debounced(world, payload=b"\x01%d" % number + bytes(900 * (number % 2)), headers={"n": str(number)}, tags=("b",))
        assert await world.enqueue(call) == [Refused(call.id, first.id, "key")]
        assert await world.read(call) is None

    await world.pass_time(5.0)
    [lease] = await world.claim(await world.a_session())
    sent = lease.envelope
    assert (sent.id, sent.payload, sent.headers, sent.tags) == (first.id, b"\x014", {"n": "4"}, ("b",))
    assert [page.id for page in (await world.broker.admin.page(View(tag="a"))).records] == []
    assert [page.id for page in (await world.broker.admin.page(View(tag="b"))).records] == [first.id]


async def test_debounce_last__at_most(world: World) -> None:
    """However often calls arrive, the job is due `at_most` seconds after its creation."""
    first = last = debounced(world, at_most=12.0)
    await world.enqueue(first)
    for _ in range(4):
        await world.pass_time(2.9)
        await world.enqueue(last := debounced(world, at_most=12.0))
    assert await world.claim(await world.a_session()) == []
    await world.pass_time(0.5)
    assert await _payloads(world) == {first.id: last.payload}


@pytest.mark.parametrize("fields", [{}, {"awaits": 1}, {"after": 2.0}], ids=["ready", "held", "scheduled"])
async def test_debounce_last__any_waiting_holder(world: World, fields: dict[str, Any]) -> None:
    """A holder that was sent without `debounce` is merged too. A READY one keeps its place, a HELD one remains HELD."""
    holder = await world.add(key="k", **fields)
    found = await world.status(holder)
    await world.enqueue(call := debounced(world, payload=b"\x01new"))
    assert await world.status(holder) is found
    if "awaits" in fields:
        await world.cancel(await world.add(joins=(holder.id,)))
    await world.pass_time(0.0 if not fields else 6.0)
    assert await _payloads(world) == {holder.id: call.payload}


@pytest.mark.parametrize("after", [0.0, 2.0], ids=["ready", "scheduled"])
async def test_debounce_last__limits(world: World, after: float) -> None:
    """The limits are those of the last call. A READY holder gives back the slots of its former limits, and is due later."""
    former, latter = (Gate(gate_id("limit", key), "limit", key, 1) for key in "ab")
    holder = await world.add(key="k", after=after, limits=(former,))
    await world.enqueue(debounced(world, limits=(latter,)))
    assert await world.status(holder) is Status.SCHEDULED
    assert await world.status(await world.add(limits=(former,))) is Status.READY
    other = await world.add(limits=(latter,))
    await world.pass_time(5.0)
    assert [await world.status(job) for job in (other, holder)] == [Status.READY, Status.SCHEDULED]
    assert (await world.record(holder)).waiting_for == "limit limit of b"
    await world.cancel(other)
    assert await world.status(holder) is Status.READY


async def test_debounce_last__waits_behind_a_run(world: World) -> None:
    """While a run has the key, the first call is added and waits behind it; further ones are merged into that job."""
    lease = await world.running(queue="default", key="k")
    first, second = debounced(world), debounced(world, payload=b"\x01second")
    assert await world.enqueue(first, second) == [Added(first.id), Refused(second.id, first.id, "key")]
    await world.pass_time(60.0)
    assert await world.claim(await world.a_session()) == []
    await world.settle(succeeded(lease))
    assert await _payloads(world) == {first.id: b"\x01second"}


async def test_debounce_last__sent_again(world: World) -> None:
    """A call whose answer was lost gets it again, and undoes nothing of a later one, even once the job has ended."""
    first, second, third = (debounced(world, payload=b"\x01%d" % n) for n in range(3))
    await world.enqueue(first)
    await world.enqueue(second)
    await world.enqueue(third)
    assert await world.enqueue(second) == [Refused(second.id, first.id, "key")]
    assert await world.enqueue(first) == [Refused(first.id, first.id, "id")]
    await world.pass_time(6.0)
    [lease] = await world.claim(await world.a_session())
    assert lease.envelope.payload == third.payload
    await world.settle(succeeded(lease))
    assert await world.enqueue(second) == [Refused(second.id, first.id, "key")]
    assert await world.claim(await world.a_session()) == []
    await world.pass_time(3_600.0)
    assert await _remembered(world) == 0


async def test_debounce_last__in_one_batch(world: World) -> None:
    """The last call of a batch is merged into the first one, which is not stored yet, also while that waits at a limit."""
    limits = (Gate(b"g" * 16, "limit", "", 1),)
    await world.add(limits=limits)
    for after, gates in ((9.0, ()), (0.0, limits)):
        first, last = [
            world.an_envelope(
                key=str(after), on_conflict=OnConflict.DEBOUNCE, at_most=5.0, after=after, limits=gates, payload=b"\x01%d" % number
            )
            for number in range(2)
        ]
        assert await world.enqueue(first, last) == [Added(first.id), Refused(last.id, first.id, "key")]
        assert (await world.record(first)).payload == b"\x011"


async def test_debounce_last__begins_afresh(world: World) -> None:
    """A job that waits for its retry has new arguments, so its attempts are counted from the first again."""
    lease = await world.running(queue="default", key="k")
    await world.settle(retried(lease, 60.0))
    await world.enqueue(debounced(world, payload=b"\x01new"))
    await world.pass_time(5.0)
    [again] = await world.claim(await world.a_session())
    assert (again.envelope.id, again.failures, again.envelope.payload) == (lease.envelope.id, 0, b"\x01new")


async def test_debounce_last__many_clients(world: World) -> None:
    """If many clients send at once, one job is added, and its arguments are those of one of them."""
    brokers = [world.broker.sibling() for _ in range(CLIENTS)]
    envelopes = [debounced(world) for _ in brokers]

    answers = await asyncio.gather(*(broker.enqueue([envelope]) for broker, envelope in zip(brokers, envelopes, strict=True)))

    assert sum(isinstance(answer, Added) for [answer] in answers) == 1
    await world.pass_time(5.0)
    [(_, payload)] = (await _payloads(world)).items()
    assert payload in {envelope.payload for envelope in envelopes}
    for broker in brokers:
        await broker.close()
