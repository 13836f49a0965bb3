"""A server whose settings are not what one would wish, and one that sees two verbs in each other's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from taskflow import BrokerUnavailable, Status, configure
from taskflow.worker.events import SessionEnded
from tests.stores.postgres.scene import Scene
from tests.stores.scene import TIMEOUT, elapsed_since

MANY: Final = 100

HOUR: Final = 3600.0

LOW: Final = {
    "statement_timeout": "'20ms'",
    "idle_in_transaction_session_timeout": "'1ms'",
    "idle_session_timeout": "'100ms'",
}


@pytest.mark.parametrize("setting", LOW)
async def test_low_timeouts_lose_and_repeat_nothing(scene: Scene, setting: str) -> None:
    """They hold for the making of the schema too."""
    configure(enqueue_timeout=TIMEOUT)
    scene.set(setting, LOW[setting])
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await again_and_again(lambda: stack.enter_async_context(scene.worker()))
        await scene.keep_sending(range(MANY), by=25)
        await asyncio.sleep(0.2)
        await scene.send(range(MANY, MANY + 20))
        await again_and_again(scene.until_done)
    scene.reset(setting)  # the looks of the test itself may take longer
    await scene.assert_each_settled_once()


async def again_and_again(what: Callable[[], Awaitable[object]]) -> None:
    """Until it succeeds: nobody but whoever calls it resends a look at the store, or a worker's first registration."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                await what()
            except BrokerUnavailable:
                continue
            return


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_every_isolation_loses_and_repeats_nothing(scene: Scene, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(enqueue_timeout=TIMEOUT)
    scene.set("default_transaction_isolation", f"'{level}'")
    async with scene.worker(), scene.worker():
        await asyncio.gather(*(scene.keep_sending(range(first, first + MANY // 3)) for first in range(0, MANY, MANY // 3)))
        await scene.until_done()
    await scene.assert_each_settled_once()
    with capsys.disabled():
        print(f"\n{level}: {MANY} jobs, {rollbacks(scene)} transactions rolled back")


def rollbacks(scene: Scene) -> int:
    [(number,)] = scene.postgres.rows("SELECT xact_rollback FROM pg_stat_database WHERE datname = $1", scene.database)
    return int(number)


async def test_a_server_that_is_read_only_for_a_while(scene: Scene) -> None:
    """Whoever sends waits, the worker goes on with its session."""
    async with scene.worker(ttl=20):
        await scene.send(range(20))
        await scene.until_done()
        scene.set("default_transaction_read_only", "on")
        sending = asyncio.create_task(scene.send(range(20, 40)))
        await asyncio.sleep(0.3)
        assert not sending.done()
        scene.reset("default_transaction_read_only")
        await sending
        await scene.until_done()
    await scene.assert_each_settled_once()
    assert not [event for event in scene.events if isinstance(event, SessionEnded)]


@pytest.mark.parametrize("wrong_by", [HOUR, -HOUR], ids=["fast", "slow"])
async def test_a_worker_whose_clock_is_off_by_an_hour(scene: Scene, monkeypatch: pytest.MonkeyPatch, wrong_by: float) -> None:
    """And a sender's: all goes by the server's. What is to come later comes later, what expires in a minute does not expire."""
    right, right_in_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by)
    monkeypatch.setattr(time, "time_ns", lambda: right_in_ns() + int(wrong_by * 1e9))
    async with scene.worker(ttl=1):
        began_at = time.monotonic()
        scene.handles[0] = await scene.note.options(after=0.3).delay(0)
        scene.handles[1] = await scene.note.options(at=datetime.fromtimestamp(right(), UTC) + timedelta(seconds=0.3)).delay(1)
        scene.handles[2] = await scene.note.options(expires=60).delay(2)
        scene.handles[3] = await scene.note.options(after=HOUR / 2).delay(3)
        for number in (0, 1):
            await scene.until_ran([number], within=HOUR / 60)
            assert elapsed_since(began_at) >= 0.3
        await scene.until_done([0, 1, 2])
        await asyncio.sleep(1)  # its session is not taken for dead
        assert await scene.told([3]) == {Status.SCHEDULED.value: 1}
        [record] = await scene.records([2])
        assert record is not None
        assert abs(record.created_at.timestamp() - right()) < 60
    assert (await scene.totals())["succeed"] == 3
    assert (await scene.totals())["crash"] == 0
    assert not [event for event in scene.events if isinstance(event, SessionEnded)]
