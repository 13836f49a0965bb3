"""An async generator of calls is closed, however `enqueue` ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from taskflow import Call, EnqueueFailed, configure, enqueue
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add
from tests.unit.app.watched import Watched


class Opened:
    """Calls from something that must be closed."""

    def __init__(self, *, raises: bool = False) -> None:
        self.is_closed = False
        self._raises = raises

    async def calls(self) -> AsyncIterator[Call[int]]:
        try:
            for number in range(5_000):
                yield add.bind(number)
            if self._raises:
                raise RuntimeError("by design")
        finally:
            await asyncio.sleep(0)
            self.is_closed = True


async def test_a_cancelled_enqueue_closes_its_async_generator(bench: Bench) -> None:
    """Not only when the garbage collector finds it: what it holds open (a cursor, a file) is closed by then."""
    slow = Watched(bench.broker)
    slow.gate.clear()
    opened = Opened()
    with bench.app.using(slow.as_broker):
        sending = asyncio.create_task(enqueue(opened.calls()))
        await slow.arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert opened.is_closed


async def test_an_enqueue_that_fails_closes_its_async_generator(bench: Bench) -> None:
    away = Watched(bench.broker)
    away.is_away = True
    opened = Opened()
    with bench.app.using(away.as_broker):
        configure(enqueue_timeout=0.05)
        with pytest.raises(EnqueueFailed):
            await enqueue(opened.calls())
        assert opened.is_closed


async def test_an_async_generator_that_ends_or_raises_is_closed(bench: Bench) -> None:
    opened, raising = Opened(), Opened(raises=True)
    assert len(await enqueue(opened.calls())) == 5_000
    with pytest.raises(EnqueueFailed, match="by design"):
        await enqueue(raising.calls())
    assert (opened.is_closed, raising.is_closed) == (True, True)
