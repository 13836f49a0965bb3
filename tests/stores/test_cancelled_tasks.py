"""A job cancels every task of the loop that it shares with its worker: the next jobs start as promptly as before."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import taskflow
from taskflow.worker.events import SessionEnded
from tests.stores.drivers import Driver
from tests.support.waiting import until


async def test_a_job_that_cancels_every_task_slows_no_later_job(driver: Driver) -> None:
    """Twice. Idle workers need the nudges of other processes, the heartbeats go on, and every verdict arrives."""
    host = asyncio.current_task()

    @taskflow.job(name="tests.stores.cancel_everything", max_attempts=1)
    async def cancel_everything() -> None:
        for task in asyncio.all_tasks() - {host, asyncio.current_task()}:
            task.cancel()

    async with driver.scene() as scene, scene.worker(), scene.from_afar():
        for number in range(2):
            await until(partial(scene.has_succeeded, await cancel_everything.delay()))
            assert max([await scene.seconds_to_start(10 * number + each) for each in range(4)]) < 1.0
        looked_at = time.monotonic()
        await until(lambda: scene.has_beaten_since(looked_at))
        await scene.until_done()
        assert not [event for event in scene.events if isinstance(event, SessionEnded)]
