"""A server that says nothing: stopped, or beyond a hole in the network."""

from __future__ import annotations

import asyncio
import time

import pytest

from taskflow import BrokerUnavailable, configure
from taskflow.broker.redis import wakeups
from taskflow.broker.redis.connect import pool
from taskflow.broker.redis.connect.server import ANSWER_WITHIN
from taskflow.worker.events import SessionEnded, SessionOpened
from tests.stores.redis.scene import PATIENCE, Scene, elapsed_since, until
from tests.support.proxy import Proxy
from tests.support.servers import Found, RedisServer, redis_binaries

HALF_WAY = 100


@pytest.fixture
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them a tenth of what they are, so that a second is longer than every one."""
    monkeypatch.setattr(pool, "ANSWER_WITHIN", 0.3)
    monkeypatch.setattr(wakeups, "PING_EVERY", 0.3)
    monkeypatch.setattr(wakeups, "PONG_WITHIN", 0.3)


@pytest.mark.parametrize("found", redis_binaries()[:1], ids=lambda found: found.name)
async def test_a_server_stopped_for_longer_than_the_timeout_of_a_command(found: Found) -> None:
    """SIGSTOP in the midst of work. What is sent meanwhile fails in time; each run that ends meanwhile is told once the server goes on."""
    with RedisServer(found.path) as server:
        async with Scene(server) as scene, scene.worker(ttl=20):
            scene.takes = 0.2
            await scene.send(range(HALF_WAY))
            await asyncio.sleep(0.05)
            server.suspend()
            stopped_at = time.monotonic()
            configure(enqueue_timeout=ANSWER_WITHIN + 0.3)
            with pytest.raises(BrokerUnavailable, match="has been away for"):
                await scene.note.delay(-1)
            assert elapsed_since(stopped_at) < ANSWER_WITHIN + 1.5
            server.resume()
            configure(enqueue_timeout=10)
            await scene.send(range(HALF_WAY, 2 * HALF_WAY))
            await scene.until_done()
            assert not [event for event in scene.events if isinstance(event, SessionEnded)]
            assert all(scene.runs[number] == 1 for number in scene.handles)


@pytest.mark.usefixtures("_short_timeouts")
async def test_a_server_stopped_for_longer_than_a_session_lives(scene: Scene, server: RedisServer) -> None:
    """Its worker gives the session up; the store, which sees that nobody has beaten, does not count it as a crash of the jobs."""
    async with scene.worker(ttl=1.5):
        scene.takes = 0.5
        await scene.send(range(HALF_WAY))
        await asyncio.sleep(0.1)
        server.suspend()
        await until(lambda: any(isinstance(event, SessionEnded) for event in scene.events), 20)
        server.resume()
        await scene.until_done()
    await scene.assert_each_settled_once()
    assert (await scene.totals())["crash"] == 0


@pytest.mark.usefixtures("_short_timeouts")
async def test_a_hole_in_the_network_that_lasts_longer_than_every_timeout(far_scene: Scene, proxy: Proxy) -> None:
    """The session's time to live too: its worker gives itself up, begins another session when the hole is mended, and all is done."""
    configure(enqueue_timeout=PATIENCE)
    async with far_scene.worker(ttl=1.5):
        await far_scene.send(range(HALF_WAY))
        await far_scene.until_done()
        await asyncio.to_thread(proxy.blackhole)
        sending = asyncio.create_task(far_scene.send(range(HALF_WAY, 2 * HALF_WAY)))
        await until(lambda: any(isinstance(event, SessionEnded) for event in far_scene.events), 20)
        await asyncio.to_thread(proxy.heal)
        await sending
        await far_scene.until_done()
    await far_scene.assert_each_settled_once()
    assert sum(isinstance(event, SessionOpened) for event in far_scene.events) >= 2


@pytest.mark.usefixtures("_short_timeouts")
async def test_a_subscription_that_is_dead_in_silence_is_made_anew(far_scene: Scene, proxy: Proxy) -> None:
    """Old connections carry nothing any more, new ones do: the worker hears of a job as soon as it has noticed."""
    async with far_scene.worker():
        await far_scene.send([0])
        await far_scene.until_done()
        await asyncio.to_thread(proxy.blackhole)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(proxy.heal)
        await asyncio.sleep(1.5)
        began_at = time.monotonic()
        await far_scene.send([1])
        await far_scene.until_ran([1])
        assert elapsed_since(began_at) < 0.5
