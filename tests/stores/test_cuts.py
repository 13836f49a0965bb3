"""Connections end under load: the server ends them, or the network cuts them."""

from __future__ import annotations

import asyncio
from typing import Final

from taskflow import configure
from tests.stores.drivers import Driver
from tests.stores.scene import TIMEOUT

JOBS: Final = 900
ENDED: Final = 20
"""Connections, at the least."""

CUTS: Final = 15


async def test_connections_ended_at_random_lose_and_repeat_nothing(driver: Driver) -> None:
    """The server ends one, all, or those that listen, under two workers."""
    configure(enqueue_timeout=TIMEOUT)
    async with driver.scene() as scene:
        async with scene.worker(), scene.worker(), driver.killing(scene, seed=3) as ended:
            jobs = 0
            while jobs < JOBS or ended() <= ENDED:
                await scene.send(range(jobs, jobs + 15))
                jobs += 15
                await asyncio.sleep(0.01)
            await scene.until_done()
        await scene.assert_each_settled_once()


async def test_cuts_of_all_connections_lose_and_repeat_nothing(driver: Driver) -> None:
    """Half of the commands have been sent, and nobody knows whether they took effect."""
    configure(enqueue_timeout=TIMEOUT)
    async with driver.scene(far=True) as scene, scene.worker():
        await scene.seconds_to_start(-1)
        driver.proxy.latency = 0.002
        for number in range(CUTS):
            sending = asyncio.create_task(scene.send(range(number * 20, number * 20 + 20)))
            await asyncio.sleep(0.001 + number * 0.0003)
            await asyncio.to_thread(driver.proxy.cut_all)
            await sending
        await scene.until_done()
        await scene.assert_each_settled_once()
