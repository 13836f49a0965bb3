"""How long a store that is away is waited for."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from taskflow.app.loop_client import BLOCKED_FOR, retry_within
from taskflow.model.errors import BrokerUnavailable


async def test_an_answer_that_came_while_the_loop_stood_still_counts() -> None:
    """The time to wait ran out, but nobody could have heard: the verb is sent again."""
    loop, times = asyncio.get_running_loop(), 0

    async def verb() -> int:
        nonlocal times
        times += 1
        answer: asyncio.Future[int] = loop.create_future()
        threading.Timer(0.02, loop.call_soon_threadsafe, [answer.set_result, times]).start()
        loop.call_later(0.01, time.sleep, 0.1 + BLOCKED_FOR if times == 1 else 0.0)
        return await answer

    assert await retry_within(verb, timeout=0.1) in (1, 2)


async def test_without_an_answer_it_is_given_up() -> None:
    async def verb() -> None:
        await asyncio.sleep(5)

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"away for 0\.1 s"):
        await retry_within(verb, timeout=0.1)
    assert time.monotonic() - began < 2
