"""The server ends and comes back while workers work and senders send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest

from taskflow.worker.events import BrokerCallFailed, SessionOpened
from tests.stores.drivers import DRIVERS, Driver

MANY: Final = 100


@pytest.mark.parametrize(
    ("kind", "end"), [pytest.param(kind, end, id=f"{kind.name}-{how}") for kind in DRIVERS for how, end in kind.ends.items()]
)
async def test_restarts_under_load_lose_and_repeat_nothing(kind: type[Driver], end: Callable[[Any], None]) -> None:
    """Three restarts. The worker's session and its leases survive, and every run counts."""
    with kind() as driver:
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


async def test_senders_wait_for_a_server_that_is_away_at_first(driver: Driver) -> None:
    async with driver.scene() as scene:
        driver.server.stop()
        sending = asyncio.create_task(scene.send(range(10)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(driver.server.start)
        await sending
        async with scene.worker():
            await scene.until_done()
        await scene.assert_each_settled_once()
