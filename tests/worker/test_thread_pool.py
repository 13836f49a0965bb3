"""Threads for plain functions: one for each that waits, few for those that do not, and results in batches."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from taskflow.model.clock import start_thread
from taskflow.model.errors import JobStopping
from taskflow.worker.thread_pool import CancelledBeforeStart, StoppableCall, ThreadPool


async def test_functions_that_wait_for_each_other_run_at_one_time() -> None:
    """As many run as there may be threads, each in its own."""
    threads, meeting = ThreadPool(8, start_thread), threading.Barrier(8, timeout=10)
    await asyncio.gather(*(threads.run(meeting.wait) for _ in range(8)))
    threads.close()


async def test_there_are_never_more_threads_than_allowed() -> None:
    threads, both, third = ThreadPool(2, start_thread), threading.Barrier(2, timeout=10), threading.Event()
    waiting = [threads.run(both.wait), threads.run(both.wait)]
    late = threads.run(third.set)
    await asyncio.gather(*waiting)
    await late
    threads.close()
    assert third.is_set()


async def test_without_any_thread_left_the_caller_gets_an_error() -> None:
    def refuse(target: Callable[[], None], name: str) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    threads = ThreadPool(2, refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        threads.run(lambda: None)


async def test_cancelled_work_that_no_thread_has_come_to_is_never_called() -> None:
    """Its caller has ended: the effects would come after that."""
    threads, release, called = ThreadPool(1, start_thread), threading.Event(), threading.Event()
    first, second = threads.run(lambda: release.wait(10)), threads.run(called.set)
    second.cancel()
    release.set()
    assert await first
    assert await threads.run(called.is_set) is False
    threads.close()


async def test_work_is_taken_back_until_a_thread_has_come_to_it() -> None:
    threads, begun, release, called = ThreadPool(1, start_thread), threading.Event(), threading.Event(), threading.Event()

    def waits() -> str:
        begun.set()
        release.wait(10)
        return "ended"

    first, second = threads.run(waits), threads.run(called.set)
    assert await asyncio.to_thread(begun.wait, 10)
    threads.take_back(first)
    threads.take_back(second)
    with pytest.raises(CancelledBeforeStart):
        await second
    release.set()
    assert await first == "ended"
    assert await threads.run(called.is_set) is False
    threads.close()


async def test_a_function_that_is_given_up_counts_until_it_ends() -> None:
    """Its thread is not available to others. A function that had not begun occupies none."""
    freed, begun, release = asyncio.Event(), threading.Event(), threading.Event()

    def waits() -> None:
        begun.set()
        release.wait(10)

    threads = ThreadPool(1, start_thread, freed.set)
    first, second = threads.run(waits), threads.run(lambda: None)
    assert await asyncio.to_thread(begun.wait, 10)
    for outcome in (first, second):
        outcome.cancel()
        threads.give_up(outcome)
    assert threads.left_behind == 1
    release.set()
    async with asyncio.timeout(10):
        await freed.wait()
    assert threads.left_behind == 0
    threads.close()


async def test_a_call_that_is_stopped_interrupts_nothing_else() -> None:
    """The request comes before, during or after the function's run: the outcome is its value or JobStopping, and the thread lives on."""
    threads, chance = ThreadPool(1, start_thread), random.Random(7)
    thread, came_to = await threads.run(threading.get_ident), Counter[str]()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(3_000):
            call = StoppableCall(partial(_counted, chance.randrange(400), number))
            outcome = threads.run(call)
            busy_until = time.perf_counter() + chance.random() * 0.0002
            while time.perf_counter() < busy_until:
                pass
            call.stop()
            call.stop()
            try:
                assert await outcome == number
                came_to["returned"] += 1
            except JobStopping as stopping:
                came_to[f"stopped by {stopping.reason}"] += 1
    finally:
        sys.setswitchinterval(before)
    assert await threads.run(threading.get_ident) == thread
    threads.close()
    assert min(came_to["returned"], came_to["stopped by timeout"]) > 20, came_to


def _counted(rounds: int, number: int) -> int:
    for _ in range(rounds):
        pass
    return number
