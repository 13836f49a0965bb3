"""One timer for a task that repeatedly has to finish in time."""

from __future__ import annotations

import asyncio
import time

import pytest

from taskflow.broker.tasks import Deadline

SOON = 0.05


@pytest.fixture
def late() -> list[str]:
    return []


async def test_an_operation_that_ends_in_time_is_not_late(late: list[str]) -> None:
    deadline = Deadline(lambda: late.append("late"))
    deadline.begin(SOON)
    deadline.end()
    await asyncio.sleep(3 * SOON)
    assert late == []


async def test_an_operation_that_ended_while_the_loop_was_blocked_is_not_late(late: list[str]) -> None:
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
