"""The server ends and comes back: with everything, with nothing, with what it held some time ago."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from taskflow import Status
from taskflow.worker.events import SessionOpened
from tests.stores.redis.scene import Scene
from tests.support.servers import RedisServer
from tests.support.waiting import until

MANY: Final = 200

End = Callable[[RedisServer], None]


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    with RedisServer(aof=True, appendfsync="always") as server:
        yield server


async def test_without_one_all_is_gone_and_the_worker_begins_anew(scene: Scene, server: RedisServer) -> None:
    """Its session is gone with the rest: it opens another, and does what comes then."""
    async with scene.worker():
        await scene.send(range(MANY))
        await scene.until_done()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await scene.send(range(MANY, 2 * MANY))
        await scene.until_done(range(MANY, 2 * MANY))
        assert (await scene.told(range(MANY))) == {"gone": MANY}
        assert (await scene.totals())["succeed"] == MANY
    assert sum(isinstance(event, SessionOpened) for event in scene.events) == 2


async def test_an_older_append_only_file_copied_back(durable: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Power was cut and the tail is lost: what was sent after the copy is gone, what was done after it is done again, the rest stays."""
    async with Scene(durable) as scene:
        async with scene.worker():
            await scene.send(range(MANY))
            await scene.until_done()
        await scene.send(range(MANY, 2 * MANY))
        copy = durable.copy_aof()
        async with scene.worker():
            await scene.send(range(2 * MANY, 3 * MANY))
            await scene.until_done()
            await asyncio.to_thread(durable.kill)
            durable.put_back_aof(copy)
            await asyncio.to_thread(durable.start)
            await until(lambda: _have_succeeded(scene, range(2 * MANY)))
            await scene.send(range(3 * MANY, 4 * MANY))
            await scene.until_done(range(3 * MANY, 4 * MANY))
        assert await scene.told(range(2 * MANY)) == {Status.SUCCEEDED.value: 2 * MANY}
        assert await scene.told(range(2 * MANY, 3 * MANY)) == {"gone": MANY}
        assert await scene.waiting() == {}
        assert (await scene.totals())["succeed"] == 3 * MANY
        again = sum(scene.runs[number] == 2 for number in range(MANY, 2 * MANY))
        with capsys.disabled():
            print(f"\n{again} of {MANY} jobs that were done after the copy were done again; {MANY} sent after it are gone")
        assert again == MANY
        assert all(scene.runs[number] == 1 for number in range(MANY))


async def _have_succeeded(scene: Scene, numbers: range) -> bool:
    return await scene.told(numbers) == {Status.SUCCEEDED.value: len(numbers)}
