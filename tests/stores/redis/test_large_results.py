"""Large results are kept apart from their jobs: no script reads them, none is left behind, none is lost or replaced."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import pytest
import redis

from taskflow.broker.console import View
from taskflow.broker.protocol import Refused
from taskflow.broker.redis import RedisBroker, RedisTarget
from taskflow.broker.redis.errors import WrongType
from taskflow.broker.redis.fields import MARK
from taskflow.broker.redis.large_payloads import INLINE_RESULT, LargePayloads
from taskflow.broker.redis.settle import MOST_RESULT, MOST_SETTLED
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerUnavailable, StoreFull
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.stores.redis.scene import Scene
from tests.support.harnesses import RedisHarness
from tests.support.listing import listed
from tests.support.servers import HOST, RedisServer
from tests.support.verdicts import failed, retried, succeeded
from tests.support.world import World

LARGE: Final = b"\x01" + bytes(range(256)) * 40
OTHER: Final = b"\x02" + LARGE[1:]


def key(world: World, kind: str, job_id: bytes = b"") -> bytes:
    assert isinstance(world.harness, RedisHarness)
    return world.harness.prefix + f"{kind}:".encode() + job_id


def apart(world: World, client: redis.Redis, lease: Lease) -> Any:
    return client.get(key(world, "o", lease.envelope.id))


def keys_of_results(world: World, client: redis.Redis) -> list[bytes]:
    found: Any = client.keys(key(world, "o") + b"*")
    return [bytes(name) for name in found]


@pytest.mark.parametrize("payload", [b"\x01small", LARGE], ids=["small payload", "large payload"])
@pytest.mark.parametrize("fields", [{}, {"key": "k"}], ids=["plain", "with a key"])
async def test_a_large_result_is_apart_from_its_job_until_it_is_dropped(
    world: World, client: redis.Redis, fields: dict[str, Any], payload: bytes
) -> None:
    session = await world.a_session()
    small, large = await world.running(session), await world.running(session, payload=payload, **fields)
    await world.settle(succeeded(small, bytes(INLINE_RESULT)), succeeded(large, LARGE, keep_for=60.0))
    assert apart(world, client, small) is None
    assert apart(world, client, large) == LARGE
    assert client.ttl(key(world, "o", large.envelope.id)) == -1
    stored: Any = client.get(key(world, "j", large.envelope.id))
    assert len(stored) < 200
    assert not client.exists(key(world, "b", large.envelope.id))
    assert [(await world.record(lease)).result for lease in (small, large)] == [bytes(INLINE_RESULT), LARGE]
    found = await listed(world.broker.console, View(statuses=(Status.SUCCEEDED,)))
    assert {record.result for record in found} == {bytes(INLINE_RESULT), LARGE}

    await world.pass_time(61.0)
    assert await world.read(large) is None
    assert keys_of_results(world, client) == []


async def test_a_success_after_failures_and_a_retry(world: World, client: redis.Redis) -> None:
    lease = await world.running(payload=LARGE)
    await world.settle(retried(lease))
    await world.pass_time(1_000.0)
    [again] = await world.claim(await world.a_session())
    await world.settle(failed(again))
    await world.broker.console.retry([lease.envelope.id])
    [last] = await world.claim(await world.a_session())
    assert last.envelope.payload == LARGE
    await world.settle(succeeded(last, OTHER))
    assert ((await world.record(last)).result, (await world.record(last)).payload) == (OTHER, None)


async def test_no_result_stays_that_nobody_keeps(world: World, client: redis.Redis) -> None:
    """A job with keep_result=0, a purged one, and one that its queue has no place for."""
    crowded = world.under(kept_per_queue=2)
    leases = [await crowded.running(queue="q", payload=LARGE) for _ in range(3)]
    await crowded.settle(*(succeeded(lease, LARGE) for lease in leases))
    await crowded.upkeep()
    assert len(keys_of_results(crowded, client)) == 2
    unkept, purged = await world.running(), await world.running()
    await world.settle(succeeded(unkept, LARGE, keep_for=0.0), succeeded(purged, LARGE))
    await world.upkeep()
    assert await world.broker.console.purge(View()) == 1
    assert keys_of_results(world, client) == []


async def test_a_worker_that_lost_its_lease_replaces_no_result(world: World, client: redis.Redis) -> None:
    session = await world.a_session()
    stale = await world.running(session, payload=LARGE)
    await world.die(session)
    await world.pass_time(world.rules.crash_backoff[0])
    assert await world.settle(succeeded(stale, OTHER)) == [Settled.STALE]
    [lease] = await world.claim(await world.a_session())
    assert await world.settle(succeeded(lease, LARGE)) == [Settled.OK]
    assert await world.settle(succeeded(stale, OTHER)) == [Settled.STALE]
    assert (await world.record(lease)).result == LARGE
    [refused] = [name for name in keys_of_results(world, client) if name != key(world, "o", lease.envelope.id)]
    assert 0 < client.ttl(refused) <= 600


@pytest.mark.parametrize("fields", [{}, {"key": "k"}], ids=["plain", "with a key"])
async def test_what_comes_again_changes_nothing(world: World, client: redis.Redis, fields: dict[str, Any]) -> None:
    """A settlement, an enqueue, and a settlement of a job that is no longer kept."""
    lease = await world.running(payload=LARGE, **fields)
    settlement = succeeded(lease, LARGE, keep_for=60.0)
    assert [await world.settle(settlement), await world.settle(settlement)] == [[Settled.OK]] * 2
    assert await world.enqueue(lease.envelope) == [Refused(lease.envelope.id, lease.envelope.id, "id")]
    assert (await world.record(lease)).result == LARGE
    assert client.ttl(key(world, "o", lease.envelope.id)) == -1
    await world.pass_time(61.0)
    assert await world.settle(settlement) == [Settled.OK]
    assert apart(world, client, lease) is None


async def test_one_job_settled_twice_in_a_call(world: World) -> None:
    lease = await world.running()
    assert await world.settle(succeeded(lease, LARGE), succeeded(lease, LARGE)) == [Settled.OK] * 2
    assert (await world.record(lease)).result == LARGE


@pytest.mark.parametrize("fields", [{}, {"key": "k"}], ids=["plain", "with a key"])
async def test_a_result_that_is_lost_before_its_settlement_goes_with_it(
    world: World, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    leases = [await world.running(**fields), await world.running()]
    ahead = LargePayloads.results_ahead

    def lose_the_first(payloads: LargePayloads, results: dict[bytes, bytes]) -> list[Any]:
        [(verb, name, result, *_), *others] = ahead(payloads, results)
        return [(verb, name, result, "PXAT", 1), *others]

    with monkeypatch.context() as patch:
        patch.setattr(LargePayloads, "results_ahead", lambda payloads, results: results and lose_the_first(payloads, results))
        assert await world.settle(*(succeeded(lease, LARGE) for lease in leases)) == [Settled.OK] * 2
    assert [(await world.record(lease)).result for lease in leases] == [LARGE] * 2
    assert keys_of_results(world, client) == []


async def test_what_the_scripts_are_sent_and_answer_is_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, session = list[int](), await world.a_session()
    call = RedisBroker.call

    async def spied(broker: RedisBroker, name: str, arguments: bytes, **options: Any) -> Any:
        reply = await call(broker, name, arguments, **options)
        sent.append(len(arguments) + sum(len(part) for part in reply or () if isinstance(part, bytes)))
        return reply

    monkeypatch.setattr(RedisBroker, "call", spied)
    for fields in ({}, {"key": "k"}):
        lease = await world.running(session, **fields)
        await world.settle(succeeded(lease, LARGE))
        assert (await world.record(lease)).result == LARGE
    assert max(sent) < 1_000


async def test_results_that_look_like_references(world: World) -> None:
    """No codec of ours makes such, but a broker carries any bytes."""
    odd = [MARK + (5).to_bytes(4), MARK, MARK + bytes(100)]
    session = await world.a_session()
    leases = [await world.running(session, key="k"), await world.running(session), await world.running(session)]
    await world.settle(*map(succeeded, leases, odd))
    assert [(await world.record(lease)).result for lease in leases] == odd


def _is_gone(client: redis.Redis, name: bytes) -> None:
    client.delete(name)


def _is_a_set(client: redis.Redis, name: bytes) -> None:
    client.delete(name)
    client.sadd(name, "of no use")


def _has_grown(client: redis.Redis, name: bytes) -> None:
    client.append(name, b"more")


def _is_cut(client: redis.Redis, name: bytes) -> None:
    client.set(name, LARGE[:5])


@pytest.mark.parametrize(
    ("spoil", "problem", "shown"),
    [
        (_is_gone, "it is gone from the server", b""),
        (_is_a_set, "its key is not a string", b""),
        (_has_grown, f"expected {len(LARGE)} bytes, got more", LARGE + b"m"),
        (_is_cut, f"expected {len(LARGE)} bytes, got 5", LARGE[:5]),
    ],
)
async def test_a_result_that_was_altered_is_named_and_spoils_no_other(
    world: World, client: redis.Redis, spoil: Any, problem: str, shown: bytes
) -> None:
    session = await world.a_session()
    spoilt, sound = await world.running(session), await world.running(session)
    await world.settle(succeeded(spoilt, LARGE, keep_for=60.0), succeeded(sound, LARGE, keep_for=60.0))
    spoil(client, key(world, "o", spoilt.envelope.id))
    record = await world.record(spoilt)
    assert ([str(field) for field in record.unreadable], record.result) == ([f"result: {problem}"], shown)
    assert ((await world.record(sound)).unreadable, (await world.record(sound)).result) == ((), LARGE)
    await world.pass_time(61.0)
    assert keys_of_results(world, client) == []


async def test_a_record_that_was_set_aside_takes_its_result_with_it(world: World, client: redis.Redis) -> None:
    lease = await world.running()
    await world.settle(succeeded(lease, LARGE))
    client.append(key(world, "j", lease.envelope.id), b"\xff@")
    assert (await world.record(lease)).status is Status.FAILED
    await world.upkeep()
    await world.broker.console.purge(View())
    assert keys_of_results(world, client) == []


async def test_indexes_made_anew_leave_results_alone_and_let_orphans_expire(world: World, client: redis.Redis) -> None:
    session = await world.a_session()
    gone, there = await world.running(session), await world.running(session)
    await world.settle(succeeded(gone, LARGE), succeeded(there, LARGE))
    client.delete(key(world, "j", gone.envelope.id), key(world, "fade")[:-1])
    client.set(key(world, "fade")[:-1], "no set")
    await world.upkeep()
    assert (await world.record(there)).result == LARGE
    assert client.ttl(key(world, "o", there.envelope.id)) == -1
    assert client.ttl(key(world, "o", gone.envelope.id)) > 0


@pytest.mark.parametrize(("fields", "wrong"), [({}, "fade"), ({"key": "k"}, "keys")], ids=["plain", "with a key"])
async def test_a_settlement_that_fails_half_way_comes_again_whole(
    world: World, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], wrong: str
) -> None:
    lease = await world.running(payload=LARGE, **fields)
    client.delete(key(world, wrong)[:-1])
    client.set(key(world, wrong)[:-1], "of no use")
    reindex = RedisBroker._reindex

    async def mend_then_fail(broker: RedisBroker, error: WrongType) -> None:
        await reindex(broker, error)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(RedisBroker, "_reindex", mend_then_fail)
        with pytest.raises(WrongType):
            await world.settle(succeeded(lease, OTHER))
    assert apart(world, client, lease) is None
    assert (await world.record(lease)).payload == LARGE
    assert await world.settle(succeeded(lease, OTHER)) == [Settled.OK]
    assert (await world.record(lease)).result == OTHER


async def test_more_than_one_call_takes(world: World) -> None:
    session = await world.a_session()
    await world.enqueue(*(world.an_envelope() for _ in range(MOST_SETTLED + 1)))
    leases = await world.claim(session)
    results = [LARGE + bytes([number % 256]) for number in range(len(leases))]
    assert await world.settle(*map(succeeded, leases, results)) == [Settled.OK] * (MOST_SETTLED + 1)
    records = await world.broker.read([lease.envelope.id for lease in leases])
    assert [record and record.result for record in records] == results


async def test_a_result_beyond_what_a_record_may_have_is_refused_before_it_is_sent(world: World, client: redis.Redis) -> None:
    lease = await world.running(key="k")
    with pytest.raises(ValueError, match=f"at most {MOST_RESULT:,} bytes, got"):
        await world.settle(succeeded(lease, bytes(MOST_RESULT + 1)))
    assert keys_of_results(world, client) == []


async def test_a_full_server_takes_results_with_their_settlements(world: World, client: redis.Redis) -> None:
    session = await world.a_session()
    *large, odd = [await world.running(session), await world.running(session, key="k"), await world.running(session)]
    looks_like_a_reference = succeeded(odd, MARK + bytes(4))
    client.config_set("maxmemory", 1)
    try:
        assert await world.settle(*(succeeded(lease, LARGE) for lease in large)) == [Settled.OK] * 2
        assert [(await world.record(lease)).result for lease in large] == [LARGE] * 2
        with pytest.raises(StoreFull):  # the worker offers it again until there is room
            await world.settle(looks_like_a_reference)
    finally:
        client.config_set("maxmemory", 0)
    assert keys_of_results(world, client) == []
    assert await world.settle(looks_like_a_reference) == [Settled.OK]


async def test_a_server_that_was_killed_has_what_it_acknowledged() -> None:
    with RedisServer(aof=True, appendfsync="always") as server:
        async with World(RedisHarness) as makes:
            envelope, session = makes.an_envelope(payload=LARGE), makes.an_unregistered_session()
        broker = RedisBroker(RedisTarget(host=HOST, port=server.port, fsync=True))
        await broker.enqueue([envelope])
        await broker.register(session)
        [lease] = await broker.claim(session.id, 1, [], 1)
        assert await broker.settle([succeeded(lease, OTHER)]) == [Settled.OK]
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        with contextlib.suppress(BrokerUnavailable):
            await broker.read([envelope.id])
        [record] = await broker.read([envelope.id])
        assert record is not None
        assert record.result == OTHER
        await broker.close()


async def test_a_caller_that_waits_gets_a_large_result(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message about the job's end has no room for it: the caller reads it."""
    monkeypatch.setattr("taskflow.broker.redis.settle.INLINE_RESULT", 0)
    monkeypatch.setattr("taskflow.broker.redis.broker.is_large_result", lambda result: True)
    async with scene.worker():
        await scene.send([1])
        await scene.handles[1].result(10)
    with scene.server.client() as client:
        assert client.keys("*:o:*")
