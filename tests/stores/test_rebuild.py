"""Another program has changed indexes and counts. `examine` reports it, and `rebuild` computes them from the records."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskflow.broker.admin import View
from taskflow.broker.redis.examination import Comparison
from taskflow.model.record import Status
from taskflow.model.schedule import Definition
from tests.support.harnesses import PostgresHarness, RedisHarness, SqliteHarness
from tests.support.listing import listed
from tests.support.verdicts import failed, retried, succeeded
from tests.support.world import World, ids_of

NOBODY = b"n" * 16
"""The id of no record."""


@pytest.fixture(params=[SqliteHarness, RedisHarness, PostgresHarness], ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with World(request.param) as opened:
        yield opened


# --- what another program does -------------------------------------------------------------------------------------------


def spoil(world: World) -> None:
    harness: Any = world.harness
    if isinstance(harness, RedisHarness):
        spoil_redis(harness)
    elif isinstance(harness, SqliteHarness):
        with contextlib.closing(harness.connect()) as file:
            spoil_tables(lambda text: file.execute(text.replace("@.", "taskflow_").replace("%s", "?"), (NOBODY,) * text.count("%s")))
            file.execute("UPDATE taskflow_counted SET n = n + 3 WHERE what = '=2'")
            file.execute("DELETE FROM taskflow_counted WHERE what IN ('=4', '=1')")
    else:
        with contextlib.closing(harness.connect()) as database:
            spoil_tables(lambda text: database.execute(text.replace("@.", f'"{harness.namespace}".'), (NOBODY,) * text.count("%s")))
            database.execute(f'''INSERT INTO "{harness.namespace}".tally (queue, before, after, n) VALUES ('default', 4, 2, 3)''')
            database.execute(f"""DELETE FROM "{harness.namespace}".marks WHERE kind = 'ready'""")


def spoil_tables(execute: Any) -> None:
    execute("DELETE FROM @.tags WHERE value = 'lost'")
    execute("INSERT INTO @.tags (value, id) VALUES ('wrong', %s)")
    execute("INSERT INTO @.tags (value, id) SELECT 'wrong', id FROM @.jobs WHERE status = 2")
    execute("DELETE FROM @.declared")
    execute("INSERT INTO @.declared (value, id) VALUES (%s, %s)")


def spoil_redis(harness: RedisHarness) -> None:
    client, prefix = harness._client, harness.prefix.decode()
    for name in ("scheduled", "due", "held", "tags", "declared", "ended", "fading", "causes", "lapsing", "beats", "schedules", "expiring"):
        entries: Any = client.zrange(f"{prefix}i:{name}", 0, -1)
        assert entries, name
        client.zrem(f"{prefix}i:{name}", entries[0])
        client.zadd(f"{prefix}i:{name}", {entries[0][:-16] + NOBODY: 0, b"\0": 1, b"stranger\0\1" + entries[0]: 0})
    entry: Any = client.lpop(f"{prefix}list:0:default")
    client.rpush(f"{prefix}list:0:other", entry, b"\0" * 32)
    client.zadd(f"{prefix}back:0:other", {entry: 0, b"\0" * 32: 0})
    client.delete(f"{prefix}priorities:default", f"{prefix}ready", f"{prefix}kept:0", f"{prefix}lessees")
    client.hset(f"{prefix}counts", mapping={"2default": 1, "1default": "many", "3elsewhere": 4})
    client.zadd(f"{prefix}kept:1", {"default": 1_000_000})
    for key in client.scan_iter(match=f"{prefix}leases:*"):
        client.hset(key, mapping={b"x" * 12: NOBODY})
        client.hdel(key, next(claim for claim in client.hkeys(key) if claim != b"x" * 12))


# --- what doctor and rebuild say ------------------------------------------------------------------------------------------


async def level(world: World) -> str:
    [found] = [finding for finding in await world.broker.admin.examine() if finding.topic == "indexes"]
    return found.level


async def fill(world: World) -> set[bytes]:
    """Add jobs of every status, with tags, and leases of a worker that has died since. Return the ids of those that have not ended."""
    session = await world.a_session("dead")
    await world.broker.define([Definition("nightly", b"d" * 16, b"\x80")], session.id)
    leases = [await world.running(session, queue="default", tags=("lost",)) for _ in range(4)]
    running = [await world.running(session, queue="default", priority=priority) for priority in (0, 0, 7)]
    holder = await world.running(session, queue="default", key="k", tags=("lost",))
    await world.settle(succeeded(leases[0]), succeeded(leases[1]), failed(leases[2]), retried(leases[3]))
    held = world.an_envelope(awaits=1, tags=("lost",))
    await world.enqueue(held, member := world.an_envelope(joins=(held.id,)))
    ready = [await world.add(tags=("lost", "kept")) for _ in range(30)]
    later = [await world.add(after=50.0), await world.add(expires=1_000_000.0, priority=-3)]
    world.clock.advance(session.ttl * 3)
    return {*ids_of([leases[3], *running, holder, held, member, *ready, *later])}


async def run_all(world: World) -> set[bytes]:
    """Return the ids of the jobs that a new worker runs to their end."""
    done, session = set[bytes](), await world.a_session("new", ttl=1_000_000.0)
    for _ in range(8):
        await world.pass_time(100.0)
        leases = await world.claim(session)
        await world.settle(*map(succeeded, leases))
        done |= set(ids_of(leases))
    return done


async def test_all_jobs_run_after_a_rebuild(world: World) -> None:
    jobs = await fill(world)
    assert await level(world) == "ok"
    content = {record.id: record for record in await listed(world.broker.admin)}
    spoil(world)
    assert await level(world) == "problem"

    done = await world.broker.admin.rebuild()

    assert done.corrected.keys() >= {"counts", "tags", "declared"}
    assert await level(world) == "ok"
    assert (await world.broker.admin.rebuild()).corrected == {}
    assert {record.id: record for record in await listed(world.broker.admin)} == content
    assert {record.id for record in await listed(world.broker.admin, View(tag="lost"))} == {
        record.id for record in content.values() if "lost" in record.tags
    }
    assert await run_all(world) == jobs
    queues = {queue.name: queue.counts for queue in await world.broker.admin.queues()}
    assert queues["default"] == {**dict.fromkeys(Status, 0), Status.SUCCEEDED: len(jobs) + 2, Status.FAILED: 1}
    assert await level(world) == "ok"


async def test_a_rebuild_that_is_broken_off_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Redis, each call leaves a sound store behind: here each attempt ends after one script more. Elsewhere a rebuild is a
    transaction."""
    jobs = await fill(world)
    spoil(world)
    calls_left, compare = 0, Comparison._compare

    async def compare_some(self: Comparison, *arguments: Any) -> Any:
        nonlocal calls_left
        calls_left -= 1
        if calls_left < 0:
            raise asyncio.CancelledError
        return await compare(self, *arguments)

    def break_off(*_: object) -> None:
        raise KeyError

    for number in range(200):
        with monkeypatch.context() as patch, contextlib.suppress(asyncio.CancelledError, KeyError):
            calls_left = number
            patch.setattr(Comparison, "_compare", compare_some)
            if number < 2:
                for store in ("sqlite", "postgres"):
                    patch.setattr(f"taskflow.broker.{store}.examination.compare_entries", break_off)
            await world.broker.admin.rebuild()
            break
    else:
        raise AssertionError("it never came to its end")

    assert number > 1
    assert await level(world) == "ok"
    assert await run_all(world) == jobs


async def test_a_record_that_cannot_be_read_is_left(world: World) -> None:
    """It is counted, and neither it nor its entries change."""
    job = await world.add(tags=("kept",))
    with contextlib.closing(world.harness.spoiler()) as spoiler:  # type: ignore[type-var]
        assert spoiler is not None
        name = "jobs.sent" if world.harness.name != "redis" else None
        [value, *_] = [value for value in spoiler.values_of(job.id) if name in (None, value.place)]
        assert spoiler.write(value, b"\xc1")
        before = spoiler.values_of(job.id)
        done = await world.broker.admin.rebuild()

        assert (done.unreadable, done.corrected.get("tags", 0)) == (1, 0)
        assert spoiler.values_of(job.id) == before


async def test_jobs_may_be_sent_beside_a_rebuild(world: World) -> None:
    jobs = await fill(world)

    async def send() -> list[bytes]:
        return ids_of([await world.add() for _ in range(60)])

    sent, _ = await asyncio.gather(send(), world.broker.admin.rebuild(), return_exceptions=True)

    assert isinstance(sent, list)
    await world.broker.admin.rebuild()
    assert await level(world) == "ok"
    assert await run_all(world) == {*jobs, *sent}
