"""Keys of ours that somebody has overwritten, or half deleted: they are put aside, and the loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import pytest
import redis

from taskflow import Status
from taskflow.broker.url import connect
from taskflow.worker import fetcher
from tests.cli.stock import failed_with
from tests.stores.redis.scene import Scene
from tests.support.binaries import ServerBinary
from tests.support.servers import RedisServer, redis_binaries
from tests.support.verdicts import AN_ERROR

PREFIX: Final = b"{taskflow:0}:"

ONE_OF_EACH: Final = (
    "names",
    "texts",
    "meta",
    "counts",
    "totals",
    "alive",
    "dead",
    "ready",
    "due",
    "expiring",
    "fade",
    "crowded",
    "keys",
    "held",
    "schedules",
    "failure_cells",
)
OTHERS: Final = ("awaited", "nudged", "paused", "upkeepers", "waiting:", "spoilt", "reindexing", "reindexed", "end_subscribers", "ends")
OF_THE_QUEUE: Final = ("ready_list:1:0", "returned:1:0", "priorities:1", "kept:1:0", "kept:1:1")
OF_THE_SESSION: Final = ("session:", "leases:", "stopping:", "declares:")

INDEXES: Final = (*ONE_OF_EACH, *OTHERS, *OF_THE_QUEUE, *OF_THE_SESSION)

BATCH: Final = 20


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the index of those who wait for a nudge the nudge is lost: then the next look finds the job."""
    monkeypatch.setattr(fetcher, "LOOK_AGAIN", 0.25)


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


class Numbers:
    """Of jobs: each is given once."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, number: int = BATCH) -> range:
        self._next += number
        return range(self._next - number, self._next)


def spoil(client: redis.Redis, key: bytes) -> None:
    """Give it another type than it has, or should have: all of ours are anything but streams."""
    with client.pipeline() as both:  # at once: a call in between would make it anew
        both.delete(key)
        both.xadd(key, {"not": "ours"})
        both.execute()


def keys_called(client: redis.Redis, name: str) -> list[bytes]:
    """Those of living sessions where it ends so; else the one."""
    if not name.endswith(":"):
        return [PREFIX + name.encode()]
    sessions: list[Any] = client.zrange(PREFIX + b"alive", 0, -1)
    return [PREFIX + name.encode() + session for session in sessions]


@pytest.mark.parametrize("found", redis_binaries()[:2], ids=lambda found: found.name)
async def test_whichever_index_is_of_a_wrong_type_the_loop_goes_on(found: ServerBinary, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in turn, between jobs and while jobs wait and run. All jobs are done, those too that were there already."""
    numbers, asides = Numbers(), dict[str, int]()
    with RedisServer(found.path) as server, server.client() as client:
        async with Scene(server) as scene, scene.worker():
            for name in INDEXES:
                scene.takes = 0.02
                before = numbers()
                await scene.send(before)
                for key in keys_called(client, name):
                    spoil(client, key)
                await scene.send(numbers())
                await scene.until_done(within=20)
                asides[name] = len(list(client.scan_iter(PREFIX + b"bad:*")))
            assert await scene.waiting() == {}
    with capsys.disabled():
        print(f"\n{found.name}: {len(INDEXES)} indexes spoilt in turn, {len(scene.handles)} jobs done; put aside by then: {asides}")


@pytest.mark.parametrize("name", INDEXES)
async def test_whichever_index_is_deleted_the_loop_goes_on(scene: Scene, client: redis.Redis, name: str) -> None:
    """What stood in it may be forgotten: what comes is done, in an old queue and in a new one."""
    numbers = Numbers()
    async with scene.worker():
        await scene.send(numbers())
        await scene.until_done()
        for key in keys_called(client, name):
            client.delete(key)
        new = numbers()
        await scene.send(new)
        await scene.until_done(new, within=20)
        scene.note = scene.note.options(queue="new")
        newer = numbers()
        await scene.send(newer)
        await scene.until_done(newer, within=20)
        assert {record and record.queue for record in await scene.records(newer)} == {"new"}


@pytest.mark.parametrize("name", INDEXES)
async def test_whichever_index_is_deleted_under_jobs_that_wait_and_run(scene: Scene, client: redis.Redis, name: str) -> None:
    """What stood in it may be forgotten; upkeep sees to it that what comes next is not."""
    numbers = Numbers()
    async with scene.worker(concurrency=5):
        scene.takes = 0.02
        await scene.send(numbers())
        await asyncio.sleep(0.03)
        for key in keys_called(client, name):
            client.delete(key)
        scene.takes = 0.0
        new = numbers()
        await scene.send(new)
        await scene.until_done(new, within=8)


async def test_the_groups_of_failed_jobs_are_made_anew(server: RedisServer, client: redis.Redis) -> None:
    """From the jobs themselves, when another program has spoilt a key of theirs."""
    broker = connect(server.url)
    for number in range(5):
        await failed_with(broker, AN_ERROR, f"d{number % 2}", job="work")
    [group] = await broker.console.failure_groups()
    assert (group.count, group.deploys) == (5, {"d0": 3, "d1": 2})
    cells: list[Any] = client.zrange(PREFIX + b"failure_cells", 0, -1)
    for key in (PREFIX + b"failures:" + cells[0], PREFIX + b"failure_cells"):
        spoil(client, key)
        client.delete(PREFIX + b"reindexed", PREFIX + b"reindexing")
        assert await broker.console.failure_groups() == [group]
        assert len(await broker.console.failed_ids(group.fingerprint)) == 5
    await broker.close()


async def test_who_is_cut_off_while_mending_keeps_nobody_from_it(scene: Scene, client: redis.Redis) -> None:
    """At whichever of its steps."""
    numbers = Numbers()
    await scene.send(numbers())
    for moment in range(20):
        spoil(client, PREFIX + b"ready_list:1:0")
        sending = asyncio.create_task(scene.send(numbers()))
        await asyncio.sleep(moment * 0.0002)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    async with scene.worker():
        new = numbers()
        await scene.send(new)
        await scene.until_done(within=8)


async def test_jobs_deleted_under_the_worker_are_gone_and_nothing_else(scene: Scene, client: redis.Redis) -> None:
    """Ready ones and running ones: neither claim, beat nor settle stumbles."""
    async with scene.worker(concurrency=10):
        scene.takes = 0.2
        await scene.send(range(BATCH))
        await asyncio.sleep(0.1)
        running = [record.id for record in await scene.records(range(BATCH)) if record and record.status is Status.RUNNING]
        assert len(running) == 10
        deleted = [number for number in range(BATCH) if number % 2]
        for number in deleted:
            client.delete(PREFIX + b"j:" + bytes.fromhex(scene.handles[number].id.replace("-", "")))
        scene.takes = 0.0
        await scene.send(range(BATCH, 2 * BATCH))
        await scene.until_done([number for number in range(2 * BATCH) if number not in deleted])
        assert await scene.told(deleted) == {"gone": len(deleted)}
