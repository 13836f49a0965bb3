"""One timer for what is done again and again in time."""

from __future__ import annotations

import asyncio
import time

import pytest

from taskflow.broker.deadline import Deadline

SOON = 0.05


@pytest.fixture
def late() -> list[str]:
    return []


async def test_what_ends_in_time_is_not_late(late: list[str]) -> None:
    deadline = Deadline(lambda: late.append("late"))
    deadline.begin(SOON)
    deadline.end()
    await asyncio.sleep(3 * SOON)
    assert late == []


async def test_what_does_not_end_is_late_once(late: list[str]) -> None:
    deadline = Deadline(lambda: late.append("late"))
    deadline.begin(SOON)
    await asyncio.sleep(5 * SOON)
    assert late == ["late"]


async def test_what_ended_while_the_loop_was_blocked_is_not_late(late: list[str]) -> None:
    """The loop handles the answer first. The task that waits for it runs one turn later than the timer."""
    deadline = Deadline(lambda: late.append("late"))
    answer = asyncio.get_running_loop().create_future()

    async def ask() -> None:
        deadline.begin(SOON)
        await answer
        deadline.end()

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(answer.set_result, None)
    time.sleep(4 * SOON)  # noqa: ASYNC251  # the test blocks the loop
    await asking
    await asyncio.sleep(3 * SOON)
    assert late == []


async def test_the_timer_of_an_earlier_one_tells_nothing_of_a_later_one(late: list[str]) -> None:
    loop = asyncio.get_running_loop()
    deadline = Deadline(lambda: late.append("late"))
    deadline.begin(4 * SOON)
    deadline.end()
    await asyncio.sleep(3 * SOON)
    began_at = loop.time()
    deadline.begin(4 * SOON)
    await asyncio.sleep(2 * SOON)
    assert late == []
    while not late:  # noqa: ASYNC110  # its end is what is looked for
        await asyncio.sleep(0.001)
    assert loop.time() - began_at >= 4 * SOON - 0.005


async def test_many_in_a_row_take_one_timer(late: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), 0
    original = loop.call_at

    def counted(*args: object, **options: object) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_at", counted)
    deadline = Deadline(lambda: late.append("late"))
    for _ in range(100):
        deadline.begin(5.0)
        deadline.end()
    assert (timers, late) == (1, [])
