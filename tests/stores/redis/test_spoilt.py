"""A value that no script of ours wrote spoils its own job or session. `tests/conformance/test_spoilt_rows.py` spoils them at random."""

from __future__ import annotations

import asyncio
import math
import tracemalloc
from typing import Any, Final

import msgpack
import msgspec
import pytest
import redis

from taskflow.broker.console import View
from taskflow.broker.redis.connect.pool import ConnectionPool
from taskflow.broker.redis.fields import FIELDS
from taskflow.broker.redis.settle import MOST_RESULT
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status
from taskflow.model.verdict import Failed, RunError, Settled
from tests.stores.redis.spoiler import fields_of
from tests.support.harnesses import RedisHarness
from tests.support.listing import listed
from tests.support.verdicts import failed, succeeded
from tests.support.world import World, ids_of

NO_UTF8: Final = b"\xff\xc1"
FAR: Final = 9_000_000_000_000_000_000


def key(world: World, name: str, owner: bytes = b"") -> bytes:
    assert isinstance(world.harness, RedisHarness)
    return world.harness.prefix + name.encode() + owner


def set_fields(world: World, client: redis.Redis, job_id: bytes, **values: Any) -> None:
    """Overwrite fields of a stored record."""
    stored: Any = client.get(key(world, "j:", job_id))
    fields = fields_of(stored)
    fields += [False] * (len(FIELDS) - len(fields))
    for field, value in values.items():
        fields[FIELDS.index(field)] = value
    client.set(key(world, "j:", job_id), msgpack.packb(fields, use_bin_type=False) or b"")


def columns_of(lease: Lease | Record) -> list[str]:
    return [field.column for field in lease.unreadable]


async def only_record(world: World, job: Envelope) -> Record:
    """As `read` and `page` show it alike."""
    record = await world.record(job)
    [shown] = [record for record in await listed(world.broker.console) if record.id == job.id]
    assert msgspec.structs.replace(shown, ended_at=None) == msgspec.structs.replace(record, ended_at=None)
    return record


async def fail_all(world: World, leases: list[Lease]) -> list[Settled]:
    return await world.settle(*(failed(lease) for lease in leases))


# --- a job ---------------------------------------------------------------------------------------------------------

OPAQUE: Final = {
    "an error list": ("errors", b"\x93\x01"),
    "a reason": ("reason", NO_UTF8),
    "its name's number": ("name", 77),
}
"""Fields that no script looks into: a worker is given the job, and ends it."""


@pytest.mark.parametrize(("column", "stored"), OPAQUE.values(), ids=OPAQUE)
async def test_a_job_with_an_unreadable_field_is_leased_and_can_be_settled(
    world: World, client: redis.Redis, column: str, stored: Any
) -> None:
    spoilt, sound = await world.add(), await world.add()
    set_fields(world, client, spoilt.id, **{column: stored})
    leases = await world.claim(await world.a_session())

    assert ids_of(leases) == ids_of([spoilt, sound])
    assert [columns_of(lease) for lease in leases] == [[column], []]
    assert await fail_all(world, leases) == [Settled.OK] * 2
    record = await only_record(world, spoilt)
    assert record.status is Status.FAILED
    assert column in (*columns_of(record), "reason")  # which the settlement has written


DECIDED: Final = {
    "a status that there is not": ("status", 9),
    "a queue that is a text": ("queue", b"mail"),
    "a queue that there is not": ("queue", 77),
    "a priority out of bounds": ("priority", 1_000),
    "an arrival of half a number": ("seq", 0.5),
    "a due time that is NaN": ("due_at", math.nan),
    "a due time that is infinite": ("due_at", math.inf),
    "a payload that is a number": ("payload", 7),
    "failures below zero": ("failures", -1),
    "crashes that are a text": ("crashes", b"many"),
    "an expiry that is a list": ("expires_at", [1]),
    "one field too many": ("spoilt", b"\xc1"),
    **{
        f"a map for its {field}": (field, {b"not": [b"ours"]})
        for field in ("queue", "name", "priority", "seq", "due_at", "claim", "expires_at", "key", "joins", "errors")
    },
}
"""Fields that scripts decide by."""


@pytest.mark.parametrize(("column", "stored"), DECIDED.values(), ids=DECIDED)
async def test_a_job_that_no_script_can_move_is_set_aside_as_failed(world: World, client: redis.Redis, column: str, stored: Any) -> None:
    """With its bytes, which go when an operator purges it. Its neighbours are not touched."""
    spoilt, sound = await world.add(), await world.add()
    set_fields(world, client, spoilt.id, **{column: stored})
    bytes_before = client.get(key(world, "j:", spoilt.id))
    session = await world.a_session()
    leases = await world.claim(session)
    assert [lease.envelope.id for lease in leases if not lease.unreadable] == [sound.id]
    await world.settle(*(failed(lease) if lease.unreadable else succeeded(lease) for lease in leases))
    for _ in range(2):
        await world.upkeep()

    record = await only_record(world, spoilt)
    assert (record.status, columns_of(record)) == (Status.FAILED, [column] if column != "spoilt" else ["record"])
    if column != "spoilt":
        assert client.get(key(world, "bad:j:", spoilt.id)) == bytes_before
    assert sum(queue.counts[Status.FAILED] for queue in await world.broker.console.queues()) == 1
    assert sum(queue.counts[Status.READY] for queue in await world.broker.console.queues()) == 0
    assert await world.broker.console.purge(View()) == 2
    assert client.exists(key(world, "bad:j:", spoilt.id)) == 0


WHOLE: Final[dict[str, Any]] = {
    "empty": b"",
    "no msgpack": b"\xc1",
    "a map": b"\x81\xa1a\xa1b",
    "a number": b"\x07",
    "an array of texts": b"\x92\xa1a\xa1b",
    "cut off": b"\x02\x00\x00\x00",
    "cut short": lambda whole: whole[:20],
    "too long": lambda whole: whole + b"x",
    "eighty megabytes": 80_000_000,
    "of another type": None,
}


@pytest.mark.parametrize("stored", WHOLE.values(), ids=WHOLE)
async def test_a_record_that_is_none_is_set_aside_by_whichever_verb_finds_it(world: World, client: redis.Redis, stored: Any) -> None:
    sound = await world.running()
    for find in ("claim", "read", "page", "cancel", "retry", "purge"):
        spoilt = await world.add()
        record = key(world, "j:", spoilt.id)
        whole = client.get(record)
        client.delete(record)
        if stored is None:
            client.hset(record, "not", "ours")
        elif isinstance(stored, int):
            client.setrange(record, stored - 1, b"\0")
        else:
            spoil: Any = stored
            client.set(record, spoil(whole) if callable(stored) else spoil)
        if find == "claim":
            assert await world.claim(await world.a_session()) == []
        elif find == "page":
            assert spoilt.id not in [record.id for record in await listed(world.broker.console)]  # until upkeep ends it
        elif find == "read":
            assert (await world.record(spoilt)).status is Status.FAILED
        elif find == "cancel":
            assert await world.cancel(spoilt) is Status.FAILED
        elif find == "retry":
            await world.broker.console.retry([spoilt.id])
        else:
            assert await world.broker.console.purge(View(statuses=(Status.FAILED, Status.READY))) == 1
        for _ in range(3):
            await world.upkeep()
            await fail_all(world, await world.claim(await world.a_session()))
        if find != "purge":
            assert (await only_record(world, spoilt)).status is Status.FAILED, find
            assert await world.broker.console.purge(View(statuses=(Status.FAILED,))) == 1
        assert await world.read(spoilt) is None
    assert await world.settle(succeeded(sound)) == [Settled.OK]
    await asyncio.sleep(0.2)  # a store that has just been mended is left alone for so long
    await world.upkeep()
    assert sum(sum(queue.counts.values()) for queue in await world.broker.console.queues()) == 1


async def test_a_running_job_that_is_overwritten_is_set_aside_and_costs_no_other_lease(world: World, client: redis.Redis) -> None:
    session = await world.a_session()
    leases = [await world.running(session) for _ in range(3)]
    client.set(key(world, "j:", leases[1].envelope.id), b"\xc1")

    answer = await world.beat(session, *leases)
    assert answer.lost == () or answer.lost == (leases[1].claim,)
    assert await world.settle(*map(succeeded, leases)) == [Settled.OK, Settled.STALE, Settled.OK]
    for _ in range(3):
        await world.upkeep()
    assert (await only_record(world, leases[1].envelope)).status is Status.FAILED
    assert sum(queue.counts[Status.RUNNING] for queue in await world.broker.console.queues()) == 0


async def test_jobs_that_await_one_that_is_set_aside_are_released(world: World, client: redis.Redis) -> None:
    held = world.an_envelope(awaits=1)
    before = world.an_envelope(joins=(held.id,))
    await world.enqueue(held, before)
    set_fields(world, client, before.id, crashes=b"many")
    assert await world.claim(await world.a_session()) == []
    await world.upkeep()

    assert ids_of(await world.claim(await world.a_session())) == [held.id]


async def test_who_waits_for_a_job_that_is_set_aside_is_told(world: World, client: redis.Redis) -> None:
    envelope = await world.add()
    with world.broker.listen([f"job:{envelope.id.hex()}"]) as nudges:
        await world.read(envelope)
        client.set(key(world, "j:", envelope.id), b"\xc1")
        await world.upkeep()
        await world.claim(await world.a_session())
        await world.upkeep()
        await nudges.wait(5.0)
    assert (await world.record(envelope)).status is Status.FAILED


async def test_a_verdict_about_a_spoilt_keep_result_is_written(world: World) -> None:
    """Of a failure the store's own rules say how long it is kept."""
    lease = await world.running()
    verdict = Failed(RunError("app.Error", "no", "", 1))
    assert await world.settle(msgspec.structs.replace(failed(lease), verdict=verdict, keep_for=math.nan)) == [Settled.OK]


async def test_a_result_beyond_what_a_record_may_have_is_refused_before_it_is_sent(world: World) -> None:
    lease = await world.running()
    with pytest.raises(ValueError, match=f"at most {MOST_RESULT:,} bytes, got"):
        await world.settle(succeeded(lease, bytes(MOST_RESULT + 1)))
    assert await world.settle(succeeded(lease)) == [Settled.OK]


@pytest.mark.parametrize("driver", ["hiredis", "redis-py alone"])
@pytest.mark.parametrize("grown_to", [1_001, 80_000_000])
async def test_a_payload_apart_that_has_grown_spoils_its_job_alone(
    world: World, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, grown_to: int, driver: str
) -> None:
    if driver != "hiredis":
        monkeypatch.setattr("taskflow.broker.redis.connect.connection.hiredis", None)
    spoilt, sound = await world.add(payload=bytes(1_000)), await world.add(payload=bytes(1_000))
    client.setrange(key(world, "b:", spoilt.id), grown_to - 1, b"x")
    tracemalloc.start()
    try:
        leases = await world.claim(await world.a_session())
        assert columns_of(await world.record(spoilt)) == ["payload"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [columns_of(lease) for lease in leases] == [["payload"], []]
    assert leases[1].envelope == sound
    assert peak < 8_000_000


async def test_a_server_that_does_not_answer_for_a_huge_payload_in_time_spoils_one_job(
    world: World, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It copies half a gigabyte before it answers; a busy machine takes seconds for that."""
    spoilt, sound = await world.add(payload=bytes(1_000)), await world.add(payload=bytes(1_000))
    client.setrange(key(world, "b:", spoilt.id), 1_001, b"x")
    ask = ConnectionPool.ask

    async def slow(link: ConnectionPool, *command: Any, **options: Any) -> Any:
        if command[0] == "MGET":
            raise BrokerUnavailable("Redis does not answer: TimeoutError")
        return await ask(link, *command, **options)

    monkeypatch.setattr(ConnectionPool, "ask", slow)
    leases = await world.claim(await world.a_session())
    assert [columns_of(lease) for lease in leases] == [["payload"], []]
    assert leases[1].envelope == sound


async def test_times_beyond_the_last_year_are_shown_as_its_end(world: World, client: redis.Redis) -> None:
    envelope = await world.add(after=60.0)
    set_fields(world, client, envelope.id, due_at=FAR // 4)
    record = await only_record(world, envelope)
    assert (record.due_at.year, record.unreadable) == (9999, ())
    assert [queue.name for queue in await world.broker.console.queues()] == ["default"]
    assert await world.cancel(envelope) is Status.SCHEDULED


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [b"", NO_UTF8, b"q:mbil", None])
@pytest.mark.parametrize("text", ["q:mail", "j:work"])
async def test_a_text_that_is_lost_is_told_by_the_other_hash(world: World, client: redis.Redis, text: str, spoilt: bytes | None) -> None:
    """Nothing is unreadable then: jobs before and after are found under the name that they were sent with."""
    before = await world.add(queue="mail")
    number: Any = client.hget(key(world, "names"), text)
    if spoilt is None:
        client.hdel(key(world, "texts"), number)
    else:
        client.hset(key(world, "texts"), number, spoilt)
    after = await world.add(queue="mail")
    leases = await world.claim(await world.a_session(), ["mail"])

    assert [(lease.envelope.queue, lease.envelope.job, lease.unreadable) for lease in leases] == [("mail", "work", ())] * 2
    assert ids_of(leases) == ids_of([before, after])
    assert await world.settle(*map(succeeded, leases)) == [Settled.OK] * 2


@pytest.mark.parametrize("number", [b"77", b"one", b"1e300", b"nan", b"-1", None])
async def test_a_name_with_another_number_gets_its_own_back(world: World, client: redis.Redis, number: bytes | None) -> None:
    """What was sent meanwhile is found too, under one number."""
    before = await world.add(queue="mail")
    if number is None:
        client.hdel(key(world, "names"), "q:mail")
    else:
        client.hset(key(world, "names"), "q:mail", number)
    meanwhile = await world.add(queue="mail")
    world.clock.advance(6.0)
    await world.let_others_beat()
    await world.upkeep()
    after = await world.add(queue="mail")

    assert set(ids_of(await world.claim(await world.a_session(), ["mail"]))) == {before.id, meanwhile.id, after.id}
    assert [queue.name for queue in await world.broker.console.queues()] == ["mail"]
    assert client.hlen(key(world, "names")) == client.hlen(key(world, "texts")) == 2


async def test_a_queue_whose_name_is_no_utf8_is_shown_and_stops_nobody(world: World, client: redis.Redis) -> None:
    spoilt, sound = await world.add(queue="spoilt"), await world.add(queue="sound")
    number: Any = client.hget(key(world, "names"), "q:spoilt")
    client.hdel(key(world, "names"), "q:spoilt")
    client.hset(key(world, "names"), b"q:" + NO_UTF8, number)
    client.hset(key(world, "texts"), number, b"q:" + NO_UTF8)
    client.delete(key(world, "ready"))
    await world.upkeep()

    console = world.broker.console
    assert [queue.name for queue in await console.queues()] == ["\\xff\\xc1", "sound"]
    assert set((await console.metrics()).totals) == {"\\xff\\xc1", "sound"}
    with world.broker.listen(["queues"]) as nudges:
        leases = await world.claim(await world.a_session())
        await world.add(queue="sound")
        assert await nudges.wait(5.0)
    assert {lease.envelope.id: columns_of(lease) for lease in leases} == {spoilt.id: ["queue"], sound.id: []}
    assert await fail_all(world, leases) == [Settled.OK] * 2


# --- sessions ------------------------------------------------------------------------------------------------------

SESSION: Final = [
    (field, stored)
    for field in ("request", "ttl", "name", "about", "number", "registered_at")
    for stored in (NO_UTF8, b"", b"nan", b"-1", b"1e300", b"281474976710656", None)
]


@pytest.mark.parametrize(("field", "stored"), SESSION)
async def test_a_spoilt_field_of_a_session_costs_it_nothing(world: World, client: redis.Redis, field: str, stored: bytes | None) -> None:
    session, other = await world.a_session(), await world.a_session("other")
    first = await world.running(session)
    if stored is None:
        client.hdel(key(world, "session:", session.id), field)
    else:
        client.hset(key(world, "session:", session.id), field, stored)
    envelope = await world.add()

    [lease] = await world.claim(session)
    assert lease.envelope.id == envelope.id
    assert (await world.beat(session, first, lease)).lost == ()
    assert await world.settle(succeeded(first)) == [Settled.OK]
    assert len(await world.broker.console.workers()) == 2
    await world.pass_time(1.0)
    await world.lapse(session, beside=[other])
    await world.beat(other)
    if field != "ttl":  # one of many years is no damage
        assert (await world.upkeep()).reaped == 1
        [taken] = await world.claim(other)
        assert taken.crashes == 1


async def test_a_session_whose_name_is_no_utf8_spoils_none_of_its_jobs(world: World, client: redis.Redis) -> None:
    session = await world.a_session()
    client.hset(key(world, "session:", session.id), "name", NO_UTF8)
    plain, keyed = await world.add(), await world.add(key="k")
    leases = await world.claim(session)
    assert [lease.unreadable for lease in leases] == [(), ()]
    records = [await world.record(envelope) for envelope in (plain, keyed)]
    assert [(record.worker, record.unreadable) for record in records] == [("\\xff\\xc1", ())] * 2
    assert [worker.session.name for worker in await world.broker.console.workers()] == ["\\xff\\xc1"]


async def test_a_session_whose_hash_is_gone_lives_on(world: World, client: redis.Redis) -> None:
    session = await world.a_session()
    client.delete(key(world, "session:", session.id))
    envelope = await world.add()
    [lease] = await world.claim(session)
    assert lease.envelope.id == envelope.id
    assert (await world.beat(session, lease)).lost == ()
    assert await world.settle(succeeded(lease)) == [Settled.OK]
    assert [worker.session.id for worker in await world.broker.console.workers()] == [session.id]


async def test_a_worker_whose_name_has_a_lone_surrogate_is_shown(world: World) -> None:
    await world.a_session("host\udcff:1")
    assert [worker.session.name for worker in await world.broker.console.workers()] == ["host\udcff:1"]


async def test_a_session_that_would_live_for_years_lapses_like_any_other(world: World, client: redis.Redis) -> None:
    session, other = await world.a_session(), await world.a_session("other")
    lease = await world.running(session)
    client.zadd(key(world, "alive"), {session.id: 1e300})
    await world.lapse(session, beside=[other])
    await world.upkeep()
    await world.lapse(session, beside=[other])

    await world.upkeep()
    assert ids_of(await world.claim(other)) == [lease.envelope.id]


async def test_a_failure_that_ended_at_no_time_is_counted(world: World, client: redis.Redis) -> None:
    lease = await world.running()
    await world.settle(failed(lease))
    cells: Any = client.zrange(key(world, "failure_cells"), 0, -1)
    client.zadd(key(world, "failures:", cells[0]), {lease.envelope.id: math.inf})
    [group] = await world.broker.console.failure_groups()
    assert (group.count, group.last.year) == (1, 1970)


# --- indexes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["ready_list:1:0", "priorities:1", "ready", "due", "leases:"])
async def test_jobs_that_an_index_has_lost_are_found_again(world: World, client: redis.Redis, lost: str) -> None:
    """Whoever looks finds out within seconds, from the counts."""
    session, other = await world.a_session(), await world.a_session("other", ttl=1_000.0)
    ready, later = await world.add(), await world.add(after=60.0)
    running = await world.running(session)
    client.delete(key(world, lost) + (session.id if lost == "leases:" else b""))
    world.clock.advance(6.0)
    for _ in range(2):
        await world.outlook(other)
        await world.upkeep()

    assert ids_of(await world.claim(other)) == [ready.id]
    await world.pass_time(60.0)
    await world.reap(session, beside=[other])
    assert {later.id, running.envelope.id} <= {*ids_of(await world.claim(other))}


async def test_a_call_that_fails_half_way_just_after_a_mending_is_found(world: World, client: redis.Redis) -> None:
    """Sent again, its job is known; but it stands nowhere, and nobody mends the store twice at once."""
    await world.add()
    client.rpush(key(world, "ready_list:1:0"), "short")
    client.set(key(world, "reindexing"), 1, px=300)
    envelope = world.an_envelope()
    await world.enqueue(envelope)
    await world.upkeep()

    assert envelope.id in ids_of(await world.claim(await world.a_session()))


@pytest.mark.parametrize("name", ["reindexed", "spoilt"])
async def test_a_key_that_stays_for_ever_does_not_keep_the_store_from_being_mended(world: World, client: redis.Redis, name: str) -> None:
    envelope, session = await world.add(), await world.a_session(ttl=1_000.0)
    client.set(key(world, name), "not ours")
    client.delete(key(world, "priorities:1"))
    world.clock.advance(6.0)
    for _ in range(2):
        await world.outlook(session)
        await world.upkeep()

    assert ids_of(await world.claim(session)) == [envelope.id]


async def test_ready_jobs_that_have_vanished_are_counted_no_longer(world: World, client: redis.Redis) -> None:
    """A drain would wait for them."""
    vanished, _ = await world.add(), await world.add()
    client.delete(key(world, "j:", vanished.id))
    session = await world.a_session()
    [lease] = await world.claim(session)
    await world.settle(succeeded(lease))
    await world.upkeep()

    [queue] = await world.broker.console.queues()
    assert {status: count for status, count in queue.counts.items() if count} == {Status.SUCCEEDED: 1}


@pytest.mark.parametrize("field", ["seq", "names", "pulse", "least_ttl", "sought_at", "sessions"])
@pytest.mark.parametrize("stored", [b"9223372036854775807", b"-5", b"1e300", b"nan", NO_UTF8])
async def test_a_spoilt_number_of_the_store_itself_is_mended(world: World, client: redis.Redis, field: str, stored: bytes) -> None:
    first = await world.add()
    client.hset(key(world, "meta"), field, stored)
    second, third = await world.add(queue="new"), await world.add(key="k")
    session = await world.a_session()
    await world.upkeep()
    await world.outlook(session)

    leases = await world.claim(session)
    assert set(ids_of(leases)) == ids_set(first, second, third)
    assert await world.settle(*map(succeeded, leases)) == [Settled.OK] * 3


def ids_set(*envelopes: Envelope) -> set[bytes]:
    return set(ids_of(envelopes))


@pytest.mark.parametrize("stored", [b"9223372036854775807", b"1e300", NO_UTF8])
async def test_a_total_that_is_none_is_left_out_and_begins_again(world: World, client: redis.Redis, stored: bytes) -> None:
    await world.add()
    client.hset(key(world, "totals"), "1:enqueue", stored)
    client.hset(key(world, "totals"), NO_UTF8, "1")
    await world.broker.console.metrics()
    for _ in range(2):  # the first is sent twice, since it fails half way
        await world.enqueue(world.an_envelope())
    assert (await world.broker.console.metrics()).totals == {"default": {"enqueue": 1}}


# --- names and queues that nobody needs any more -----------------------------------------------------------------------


async def test_after_a_purge_names_and_totals_shrink_again(world: World, client: redis.Redis) -> None:
    await world.enqueue(*(world.an_envelope(queue=f"tenant-{n}", job=f"job-{n}") for n in range(1_200)))
    kept = await world.add(queue="kept", job="kept", after=60.0)
    sizes = [client.hlen(key(world, name)) for name in ("texts", "names", "totals", "counts")]
    assert min(sizes) > 1_200

    assert await world.broker.console.purge(View(statuses=(Status.READY,)), limit=5_000) == 1_200
    assert await world.read(kept) is not None
    assert [client.hlen(key(world, name)) for name in ("texts", "names")] == [2, 2]
    assert client.hlen(key(world, "totals")) + client.hlen(key(world, "counts")) < 12
    assert [queue.name for queue in await world.broker.console.queues()] == ["kept"]
    again = await world.add(queue="tenant-1", job="job-1")
    await world.pass_time(60.0)
    leases = await world.claim(await world.a_session())
    assert {(lease.envelope.queue, lease.envelope.job) for lease in leases} == {("kept", "kept"), ("tenant-1", "job-1")}
    assert set(ids_of(leases)) == ids_set(kept, again)
    await world.pass_time(world.rules.repeat_for + 1.0)


async def test_queues_that_never_had_a_job_are_not_listed(world: World) -> None:
    known = await world.add(queue="had")
    await world.enqueue(msgspec.structs.replace(known, queue="never"))
    assert [queue.name for queue in await world.broker.console.queues()] == ["had"]


async def test_what_is_mended_is_logged_in_plain_words(world: World, client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Without what the server adds of its own, and with ids as commands take them."""
    spoilt = await world.add()
    set_fields(world, client, spoilt.id, status="odd")
    await world.claim(await world.a_session())
    await world.upkeep()
    for spoil in (lambda: client.delete(key(world, "counts")), lambda: client.set(key(world, "counts"), "no hash")):
        spoil()
        await world.upkeep()
        await asyncio.sleep(0.2)  # a store that has just been mended is left alone for so long

    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"the record of job {id_text(spoilt.id)} cannot be read (status: " in said
    assert "another program has changed: the counts of jobs have been lost; " in said
    assert "another program has changed: Operation against a key holding the wrong kind of value; " in said
    assert "user_script" not in said
