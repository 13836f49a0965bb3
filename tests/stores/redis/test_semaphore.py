"""So many at one time, in their order, whoever is cancelled."""

from __future__ import annotations

import asyncio

from taskflow.broker.redis.connect.semaphore import Semaphore


async def settle_down() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_there_are_so_many() -> None:
    turns = Semaphore(2)
    assert [turns.take(), turns.take(), turns.take()] == [True, True, False]
    turns.give()
    assert [turns.take(), turns.take()] == [True, False]


async def test_who_waits_is_next_and_nobody_comes_in_between() -> None:
    turns, order = Semaphore(1), list[int]()

    async def wait(number: int) -> None:
        await turns.wait()
        order.append(number)

    assert turns.take()
    waiting = [asyncio.ensure_future(wait(number)) for number in range(2)]
    await settle_down()
    turns.give()
    assert not turns.take(), "it is the first one's, who has not heard of it yet"
    await settle_down()
    assert order == [0]
    turns.give()
    await asyncio.gather(*waiting)
    assert order == [0, 1]
    turns.give()
    assert turns.take()


async def test_a_turn_of_one_that_was_cancelled_is_not_lost() -> None:
    """While it waited, and in the moment in which it got its turn."""
    turns = Semaphore(1)
    assert turns.take()
    first, second, third = (asyncio.ensure_future(turns.wait()) for _ in range(3))
    await settle_down()
    first.cancel()
    await settle_down()
    turns.give()  # to the second
    second.cancel()
    await asyncio.wait([first, second])
    await asyncio.wait_for(third, 1)
    assert (first.cancelled(), second.cancelled()) == (True, True)
    turns.give()
    assert turns.take()
