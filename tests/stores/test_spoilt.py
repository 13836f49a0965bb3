"""One spoilt value affects only its own job or session. tests/conformance/test_spoilt_rows.py draws values at random."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, Final

import msgpack
import pytest

from taskflow.broker.admin import View
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import SessionLost
from taskflow.model.measures import Measure, pack_measures
from taskflow.model.record import Status
from taskflow.model.session import Session
from taskflow.model.stored_values import LATEST
from taskflow.model.verdict import Settled
from tests.support.harnesses import BROKERS, MemoryHarness
from tests.support.listing import listed
from tests.support.spoiling import Spoiler, Stored, Value
from tests.support.verdicts import failed, retried, succeeded
from tests.support.world import World, ids_of


@pytest.fixture(params=[harness for harness in BROKERS if harness is not MemoryHarness], ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with World(request.param) as opened:
        yield opened


@pytest.fixture
def spoiler(world: World) -> Iterator[Spoiler]:
    opened = world.harness.spoiler()
    assert opened is not None
    with contextlib.closing(opened):
        yield opened


IN_BODIES: Final = {"extras": "sent", "joins": "sent", "errors": "state"}
"""Where a store of the engine keeps fields for which others have a column."""


def value_in(spoiler: Spoiler, owner: bytes, column: str) -> Value:
    places = {value.place: value for value in spoiler.values_of(owner)}
    return places.get(f"jobs.{column}") or places[f"jobs.{IN_BODIES[column]}"]


EXTRAS: Final[dict[str, Any]] = {
    "no msgpack": b"\xc1",
    "no map": msgpack.packb([1, 2, 3]),
    "NaN": msgpack.packb({"k": math.nan}),
    "beyond a hundred years": msgpack.packb({"k": 1e300}),
    "a text for a number": msgpack.packb({"k": "long"}),
    "None for a number": msgpack.packb({"m": None}),
    "tags that are no msgpack": b"\x81\xa1g\xc1",
    "tags that are cut off": b"\x81\xa1g",
    "a number for tags": msgpack.packb({"g": 7}),
    "tags that are no UTF-8": b"\x81\xa1g\xa3a\xff\0",
    "longer tags than there are": b"\x81\xa1g\xda\xff\xffa",
    "characters that no tag has": msgpack.packb({"g": "a b\0 \N{SKULL} " + "x" * 5_000}),
    "too many tags": msgpack.packb({"g": " ".join(map(str, range(11)))}),
}


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.sampled(2)
async def test_options_that_cannot_be_read_spoil_their_own_job(world: World, spoiler: Spoiler, extras: bytes) -> None:
    """The job is found and dropped like the others, and upkeep and purge go on past it."""
    envelopes = list[Envelope]()
    for _ in range(3):
        envelopes.append(await world.add(tags=("a",), max_attempts=3))
        world.clock.advance(1.0)
    value = value_in(spoiler, envelopes[1].id, "extras")
    assert spoiler.write(value, extras if value.place == "jobs.extras" else msgpack.packb([extras]))

    records = await listed(world.broker.admin, View(tag="a"))
    assert [(record.tags, bool(record.unreadable)) for record in records] == [(("a",), False), ((), True), (("a",), False)]
    leases = await world.claim(await world.a_session())
    assert [len(lease.unreadable) for lease in leases] == [0, 1, 0]
    assert [(lease.envelope.tags, lease.envelope.max_attempts) for lease in leases] == [(("a",), 3), ((), 10), (("a",), 3)]
    assert await world.settle(succeeded(leases[0]), failed(leases[1])) == [Settled.OK] * 2
    record = await world.record(envelopes[1])
    assert (record.status, [field.raw[:100] for field in record.unreadable]) == (Status.FAILED, [extras[:100]])
    assert await world.broker.admin.purge(View(statuses=(Status.FAILED,))) == 1
    assert await world.read(envelopes[1]) is None
    assert {each.id for each in await listed(world.broker.admin, View(tag="a"))} == {envelopes[2].id, envelopes[0].id}


ODD: Final[dict[str, Stored]] = {
    "absent": None,
    "not UTF-8": b"\xff\xc1",
    "the first instant": 0,
    "the last instant": 253_402_300_799_999_999,
    "the largest number": (1 << 63) - 1,
}


@pytest.mark.parametrize("stored", ODD.values(), ids=ODD)
@pytest.mark.sampled(2)
async def test_a_damaged_session_affects_no_other_session(world: World, spoiler: Spoiler, stored: Stored) -> None:
    """Each value in turn, if the store admits it. Other sessions beat, claim and are listed, and the spoilt session's leases are released
    in the end."""
    other = await world.a_session("other", ttl=100_000.0)
    for value in spoiler.values_of((await world.a_session("like the doomed")).id):
        doomed = await world.a_session("doomed")
        held, neighbour = await world.running(doomed), await world.running(other)
        [same] = [each for each in spoiler.values_of(doomed.id) if each.place == value.place]
        if not spoiler.write(same, stored):
            continue
        assert (await world.beat(other, neighbour)).lost == (), value.place
        assert other.id in [worker.session.id for worker in await world.broker.admin.workers()], value.place
        for _ in range(2):  # a session whose last beat cannot be read has one more ttl
            await world.lapse(doomed, beside=[other])
            await world.upkeep()
        with contextlib.suppress(SessionLost):  # it may have a valid ttl of years
            await world.die(doomed)
        async with asyncio.timeout(10):
            while not (released := await world.claim(other, [held.envelope.queue])):  # PostgreSQL misses a session's row every ten seconds
                await world.pass_time(11.0)
                await asyncio.sleep(0.01)
        assert [lease.envelope.id for lease in released] == [held.envelope.id], value.place
        assert await world.settle(succeeded(neighbour)) == [Settled.OK], value.place


HUGE: Final = 24 << 20


@pytest.mark.parametrize("column", ["extras", "joins", "errors"])
async def test_a_huge_value_of_a_waiting_job_is_neither_fetched_nor_moved_again(world: World, spoiler: Spoiler, column: str) -> None:
    """No sender can have written it. Each operation that meets it checks its length first, and its neighbours run."""
    jobs = [await world.add(tags=("a",)) for _ in range(3)]
    if not spoiler.write(value_in(spoiler, jobs[1].id, column), bytes(HUGE)):
        pytest.skip("the store cannot hold it")
    session = await world.a_session()
    tracemalloc.start()
    try:
        await world.broker.read([job.id for job in jobs])
        await listed(world.broker.admin)
        leases = await world.claim(session)
        await world.beat(session, *leases)
        await world.settle(*map(failed, leases))
        await world.upkeep()
        await listed(world.broker.admin)
        await world.broker.admin.retry([job.id for job in jobs])
        await world.broker.cancel([job.id for job in jobs])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert {lease.envelope.id for lease in leases} >= {jobs[0].id, jobs[2].id}
    assert {await world.status(job.id) for job in (jobs[0], jobs[2])} == {Status.CANCELLED}
    assert peak < HUGE / 2


IN_COLUMNS: Final[dict[str, Stored]] = {
    "absent": None,
    "the first number": -(1 << 63),
    "the last number": (1 << 63) - 1,
    "a text": "text",
    "a claim": bytes(24),
}

MOVES: Final = {
    "claim": ("waiting", Status.FAILED),
    "promote": ("scheduled", Status.READY),
    "settle": ("running", Status.SCHEDULED),
    "reap": ("running", Status.READY),
    "retry": ("failed", Status.READY),
}
"""The states of jobs when they are spoilt, and of sound jobs after the move."""


async def move(world: World, how: str, session: Session, ids: list[bytes], leases: list[Lease]) -> None:
    if how == "claim":
        await world.settle(*map(failed, await world.claim(session, limit=100)))
    elif how == "settle":
        await world.settle(*(retried(lease, 100.0) for lease in leases))
    elif how == "promote":
        await world.pass_time(1.0)
    elif how == "retry":
        await world.broker.admin.retry(ids)
    for _ in range(2 * (how == "reap")):
        await world.lapse(session)
        await world.upkeep()


async def add(world: World, kind: str, session: Session, ids: list[bytes], leases: list[Lease]) -> bytes:
    if kind in ("waiting", "scheduled"):
        fields = {"after": 1.0, "expires": 1_000_000.0} if kind == "scheduled" else {}
        ids.append((await world.add(tags=("a",), **fields)).id)
        return ids[-1]
    lease = await world.running(session, tags=("a",))
    ids.append(lease.envelope.id)
    if kind == "failed":
        await world.settle(failed(lease))
    else:
        leases.append(lease)
    return ids[-1]


@pytest.mark.parametrize("how", MOVES)
@pytest.mark.sampled(2)
async def test_a_damaged_column_of_a_job_affects_no_other_job(world: World, spoiler: Spoiler, how: str) -> None:
    """Arithmetic with it may fail: each column in turn, with each value that the store admits. All other operations go on past it too."""
    kind, expected = MOVES[how]
    for name, stored in IN_COLUMNS.items():
        session, ids, leases = await world.a_session(), list[bytes](), list[Lease]()
        one = partial(add, world, kind, session, ids, leases)
        sound = [await one()]
        for place in range(len(spoiler.columns_of(sound[0]))):
            job_id = await one()
            if not spoiler.write(spoiler.columns_of(job_id)[place], stored):
                sound.append(job_id)
        sound.append(await one())
        try:
            await move(world, how, session, ids, leases)
            for _ in range(2):
                await world.upkeep()
            assert {await world.status(job_id) for job_id in sound} == {expected}
            await listed(world.broker.admin)
            await world.broker.admin.queues()
            added = await world.add()
            taken = [*(await world.claim(other := await world.a_session(), limit=100)), *(await world.claim(other, limit=100))]
            assert added.id in ids_of(taken)
            await world.broker.cancel(ids)
            await world.die(other)
            await world.broker.admin.purge(View())
        except Exception as error:
            error.add_note(f"spoilt with {name}")
            raise


TABLE_OF_HISTORY: Final = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%history'",
    "postgres": "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename = 'history' AND schemaname = '{}'",
}


@pytest.mark.parametrize("at", [-(1 << 63), -1, (1 << 63) - 1])
async def test_a_period_at_an_impossible_time_stops_no_upkeep(world: World, at: int) -> None:
    if world.harness.name not in TABLE_OF_HISTORY:
        pytest.skip("it has no tables")
    for _ in range(2):
        await world.broker.admin.record_measures(world.an_id(), pack_measures({("default", "mail"): Measure(runs={"succeeded": 1})}))
        await world.pass_time(60.0)
    with contextlib.closing(world.harness.connect()) as connection:
        cursor = connection.cursor()
        harness: Any = world.harness
        cursor.execute(TABLE_OF_HISTORY[harness.name].format(getattr(harness, "namespace", "")))
        [table] = cursor.fetchone()
        cursor.execute(f"UPDATE {table} SET at = {at}, rolls_at = 0 WHERE at = (SELECT min(at) FROM {table})")
        assert cursor.rowcount == 1
    await world.pass_time(300.0)
    await world.broker.upkeep(100)
    [period] = await world.broker.admin.history(instant_of(0), instant_of(LATEST))
    assert period.measures["default", "mail"].runs == {"succeeded": 1}
