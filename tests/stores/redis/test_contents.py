"""Large payloads and results: stored under keys of their own, which go with their jobs."""

from __future__ import annotations

from typing import Any, Final

import pytest

from taskflow.broker.protocol import Added, Refused
from taskflow.broker.redis import store
from taskflow.broker.redis.contents import INLINE, reference_to
from taskflow.broker.redis.layout import MARK
from taskflow.model.envelope import OnConflict
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.stores.redis.conftest import Stored
from tests.support.harnesses import RedisHarness
from tests.support.verdicts import failed, retried, succeeded
from tests.support.world import World

LARGE: Final = bytes(range(256)) * 40
RESULT: Final = b"\x01" + bytes(10_000)


def contents_of(stored: Stored, job_id: bytes) -> dict[bytes, Any]:
    """Return the job's contents that stay, by their keys."""
    return {key: stored.client.get(key) for key in stored.keys(stored.key("c:", job_id)) if stored.client.ttl(key) == -1}


async def test_a_large_payload_is_apart_from_its_job_until_that_succeeds(world: World, stored: Stored) -> None:
    small, large = await world.add(payload=bytes(INLINE)), await world.add(payload=LARGE)
    assert [list(contents_of(stored, each.id).values()) for each in (small, large)] == [[], [LARGE]]
    assert (await world.record(large)).payload == LARGE

    leases = await world.claim(session := await world.a_session())
    assert [lease.envelope.payload for lease in leases] == [small.payload, LARGE]
    assert await world.claim_again(session) == leases
    await world.settle(*map(succeeded, leases))
    assert contents_of(stored, large.id) == {}


@pytest.mark.parametrize("fields", [{}, {"key": "k"}, {"after": 1.0}], ids=["plain", "with a key", "scheduled"])
async def test_a_large_result_takes_its_place_until_the_job_is_dropped(world: World, stored: Stored, fields: dict[str, Any]) -> None:
    envelope = await world.add(payload=LARGE, **fields)
    await world.pass_time(1.0)
    [lease] = await world.claim(await world.a_session())
    assert await world.settle(succeeded(lease, RESULT, keep_for=60.0)) == [Settled.OK]
    assert await world.settle(succeeded(lease, RESULT, keep_for=60.0)) == [Settled.OK]
    assert list(contents_of(stored, envelope.id).values()) == [RESULT]
    record = await world.record(envelope)
    assert (record.result, record.payload) == (RESULT, None)
    await world.pass_time(61.0)
    assert contents_of(stored, envelope.id) == {}


async def test_one_that_has_failed_is_there_for_a_retry_until_it_is_dropped(world: World, stored: Stored) -> None:
    lease = await world.running(payload=LARGE)
    await world.settle(failed(lease))
    assert (await world.record(lease)).payload == LARGE
    await world.broker.admin.retry([lease.envelope.id])
    [again] = await world.claim(await world.a_session())
    assert again.envelope.payload == LARGE
    await world.settle(retried(again, 0.0))
    [last] = await world.claim(await world.a_session())
    await world.settle(failed(last))
    await world.pass_time(world.rules.keep_failed + 1)
    assert await world.read(lease) is None
    assert contents_of(stored, lease.envelope.id) == {}


async def test_what_comes_again_leaves_nothing_behind(world: World, stored: Stored) -> None:
    """A call whose answer was lost, when its job waits, when it has succeeded meanwhile, and when it is hardly known any more."""
    envelope = await world.add(payload=LARGE)
    for content in ([LARGE], []):
        assert await world.enqueue(envelope) == [Refused(envelope.id, envelope.id, "id")]
        assert list(contents_of(stored, envelope.id).values()) == content
        for lease in await world.claim(await world.a_session()):
            await world.settle(succeeded(lease, keep_for=1.0))
    await world.pass_time(2.0)
    assert await world.enqueue(envelope) == [Refused(envelope.id, envelope.id, "id")]
    assert contents_of(stored, envelope.id) == {}


async def test_of_a_key_that_is_taken_no_payload_is_left(world: World, stored: Stored) -> None:
    standing, refused = await world.add(key="k", payload=LARGE), world.an_envelope(key="k", payload=LARGE)
    assert await world.enqueue(refused) == [Refused(refused.id, standing.id, "key")]
    assert contents_of(stored, refused.id) == {}
    instead = world.an_envelope(key="k", payload=LARGE, on_conflict=OnConflict.REPLACE)
    assert await world.enqueue(instead) == [Added(instead.id, standing.id)]
    assert list(contents_of(stored, instead.id).values()) == [LARGE]


@pytest.mark.parametrize("fields", [{}, {"key": "k"}], ids=["plain", "with a key"])
async def test_no_job_is_there_without_its_payload(world: World, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    """One that was sent ahead and has gone before the call: nothing is stored."""
    envelopes = [world.an_envelope(), world.an_envelope(payload=LARGE, **fields)]
    with monkeypatch.context() as patch:
        patch.setattr(store, "ahead", lambda prefix, contents: [])
        with pytest.raises(BrokerUnavailable, match="lost a payload before its job was stored: send it again"):
            await world.enqueue(*envelopes)
    assert [await world.read(envelope) for envelope in envelopes] == [None, None]
    assert await world.enqueue(*envelopes) == [Added(envelope.id) for envelope in envelopes]


@pytest.mark.parametrize("number", [1, 2])
async def test_a_result_that_is_lost_before_its_settlement_is_sent_within_it(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    leases = [await world.running(payload=LARGE) for _ in range(number)]
    monkeypatch.setattr(store, "ahead", lambda prefix, contents: [])
    assert await world.settle(*(succeeded(lease, RESULT, keep_for=60.0) for lease in leases)) == [Settled.OK] * number
    assert [(await world.record(lease)).result for lease in leases] == [RESULT] * number


async def test_contents_that_look_like_references(world: World) -> None:
    """No codec of ours makes such, but a broker carries any bytes."""
    odd = [reference_to(b"", bytes(8)), MARK, MARK + bytes(100)]
    for payload in odd:
        await world.add(payload=payload)
    leases = await world.claim(await world.a_session())
    assert [lease.envelope.payload for lease in leases] == odd
    await world.settle(*(succeeded(lease, content, keep_for=60.0) for lease, content in zip(leases, odd, strict=True)))
    assert [(await world.record(lease)).result for lease in leases] == odd


@pytest.mark.parametrize("now", [None, b"short", LARGE + b"more"], ids=["gone", "shorter", "longer"])
async def test_a_payload_that_was_altered_fails_its_job_and_no_other(world: World, stored: Stored, now: bytes | None) -> None:
    altered = await world.add(payload=LARGE)
    await world.add(payload=LARGE)
    [key] = contents_of(stored, altered.id)
    if now is None:
        stored.client.delete(key)
    else:
        stored.client.set(key, now)
    leases = await world.claim(await world.a_session())
    assert [len(lease.unreadable) for lease in leases] == [1, 0]
    assert leases[0].unreadable[0].column == "content"
    assert leases[1].envelope.payload == LARGE
    assert isinstance(world.harness, RedisHarness)
    world.harness._is_spoilt = True


async def test_a_result_beyond_what_a_record_may_have_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflow.broker.redis.broker.MAX_RESULT", 5_000)
    lease = await world.running()
    with pytest.raises(ValueError, match="Redis allows results of at most"):
        await world.settle(succeeded(lease, RESULT))
    assert await world.status(lease.envelope.id) is Status.RUNNING
