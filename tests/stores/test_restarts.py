"""Servers stop and come back or hang, and connections end, while workers work and senders send.

tests/faults has the outages that last longer than a session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from taskflow import BrokerUnavailable, configure
from taskflow.worker.events import BrokerCallFailed, SessionOpened
from tests.stores.drivers import DRIVERS, Driver
from tests.stores.scene import TIMEOUT, elapsed_since
from tests.support.waiting import until

MANY: Final = 100


@pytest.mark.parametrize(
    ("kind", "end"), [pytest.param(kind, end, id=f"{kind.name}-{how}") for kind in DRIVERS for how, end in kind.ends.items()]
)
async def test_restarts_under_load_lose_and_repeat_nothing(kind: type[Driver], end: Callable[[Any], None]) -> None:
    """There are three restarts. The worker's session and its leases survive, and every run counts."""
    with kind.started() as driver:
        async with driver.scene() as scene:
            scene.takes = 0.02
            async with scene.worker(ttl=20):
                sending = asyncio.create_task(scene.keep_sending(range(3 * MANY), ahead=MANY))
                for number in range(3):
                    await scene.until_ran([number * 20])
                    assert not sending.done()
                    await asyncio.to_thread(end, driver.server)
                    await asyncio.to_thread(driver.server.start)
                await sending
                await scene.until_done()
            await scene.assert_each_settled_once()
            assert scene.runs.total() == 3 * MANY
            assert sum(isinstance(event, SessionOpened) for event in scene.events) == 1
            assert any(isinstance(event, BrokerCallFailed) for event in scene.events)


async def test_senders_wait_for_a_server_that_is_away_at_first_or_refuses_writes_for_a_while(driver: Driver) -> None:
    async with driver.scene() as scene:
        driver.server.stop()
        sending = asyncio.create_task(scene.send(range(20)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(driver.server.start)
        await sending
        async with scene.worker(ttl=20):
            await scene.until_done()
            driver.refuse_writes(scene, True)
            sending = asyncio.create_task(scene.send(range(20, 40)))
            await asyncio.sleep(0.5)
            assert not sending.done()
            driver.refuse_writes(scene, False)
            await sending
            await scene.until_done()
        await scene.assert_each_settled_once()
        assert not scene.has_lost_a_session


async def test_connections_ended_at_random_lose_and_repeat_nothing(driver: Driver) -> None:
    """The server ends one connection, all, or those that listen, under two workers."""
    configure(enqueue_timeout=TIMEOUT)
    async with driver.scene() as scene:
        async with scene.worker(), scene.worker(), driver.killing(scene, seed=3) as ended:
            jobs = 0
            while jobs < 900 or ended() <= 20:
                await scene.send(range(jobs, jobs + 15))
                jobs += 15
                await asyncio.sleep(0.01)
            await scene.until_done()
        await scene.assert_each_settled_once()


async def test_cuts_of_all_connections_lose_and_repeat_nothing(driver: Driver) -> None:
    """Half of the commands have been sent, and it is unknown whether they took effect."""
    configure(enqueue_timeout=TIMEOUT)
    async with driver.scene(far=True) as scene, scene.worker():
        await scene.seconds_to_start(-1)
        driver.proxy.latency = 0.002
        for number in range(15):
            sending = asyncio.create_task(scene.send(range(number * 20, number * 20 + 20)))
            await asyncio.sleep(0.001 + number * 0.0003)
            await asyncio.to_thread(driver.proxy.cut_all)
            await sending
        await scene.until_done()
        await scene.assert_each_settled_once()


async def test_a_server_suspended_for_longer_than_a_command_may_take_costs_no_run(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP under load. Sending fails in time. Each run that ends meanwhile is settled once the server goes on."""
    driver.shorten_timeouts(monkeypatch)
    async with driver.scene() as scene, scene.worker(ttl=20):
        scene.takes = 0.2
        await scene.send(range(60))
        await asyncio.sleep(0.05)
        driver.server.suspend()
        began_at = time.monotonic()
        configure(enqueue_timeout=0.6)
        with pytest.raises(BrokerUnavailable, match="has not answered for"):
            await scene.note.delay(-1)
        assert elapsed_since(began_at) < 2
        driver.server.resume()
        configure(enqueue_timeout=TIMEOUT)
        await scene.send(range(60, 120))
        await scene.until_done()
        assert not scene.has_lost_a_session
        assert all(scene.runs[number] == 1 for number in scene.handles)


async def test_a_listening_connection_that_has_died_in_silence_is_replaced(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old connections transmit nothing any more, new ones do. Then a notification starts a job at once."""
    driver.shorten_timeouts(monkeypatch)
    async with driver.scene(far=True) as scene, scene.worker():
        await scene.seconds_to_start(0)
        await asyncio.sleep(0.5)  # a statement in flight would be waited for until it times out
        dead = driver.listeners(scene)
        await asyncio.to_thread(driver.proxy.blackhole)
        await asyncio.sleep(1)  # a connection that nobody has used meanwhile would have lost nothing
        await asyncio.to_thread(driver.proxy.heal)
        await until(lambda: driver.listeners(scene) - dead, 10)
        async with scene.from_afar():
            assert await scene.seconds_to_start(1) < 2.0  # a poll would come after 5 s
