"""Large payloads, which are kept apart from their jobs: no script reads them, none is left behind, none is missed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import pytest
import redis

from taskflow.broker.protocol import Added, Refused
from taskflow.broker.redis import RedisBroker, RedisTarget
from taskflow.broker.redis.errors import WrongType
from taskflow.broker.redis.fields import MARK
from taskflow.broker.redis.large_payloads import INLINE, LargePayloads
from taskflow.model.codec.payload import open_payload
from taskflow.model.envelope import OnConflict
from taskflow.model.errors import BrokerUnavailable, NewerFormat, StoreFull
from taskflow.model.record import Status
from tests.support.harnesses import RedisHarness
from tests.support.listing import listed
from tests.support.servers import HOST, RedisServer
from tests.support.verdicts import failed, succeeded
from tests.support.world import World

LARGE: Final = b"\x01" + bytes(range(256)) * 40


def key(world: World, kind: str, job_id: bytes) -> bytes:
    assert isinstance(world.harness, RedisHarness)
    return world.harness.prefix + f"{kind}:".encode() + job_id


def body(world: World, client: redis.Redis, job_id: bytes) -> Any:
    return client.get(key(world, "b", job_id))


async def test_a_large_payload_is_apart_from_its_job_until_that_succeeds(world: World, client: redis.Redis) -> None:
    small, large = await world.add(payload=bytes(INLINE)), await world.add(payload=LARGE)
    assert body(world, client, small.id) is None
    assert body(world, client, large.id) == LARGE
    assert client.ttl(key(world, "b", large.id)) == -1
    stored: Any = client.get(key(world, "j", large.id))
    assert len(stored) < 60
    assert (await world.record(large)).payload == LARGE

    leases = await world.claim(session := await world.a_session())
    assert [lease.envelope.payload for lease in leases] == [small.payload, LARGE]
    assert await world.claim_again(session) == leases
    assert body(world, client, large.id) == LARGE
    await world.settle(*map(succeeded, leases))
    assert body(world, client, large.id) is None


async def test_one_that_has_failed_is_there_for_a_retry_until_it_is_dropped(world: World, client: redis.Redis) -> None:
    lease = await world.running(payload=LARGE)
    await world.settle(failed(lease))
    assert (await world.record(lease)).payload == LARGE
    await world.broker.console.retry([lease.envelope.id])
    [again] = await world.claim(await world.a_session())
    assert again.envelope.payload == LARGE
    await world.settle(failed(again))
    await world.pass_time(world.rules.keep_failed + 1)
    assert await world.read(lease) is None
    assert body(world, client, lease.envelope.id) is None


async def test_what_comes_again_leaves_nothing_behind(world: World, client: redis.Redis) -> None:
    """A call whose answer was lost, when its job waits, when it has succeeded meanwhile, and when it is hardly known any more."""
    envelope = await world.add(payload=LARGE)
    assert await world.enqueue(envelope) == [Refused(envelope.id, envelope.id, "id")]
    assert client.ttl(key(world, "b", envelope.id)) == -1
    [lease] = await world.claim(await world.a_session())
    await world.settle(succeeded(lease, keep_for=1.0))
    assert await world.enqueue(envelope) == [Refused(envelope.id, envelope.id, "id")]
    assert body(world, client, envelope.id) is None
    await world.pass_time(2.0)
    assert await world.read(envelope) is None
    assert await world.enqueue(envelope) == [Refused(envelope.id, envelope.id, "id")]
    assert body(world, client, envelope.id) is None


async def test_a_call_that_never_came_leaves_a_payload_that_fades(world: World, client: redis.Redis) -> None:
    envelope = world.an_envelope(payload=LARGE)
    assert isinstance(world.broker, RedisBroker)
    await world.read(envelope)
    [command] = world.broker.large_payloads.ahead([envelope])
    assert (command[0], *command[3:5]) == ("SET", "NX", "EX")
    client.set(command[1], command[2], nx=True, ex=command[5])
    assert 0 < client.ttl(key(world, "b", envelope.id)) <= 600
    assert await world.enqueue(envelope) == [Added(envelope.id)]
    assert client.ttl(key(world, "b", envelope.id)) == -1


async def test_of_a_key_that_is_taken_no_payload_is_left(world: World, client: redis.Redis) -> None:
    standing, refused = await world.add(key="k", payload=LARGE), world.an_envelope(key="k", payload=LARGE)
    assert await world.enqueue(refused) == [Refused(refused.id, standing.id, "key")]
    assert body(world, client, refused.id) is None
    instead = world.an_envelope(key="k", payload=LARGE, on_conflict=OnConflict.REPLACE)
    assert await world.enqueue(instead) == [Added(instead.id, standing.id)]
    assert client.ttl(key(world, "b", instead.id)) == -1


@pytest.mark.parametrize("fields", [{}, {"key": "k"}], ids=["plain", "with a key"])
async def test_no_job_is_there_without_its_payload(world: World, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    """One that was sent ahead and has gone before the call: the caller sends both again."""
    envelopes = [world.an_envelope(), world.an_envelope(payload=LARGE, **fields)]
    with monkeypatch.context() as patch:
        patch.setattr(LargePayloads, "ahead", lambda self, large: [])
        with pytest.raises(BrokerUnavailable, match="lost a payload before its job was stored: send it again"):
            await world.enqueue(*envelopes)
    assert [await world.read(envelope) for envelope in envelopes] == [None, None]
    assert await world.enqueue(*envelopes) == [Added(envelope.id) for envelope in envelopes]


async def test_what_a_script_is_sent_and_answers_is_small(world: World, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lua would read each byte, some six times in a job's life."""
    sent, session = list[int](), await world.a_session()
    assert isinstance(world.broker, RedisBroker)
    call = world.broker.call

    async def spied(name: str, arguments: bytes, **options: Any) -> Any:
        reply = await call(name, arguments, **options)
        sent.append(len(arguments) + sum(len(part) for part in reply or () if isinstance(part, bytes)))
        return reply

    monkeypatch.setattr(world.broker, "call", spied)
    for fields in ({}, {"key": "k"}, {"after": 1.0}):
        envelope = await world.add(payload=LARGE, **fields)
        await world.pass_time(1.0)
        [lease] = await world.claim(session)
        assert (lease.envelope.id, lease.envelope.payload) == (envelope.id, LARGE)
        assert (await world.record(lease)).payload == LARGE
        await world.settle(succeeded(lease))
    assert len(sent) >= 12
    assert max(sent) < 1_000


async def test_a_payload_that_looks_like_a_reference(world: World) -> None:
    """No codec of ours makes such, but a broker carries any bytes."""
    odd = [MARK + (5).to_bytes(4), MARK, MARK + bytes(100)]
    for payload in odd:
        await world.add(payload=payload)
    leases = await world.claim(await world.a_session())
    assert [lease.envelope.payload for lease in leases] == odd
    await world.settle(*map(succeeded, leases))


async def test_a_worker_of_a_version_that_knows_no_references_leaves_such_a_job_to_others() -> None:
    with pytest.raises(NewerFormat):
        open_payload(MARK + (10_000).to_bytes(4))


async def test_a_payload_that_has_gone_fails_its_job_and_no_other(world: World, client: redis.Redis) -> None:
    gone = await world.add(payload=LARGE)
    await world.add(payload=LARGE)
    client.delete(key(world, "b", gone.id))
    assert (await world.record(gone)).payload is None
    leases = await world.claim(await world.a_session())
    assert [lease.envelope.payload for lease in leases] == [b"", LARGE]
    assert [[str(field) for field in lease.unreadable] for lease in leases] == [["payload: it is gone from the server"], []]


async def test_indexes_made_anew_leave_payloads_alone(world: World, client: redis.Redis) -> None:
    envelope = await world.add(payload=LARGE)
    client.delete(key(world, "ready", b"")[:-1])
    client.set(key(world, "ready", b"")[:-1], "no set")
    [lease] = await world.claim(await world.a_session())
    assert (lease.envelope.id, lease.envelope.payload) == (envelope.id, LARGE)


@pytest.mark.parametrize(("fields", "wrong"), [({}, "fade"), ({"key": "k"}, "keys")], ids=["plain", "with a key"])
async def test_a_step_that_fails_half_way_leaves_a_job_that_runs_again(
    world: World, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], wrong: str
) -> None:
    """Its worker dies before it could tell once more."""
    session = await world.a_session()
    await world.add(payload=LARGE, **fields)
    [lease] = await world.claim(session)
    client.delete(key(world, wrong, b"")[:-1])
    client.set(key(world, wrong, b"")[:-1], "of no use")

    assert isinstance(world.broker, RedisBroker)
    reindex = world.broker._reindex

    async def die_then(error: WrongType) -> None:
        await reindex(error)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(world.broker, "_reindex", die_then)
        with pytest.raises(WrongType):
            await world.settle(succeeded(lease))
    await world.die(session)
    await world.pass_time(world.rules.crash_backoff[0])
    [again] = await world.claim(await world.a_session())
    assert (again.envelope.id, again.envelope.payload) == (lease.envelope.id, LARGE)


async def test_more_than_a_command_takes(world: World) -> None:
    """The application sends a thousand at most; a broker's own caller may send more."""
    envelopes = [world.an_envelope(payload=bytes(600)) for _ in range(9_000)]
    assert await world.enqueue(*envelopes) == [Added(envelope.id) for envelope in envelopes]
    assert (await world.record(envelopes[-1])).payload == bytes(600)


async def test_what_no_job_names_fades_when_keys_are_put_in_order(world: World, client: redis.Redis) -> None:
    """An older version's upkeep, which knows nothing of them, has dropped the job."""
    gone, there = await world.add(payload=LARGE), await world.add(payload=LARGE)
    client.delete(key(world, "j", gone.id))
    client.delete(key(world, "ready", b"")[:-1])
    client.set(key(world, "ready", b"")[:-1], "no set")
    [lease] = await world.claim(await world.a_session())
    assert lease.envelope.payload == LARGE
    assert client.ttl(key(world, "b", there.id)) == -1
    assert client.ttl(key(world, "b", gone.id)) > 0


async def test_a_full_server_refuses_both_the_payload_and_the_job() -> None:
    async with World(RedisHarness) as world:
        limited = world.limited(5)
        envelopes = [limited.an_envelope(payload=bytes(limited.harness.much)) for _ in range(100)]
        added = list[bytes]()
        with contextlib.suppress(StoreFull):
            for envelope in envelopes:
                await limited.enqueue(envelope)
                added.append(envelope.id)
        assert 0 < len(added) < 100
        records = await limited.broker.read([envelope.id for envelope in envelopes])
        assert [record.id for record in records if record and record.payload] == added


async def test_a_server_that_has_forgotten_the_scripts(world: World, client: redis.Redis) -> None:
    client.script_flush()
    envelope = await world.add(payload=LARGE)
    assert (await world.record(envelope)).payload == LARGE


async def test_pages_of_large_payloads_come_whole(world: World) -> None:
    """More than are fetched at once."""
    envelopes = [await world.add(payload=bytes([1, number]) + bytes(900_000)) for number in range(7)]
    records = await listed(world.broker.console)
    assert {record.id: record.payload for record in records} == {envelope.id: envelope.payload for envelope in envelopes}


async def test_many_senders_and_the_driver_without_hiredis(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that go ahead keep their order beside others' on the driver's own connections too."""
    monkeypatch.setattr("taskflow.broker.redis.connect.connection.hiredis", None)
    broker = RedisBroker(RedisTarget(host=HOST, port=server.port))
    async with World(RedisHarness) as makes:
        envelopes = [makes.an_envelope(payload=LARGE + bytes([number])) for number in range(40)]
    answers = await asyncio.gather(*(broker.enqueue([envelope]) for envelope in envelopes))
    assert [answer for [answer] in answers] == [Added(envelope.id) for envelope in envelopes]
    records = await broker.read([envelope.id for envelope in envelopes])
    assert [record and (record.status, record.payload) for record in records] == [(Status.READY, each.payload) for each in envelopes]
    await broker.close()
