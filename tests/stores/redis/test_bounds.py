"""No call exceeds its bound, whatever the store contains, and nothing is left behind. Large payloads and results have separate keys.

Each test of the conformance suite checks at its end that none is left there without its job.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import pytest

from taskflow.broker import topics
from taskflow.broker.admin import View
from taskflow.broker.protocol import LISTENER_TTL, Added
from taskflow.broker.redis import store
from taskflow.broker.redis.layout import MARK
from taskflow.broker.redis.records import INLINE, reference_to
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerRefused, BrokerUnavailable
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.stores.redis.conftest import Stored
from tests.support.harnesses import RedisHarness
from tests.support.verdicts import succeeded
from tests.support.waiting import until
from tests.support.world import World, ids_of


async def fill(world: World, number: int, **fields: Any) -> list[Envelope]:
    envelopes = [world.an_envelope(**fields) for _ in range(number)]
    for first in range(0, number, 500):
        await world.enqueue(*envelopes[first : first + 500])
    return envelopes


async def test_a_claim_passes_over_so_many_expired_jobs_and_no_more(world: World, stored: Stored) -> None:
    """Upkeep ends them: a backlog of them does not block the server at each claim."""
    await fill(world, 3_000, expires=1.0)
    world.clock.advance(2.0)
    assert await world.claim(await world.a_session()) == []
    assert stored.client.zcard(stored.key("back:0:default")) < 1_000
    assert stored.client.llen(stored.key("list:0:default")) > 2_000


async def test_ids_are_forgotten_in_portions(world: World, stored: Stored) -> None:
    """Upkeep asks to be called again while there are more, and in the end nothing is there."""
    await fill(world, 2_000)
    assert await world.broker.admin.purge(View(), limit=10_000) == 2_000
    upkept = await world.pass_time(world.rules.repeat_for + 1.0)
    assert upkept.next_in == 0.0
    assert stored.client.zcard(stored.key("i:fading")) >= 500
    while upkept.next_in == 0.0:
        upkept = await world.upkeep()
    assert stored.client.exists(stored.key("i:fading"), stored.key("list:0:default"), stored.key("priorities:default")) == 0
    assert stored.keys(stored.key("j:")) == []


async def test_a_job_is_found_behind_thousands_that_were_cancelled(world: World) -> None:
    await world.broker.cancel(ids_of(await fill(world, 6_000)))
    last = await world.add()
    assert ids_of(await world.claim(await world.a_session())) == [last.id]


async def test_listeners_that_are_gone_leave_nothing_behind(world: World, stored: Stored) -> None:
    """Their names are removed when the next listener waits, minutes later, and the list expires if there is none."""
    for _ in range(3):
        world.clock.advance(100.0)
        broker = world.broker.sibling()
        session = await world.a_session()
        await broker.claim(session.id, 1, ["mail"], 10)
        await broker.upkeep(10)
        await broker.close()
    assert (stored.client.zcard(stored.key("waiting:mail")), stored.client.zcard(stored.key("upkeepers"))) == (2, 2)
    assert 0 < stored.client.ttl(stored.key("waiting:mail")) <= LISTENER_TTL


async def test_upkeep_nudges_again_for_jobs_that_no_claim_has_taken(world: World) -> None:
    """A process that was stopped after it began to wait does not delay a job for long."""
    idle = [world.broker.sibling() for _ in range(2)]
    waiters = [broker.listen([topics.queue("mail")]) for broker in idle]
    try:
        for broker, waiter in zip(idle, waiters, strict=True):
            await waiter.wait(0.05)
            await until(partial(getattr, waiter, "is_prompt"))
            world.clock.advance(0.001)
            assert await broker.claim((await world.a_session()).id, 1, ["mail"], 10) == []
        await world.add(queue="mail")
        assert [await waiter.wait(0.3) for waiter in waiters] == [False, True]
        await world.upkeep()
        assert await waiters[0].wait(5.0)
    finally:
        for waiter, broker in zip(waiters, idle, strict=True):
            waiter.close()
            await broker.close()


async def test_nine_thousand_queues_in_one_call(world: World) -> None:
    """They are more than Lua unpacks at once."""
    answers = await world.enqueue(*(world.an_envelope(queue=f"q{number}") for number in range(9_000)))
    assert len(answers) == 9_000
    assert len((await world.broker.admin.metrics()).totals) == 9_000


async def test_a_job_whose_key_has_a_wrong_type_is_gone_and_spoils_no_other(world: World, stored: Stored) -> None:
    """The broker sees no such job, and each operation goes on."""
    running, waiting, sound = await world.running(), await world.add(queue="mail"), await world.add(queue="mail")
    for job_id in (running.envelope.id, waiting.id):
        stored.client.delete(record := stored.key("j:", job_id))
        stored.client.rpush(record, "not ours")
    assert await world.settle(succeeded(running)) == [Settled.STALE]
    assert await world.broker.cancel([waiting.id]) == [None]
    session = await world.a_session()
    assert ids_of(await world.claim(session)) == ids_of(await world.claim_again(session)) == [sound.id]
    await world.upkeep()
    with world.broker.listen([topics.job(waiting.id)]) as waiter:
        await waiter.wait(0.05)
        assert await world.broker.read([running.envelope.id, waiting.id]) == [None, None]
    assert len(await world.broker.admin.workers()) == 2


@pytest.mark.parametrize("name", ["i:due", "counts", "list:0:default"])
async def test_a_shared_key_of_a_wrong_type_is_a_clear_error(world: World, stored: Stored, name: str) -> None:
    await world.add()
    stored.client.delete(stored.key(name))
    stored.client.xadd(stored.key(name), {"not": "ours"})
    with pytest.raises(BrokerRefused, match="has a taskflow value that another program has changed: Operation against a key"):
        await (world.upkeep() if name == "i:due" else world.add())


LARGE: Final = bytes(range(256)) * 40

RESULT: Final = b"\x01" + bytes(10_000)


def contents_of(stored: Stored, job_id: bytes) -> dict[bytes, Any]:
    """Return the job's remaining contents, by their keys."""
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


@pytest.mark.parametrize("fields", [{}, {"key": "k"}], ids=["plain", "with a key"])
async def test_no_job_is_there_without_its_payload(world: World, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    """If a payload that was sent ahead is gone before the call, nothing is stored. A result that is gone is sent within its settlement."""
    envelopes = [world.an_envelope(), world.an_envelope(payload=LARGE, **fields)]
    with monkeypatch.context() as patch:
        patch.setattr(store, "ahead", lambda prefix, contents: [])
        with pytest.raises(BrokerUnavailable, match="lost a payload before its job was stored: send it again"):
            await world.enqueue(*envelopes)
    assert [await world.read(envelope) for envelope in envelopes] == [None, None]
    assert await world.enqueue(*envelopes) == [Added(envelope.id) for envelope in envelopes]
    leases = await world.claim(await world.a_session())
    monkeypatch.setattr(store, "ahead", lambda prefix, contents: [])
    for some in (leases[:1], leases[1:]):
        assert await world.settle(*(succeeded(lease, RESULT, keep_for=60.0) for lease in some)) == [Settled.OK]
    assert [(await world.record(lease)).result for lease in leases] == [RESULT] * 2


async def test_contents_that_look_like_references(world: World) -> None:
    """No codec of ours creates such contents, but a broker carries any bytes."""
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


async def test_a_result_too_large_for_a_record_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflow.broker.redis.broker.MAX_RESULT", 5_000)
    lease = await world.running()
    with pytest.raises(ValueError, match="Redis allows results of at most"):
        await world.settle(succeeded(lease, RESULT))
    assert await world.status(lease.envelope.id) is Status.RUNNING
