"""What a server keeps of schedules: their keys, what becomes of them when other programs write or delete them, and what they cost."""

from __future__ import annotations

from typing import Any, Final

import pytest
import redis

from taskflow.broker.protocol import Added
from taskflow.broker.redis import RedisBroker, RedisTarget
from taskflow.model.errors import StoreFull
from taskflow.model.schedule import MAX_OFFERED_BYTES, OFFERED_FOR, Amendment, Definition, Firing, Offer
from taskflow.model.session import Session
from tests.support.harnesses import RedisHarness
from tests.support.servers import HOST, RedisServer
from tests.support.world import World

LONG: Final = 1_000_000.0
SECOND: Final = 1_000_000
LARGE: Final = b"\x01" + bytes(20_000)


def key(world: World, name: str | bytes) -> bytes:
    assert isinstance(world.harness, RedisHarness)
    return world.harness.prefix + (name.encode() if isinstance(name, str) else name)


def a_definition(name: str = "nightly", version: int = 1) -> Definition:
    return Definition(name, bytes([version]) * 16, bytes([version]) * 10)


async def declare(world: World, session: Session | None, *definitions: Definition, age: float = 0.0) -> list[bool]:
    return await world.broker.define(definitions, None if session is None else session.id, age)


async def offers(world: World) -> dict[str, Offer]:
    found = dict[str, Offer]()
    while more := (await world.upkeep()).offers:
        found |= {offer.name: offer for offer in more}
    return found


def a_firing(offer: Offer, next_in: float, **fields: Any) -> Firing:
    next_at = offer.now + round(next_in * SECOND)
    return Firing(name=offer.name, digest=offer.digest, expected=offer.next_at, next_at=next_at, look_at=next_at, **fields)


async def schedules(world: World, *names: str, session: Session | None = None, next_in: float = 10.0) -> None:
    """Schedules whose next instant is known."""
    await declare(world, session, *map(a_definition, names))
    await world.broker.fire([a_firing(offer, next_in) for offer in (await offers(world)).values()])


def fields(world: World, client: redis.Redis, name: str = "nightly") -> dict[bytes, bytes]:
    stored: Any = client.hgetall(key(world, f"schedule:{name}"))
    return dict(stored)


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_sessions_that_declare_alike_share_one_definition(world: World, client: redis.Redis) -> None:
    sessions = [await world.a_session(str(number), ttl=LONG) for number in range(50)]
    for session in sessions:
        await declare(world, session, a_definition())
    assert [field[:5] for field in fields(world, client)].count(b"body:") == 1

    await declare(world, sessions[-1], a_definition(version=2))
    assert [field[:5] for field in fields(world, client)].count(b"body:") == 2
    await world.beat(sessions[-1], leaving=True)
    assert [field for field in fields(world, client) if field.startswith(b"body:")] == [b"body:" + a_definition().digest]


async def test_what_ends_leaves_no_key(world: World, client: redis.Redis) -> None:
    """A session without schedules has no key for them; a removed schedule and a dead session leave none."""
    plain, declarer = await world.a_session(), await world.a_session()
    await schedules(world, "nightly", session=declarer)
    await schedules(world, "put")
    assert client.exists(key(world, b"declares:" + plain.id)) == 0
    assert client.smembers(key(world, b"declares:" + declarer.id)) == {b"nightly"}

    await world.beat(declarer, leaving=True)
    for name in ("nightly", "put"):
        assert await world.broker.console.amend_schedule(name, Amendment.REMOVE)

    patterns = ("schedule:*", "declares:*", "schedules")
    assert [found for pattern in patterns for found in client.scan_iter(key(world, pattern).replace(b"[", b"\\["))] == []
    assert client.hget(key(world, "meta"), "schedules") == b"0"


async def test_the_payload_of_a_firing_that_adds_no_job_does_not_stay(world: World, client: redis.Redis) -> None:
    await schedules(world, "nightly")
    offer = (await pass_time(world, 10.0))["nightly"]
    first, second = world.an_envelope(payload=LARGE), world.an_envelope(payload=LARGE)

    assert await world.broker.fire([a_firing(offer, 60.0, envelope=first)]) == [Added(first.id)]
    assert await world.broker.fire([a_firing(offer, 60.0, envelope=second)]) == [None]

    assert [client.exists(key(world, b"b:" + envelope.id)) for envelope in (first, second)] == [1, 0]
    assert client.ttl(key(world, b"b:" + first.id)) == -1
    [lease] = await world.claim(await world.a_session())
    assert lease.envelope == first


async def pass_time(world: World, seconds: float) -> dict[str, Offer]:
    world.clock.advance(seconds)
    return await offers(world)


# --- values that no script of ours wrote ----------------------------------------------------------------------------------

ODD: Final = (b"", b"0", b"-1", b"1.5", b"nan", b"9" * 30, b"\xff\xc1" * 20, None)


@pytest.mark.parametrize("stored", ODD, ids=repr)
async def test_whatever_of_a_schedule_is_spoilt_stops_no_other(world: World, client: redis.Redis, stored: bytes | None) -> None:
    """Each field in turn. The others are offered, fired and listed, and the spoilt one can be put right."""
    session = await world.a_session(ttl=LONG)
    await schedules(world, "spoilt", session=session)
    for field in fields(world, client, "spoilt"):
        if (field, stored) == (b"asleep_since", b"0"):  # since 1970: it is removed
            continue
        await schedules(world, "sound")
        hash_key = key(world, "schedule:spoilt")
        client.hdel(hash_key, field) if stored is None else client.hset(hash_key, field, stored)

        found = await pass_time(world, 10.0)
        assert found["sound"].next_at is not None
        envelope = world.an_envelope()
        firings = [a_firing(offer, 10.0, envelope=envelope if name == "sound" else None) for name, offer in found.items()]
        assert Added(envelope.id) in await world.broker.fire(firings)
        records = await world.broker.console.schedules()
        assert {"sound", "spoilt"} == {record.name for record in records}
        await world.broker.console.amend_schedule("sound", Amendment.REMOVE)

        assert await declare(world, session, a_definition("spoilt")) in ([True], [False])
        if not (await declare(world, session, a_definition("spoilt")))[0]:  # it is not known any more that it was declared
            await world.broker.console.amend_schedule("spoilt", Amendment.REMOVE)
            assert await declare(world, session, a_definition("spoilt")) == [True]
        await world.broker.console.amend_schedule("spoilt", Amendment.RESUME)
        await world.broker.fire([a_firing(offer, 10.0) for offer in (await offers(world)).values()])


async def test_a_schedule_without_its_definition_is_looked_at_once_an_hour(world: World, client: redis.Redis) -> None:
    await schedules(world, "nightly")
    client.hdel(key(world, "schedule:nightly"), b"body:" + a_definition().digest)

    assert await pass_time(world, 10.0) == {}
    assert (await world.upkeep()).next_in > OFFERED_FOR
    assert await declare(world, None, a_definition()) == [True]
    assert set(await pass_time(world, 3_600.0)) == {"nightly"}


async def test_a_schedule_that_was_deleted_is_forgotten(world: World, client: redis.Redis) -> None:
    await schedules(world, "nightly", "other")
    client.delete(key(world, "schedule:nightly"))

    assert set(await pass_time(world, 10.0)) == {"other"}
    assert client.zscore(key(world, "schedules"), "nightly") is None
    assert client.hget(key(world, "meta"), "schedules") == b"1"


async def test_a_schedule_of_another_type_is_set_aside(world: World, client: redis.Redis) -> None:
    await schedules(world, "nightly", "other")
    client.delete(key(world, "schedule:nightly"))
    client.rpush(key(world, "schedule:nightly"), "not ours")

    assert set(await pass_time(world, 10.0)) == {"other"}
    assert list(client.scan_iter(key(world, "bad:*:schedule:nightly"))) != []
    assert await declare(world, None, a_definition()) == [True]
    assert set(await offers(world)) == {"nightly"}


@pytest.mark.parametrize("is_deleted", [True, False])
@pytest.mark.parametrize("name", ["schedules", "declares:", "meta"])
async def test_an_index_of_schedules_is_built_again(world: World, client: redis.Redis, name: str, is_deleted: bool) -> None:
    """Whichever is deleted or of another type, no schedule is forgotten, and its declarers are still known."""
    old, young = await world.a_session("old", ttl=LONG), await world.a_session("young", ttl=LONG)
    await declare(world, old, a_definition(version=1), age=60.0)
    await schedules(world, "put")
    await schedules(world, "nightly", session=young)
    await declare(world, young, a_definition(version=2))
    lost = key(world, name.encode() + (young.id if name == "declares:" else b""))
    client.delete(lost)
    if not is_deleted:
        client.xadd(lost, {"not": "ours"})

    found = dict[str, Offer]()
    for _ in range(3):
        found |= await pass_time(world, 6.0)
    assert set(found) == {"put", "nightly"}
    assert found["nightly"].digest == a_definition(version=2).digest
    if name != "declares:" or not is_deleted:
        await world.beat(young, leaving=True)
        [record] = await world.broker.console.schedules(["nightly"])
        assert (record.digest, record.declarers) == (a_definition(version=1).digest, ("old",))


async def test_a_reindex_keeps_paused_and_sleeping_schedules_as_they_are(world: World, client: redis.Redis) -> None:
    session = await world.a_session(ttl=LONG)
    await schedules(world, "sleeping", session=session)
    await schedules(world, "paused")
    await world.beat(session, leaving=True)
    await world.broker.console.amend_schedule("paused", Amendment.PAUSE)
    before = await world.broker.console.schedules()
    scored: Any = client.zrange(key(world, "schedules"), 0, -1, withscores=True)

    client.delete(key(world, "counts"))
    client.rpush(key(world, "counts"), "not ours")
    await world.add()

    assert await world.broker.console.schedules() == before
    assert client.zrange(key(world, "schedules"), 0, -1, withscores=True) == scored


# --- what they cost ---------------------------------------------------------------------------------------------------------


async def commands_of(client: redis.Redis, verb: Any) -> int:
    client.config_resetstat()
    await verb()
    stats: Any = client.info("commandstats")
    ours = {name: told["calls"] for name, told in stats.items() if name not in ("cmdstat_config|resetstat", "cmdstat_info")}
    return sum(ours.values())


async def test_schedules_that_are_not_due_cost_upkeep_no_command(world: World, client: redis.Redis) -> None:
    await world.a_session(ttl=LONG)
    await world.upkeep()
    without = await commands_of(client, world.upkeep)
    for first in range(0, 1_000, 100):
        await schedules(world, *(f"s{number}" for number in range(first, first + 100)), next_in=10_000.0)
    assert await commands_of(client, world.upkeep) == without


async def test_an_offer_takes_three_commands(world: World, client: redis.Redis) -> None:
    await world.a_session(ttl=LONG)
    await schedules(world, *(f"s{number}" for number in range(100)), next_in=20.0)
    world.clock.advance(10.0)
    without = await commands_of(client, world.upkeep)
    world.clock.advance(10.0)
    assert await commands_of(client, world.upkeep) == without + 3 * 100 + 2


async def test_a_session_declares_without_a_look_at_the_other_declarations(world: World, client: redis.Redis) -> None:
    """Otherwise the start of a fleet would cost the square of its size. They are read if the youngest session or the definition changes."""
    for age in (60.0, 0.0):
        await declare(world, await world.a_session(str(age), ttl=LONG), a_definition(), age=age)
    session = await world.a_session(ttl=LONG)
    client.config_resetstat()
    await declare(world, session, a_definition(), age=30.0)
    await declare(world, session, a_definition(), age=31.0)
    commands: Any = client.info("commandstats")
    assert "cmdstat_hgetall" not in commands


async def test_definitions_that_are_too_long_together_are_offered_in_turn(world: World) -> None:
    body = bytes(MAX_OFFERED_BYTES // 2)
    for name in "abc":
        await world.broker.define([Definition(name, bytes(16), body)])

    first, second = [await world.upkeep() for _ in range(2)]

    assert [offer.name for offer in first.offers + second.offers] == ["a", "b", "c"]
    assert (len(first.offers), first.next_in) == (2, 0.0)


# --- a full server ------------------------------------------------------------------------------------------------------------


async def test_a_full_server_refuses_firings_with_jobs_and_nothing_else_of_schedules(server: RedisServer) -> None:
    broker = RedisBroker(RedisTarget(host=HOST, port=server.port))
    session, envelope = Session(id=bytes(16), name="worker"), World(RedisHarness).an_envelope(payload=LARGE)
    try:
        await broker.register(session)
        await broker.define([a_definition()])
        [offer] = (await broker.upkeep(100)).offers
        with server.client() as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreFull):
                await broker.fire([a_firing(offer, 60.0, envelope=envelope)])
            assert client.exists(b"{taskflow:0}:b:" + envelope.id) == 0
        assert await broker.define([a_definition("declared")], session.id) == [True]
        assert await broker.fire([a_firing(offer, 60.0, missed=1)]) == [None]
        [record] = await broker.console.schedules(["nightly"])
        assert (record.missed, record.fired) == (1, 0)
    finally:
        await broker.close()
