"""The server ends and comes back: with everything, with nothing, with what it held some time ago."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from taskflow import Status
from taskflow.worker.events import BrokerTrouble, SessionOpened
from tests.stores.redis.scene import Scene, until
from tests.support.servers import Found, RedisServer, redis_binaries

MANY: Final = 200

End = Callable[[RedisServer], None]


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    with RedisServer(aof=True, appendfsync="always") as server:
        yield server


@pytest.mark.parametrize("found", redis_binaries()[:1], ids=lambda found: found.name)
@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill], ids=["stopped", "killed"])
async def test_with_an_append_only_file_nothing_is_lost_and_nothing_repeated(found: Found, end: End) -> None:
    """In the midst of work, three times. The worker's session and its leases survive with the rest, and every run counts."""
    with RedisServer(found.path, aof=True) as server:
        async with Scene(server) as scene:
            scene.takes = 0.02
            async with scene.worker(ttl=20):
                sending = asyncio.create_task(scene.keep_sending(range(3 * MANY)))
                for _ in range(3):
                    await asyncio.sleep(0.05)
                    assert not sending.done()
                    await asyncio.to_thread(end, server)
                    await asyncio.to_thread(server.start)
                await sending
                await scene.until_done()
            await scene.assert_each_settled_once()
            assert scene.runs.total() == 3 * MANY
            assert sum(isinstance(event, SessionOpened) for event in scene.events) == 1
            assert any(isinstance(event, BrokerTrouble) for event in scene.events)


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


async def test_a_server_that_is_away_at_first_is_waited_for_by_senders(scene: Scene, server: RedisServer) -> None:
    server.stop()
    sending = asyncio.create_task(scene.send(range(10)))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(server.start)
    await sending
    async with scene.worker():
        await scene.until_done()


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
