"""The server does not answer: its process is suspended, or the network carries nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import pytest

from taskflow import BrokerUnavailable, configure
from taskflow.worker.events import SessionOpened
from tests.stores.drivers import Driver
from tests.stores.scene import TIMEOUT, elapsed_since
from tests.support.waiting import until

HALF_WAY: Final = 60


@pytest.fixture(autouse=True)
def _short_timeouts(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.shorten_timeouts(monkeypatch)


async def test_a_server_suspended_for_longer_than_a_command_may_take_costs_no_run(driver: Driver) -> None:
    """SIGSTOP under load. Sending fails in time. Each run that ends meanwhile is settled once the server goes on."""
    async with driver.scene() as scene, scene.worker(ttl=20):
        scene.takes = 0.2
        await scene.send(range(HALF_WAY))
        await asyncio.sleep(0.05)
        driver.server.suspend()
        began_at = time.monotonic()
        configure(enqueue_timeout=0.6)
        with pytest.raises(BrokerUnavailable, match="has been away for"):
            await scene.note.delay(-1)
        assert elapsed_since(began_at) < 2
        driver.server.resume()
        configure(enqueue_timeout=TIMEOUT)
        await scene.send(range(HALF_WAY, 2 * HALF_WAY))
        await scene.until_done()
        assert not scene.has_lost_a_session
        assert all(scene.runs[number] == 1 for number in scene.handles)


async def test_a_server_suspended_for_longer_than_a_session_lives_counts_no_crash(driver: Driver) -> None:
    """The worker gives its session up. The store sees that nobody beat, and does not blame the jobs."""
    async with driver.scene() as scene:
        async with scene.worker(ttl=1.5):
            scene.takes = 0.5
            await scene.send(range(HALF_WAY))
            await asyncio.sleep(0.1)
            driver.server.suspend()
            await until(lambda: scene.has_lost_a_session, 20)
            driver.server.resume()
            await scene.until_done()
        await scene.assert_each_settled_once()
        assert (await scene.totals())["crash"] == 0


async def test_a_worker_opens_another_session_after_a_hole_in_the_network(driver: Driver) -> None:
    """The hole lasts longer than every timeout and than the session. Every job is done once it is mended."""
    configure(enqueue_timeout=TIMEOUT)
    async with driver.scene(far=True) as scene:
        async with scene.worker(ttl=1.5):
            await scene.send(range(HALF_WAY))
            await scene.until_done()
            await asyncio.to_thread(driver.proxy.blackhole)
            sending = asyncio.create_task(scene.send(range(HALF_WAY, 2 * HALF_WAY)))
            await until(lambda: scene.has_lost_a_session, 20)
            await asyncio.to_thread(driver.proxy.heal)
            await sending
            await scene.until_done()
        await scene.assert_each_settled_once()
        assert sum(isinstance(event, SessionOpened) for event in scene.events) >= 2


async def test_a_listening_connection_that_has_died_in_silence_is_replaced(driver: Driver) -> None:
    """Old connections carry nothing any more, new ones do. Then a notification starts a job at once."""
    async with driver.scene(far=True) as scene, scene.worker():
        await scene.seconds_to_start(0)
        dead = driver.listeners(scene)
        await asyncio.to_thread(driver.proxy.blackhole)
        await asyncio.sleep(1)  # a connection that nobody has used meanwhile would have lost nothing
        await asyncio.to_thread(driver.proxy.heal)
        await until(lambda: driver.listeners(scene) - dead, 10)
        async with scene.from_afar():
            assert await scene.seconds_to_start(1) < 2.0  # to look again takes the worker 5 s
