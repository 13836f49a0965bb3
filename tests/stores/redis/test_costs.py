"""What a plain job costs the server, in counts: commands of a script, bytes of a job, and how it is kept, which decides how fast it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis

from taskflow.broker.console import View
from taskflow.broker.redis.connect import connection
from taskflow.broker.redis.console import LISTED_AT_ONCE
from taskflow.model.envelope import Lease
from taskflow.model.record import CODES, Status
from taskflow.model.session import Session
from tests.support.harnesses import RedisHarness
from tests.support.listing import listed
from tests.support.verdicts import failed, succeeded
from tests.support.world import World

BATCH: Final = 100

PLAIN: Final = frozenset({b"\x01", b"\x02", b"\x03", b"\x04"})
"""First bytes of the fixed layout: the status."""


def prefix_of(world: World) -> bytes:
    assert isinstance(world.harness, RedisHarness)
    return world.harness.prefix


def stored(world: World, client: redis.Redis, job_id: bytes) -> bytes:
    value: Any = client.get(prefix_of(world) + b"j:" + job_id)
    assert isinstance(value, bytes)
    return value


async def add(world: World, number: int, *, payload: bytes = b"\x01payload", **fields: Any) -> None:
    await world.enqueue(*(world.an_envelope(payload=payload, **fields) for _ in range(number)))


async def commands_of(client: redis.Redis, verb: Callable[[], Awaitable[object]]) -> tuple[int, int]:
    """Scripts that a verb sends, and commands that they call."""
    client.config_resetstat()
    await verb()
    stats: Any = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}
    scripts = calls.pop("evalsha", 0) + calls.pop("eval", 0)
    return scripts, sum(number for name, number in calls.items() if name not in ("config|resetstat", "info", "script|load", "ping"))


async def rounds(
    world: World, client: redis.Redis, session: Session, number: int, payload: bytes = b"\x01payload"
) -> dict[str, tuple[int, int]]:
    """A batch through its life, counted verb by verb."""
    leases = list[Lease]()

    async def claim() -> None:
        leases.extend(await world.claim(session, limit=number))

    counted = {"enqueue": await commands_of(client, lambda: add(world, number, payload=payload)), "claim": await commands_of(client, claim)}
    assert len(leases) == number
    counted["settle"] = await commands_of(client, lambda: world.settle(*(succeeded(lease) for lease in leases)))
    await add(world, number, payload=payload, after=1.0)
    world.clock.advance(1.0)
    counted["upkeep"] = await commands_of(client, world.upkeep)
    await world.settle(*(succeeded(lease) for lease in await world.claim(session)))
    return counted


async def test_a_batch_costs_one_script_and_no_command_a_job(world: World, client: redis.Redis) -> None:
    session = await world.a_session(ttl=1_000.0)
    await rounds(world, client, session, 1)  # the server learns the scripts, the store its queue
    single, whole = await rounds(world, client, session, 1), await rounds(world, client, session, BATCH)
    assert {scripts for scripts, _ in (*single.values(), *whole.values())} == {1}
    assert {name: commands for name, (_, commands) in single.items() if commands > MOST[name]} == {}
    assert {name: commands for name, (_, commands) in whole.items() if commands > MOST[name] + 12} == {}


async def test_a_large_payload_costs_two_commands_more(world: World, client: redis.Redis) -> None:
    """One that brings it and one that keeps it, both told no script; fetching and dropping is one for all.

    Without hiredis each is fetched by itself: the driver's parser cannot stop at a reply that is too long.
    """
    session = await world.a_session(ttl=1_000.0)
    await rounds(world, client, session, 1, bytes(10_000))
    whole = await rounds(world, client, session, BATCH, bytes(10_000))
    assert {scripts for scripts, _ in whole.values()} == {1}
    most = {name: number + 12 for name, number in MOST.items()} | {"enqueue": MOST["enqueue"] + 2 * BATCH + 12}
    if connection.hiredis is None:
        most["claim"] += BATCH
    assert {name: commands for name, (_, commands) in whole.items() if commands > most[name]} == {}


async def test_a_tag_costs_a_command_when_its_job_is_added_and_one_when_it_is_dropped(world: World, client: redis.Redis) -> None:
    """Claims and settlements of tagged jobs cost what those of plain jobs cost; jobs without tags cost nothing more beside them."""
    session = await world.a_session(ttl=1_000.0)
    await rounds(world, client, session, 1)
    counted = list[list[tuple[int, int]]]()
    for tags in ((), ("a", "b")):
        leases = list[Lease]()

        async def claim(leases: list[Lease] = leases) -> None:
            leases += await world.claim(session)

        added = await commands_of(client, lambda tags=tags: add(world, BATCH, tags=tags, max_attempts=3))  # type: ignore[misc]
        claimed = await commands_of(client, claim)
        settled = await commands_of(client, lambda leases=leases: world.settle(*(succeeded(lease, keep_for=0.0) for lease in leases)))  # type: ignore[misc]
        counted.append([added, claimed, settled, await commands_of(client, world.upkeep)])
    plain, tagged = counted
    assert [commands for _, commands in plain[1:3]] == [commands for _, commands in tagged[1:3]]
    assert tagged[0][1] <= plain[0][1] + 2 * BATCH + 12
    assert tagged[3][1] <= plain[3][1] + 2 * BATCH + 12
    assert world.harness.tagged() == set()


async def test_a_page_takes_a_script_for_each_25_jobs_however_many_there_are(world: World, client: redis.Redis) -> None:
    await add(world, 20 * BATCH)
    await add(world, BATCH, tags=("a",))
    await listed(world.broker.console, View(tag="a"))
    for view in (View(tag="a"), View(statuses=(Status.READY,)), View(statuses=(Status.READY,), queue="default")):
        cursor = (await world.broker.console.page(view, limit=BATCH // 2)).cursor
        scripts, commands = await commands_of(client, lambda: world.broker.console.page(view, cursor=cursor, limit=BATCH // 2))  # noqa: B023
        assert scripts == BATCH // 2 // LISTED_AT_ONCE
        assert commands <= 25 * scripts


async def test_a_large_result_costs_three_commands_more(world: World, client: redis.Redis) -> None:
    """One that brings it and two that keep it; one looks whether all are there."""
    session = await world.a_session(ttl=1_000.0)
    await add(world, 2 * BATCH + 1)
    leases = await world.claim(session)
    await world.settle(*(succeeded(lease) for lease in leases[BATCH:]))
    few = await commands_of(client, lambda: world.settle(succeeded(leases[0], bytes(10_000))))
    many = await commands_of(client, lambda: world.settle(*(succeeded(lease, bytes(10_000)) for lease in leases[1:BATCH])))
    assert few[0] == many[0] == 1
    assert few[1] <= MOST["settle"] + 4
    assert many[1] <= MOST["settle"] + 1 + 3 * BATCH


MOST: Final = {"enqueue": 12 + 7, "claim": 24, "settle": 14, "upkeep": 40}
"""Commands of a call. Seven of an enqueue's pass over a worker that waits, but whose process is gone."""


async def test_a_plain_job_is_kept_in_the_fixed_layout_all_its_life(world: World, client: redis.Redis) -> None:
    """A job that has to be unpacked and packed again takes the server three times as long."""
    plain = await world.add(payload=bytes(200))
    with_extras = await world.add(max_attempts=3, timeout=5.0, headers={"a": "b"})
    planned = await world.add(after=5.0)
    ids = [plain.id, with_extras.id, planned.id]
    codes = [CODES[Status.READY], CODES[Status.READY], CODES[Status.SCHEDULED]]
    assert [stored(world, client, job_id)[0] for job_id in ids] == codes
    assert len(stored(world, client, plain.id)) <= 200 + 52

    await world.pass_time(5.0)
    assert stored(world, client, planned.id)[0] == CODES[Status.READY]
    leases = await world.claim(await world.a_session())
    assert [stored(world, client, job_id)[0] for job_id in ids] == [CODES[Status.RUNNING]] * 3
    await world.settle(*(succeeded(lease) for lease in leases))
    assert [stored(world, client, job_id)[0] for job_id in ids] == [CODES[Status.SUCCEEDED]] * 3
    assert len(stored(world, client, plain.id)) <= 150


async def test_what_the_fixed_layout_has_no_place_for_is_kept_as_an_array(world: World, client: redis.Redis) -> None:
    keyed, expiring = await world.add(key="k"), await world.add(expires=60.0)
    tried = await world.running()
    await world.settle(failed(tried))
    assert PLAIN.isdisjoint({stored(world, client, job_id)[:1] for job_id in (keyed.id, expiring.id, tried.envelope.id)})


async def test_the_leases_of_a_busy_session_are_a_table(world: World, client: redis.Redis) -> None:
    """As one string, which the server reads through at each lookup, they would cost a claim half as much again."""
    session = await world.a_session()
    await add(world, BATCH)
    await world.claim(session)
    assert client.object("encoding", prefix_of(world) + b"leases:" + session.id) == b"hashtable"
    assert client.hlen(prefix_of(world) + b"leases:" + session.id) == BATCH


async def test_the_fixed_layout_byte_by_byte(world: World, client: redis.Redis) -> None:
    """Stores hold it: a change raises LAYOUT in fields.py."""
    session = await world.a_session("w1")
    created = world.clock.wall()
    envelope = await world.add(priority=-2, payload=b"\x01p")
    head = b"\xfe" + (1).to_bytes(4) + (2).to_bytes(4) + created.to_bytes(8) + (1).to_bytes(6) + created.to_bytes(8) + bytes(2)
    assert stored(world, client, envelope.id) == b"\x02" + head + (2).to_bytes(4) + b"\x01p"

    [lease] = await world.claim(session)
    fence = (1).to_bytes(4) + session.id + lease.claim.request.to_bytes(6) + bytes(2)
    leased = fence + world.clock.wall().to_bytes(8) + world.clock.steady().to_bytes(8) + (2).to_bytes(2) + b"w1"
    assert stored(world, client, envelope.id) == b"\x03" + leased + b"\x02" + head + (2).to_bytes(4) + b"\x01p"

    await world.settle(succeeded(lease, b"\x01r", ran_for=0.5, keep_for=9.0))
    ended = world.clock.wall().to_bytes(8) + (500_000).to_bytes(8) + (9_000_000).to_bytes(8) + (2).to_bytes(4) + b"\x01r"
    assert stored(world, client, envelope.id) == b"\x04" + leased + b"\x02" + head + ended
